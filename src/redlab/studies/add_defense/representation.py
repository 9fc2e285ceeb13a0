"""What ADD-Defense's representation says, and does not: Figs. 6 and 7c, Table 6 (LID), and what attacks leave in z."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from redlab.metrics import Samples, auroc
from redlab.probes import FirstMap, IntrinsicDimension, Latents, Perturbations
from redlab.report.plots import embedding, image_grid
from redlab.studies.add_defense.restoring import ADD, NAMES, NO_DP, trained
from redlab.studies.numbers import average, every
from redlab.studies.paper_numbers import paper_table
from redlab.studies.study import DIAGNOSIS, Evaluation, Seen, Study
from redlab.studies.table import Address, Table

SHOWN = 150
"""Images of each attack that an embedding shows."""

NEIGHBOURS = 5


def kept(seen: Seen, attack: str, picture: str) -> tuple[Tensor, Tensor]:
    """Pictures (N, C, H, W) of an attack and their labels (N,)."""
    places = (seen.of["attack"] == seen.of.names["attack"].index(attack)).nonzero()[:, 0]
    return seen.pictures[picture][places], seen.of["label"][places].long()


def embedded(images: Tensor) -> Tensor:
    """(N, 2) in [0, 1]: t-SNE of images (N, C, H, W)."""
    from sklearn.manifold import TSNE

    points = images.flatten(1).double().numpy()
    found = TSNE(perplexity=min(30, (len(points) - 1) / 3), random_state=0).fit_transform(points)
    flat = torch.as_tensor(found)
    low, high = flat.min(0).values, flat.max(0).values
    return (flat - low) / (high - low).clamp(min=1e-12)


def agreement(points: Tensor, label: Tensor) -> float:
    """Share of points that have the class of most of their nearest neighbours, themselves left out."""
    near = torch.cdist(points, points).fill_diagonal_(torch.inf).argsort(1)[:, : min(NEIGHBOURS, len(points) - 1)]
    votes = torch.nn.functional.one_hot(label[near], int(label.max()) + 1).sum(1)
    return float((votes.argmax(1) == label).double().mean())


SETS = {"untargeted": "pgd_u", "targeted": "pgd_t"}
SIDES = {"attacked": "adv", "restored": "restored"}


def fig6() -> Study:
    """Fig. 6: t-SNE of originals and attacked images, and of the same restored."""

    def points(seen: Mapping[str, Seen], attack: str, side: str) -> tuple[Tensor, Tensor]:
        images, label = (
            torch.cat(both) for both in zip(*(kept(seen[ADD], a, side) for a in ("clean", attack)), strict=True)
        )
        return embedded(images), label

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        return {
            (f"{NEIGHBOURS} nearest agree", f"{what}, {side}"): agreement(*points(seen, attack, column))
            for what, attack in SETS.items()
            for side, column in SIDES.items()
        }

    def figure(seen: Mapping[str, Seen], _: Table) -> Figure:
        panels = {
            f"{what}, {side}": points(seen, attack, column)
            for side, column in SIDES.items()
            for what, attack in SETS.items()
        }
        return embedding(panels, title="t-SNE of originals and attacked images, by class")

    row = f"{NEIGHBOURS} nearest agree"
    return Study(
        id="add_defense/fig6",
        title="Classes in t-SNE, attacked and restored (Fig. 6)",
        runs=trained("@mnist", names=(ADD,)),
        evaluations={ADD: Evaluation(run=ADD, overrides=DIAGNOSIS, probe=Perturbations(), keep_images=SHOWN)},
        numbers=numbers,
        claims={
            "classes come apart again": lambda t: every(
                t[row, f"{what}, attacked"] < t[row, f"{what}, restored"] for what in SETS
            )
        },
        figure=figure,
        notes=("The measure is ours: the share of points whose class is that of most of its nearest neighbours.",),
    )


def fig7c() -> Study:
    """Fig. 7c: one channel of E's first activation, under several attacks."""

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        maps = {attack: kept(seen[ADD], attack, "map")[0].flatten(1) for attack in seen[ADD].rows.attacks}
        centred = {a: (m - m.mean(1, keepdim=True)) for a, m in maps.items() if a in ("clean", *NAMES)}
        unit = {a: m / m.norm(dim=1, keepdim=True).clamp(min=1e-12) for a, m in centred.items()}
        clean, table = unit["clean"], {}
        count = min(len(m) for m in unit.values())
        other = float((clean[:count] * clean[:count].roll(1, 0)).sum(1).mean())
        for attack, mine in unit.items():
            if attack != "clean":
                table["same image", NAMES[attack]] = float((mine[:count] * clean[:count]).sum(1).mean())
                table["another image", NAMES[attack]] = other
        return table

    def figure(seen: Mapping[str, Seen], _: Table) -> Figure:
        columns: dict[str, Tensor] = {}
        for attack in seen[ADD].rows.attacks:
            if attack in ("clean", *NAMES):
                name = NAMES.get(attack, "original")
                columns[f"{name}: image"] = kept(seen[ADD], attack, "adv")[0][:4]
                columns[f"{name}: map (map)"] = kept(seen[ADD], attack, "map")[0][:4]
        return image_grid(columns, title="Channel 10 of the first activation")

    return Study(
        id="add_defense/fig7c",
        title="The first activation under several attacks (Fig. 7c)",
        runs=trained("@cifar", names=(ADD,)),
        evaluations={ADD: Evaluation(run=ADD, overrides=("@test_cifar", *DIAGNOSIS), probe=FirstMap(), keep_images=32)},
        numbers=numbers,
        claims={
            "maps of one image under different attacks are more alike than those of two images": lambda t: every(
                t["another image", c] < same for c, same in t.row("same image").items()
            )
        },
        figure=figure,
        units={"same image": "correlation", "another image": "correlation"},
        notes=("The measure is ours; the paper shows one image.",),
    )


