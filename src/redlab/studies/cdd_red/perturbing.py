"""What an estimated perturbation does, and whose it is: Table A9, Figs. 7, 8 and A2."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from redlab.attacks import FGSM, PGD, CarliniWagnerL2
from redlab.metrics import Samples
from redlab.probes import Logits, PartialPerturbation, Resemblance, Transfer
from redlab.report.plots import curve, heat
from redlab.studies.cdd_red.appendix import PGD_20
from redlab.studies.cdd_red.comparing import RUNS, best, diagnosed
from redlab.studies.numbers import Number, average, every, largest, most, rank_correlation
from redlab.studies.paper_numbers import paper_table
from redlab.studies.study import DIAGNOSIS, Evaluation, Seen, Study
from redlab.studies.table import Address, Table

IN_THE_PAPER = {
    "torchvision_resnet18": "ResNet-18",
    "torchvision_vgg16": "VGG16",
    "torchvision_vgg19": "VGG19",
    "torchvision_inception_v3": "Inception-V3",
}


def tableA9() -> Study:
    """Table A9: what the estimated perturbation does to networks that it was not crafted on."""

    # The paper crafts on ResNet-50 alone; here every victim of the scale is attacked, and judged by the others. It does
    # not say whether images that a network gets wrong anyway count; here success is any change of its answer.
    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for column, each in seen.items():
            rows = each.rows.where(attack="pgd", knowledge="victim")
            victims = rows.values("victim")
            for judge in victims:
                others = rows.where(victim=[name for name in victims if name != judge])
                row = IN_THE_PAPER.get(judge, judge)
                table[row, column] = 100 * others.mean(f"changed_red_{judge}")
                table[row, "x' itself"] = 100 * others.mean(f"changed_{judge}")
        return table

    return Study(
        id="cdd_red/tableA9",
        title="Success of the estimated perturbation on other networks (Table A9)",
        runs=RUNS,
        evaluations=diagnosed(attacks=PGD_20, probe=Transfer()),
        numbers=numbers,
        claims={"CDD-RED above DO and DS on every network": lambda t: every(best(t, row) for row in t.rows)},
        paper=paper_table("cdd_red", "tableA9"),
        paper_data="ImageNet, 200 images, PGD on ResNet-50",
        notes=("The column x' itself, the attack before any estimate, is not in the paper.",),
    )


SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SWEPT = {"accuracy": 100, "success": 100, "logit_d": 1, "pixel_d": 1}


def fig7() -> Study:
    """Fig. 7: accuracy, success rate and distances of a share p of the perturbation, and of its estimate."""

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for name, each in seen.items():
            rows = each.rows.where(attacked=1, knowledge="victim")
            for (what, scale), p in itertools.product(SWEPT.items(), SHARES):
                table[f"{what}, p={p:g}", name] = scale * rows.mean(f"{what}_{p:g}")
                table[f"{what}, p={p:g}", "truth"] = scale * rows.mean(f"true_{what}_{p:g}")
        return table

    def gap(t: Table, what: str, name: str) -> Number:
        return average(abs(t[f"{what}, p={p:g}", name] - t[f"{what}, p={p:g}", "truth"]) for p in SHARES)

    return Study(
        id="cdd_red/fig7",
        title="A share of the perturbation (Fig. 7)",
        runs=RUNS,
        evaluations=diagnosed(probe=PartialPerturbation(shares=SHARES)),
        numbers=numbers,
        claims={
            "CDD-RED closest to the truth in accuracy, success and logit distance": lambda t: every(
                gap(t, what, "CDD-RED") < gap(t, what, name)
                for what in ("accuracy", "success", "logit_d")
                for name in ("DO", "DS")
            ),
            "DS farthest above the truth in pixel distance": lambda t: every(
                gap(t, "pixel_d", "DS") > gap(t, "pixel_d", name) for name in ("DO", "CDD-RED")
            ),
            "clean images keep their class under CDD-RED (above 95 %)": lambda t: t["accuracy, p=0", "CDD-RED"] > 95,
            "success at p=0.2: DO below CDD-RED and the truth": lambda t: every(
                t["success, p=0.2", "DO"] < t["success, p=0.2", name] for name in ("CDD-RED", "truth")
            ),
        },
        figure=lambda _, t: curve(
            {
                what: {name: {p: t[f"{what}, p={p:g}", name] for p in SHARES} for name in (*RUNS, "truth")}
                for what in SWEPT
            },
            x_title="share p of the perturbation",
            truth=["truth"],
            title="A share of the perturbation",
        ),
        units={f"{what}, p={p:g}": "%" for what in ("accuracy", "success") for p in SHARES},
    )


ORDERED = ("fgsm", "pgd", "cw")


def fig8() -> Study:
    """Fig. 8: how alike attacks are in what one classifier says of them."""
    cdd = "CDD-RED"
    truth = "truth"

    def logits(rows: Samples, side: str) -> Tensor:
        classes = sum(name.startswith(f"{side}_logit_") for name in rows.columns)
        return torch.stack([rows[f"{side}_logit_{k}"] for k in range(classes)], dim=1)

    def cells(rows: Samples) -> dict[str, Samples]:
        known = rows.where(attacked=1, knowledge="victim")
        attacks = [name for name in ORDERED if name in known.values("attack")]
        pairs = itertools.product(attacks, known.values("victim"))
        return {f"{attack} {victim}": known.where(attack=attack, victim=victim).sorted() for attack, victim in pairs}

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        parts = cells(seen[cdd].rows)
        found: dict[Address, float] = {}
        for (one, first), (two, second) in itertools.product(parts.items(), repeat=2):
            theirs = logits(second, "true")
            for head, side in ((truth, "true"), (cdd, "red")):
                found[f"{head}: {one}", two] = float(row_correlation(logits(first, side), theirs).mean())
        return found

    def off_diagonal(t: Table, head: str) -> dict[str, Number]:
        rows = t.rows_of(f"{head}: ")
        return {f"{row}, {c}": t[row, c] for row in rows for c in t.columns if row != f"{head}: {c}"}

    def attacks(t: Table) -> list[str]:
        return list(dict.fromkeys(row.removeprefix(f"{truth}: ").split()[0] for row in t.rows_of(f"{truth}: ")))

    def block(t: Table, attack: str) -> Number:
        """Mean likeness of an attack on different victims."""
        rows = t.rows_of(f"{truth}: {attack} ")
        columns = [c for c in t.columns if c.startswith(f"{attack} ")]
        return average(t[row, c] for row in rows for c in columns if row != f"{truth}: {c}")

    def panel(t: Table, head: str) -> dict[str, dict[str, Number]]:
        return {row.removeprefix(f"{head}: "): {c: t[row, c] for c in t.columns} for row in t.rows_of(f"{head}: ")}

    return Study(
        id="cdd_red/fig8",
        title="How alike attacks are (Fig. 8)",
        runs={cdd: RUNS[cdd]},
        evaluations={cdd: Evaluation(run=cdd, overrides=("mix.only_fooled=false", *DIAGNOSIS), probe=Logits())},
        numbers=numbers,
        claims={
            "the estimates have the likenesses of the truth (rank correlation above 0.8)": lambda t: (
                rank_correlation(off_diagonal(t, cdd), off_diagonal(t, truth)) > 0.8
            ),
            "an estimate is most like its own attack, in most cells": lambda t: most(
                t[row, row.removeprefix(f"{cdd}: ")] >= largest(t[row, c] for c in t.columns)
                for row in t.rows_of(f"{cdd}: ")
            ),
            "FGSM is the attack that is most alike over victims": lambda t: every(
                block(t, "fgsm") > block(t, attack) for attack in attacks(t) if attack != "fgsm"
            ),
        },
        figure=lambda _, t: heat(
            {"attacks themselves": panel(t, truth), "estimates by CDD-RED": panel(t, cdd)},
            title="Rank correlation of logits",
        ),
        notes=(
            "Spearman's correlation of the logits that the first victim gives x'_RED of the row and x' of the column, "
            "of the same images, all of them; its mean over images. Of 10 classes it is coarse.",
        ),
    )


def row_correlation(a: Tensor, b: Tensor) -> Tensor:
    """(N,) Spearman's correlation of two (N, K) tables, row by row; logits that are equal are ranked in their order."""
    ranks = (x.argsort(1).argsort(1).double() for x in (a, b))
    one, two = (r - r.mean(1, keepdim=True) for r in ranks)
    return (one * two).sum(1) / (one.square().sum(1) * two.square().sum(1)).sqrt()


