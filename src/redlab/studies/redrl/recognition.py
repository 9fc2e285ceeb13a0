"""Which attack was it: Tables 3 and 5 and Fig. 1 of REDRL, and the names that all its studies share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from redlab.metrics import Samples, confusion, identified_per_attack, identified_total
from redlab.report.plots import heat
from redlab.studies.numbers import Claim, Number, every, increasing
from redlab.studies.paper_numbers import paper_table
from redlab.studies.study import Evaluation, Seen, Study, by_column
from redlab.studies.table import Address, Table

CLASSES = {
    "clean": "Clean",
    "pgd": "PGD",
    "deepfool": "DeepFool",
    "cw_l2": "CW-L2",
    "cw_linf": "CW-Linf",
    "patch": "Patch",
}
"""Name of a component of the mix -> what the paper calls the class."""

WEIGHTS = {"clean": 1, "pgd": 12, "deepfool": 4, "cw_l2": 8, "cw_linf": 12, "patch": 24}
"""Shares of the paper's test images, over 61: the only whole numbers that give its twelve totals. They are those of
four victims with three eps of PGD, one DeepFool, two c of CW-L2, three eps of CW-Linf and six settings of Patch."""

GLOBAL = ("PGD", "DeepFool", "CW-L2", "CW-Linf")
ALL = tuple(CLASSES.values())
TOTAL = "Total"
IMAGE, DELTA, RESIDUAL = "I_adv", "delta,I_adv", "I_r,I_adv"
"""What the recogniser sees, as Table 3 names it."""

RUNS = {IMAGE: ["method=redrl_image"], DELTA: ["method=redrl_delta"], RESIDUAL: ["method=redrl"]}
OWN = {name: Evaluation(run=name) for name in RUNS}
SCENARIOS = {
    "A": ["method=redrl", "method.lambda_feature=0", "method.lambda_class=0"],
    "B": ["method=redrl", "method.lambda_class=0"],
    "C": ["method=redrl", "method.lambda_feature=0"],
    "REDRL": ["method=redrl"],
}
CIFAR, TINY = "CIFAR-10, 10,000 test images, four networks", "Tiny ImageNet, 10,000 validation images, four networks"
NOTES = (
    "A total weighs the classes as the paper's test set does, 1:12:4:8:12:24 for Clean, PGD, DeepFool, CW-L2, CW-Linf "
    "and Patch, however many settings of each were tested here.",
    "Each attack is one that the recogniser was trained on, made in the same way. The paper's numbers are cut off, not "
    "rounded.",
)
ORACLE = f"{DELTA} is no defence: it is told the perturbation, so it needs the clean image."
HARDER = "The paper's data set here is its harder one; ours is that of the scale, the same as for the easier one."


def told(rows: Samples, **where: Any) -> Samples:
    """Rows of the classes of REDRL by attackers who know the victim alone."""
    known = [name for name in CLASSES if name in rows.names["attack"]]
    return rows.where(attack=known, knowledge="victim", **where)


def recognition(rows: Samples) -> dict[str, float]:
    """A column of Tables 3 and 5: how many images of each class are recognised, and of all, in per cent."""
    found = identified_per_attack(told(rows))
    classes = {text: 100 * found[name] for name, text in CLASSES.items() if name in found}
    return classes | {TOTAL: 100 * identified_total(told(rows), WEIGHTS)}


def _fig1(panel: str, column: str, claims: Mapping[str, Callable[[Table], Claim]]) -> Study:
    """One panel of Fig. 1: rows are the truth, columns the answers, both totals below. Off its diagonal the paper
    prints no number that we have."""
    table3 = paper_table("redrl", "table3_cifar")
    diagonal = [{"keys": {"class": c}, "values": {c: table3.row(**{"class": c})[column]}} for c in ALL]
    totals = [row for of in ("fig1a", "fig1b") for row in paper_table("redrl", of).rows]
    printed = replace(paper_table("redrl", panel), columns=(*ALL, "accuracy"), rows=(*diagonal, *totals))

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        counts, attacks, answers = confusion(told(seen[column].rows))
        shares = 100 * counts.double() / counts.sum(1, keepdim=True)
        table = {
            (CLASSES[attack], CLASSES[answer]): float(shares[i, j])
            for i, attack in enumerate(attacks)
            for j, answer in enumerate(answers)
        }
        return table | {(name, "accuracy"): recognition(seen[name].rows)[TOTAL] for name in (IMAGE, DELTA)}

    return Study(
        id=f"redrl/{panel}",
        title=f"Which attack is taken for which, seeing {column} (Fig. 1 {panel[-1]})",
        runs={name: RUNS[name] for name in (IMAGE, DELTA)},
        evaluations={name: OWN[name] for name in (IMAGE, DELTA)},
        numbers=numbers,
        claims=claims,
        figure=lambda _, t: heat(
            {f"seeing {column}, in %": {c: t.row(c) for c in ALL}}, low=0, high=100, title="Truth and answer"
        ),
        paper=printed,
        paper_data=CIFAR,
        units=dict.fromkeys((*ALL, IMAGE, DELTA), "%"),
        notes=(*NOTES, ORACLE),
    )


def _rest(*left_out: str) -> list[str]:
    return [c for c in ALL if c not in left_out]


def fig1a() -> Study:
    """Fig. 1a: the recogniser on the attacked image alone."""
    return _fig1(
        "fig1a",
        IMAGE,
        {
            "total far below the oracle (by more than 15 points)": lambda t: (
                t[IMAGE, "accuracy"] + 15 < t[DELTA, "accuracy"]
            ),
            "Clean and CW-Linf are recognised least": lambda t: every(
                t[weak, weak] < t[c, c] for weak in ("Clean", "CW-Linf") for c in _rest("Clean", "CW-Linf")
            ),
        },
    )


def fig1b() -> Study:
    """Fig. 1b: the recogniser that is told the perturbation."""
    return _fig1(
        "fig1b",
        DELTA,
        {
            "Clean, PGD and Patch about 100 % (above 95)": lambda t: every(
                t[c, c] > 95 for c in ("Clean", "PGD", "Patch")
            ),
            "CW-Linf clearly worst (by more than 10 points)": lambda t: every(
                t["CW-Linf", "CW-Linf"] + 10 < t[c, c] for c in _rest("CW-Linf")
            ),
        },
    )


def _table3(
    table: str, title: str, claims: Mapping[str, Callable[[Table], Claim]], *, paper_data: str, notes: Sequence[str]
) -> Study:
    """Table 3: what the recogniser sees. Its two halves differ in data and in what they show."""
    return Study(
        id=f"redrl/{table}",
        title=f"Recognition by what is seen ({title})",
        runs=RUNS,
        evaluations=OWN,
        numbers=by_column(recognition),
        claims=claims,
        paper=paper_table("redrl", table),
        units=dict.fromkeys((*ALL, TOTAL), "%"),
        paper_data=paper_data,
        notes=notes,
    )


def table3_cifar() -> Study:
    """Table 3 on the easier data set."""
    return _table3(
        "table3_cifar",
        "Table 3, CIFAR-10",
        {
            f"total: {IMAGE} << {RESIDUAL} (by more than 15 points)": lambda t: (
                t[TOTAL, IMAGE] + 15 < t[TOTAL, RESIDUAL]
            ),
            f"total: {RESIDUAL} ~ {DELTA} (within 5 points)": lambda t: t[TOTAL, RESIDUAL].near(t[TOTAL, DELTA], by=5),
            f"Clean is the least recognised of {IMAGE}": lambda t: every(
                t["Clean", IMAGE] < t[c, IMAGE] for c in _rest("Clean")
            ),
            f"Clean about 100 % (above 95) of {RESIDUAL}": lambda t: t["Clean", RESIDUAL] > 95,
        },
        paper_data=CIFAR,
        notes=(*NOTES, ORACLE),
    )


def table3_tiny() -> Study:
    """Table 3 on the harder data set."""

    def loss(t: Table, c: str) -> Number:
        return t[c, DELTA] - t[c, RESIDUAL]

    return _table3(
        "table3_tiny",
        "Table 3, Tiny ImageNet",
        {
            f"total: {IMAGE} < {RESIDUAL} < {DELTA}": lambda t: increasing(
                t[TOTAL, name] for name in (IMAGE, RESIDUAL, DELTA)
            ),
            f"{RESIDUAL} loses to {DELTA} mostly on CW-L2 and CW-Linf": lambda t: every(
                loss(t, most) > loss(t, c) for most in ("CW-L2", "CW-Linf") for c in _rest("CW-L2", "CW-Linf")
            ),
        },
        paper_data=TINY,
        notes=(*NOTES, ORACLE, HARDER),
    )


LOSSES = (
    "A: L_R and L_AC alone; B: with L_F; C: with L_IC; REDRL: with both. The weights of those that stay are the same."
)


def _table5(
    table: str, title: str, claims: Mapping[str, Callable[[Table], Claim]], *, paper_data: str, notes: Sequence[str]
) -> Study:
    """Table 5: recognition without the feature loss, the class loss, or both."""
    return Study(
        id=f"redrl/{table}",
        title=f"Recognition without some of the losses ({title})",
        runs=SCENARIOS,
        evaluations={name: Evaluation(run=name) for name in SCENARIOS},
        numbers=by_column(recognition),
        claims={"total: A < B < C < REDRL": lambda t: increasing(t[TOTAL, name] for name in SCENARIOS)} | dict(claims),
        paper=paper_table("redrl", table),
        units=dict.fromkeys((*ALL, TOTAL), "%"),
        paper_data=paper_data,
        notes=notes,
    )


def table5_cifar() -> Study:
    """Table 5 on the easier data set."""

    def gain(t: Table, c: str) -> Number:
        return t[c, "REDRL"] - t[c, "A"]

    return _table5(
        "table5_cifar",
        "Table 5, CIFAR-10",
        {
            "the gain of REDRL over A comes from CW-L2 and CW-Linf": lambda t: every(
                gain(t, most) > gain(t, c) for most in ("CW-L2", "CW-Linf") for c in _rest("CW-L2", "CW-Linf")
            )
        },
        paper_data=CIFAR,
        notes=(*NOTES, LOSSES),
    )


def table5_tiny() -> Study:
    """Table 5 on the harder data set."""
    return _table5(
        "table5_tiny",
        "Table 5, Tiny ImageNet",
        {
            "DeepFool drops where L_IC is on": lambda t: every(
                t["DeepFool", off] > t["DeepFool", on] for off, on in (("A", "C"), ("B", "REDRL"))
            )
        },
        paper_data=TINY,
        notes=(*NOTES, LOSSES, HARDER),
    )


def gain_text() -> Study:
    """Section 4.7: the improvement over the recogniser that sees the attacked image alone."""

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        image, redrl = (recognition(seen[name].rows)[TOTAL] for name in (IMAGE, RESIDUAL))
        return {("data set of the card", "improvement"): 100 * (redrl - image) / image if image else math.nan}

    return Study(
        id="redrl/gain_text",
        title="Relative improvement over recognition from the attacked image alone (Section 4.7)",
        runs={name: RUNS[name] for name in (IMAGE, RESIDUAL)},
        evaluations={name: OWN[name] for name in (IMAGE, RESIDUAL)},
        numbers=numbers,
        claims={
            "by more than 20 %": lambda t: every(number > 20 for number in t.column("improvement").values()),
            "more on the easier data set": lambda t: t["CIFAR-10", "improvement"] > t["Tiny ImageNet", "improvement"],
        },
        paper=paper_table("redrl", "gain_text"),
        paper_data="as in the rows",
        notes=(*NOTES, "A card is of one data set, so it cannot say where the gain is larger: compare two cards."),
    )


STUDIES = {
    study.__name__: study for study in (fig1a, fig1b, table3_cifar, table3_tiny, table5_cifar, table5_tiny, gain_text)
}