# ---- LID ----------------------------------------------------------------------------------------------------------


def features(rows: Samples, what: str) -> Tensor:
    """(N, layers) of the images that the target gets right."""
    right = rows.take((rows["right_clean"] > 0).nonzero()[:, 0])
    layers = sorted(
        (name for name in right.columns if name.startswith(f"{what}_")), key=lambda n: int(n.split("_")[-1])
    )
    return torch.stack([right[name] for name in layers], dim=1).nan_to_num(0.0)


def detected(rows: Samples) -> dict[tuple[str, str], float]:
    """A detector of C&W by LID, tested on other images: attacked ones, and the same restored.

    Trained on four fifths of the images. Negatives are clean and noisy images, a half each, as many as positives.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import precision_score, recall_score
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    parts = {what: features(rows, what) for what in ("adv", "clean", "noisy", "restored")}
    count = len(parts["adv"])
    cut, half = max(count * 4 // 5, 1), torch.arange(count) % 2 == 0
    negatives = torch.where(half[:, None], parts["clean"], parts["noisy"])
    x = torch.cat([parts["adv"][:cut], negatives[:cut]]).numpy()
    y = torch.cat([torch.ones(cut), torch.zeros(cut)]).numpy()
    fitted = GridSearchCV(
        LogisticRegression(solver="newton-cg", max_iter=2000), {"C": [10.0**k for k in range(-4, 5)]}, cv=5
    )
    detector: Any = make_pipeline(MinMaxScaler(), fitted).fit(x, y)
    found = {}
    for row, what in (("adv", "adv"), ("def", "restored")):
        tested = torch.cat([parts[what][cut:], negatives[cut:]]).numpy()
        truth = torch.cat([torch.ones(count - cut), torch.zeros(count - cut)]).numpy()
        score, said = detector.predict_proba(tested)[:, 1], detector.predict(tested)
        found[row, "ROC-AUC"] = auroc(
            Samples({"score_lid": torch.as_tensor(score), "attacked": torch.as_tensor(truth)}, {}), "lid"
        )
        found[row, "Precision"] = float(precision_score(truth, said, zero_division=0))
        found[row, "Recall"] = float(recall_score(truth, said, zero_division=0))
    return found


def table6() -> Study:
    """Table 6: does a detector of attacked images take restored ones for attacked?"""
    runs = trained("@mnist", names=(ADD,))

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        found = detected(seen[ADD].rows.where(attack="cw_u"))
        return {(f"MNIST, {row}", column): n for (row, column), n in found.items()}

    paper = paper_table("add_defense", "table6")
    rows = tuple(row for row in paper.rows if row["keys"]["dataset"] == "MNIST")
    return Study(
        id="add_defense/table6",
        title="A detector by local intrinsic dimension, on attacked and on restored images (Table 6)",
        runs=runs,
        evaluations={
            ADD: Evaluation(run=ADD, overrides=("@cw_alone", *DIAGNOSIS), probe=IntrinsicDimension()),
        },
        numbers=numbers,
        claims={
            "attacked images are detected (ROC-AUC above 0.9)": lambda t: t["MNIST, adv", "ROC-AUC"] > 0.9,
            "recall falls strongly on restored ones (by more than 0.3)": lambda t: (
                t["MNIST, def", "Recall"] + 0.3 < t["MNIST, adv", "Recall"]
            ),
            "and ROC-AUC goes towards 0.5 (within 0.15)": lambda t: t["MNIST, def", "ROC-AUC"].near(0.5, by=0.15),
        },
        paper=replace(paper, rows=rows),
        paper_data="MNIST",
        notes=(
            "LID is estimated in batches of 100 clean images, with 20 neighbours. The detector is trained on C&W, "
            "on images that the target gets right, and knows nothing of the defence.",
        ),
    )


# ---- what attacks leave in z --------------------------------------------------------------------------------------


def separable(rows: Samples, attacks: list[str]) -> float:
    """Share of images whose attack a linear classifier tells by z, in five folds over images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    mine = rows.where(attack=attacks, knowledge="victim")
    z = torch.stack([mine[name] for name in mine.columns if name[0] == "z" and name[1:].isdigit()], dim=1).numpy()
    truth, image = mine["attack"].long().numpy(), mine["image"].long()
    fold = ((image * 2654435761) % 5).numpy()
    model: Any = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cg", max_iter=300))
    parts = [([*(fold != k).nonzero()[0]], [*(fold == k).nonzero()[0]]) for k in range(5)]
    folds = [(train, test) for train, test in parts if train and test]
    return float((cross_val_predict(model, z, truth, cv=folds) == truth).mean())


