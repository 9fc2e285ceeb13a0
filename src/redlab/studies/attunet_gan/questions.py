"""What the text on the attention-U-Net GAN says beside its tables: parameters, networks, clean images, stages, HGD; and
whether the true label leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from redlab.methods.attunet_gan import Generator
from redlab.metrics import Samples
from redlab.studies.attunet_gan.recovering import (
    AT_TABLE1,
    AT_TABLE2,
    BLIND,
    CIFAR,
    EXPOSED,
    GUIDE,
    IMAGE,
    IMAGE2,
    KNOWING,
    NOISE,
    OTHER,
    RECOVERED,
    ROLES,
    SHOWN,
    SIDES,
    THREE,
    WHOLE,
    WIDE,
    WIDELY,
    WIDEST,
    WITHIN,
    accuracies,
    drawn,
    parts,
    printed_table,
    recovered,
)
from redlab.studies.numbers import Claim, Number, average, every, largest, span
from redlab.studies.study import DIAGNOSIS, Evaluation, Seen, Study, by_eps
from redlab.studies.table import Address, Table
from redlab.victims.architectures import vgg13

# ---- nothing attacked ---------------------------------------------------------------------------------------------

OURS, VGG13 = "generator", "VGG-13"


def params() -> Study:
    """Section 5: G has fewer parameters than VGG-13. Nothing is trained for it."""
    row = "parameters, in millions"
    channels, classes = 3, 10

    def numbers(_: Mapping[str, Seen]) -> dict[Address, float]:
        made = {OURS: Generator(channels), VGG13: vgg13(classes, channels, 32, batch_norm=True)}
        return {(row, name): sum(p.numel() for p in net.parameters()) / 1e6 for name, net in made.items()}

    return Study(
        id="attunet_gan/params",
        title="Parameters of the generator and of VGG-13",
        runs={},
        evaluations={},
        numbers=numbers,
        claims={f"the generator has fewer than {VGG13}": lambda t: t[row, OURS] < t[row, VGG13]},
        notes=(
            "Of the default widths, for images of three channels; VGG-13 with one linear layer, the smallest reading. "
            "The paper gives no widths, only the bound.",
        ),
    )


def victims() -> Study:
    """Section 7: the networks on clean images, those that G never meets among them."""
    row = "clean accuracy"
    run = f"stage 1 of {WIDEST}"  # nothing of it enters

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        found = {name: of.clean for each in seen.values() for (name,), of in each.rows.groups("victim")}
        return {(row, name): 100 * of.mean("right_clean") for name, of in found.items()}

    return Study(
        id="attunet_gan/victims",
        title="The networks on clean images",
        runs={run: WIDELY[run]},
        evaluations={
            "of the training": Evaluation(run=run, overrides=WHOLE),
            "unseen": Evaluation(run=run, overrides=("@unseen", *WHOLE)),
        },
        numbers=numbers,
        claims={
            "within 3 points of each other": lambda t: span(t.row(row)) < 3,
            "far above chance (at least 85 %)": lambda t: every(n >= 85 for n in t.row(row).values()),
        },
        units={row: "%"},
        notes=("The paper prints 93.1 % (Section 7) and 93 % (Section 1) of Inception-v3, and nothing of the others.",),
    )


def clean() -> Study:
    """What G costs on images that were not attacked: the rows of eps 0 in Table 1."""
    runs = THREE | WIDELY
    names = (NOISE, IMAGE, IMAGE2, WIDEST)
    without = "without G"

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        def of(rows: Samples, side: str) -> dict[str, float]:
            return {f"0, {p}": 100 * rows.clean.where(victim=v).mean(side) for p, v in parts(rows).items()}

        table = {(row, without): n for row, n in of(seen[WIDEST].rows, "right_clean").items()}
        return table | {(row, m): n for m, each in seen.items() for row, n in of(each.rows, "right_restored").items()}

    paper = printed_table("table1")
    return Study(
        id="attunet_gan/clean",
        title="Clean images through the generator",
        runs=runs,
        evaluations={name: Evaluation(run=name, overrides=WHOLE) for name in names},
        numbers=numbers,
        claims={
            f"{name}: at most 2 points are lost": partial(_kept, name=name, without=without, parts=(GUIDE, OTHER))
            for name in names
        },
        paper=replace(paper, rows=tuple(row for row in paper.rows if row["keys"]["epsilon"] == 0)),
        paper_data=CIFAR,
        units={f"0, {part}": "%" for part in (GUIDE, OTHER)},
        notes=(ROLES, "Without G the paper prints 93.1 % of Inception-v3, and nothing of VGG-13."),
    )


def _kept(t: Table, name: str, without: str, parts: Sequence[str]) -> Claim:
    return every(t[f"0, {part}", without] - 2 <= t[f"0, {part}", name] for part in parts)


FIRST, BOTH, AT_ONCE = "stage 1", "both stages", "features in stage 1"


def stages() -> Study:
    """Section 6: two stages, or the features in stage 1."""
    first, second = f"stage 1 of {IMAGE}", IMAGE
    runs = {
        first: THREE[first],
        second: THREE[second],
        AT_ONCE: [*THREE[first], "method.lambda_feature=1", "@at_once"],
    }
    columns = {FIRST: first, BOTH: second, AT_ONCE: AT_ONCE}
    mean = "mean of eps 4 to 16"

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for column, each in seen.items():
            found = accuracies(each.rows, SIDES[RECOVERED], parts(each.rows))
            table |= {(row, column): n for row, n in found.items()}
            for part in (GUIDE, OTHER):
                table[f"{mean}, {part}", column] = sum(found[f"{eps}, {part}"] for eps in WITHIN) / len(WITHIN)
        return table

    def varies(t: Table, column: str) -> Number:
        n = t[f"{mean}, {GUIDE}", column]
        return Number((n.spread,), f"range over seeds of {n.name}")

    return Study(
        id="attunet_gan/stages",
        title="Two stages, or one",
        runs=runs,
        evaluations={c: Evaluation(run=name, overrides=(*AT_TABLE1, *DIAGNOSIS)) for c, name in columns.items()},
        numbers=numbers,
        claims={
            "both stages at least as good as stage 1": lambda t: every(
                t[f"{mean}, {part}", FIRST] <= t[f"{mean}, {part}", BOTH] for part in (GUIDE, OTHER)
            ),
            "both stages better than features in stage 1": lambda t: every(
                t[f"{mean}, {part}", AT_ONCE] < t[f"{mean}, {part}", BOTH] for part in (GUIDE, OTHER)
            ),
            "features in stage 1 vary more over seeds": lambda t: varies(t, BOTH) < varies(t, AT_ONCE),
        },
        figure=drawn(tuple(columns), (GUIDE, OTHER), "Recovered accuracy, in %"),
        notes=(
            ROLES,
            "The paper says that features in stage 1 were unstable, and prints no number. That run is as long as both "
            "stages together.",
        ),
    )


CAUSES = {
    "a tenth of the learning rate": "@slower",
    "three times as long": "@longer",
    "both": "@slower_and_longer",
    "another guide": "@other_guide",
}
"""What is changed in stage 2 -> its words in a scale."""


def why_stages() -> Study:
    """Why stage 2 costs accuracy at a small scale: one suspect changed at a time, on validation images."""
    first = f"stage 1 of {IMAGE}"
    *stage_2, init = THREE[IMAGE]
    runs = {first: THREE[first], IMAGE: THREE[IMAGE]}
    runs |= {f"stage 2, {cause}": [*stage_2, words, init] for cause, words in CAUSES.items()}
    columns = {FIRST: first, BOTH: IMAGE} | {cause: f"stage 2, {cause}" for cause in CAUSES}
    evaluation = partial(Evaluation, overrides=(*AT_TABLE1, "data.test_on=val", *DIAGNOSIS))
    row = "recovered, mean of eps 4 to 16"

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        return {
            (f"{row}, {part}", column): sum(found[f"{eps}, {part}"] for eps in WITHIN) / len(WITHIN)
            for column, each in seen.items()
            for found in [accuracies(each.rows, SIDES[RECOVERED], parts(each.rows))]
            for part in (GUIDE, OTHER)
        }

    def helps(t: Table, column: str) -> Claim:
        return every(t[f"{row}, {part}", FIRST] <= t[f"{row}, {part}", column] for part in (GUIDE, OTHER))

    return Study(
        id="attunet_gan/why_stages",
        title="Stage 2 with one thing changed at a time, on validation images",
        runs=runs,
        evaluations={column: evaluation(run=run) for column, run in columns.items()},
        numbers=numbers,
        claims={
            f"{column}: at least as good as stage 1": partial(helps, column=column)
            for column in columns
            if column != FIRST
        },
        units={f"{row}, {part}": "%" for part in (GUIDE, OTHER)},
        notes=(ROLES, "Not in the paper. Validation images of each seed: none of the test images is looked at."),
    )


HGD_FEATURES, HGD_PIXELS = "HGD, features", "HGD, pixels"


def hgd() -> Study:
    """The denoiser that the paper compares itself with in words, on the same batches."""
    runs = WIDELY | {
        HGD_FEATURES: [WIDE, "method=hgd", "@hgd"],
        HGD_PIXELS: [WIDE, "method=hgd", "@hgd", "method.guidance=pixel"],
    }
    names = (WIDEST, HGD_FEATURES, HGD_PIXELS)
    large = [eps for eps in SHOWN if eps >= 32]
    return Study(
        id="attunet_gan/hgd",
        title="The attention-U-Net GAN beside HGD",
        runs=runs,
        evaluations={name: Evaluation(run=name, overrides=AT_TABLE2) for name in names},
        numbers=recovered,
        claims={
            f"at least as good as {name} on average of eps 35 to 65": partial(
                lambda t, name: every(
                    average([t[f"{eps}, {part}", name] for eps in large])
                    <= average([t[f"{eps}, {part}", WIDEST] for eps in large])
                    for part in (GUIDE, OTHER)
                ),
                name=name,
            )
            for name in (HGD_FEATURES, HGD_PIXELS)
        },
        figure=drawn((EXPOSED, *names), (GUIDE, OTHER), "Recovered accuracy, in %"),
        notes=(ROLES, BLIND, "The paper claims to be better than HGD and prints no number of it.", KNOWING),
    )


TRUE, PREDICTED = "true labels", "predicted labels"
WRONG = "wrong without an attack"


def leak() -> Study:
    """Whether recovered accuracy above the clean one comes from the true label, which FGSM writes into the image."""
    labels = {TRUE: (), PREDICTED: ("mix.components.fgsm.label=predicted",)}

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for name, each in seen.items():
            network = parts(each.rows)
            found = accuracies(each.rows, SIDES[RECOVERED], network)
            for part, victim in network.items():
                mine = each.rows.where(victim=victim)
                table[f"without G, {part}", name] = 100 * mine.clean.mean("right_clean")
                missed = mine.take((mine["right_clean"] == 0).nonzero()[:, 0]).where(attack="fgsm")
                table |= {
                    (f"{255 * eps:g}, {part}, {WRONG}", name): 100 * of.mean("right_restored")
                    for eps, of in by_eps(missed).items()
                }
            table |= {(row, name): n for row, n in found.items()}
        return table

    def excess(t: Table, name: str) -> Number:
        return largest([t[f"{eps}, {GUIDE}", name] for eps in SHOWN]) - t[f"without G, {GUIDE}", name]

    return Study(
        id="attunet_gan/leak",
        title="True labels, and predicted ones",
        runs=WIDELY,
        evaluations={
            name: Evaluation(run=WIDEST, overrides=(*AT_TABLE2, *words, *DIAGNOSIS)) for name, words in labels.items()
        },
        numbers=numbers,
        claims={
            "with true labels recovered accuracy of the guide exceeds its clean one": lambda t: excess(t, TRUE) > 0,
            "with predicted labels the excess is smaller": lambda t: excess(t, PREDICTED) < excess(t, TRUE),
        },
        figure=drawn((TRUE, PREDICTED), (GUIDE, OTHER), "Recovered accuracy, in %"),
        notes=(
            ROLES,
            "Not in the paper. The training has true labels throughout; what differs is the label that FGSM of the "
            "test starts from, so that both columns have the same attacks but on images that the network gets wrong. "
            f"Rows '{WRONG}' are of these: where one is right at last, the attack has helped.",
        ),
    )


STUDIES = {study.__name__: study for study in (params, victims, stages, why_stages, clean, hgd, leak)}
