"""Attackers who know ADD-Defense: Fig. 5a (BPDA) and Table 5 (AutoAttack)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from matplotlib.figure import Figure

from redlab.report.plots import curve
from redlab.studies.add_defense.restoring import ADD, APE, MNIST, trained
from redlab.studies.numbers import Number
from redlab.studies.paper_numbers import paper_table
from redlab.studies.study import Evaluation, Seen, Study
from redlab.studies.table import Address, Table

GRADIENTS = {"bpda": "BPDA", "exact": "exact gradient"}
SIDES = {"target": "right_attacked", "defended": "right_restored"}
LAST = "20"


def fig5a() -> Study:
    """Fig. 5a: BPDA after 1 to 20 steps, and the exact gradient."""
    runs = trained("@mnist")

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for name, each in seen.items():
            for attack, gradient in GRADIENTS.items():
                for (setting,), rows in each.rows.where(attack=attack).groups("setting"):
                    steps = setting.partition("steps=")[2]
                    for side, column in SIDES.items():
                        table[f"{gradient}, {steps} steps", f"{name}, {side}"] = rows.mean(column)
        return table

    def line(t: Table, gradient: str, column: str) -> dict[int, Number]:
        rows = t.rows_of(f"{gradient}, ")
        return {int(row.split(", ")[1].split()[0]): t[row, column] for row in rows}

    def figure(_: Mapping[str, Seen], t: Table) -> Figure:
        panels = {g: {column: line(t, g, column) for column in t.columns} for g in GRADIENTS.values()}
        dotted = [column for column in t.columns if column.endswith("target")]
        return curve(panels, x_title="steps", truth=dotted, title="Attackers who know the defence")

    bpda, exact = (f"{gradient}, {LAST} steps" for gradient in GRADIENTS.values())
    return Study(
        id="add_defense/fig5a",
        title="BPDA, and the exact gradient (Fig. 5a)",
        runs=runs,
        evaluations={name: Evaluation(run=name, overrides=("@bpda",)) for name in runs},
        numbers=numbers,
        claims={
            "under BPDA the defended accuracy is above the target's": lambda t: (
                t[bpda, f"{ADD}, target"] < t[bpda, f"{ADD}, defended"]
            ),
            f"under BPDA {ADD} is at least as good as {APE}": lambda t: (
                t[bpda, f"{ADD}, defended"] >= t[bpda, f"{APE}, defended"]
            ),
            "the defence holds under the exact gradient, too (within 0.1 of BPDA)": lambda t: t[
                exact, f"{ADD}, defended"
            ].near(t[bpda, f"{ADD}, defended"], by=0.1),
        },
        figure=figure,
        paper_data=MNIST,
        notes=(
            "Target: what it says of the attacked image as it is. BPDA takes the restorer for the identity. E and G "
            "are smooth, so the exact gradient is there to be used, and the paper does not use it: the last claim is "
            "ours.",
        ),
    )


ONLY, WHOLE = "target alone", "end to end"
TRAINED = {"Our (eps=0.3)": "@pgd_wide", "Our (eps=0.1)": "@pgd"}
"""As the paper's table names them (the second is 0.15 in its text) -> the known pair."""


def table5() -> Study:
    """Table 5: AutoAttack."""
    runs = {name: trained("@mnist", known=known, names=(ADD,))[ADD] for name, known in TRAINED.items()}

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for name, each in seen.items():
            row = f"MNIST-Linf, {name}"
            only, whole = (each.rows.where(attack=attack) for attack in ("target_only", "end_to_end"))
            table[row, "accuracy"] = only.mean("right_restored")
            table[row, f"{ONLY}, no defence"] = only.mean("right_attacked")
            table[row, WHOLE] = whole.mean("right")
        return table

    wide, narrow = (f"MNIST-Linf, {name}" for name in TRAINED)
    short = {wide: "PGD of 0.3", narrow: "PGD of 0.15"}
    paper = paper_table("add_defense", "table5")
    rows = tuple(row for row in paper.rows if row["keys"]["dataset"] == "MNIST-Linf")
    return Study(
        id="add_defense/table5",
        title="AutoAttack on the target alone, and end to end (Table 5)",
        runs=runs,
        evaluations={name: Evaluation(run=name, overrides=("@auto",)) for name in runs},
        numbers=numbers,
        claims={
            "trained with eps 0.3 at least as good as with 0.15": lambda t: (
                t[wide, "accuracy"] >= t[narrow, "accuracy"]
            ),
        },
        figure=lambda _, t: curve(
            {
                "ours": {c: {name: t[row, c] for row, name in short.items()} for c in (f"{ONLY}, no defence", WHOLE)}
                | {f"{ONLY}, then restored": {name: t[row, "accuracy"] for row, name in short.items()}}
            },
            truth=(f"{ONLY}, no defence",),
            x_title="trained with",
            title="Accuracy under AutoAttack",
        ),
        paper=replace(paper, rows=rows),
        paper_data="MNIST, AutoAttack in linf of eps 0.3",
        notes=(
            "accuracy: AutoAttack sees the target alone, and its images are restored afterwards. Only this reading can "
            "give the printed values, and it is not the protocol of CROWN, IBP and Fast, which were attacked: "
            f"'{WHOLE}' is, and what is to be compared with them.",
            "The comparators' values are the paper's.",
        ),
    )


STUDIES = {study.__name__: study for study in (fig5a, table5)}