def discrepancy(rows: Samples, attack: str) -> float:
    """MMD between z of clean and of attacked images, with the kernel of the median distance."""
    names = [name for name in rows.columns if name[0] == "z" and name[1:].isdigit()]
    a, b = (torch.stack([rows.where(attack=x, knowledge="victim")[n] for n in names], 1) for x in ("clean", attack))
    pooled = torch.cat([a, b])
    distance = torch.cdist(pooled, pooled).square()
    kernel = torch.exp(-distance / distance[distance > 0].median())
    sign = torch.cat([torch.full((len(a),), 1 / len(a)), torch.full((len(b),), -1 / len(b))]).double()
    return float((sign @ kernel @ sign).clamp(min=0).sqrt())


def latent() -> Study:
    """Does the game against D_P take away from z what would tell the attack?"""
    full = trained("@mnist", names=(ADD,))[ADD]
    runs = {ADD: full, NO_DP: [*full, "method.lambda_perturbation=0"]}
    known, row = ["clean", "pgd_u", "pgd_t"], "domain told by a fresh probe"

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for name, each in seen.items():
            table[row, name] = separable(each.rows, known)
            for attack in each.rows.where(knowledge="victim").attacks:
                if attack in NAMES:
                    table[f"MMD to clean, {NAMES[attack]}", name] = discrepancy(each.rows, attack)
        return table

    return Study(
        id="add_defense/latent",
        title="What attacks leave in the representation",
        runs=runs,
        evaluations={
            name: Evaluation(run=name, overrides=("@test_mnist", *DIAGNOSIS), probe=Latents()) for name in runs
        },
        numbers=numbers,
        claims={
            "with the game a fresh probe is nearer to chance (1/3)": lambda t: t[row, ADD] < t[row, NO_DP],
            "unknown attacks are no farther from clean images than known ones": lambda t: (
                average([t[f"MMD to clean, {c}", ADD] for c in ("C&W_u", "C&W_t", "BA_u", "LS_u", "DDN_u", "DDN_t")])
                <= average([t[f"MMD to clean, {c}", ADD] for c in ("PGD_u", "PGD_t")])
            ),
        },
        notes=(
            "Not in the paper. The probe is a logistic regression on z (at most 256 of its numbers) of clean, PGD_u, "
            "and PGD_t images, tested on other images than it was trained on.",
        ),
    )


STUDIES = {study.__name__: study for study in (fig6, fig7c, table6, latent)}
