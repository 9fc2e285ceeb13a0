"""Accuracy before and after the reconstructor: Tables 1, 2 and 4, and what the text says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from redlab.metrics import Samples
from redlab.report.plots import heat
from redlab.studies.numbers import Claim, every, falling, span
from redlab.studies.paper_numbers import PaperTable, paper_table
from redlab.studies.redrl.recognition import (
    ALL,
    CIFAR,
    CLASSES,
    GLOBAL,
    HARDER,
    IMAGE,
    LOSSES,
    NOTES,
    OWN,
    RESIDUAL,
    RUNS,
    SCENARIOS,
    TINY,
    told,
)
from redlab.studies.study import Evaluation, Seen, Study, by_column, by_eps
from redlab.studies.table import Address, Table

NETWORKS = {
    "torchvision_resnet50": "ResNet50",
    "torchvision_resnext50": "ResNeXt50",
    "torchvision_densenet121": "DenseNet121",
    "torchvision_vgg19": "VGG19",
}
"""Name of a victim -> what the paper calls it; others go by their own names."""

# Of the victims alone: seen in the run that is the cheapest to train; nothing of its method enters.
RUN_OF_VICTIMS = {"victims": RUNS[IMAGE]}
VICTIMS = {"victims": Evaluation(run="victims")}
AWARE = "attacker knows the defence"


def network(victim: str) -> str:
    """What the paper calls a victim."""
    return NETWORKS.get(victim, victim)


def networks(t: Table) -> list[str]:
    """The networks of a table with rows ``<network>, <class>``."""
    return list(dict.fromkeys(row.partition(", ")[0] for row in t.rows))


def _accuracy(rows: Samples) -> dict[tuple[str, str, str], float]:
    """(network, class, I or G(I)) -> accuracy of the network on the images made against it, in per cent."""
    sides = {"I": "right_attacked", "G(I)": "right_restored"}
    return {
        (network(victim), CLASSES[attack], side): 100 * of.mean(column)
        for (victim, attack), of in told(rows).groups("victim", "attack")
        for side, column in sides.items()
        if column in rows
    }


def only(table: PaperTable, *columns: str) -> PaperTable:
    """Some columns of a paper's table."""
    rows = tuple({**row, "values": {c: row["values"][c] for c in columns}} for row in table.rows)
    return replace(table, columns=columns, rows=rows)


def table1() -> Study:
    """Table 1: the victims on clean images."""
    row = "clean accuracy"
    cifar = paper_table("redrl", "table1")
    printed = ({"keys": {"measure": row}, "values": cifar.row(dataset="CIFAR-10")},)
    return Study(
        id="redrl/table1",
        title="The attacked networks on clean images (Table 1)",
        runs=RUN_OF_VICTIMS,
        evaluations=VICTIMS,
        numbers=lambda seen: {
            (row, network(victim)): 100 * of.mean("right_clean")
            for (victim,), of in seen["victims"].rows.clean.groups("victim")
        },
        claims={
            "good (at least 85 %)": lambda t: every(number >= 85 for number in t.row(row).values()),
            "similar to each other (within 5 points)": lambda t: span(t.row(row)) < 5,
        },
        paper=replace(cifar, rows=printed),
        paper_data="CIFAR-10",
        units={row: "%"},
        notes=("On Tiny ImageNet the paper's networks have 65.18, 68.05, 65.03 and 64.89 %.",),
    )


def table2_attacks() -> Study:
    """Tables 2 and 6: the attacks at their settings, by the accuracy that they leave; columns I of Table 4."""

    def order(t: Table, name: str) -> Claim:
        left = {text: t[f"{name}, {text}", "I"] for text in ALL}
        middle = [left["DeepFool"], left["CW-Linf"]]
        strong = [left["CW-L2"] <= left["PGD"] + 1, *(left["PGD"] < other for other in middle)]
        return every([*strong, *(other + 20 < left["Patch"] for other in middle), left["Patch"] < left["Clean"]])

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        return {(f"{name}, {c}", "I"): n for (name, c, s), n in _accuracy(seen["victims"].rows).items() if s == "I"}

    return Study(
        id="redrl/table2_attacks",
        title="What each attack leaves of the accuracy (Tables 2 and 4)",
        runs=RUN_OF_VICTIMS,
        evaluations=VICTIMS,
        numbers=numbers,
        claims={
            "CW-L2 <= PGD (within a point) < DeepFool, CW-Linf << Patch (by more than 20 points) < clean": lambda t: (
                every(order(t, name) for name in networks(t))
            )
        },
        paper=only(paper_table("redrl", "table4_cifar"), "I"),
        paper_data=CIFAR,
        notes=("Images are stored with 8 bits, which undoes some of the least perturbations (DeepFool, CW-L2).",),
    )


