"""What GRED answers for attacked images: Table 7, the steps of its rectifier, and Fig. 5.

All accuracies are fractions, as the paper prints them. A rectifier starts from the detector of its attack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from redlab.metrics import Samples
from redlab.probes import Masking, Rectification
from redlab.report.plots import curve
from redlab.studies.gred.detecting import MNIST, NAMES, detectors, pairs
from redlab.studies.numbers import Claim, Number, average, every, inner_maximum
from redlab.studies.paper_numbers import paper_table
from redlab.studies.study import DIAGNOSIS, Evaluation, Seen, Study
from redlab.studies.table import Address, Table

CLASSIFIER = "Classifier Acc"
AWARE = "attacker knows the defence"


def rectifiers(data: str, names: Mapping[str, str] = NAMES) -> dict[str, list[str]]:
    """The runs of detectors, as ``detectors`` has them, and of rectifiers, ``rectifier of <attack>``."""
    attacks = ("mix.components.clean.weight=0",)
    return detectors(data, names=names) | {
        rectifier(name): [
            *(data, f"{data}_attacks", "method=gred_rectifier", "@rectifier", f"only={key}", *attacks),
            f"init=@{name}",
        ]
        for key, name in names.items()
    }


def rectifier(name: str) -> str:
    """Name of the run of an attack's rectifier."""
    return f"rectifier of {name}"


def halves(rows: Samples, column: str) -> float:
    """The mean of successful attacks and of their originals, half each."""
    both = pairs(rows)
    return (both.where(attacked=1).mean(column) + both.clean.mean(column)) / 2


def _table7(study: str, title: str, *, data: str, of: str, mixed: bool) -> Study:
    paper = paper_table("gred", f"table7.{of}")
    dataset = {"@mnist": "MNIST", "@fmnist": "CIFAR10"}[data]
    (printed,) = (row for row in paper.rows if row["keys"]["dataset"] == dataset)
    runs = rectifiers(data)
    row, chance = "accuracy", 0.5 if mixed else 0.0

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {(row, CLASSIFIER): chance}
        for name, each in seen.items():
            known = each.rows.where(knowledge="victim", attacked=1)
            table[row, name] = halves(each.rows, "right_label") if mixed else known.mean("both")
            table[AWARE, name] = each.rows.where(knowledge="defence").mean("right")
        return table

    def claims(t: Table) -> Claim:
        return every(t[row, name] > chance + 0.3 for name in NAMES.values())

    return Study(
        id=f"gred/{study}",
        title=title,
        runs=runs,
        evaluations={name: Evaluation(run=rectifier(name), probe=Rectification()) for name in NAMES.values()},
        numbers=numbers,
        claims={f"far above the classifier's {chance:g} (by more than 0.3)": claims}
        | ({"at least 0.9 on every attack": _at_least} if dataset == "MNIST" and mixed else {}),
        paper=replace(paper, rows=({**printed, "keys": {"row": row}},)),
        paper_data=MNIST if dataset == "MNIST" else "CIFAR-10, 10,000 test images",
        notes=(
            "Attacked images fool the classifier, and their originals do not: its own accuracy is 0, or 0.5 on both.",
            f"The row '{AWARE}' is not in the paper: PGD of 40 steps on detector, classifier and rectifier together.",
        ),
    )


def _at_least(t: Table) -> Claim:
    return every(t["accuracy", name] >= 0.9 for name in NAMES.values())


def table7_top() -> Study:
    """Table 7, top: the rectifier alone, on attacked images."""
    title = "The rectifier on attacked images (Table 7, top)"
    return _table7("table7_top", title, data="@mnist", of="top", mixed=False)


def table7_bottom() -> Study:
    """Table 7, bottom: detector and rectifier, on attacked and clean images."""
    title = "GRED as a whole on attacked and clean images (Table 7, bottom)"
    return _table7("table7_bottom", title, data="@mnist", of="bottom", mixed=True)