LIBRARY = (
    ("FGSM", FGSM(eps=10 / 255)),
    ("PGD", PGD(eps=20 / 255, steps=10)),
    ("CW", CarliniWagnerL2(c=1.0, confidence=10.0, steps=100, binary_search_steps=1)),
)


def figA2() -> Study:
    """Fig. A2: which known attack a new one looks like, on a victim that was never seen."""
    cdd, hits = "CDD-RED", "images whose best match is PGD"

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        rows = seen[cdd].rows.where(attack="pgd", knowledge="victim")
        *known, new = rows.names["victim"]
        rows = rows.where(victim=new)
        names = {(name, victim): f"cosine_{name}_{victim}" for name, _ in LIBRARY for victim in known}
        found: dict[Address, float] = {(f"{v} {n}", "cosine"): rows.mean(column) for (n, v), column in names.items()}
        matched = torch.stack([rows[column] for column in names.values()]).argmax(0)
        pgd = torch.tensor([name == "PGD" for name, _ in names])
        return found | {(hits, "cosine"): float(pgd[matched].double().mean())}

    def likeness(t: Table) -> dict[str, Number]:
        return {row: t[row, "cosine"] for row in t.rows_of("") if row != hits}

    return Study(
        id="cdd_red/figA2",
        title="Which attack a new one looks like (Fig. A2)",
        runs={cdd: RUNS[cdd]},
        evaluations={
            cdd: Evaluation(
                run=cdd, attacks=PGD_20, overrides=("@new_victim", *DIAGNOSIS), probe=Resemblance(library=LIBRARY)
            )
        },
        numbers=numbers,
        claims={
            "the best match is a PGD": lambda t: every(
                largest(n for row, n in likeness(t).items() if row.endswith(" PGD")) > n
                for row, n in likeness(t).items()
                if not row.endswith(" PGD")
            ),
            "every cosine between 0 and 0.6": lambda t: every((n > 0) & (n < 0.6) for n in likeness(t).values()),
        },
        figure=lambda _, t: curve(
            {
                "cosine of the estimated perturbations": {
                    name: {
                        row.removesuffix(f" {name}"): n for row, n in likeness(t).items() if row.endswith(f" {name}")
                    }
                    for name, _ in LIBRARY
                }
            },
            title="Which attack a new one looks like",
        ),
        notes=(
            "PGD of eps 20/255 on the last victim, which the denoiser has never met, beside attacks on the others, "
            "made on the estimate of the clean image.",
        ),
    )


STUDIES = {study.__name__: study for study in (tableA9, fig7, fig8, figA2)}