def table2_eps() -> Study:
    """Tables 2 and 6 once more: the same attacks by eps, of which the paper prints no accuracy."""

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for (attack, victim), rows in told(seen["victims"].rows, attacked=1).groups("attack", "victim"):
            for eps, of in by_eps(rows).items():
                table[f"{CLASSES[attack]}, eps={255 * eps:g}/255", network(victim)] = 100 * of.mean("right_attacked")
        return table

    def falls(t: Table, attack: str) -> Claim:
        rows = t.rows_of(f"{attack}, eps=")
        return every(
            claim
            for name in t.columns
            for claim in (falling([t[row, name] for row in rows], slack=1), t[rows[0], name] > t[rows[-1], name])
        )

    return Study(
        id="redrl/table2_eps",
        title="What each attack leaves of the accuracy, by eps (Table 2)",
        runs=RUN_OF_VICTIMS,
        evaluations=VICTIMS,
        numbers=numbers,
        claims={
            f"{attack}: accuracy falls with eps (no step up by more than a point)": partial(falls, attack=attack)
            for attack in ("PGD", "CW-Linf", "Patch")
        },
    )


def _table4(
    table: str,
    title: str,
    claims: Mapping[str, Callable[[Table, str], Claim]],
    *,
    paper_data: str,
    notes: Sequence[str],
) -> Study:
    """Table 4: what the attacked network says before and after G; the images are those made against it."""

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        rows = seen[RESIDUAL].rows
        table = {(f"{name}, {c}", side): number for (name, c, side), number in _accuracy(rows).items()}
        for (victim,), of in rows.where(knowledge="defence").groups("victim"):
            table[f"{network(victim)}, {AWARE}", "G(I)"] = 100 * of.mean("right")
        return table

    def each(claim: Callable[[Table, str], Claim], t: Table) -> Claim:
        return every(claim(t, name) for name in networks(t))

    return Study(
        id=f"redrl/{table}",
        title=f"Accuracy before and after the reconstructor ({title})",
        runs={RESIDUAL: RUNS[RESIDUAL]},
        evaluations={RESIDUAL: OWN[RESIDUAL]},
        numbers=numbers,
        claims={"clean images unchanged (within a point)": partial(each, _clean_kept)}
        | {text: partial(each, claim) for text, claim in claims.items()},
        figure=lambda _, t: heat(
            {side: {name: {c: t[f"{name}, {c}", side] for c in ALL} for name in networks(t)} for side in ("I", "G(I)")},
            low=0,
            high=100,
            title="Accuracy before and after the reconstructor, in %",
        ),
        paper=paper_table("redrl", table),
        paper_data=paper_data,
        notes=notes,
    )


SURFACE = (
    f"The rows '{AWARE}' are not in the paper: there the attack goes through G and the network together. They are the "
    "accuracy to expect of the reconstructor as a defence once it is known."
)


def _clean_kept(t: Table, name: str) -> Claim:
    return t[f"{name}, Clean", "G(I)"].near(t[f"{name}, Clean", "I"], by=1)


def table4_cifar() -> Study:
    """Table 4 on the easier data set."""
    return _table4(
        "table4_cifar",
        "Table 4, CIFAR-10",
        {
            "every attack but Patch recovered by more than 50 points": lambda t, name: every(
                t[f"{name}, {c}", "I"] + 50 < t[f"{name}, {c}", "G(I)"] for c in GLOBAL
            ),
            "Patch back to 3 points below clean, or more": lambda t, name: (
                t[f"{name}, Patch", "G(I)"] + 3 >= t[f"{name}, Clean", "I"]
            ),
        },
        paper_data=CIFAR,
        notes=(*NOTES, SURFACE),
    )


def table4_tiny() -> Study:
    """Table 4 on the harder data set."""
    partly = ("PGD", "CW-L2", "CW-Linf")
    return _table4(
        "table4_tiny",
        "Table 4, Tiny ImageNet",
        {
            "PGD, CW-L2 and CW-Linf recovered in part (more than 10 points above I and below clean)": lambda t, name: (
                every(t[f"{name}, {c}", "I"] + 10 < t[f"{name}, {c}", "G(I)"] for c in partly)
                & every(t[f"{name}, {c}", "G(I)"] + 10 < t[f"{name}, Clean", "I"] for c in partly)
            ),
            "DeepFool recovered best but for Patch": lambda t, name: every(
                t[f"{name}, DeepFool", "G(I)"] > t[f"{name}, {c}", "G(I)"] for c in partly
            ),
        },
        paper_data=TINY,
        notes=(*NOTES, SURFACE, HARDER),
    )


def table5_cls() -> Study:
    """Section 4.7: what the losses do for the class of the reconstructed image; no number is printed."""

    def numbers(rows: Samples) -> dict[str, float]:
        of = told(rows)
        found = {CLASSES[attack]: 100 * mine.mean("right_restored") for (attack,), mine in of.groups("attack")}
        return found | {"attacked": 100 * of.where(attacked=1).mean("right_restored")}

    return Study(
        id="redrl/table5_cls",
        title="Accuracy on reconstructed images without some of the losses (Section 4.7)",
        runs=SCENARIOS,
        evaluations={name: Evaluation(run=name) for name in SCENARIOS},
        numbers=by_column(numbers),
        claims={
            "clearly higher (by more than 5 points) with L_IC than without": lambda t: every(
                t["attacked", off] + 5 < t["attacked", on] for on in ("C", "REDRL") for off in ("A", "B")
            )
        },
        units=dict.fromkeys((*ALL, "attacked"), "%"),
        notes=(LOSSES, "The paper says that L_IC contributes significantly; 5 points are our reading."),
    )


STUDIES = {
    study.__name__: study for study in (table1, table2_attacks, table2_eps, table4_cifar, table4_tiny, table5_cls)
}