def table7_fmnist() -> Study:
    """Table 7, bottom, on Fashion-MNIST; in the paper CIFAR-10."""
    title = "GRED as a whole on attacked and clean images (Table 7, bottom)"
    return _table7("table7_fmnist", title, data="@fmnist", of="bottom", mixed=True)


STEPS = {"mask alone": "mask", "rectifier alone": "tuned", "both": "both"}


def rectsteps() -> Study:
    """Section 4.5: both steps contribute."""
    few = {key: NAMES[key] for key in ("pgd_u", "deepfool_u", "cw_t", "ddn_u")}
    runs = rectifiers("@fmnist", few)

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        known = {name: each.rows.where(knowledge="victim", attacked=1) for name, each in seen.items()}
        return {(name, step): rows.mean(column) for name, rows in known.items() for step, column in STEPS.items()}

    def least(t: Table, step: str) -> Claim:
        return average([t[n, step] for n in few.values()]) <= average([t[n, "both"] for n in few.values()]) + 0.01

    return Study(
        id="gred/rectsteps",
        title="The steps of the rectifier",
        runs=runs,
        evaluations={
            name: Evaluation(run=rectifier(name), overrides=DIAGNOSIS, probe=Rectification()) for name in few.values()
        },
        numbers=numbers,
        claims={
            f"both at least as good as the {step} (within 0.01), on average": partial(least, step=step)
            for step in list(STEPS)[:2]
        },
        notes=("Accuracy on attacked images, all of which fool the classifier as they are.",),
    )


ALPHAS = Masking().alphas
TARGETED = ("PGD-T", "CW-T", "DDN-T")


def fig5() -> Study:
    """Fig. 5: how many numbers are to be overwritten, by both meanings of alpha."""
    one = {"ddn_u": NAMES["ddn_u"]}
    runs = rectifiers("@fmnist", one)
    (run,) = (name for name in runs if name.startswith("rectifier"))
    attacks = list(NAMES.values())

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        rows = seen[run].rows.where(knowledge="victim", attacked=1)
        table: dict[Address, float] = {}
        for mode in Masking().modes:
            for alpha in ALPHAS:
                row = f"{mode}, {alpha:g}"
                for (attack,), of in rows.groups("attack"):
                    table[row, NAMES[attack]] = of.mean(f"mask_{mode}_{alpha:g}")
                table[row, "share that is marked"] = rows.mean(f"share_{mode}_{alpha:g}")
        return table

    def line(t: Table, mode: str, names: Sequence[str]) -> dict[float, Number]:
        return {alpha: average([t[f"{mode}, {alpha:g}", name] for name in names]) for alpha in ALPHAS}

    return Study(
        id="gred/fig5",
        title="How much is to be overwritten (Fig. 5)",
        runs=runs,
        evaluations={run: Evaluation(run=run, overrides=("@fmnist_attacks", *DIAGNOSIS), probe=Masking())},
        numbers=numbers,
        claims={
            f"{mode}: neither end is best, on average over attacks": partial(
                lambda t, mode: inner_maximum(line(t, mode, attacks).values()), mode=mode
            )
            for mode in Masking().modes
        },
        figure=lambda _, t: curve(
            {
                f"{mode}, {what}": {name: line(t, mode, [name]) for name in names}
                for mode in Masking().modes
                for what, names in (
                    ("targeted", TARGETED),
                    ("untargeted", [name for name in attacks if name not in TARGETED]),
                )
            },
            x_title="alpha",
            title="Accuracy of the classifier on overwritten images",
        ),
        notes=(
            "Of the classifier as it is. range: numbers above alpha between the least and the greatest InSen are "
            "marked (eq. 13), so that a larger alpha marks fewer, which the paper's own text has the other way round; "
            "quantile: the share alpha of them. Half of what is marked is overwritten.",
        ),
    )


STUDIES = {study.__name__: study for study in (table7_top, table7_bottom, table7_fmnist, rectsteps, fig5)}
