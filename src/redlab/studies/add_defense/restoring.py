"""Accuracy of the target on restored images under eight attacks: Table 1, Figs. 1a, 3 and 12 of ADD-Defense.

All accuracies are fractions, as the paper prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from matplotlib.figure import Figure

from redlab.metrics import Samples
from redlab.report.plots import curve
from redlab.studies.numbers import Claim, Number, average, every, most, span
from redlab.studies.paper_numbers import PaperTable, paper_table
from redlab.studies.study import DIAGNOSIS, Evaluation, Seen, Study
from redlab.studies.table import Address, Table

TARGET_CLASS = 3
"""That all targeted attacks of the mixes aim at."""

PGD_U, PGD_T = "PGD_u", "PGD_t"
NAMES = {
    "pgd_u": PGD_U,
    "pgd_t": PGD_T,
    "cw_u": "C&W_u",
    "cw_t": "C&W_t",
    "boundary_u": "BA_u",
    "local_search_u": "LS_u",
    "ddn_u": "DDN_u",
    "ddn_t": "DDN_t",
    "st_u": "ST_u",
    "st_t": "ST_t",
    "sfw_u": "SFW_u",
}
"""Name of a component of the mixes -> what the paper calls it."""

EIGHT = tuple(NAMES.values())[:8]
CLEAN, AWARE = "No attack", "attacker knows the defence"
NO_DEFENCE, APE, APE_D, ADD, ADD_S = "No defense", "APE-GAN", "APE-GAN-D", "ADD-Defense", "ADD-Defense-S"

METHODS = {ADD: "method=add_defense", APE: "method=ape_gan", APE_D: "method=ape_gan"}

NOTES = (
    "Fractions of images on which the target is right, restored ones but in the row of no defence; of attacks towards "
    "class 3, images that are class 3 and right are left out (Section C.2).",
    f"The column '{AWARE}' is not in the paper: there PGD goes through the defence and the target together. It is the "
    "accuracy to expect of the defence once it is known.",
)
MNIST = "MNIST, 10,000 test images"


PGD = {"@cifar": "@pgd_cifar", "@svhn": "@pgd_svhn"}
CIFAR_WEIGHTS = ("method.lambda_prior=1e-6", "method.lambda_perturbation=0.1", "method.lambda_mse=10")
"""Where the paper's weights for CIFAR-10 differ from those of the other data sets."""


def trained(data: str, *, known: str | None = None, names: Sequence[str] = (ADD, APE)) -> dict[str, list[str]]:
    """Runs of the defences on a data set, with a known pair of attacks.

    Args:
        data: list of words of the scale, with ``@``.
        known: likewise; None: PGD of the data set's eps.
        names: defences.
    """
    known = PGD.get(data, "@pgd") if known is None else known
    runs = {name: [data, known, METHODS[name], "@add" if name == ADD else "@ape"] for name in names}
    if data == "@cifar":
        runs[ADD] += CIFAR_WEIGHTS
    return runs | ({APE_D: [*runs[APE_D], "method.deep=true", "@deep"]} if APE_D in names else {})


def tested(runs: Mapping[str, Sequence[str]], *words: str) -> dict[str, Evaluation]:
    """Each run under other attacks, and whoever knows it."""
    return {name: Evaluation(run=name, overrides=words) for name in runs}


def accuracy(rows: Samples, attack: str, side: str) -> float:
    """Acc_u or Acc_t (Section C.2): of targeted attacks, right images that are of the target class are left out.

    Args:
        rows: of one attack.
        attack: its name in the mix.
        side: column of what counts, such as "right_restored".
    """
    right = rows[side]
    if not attack.endswith("_t"):
        return float(right.mean())
    there = float((right * (rows["label"] == TARGET_CLASS)).sum())
    return (float(right.sum()) - there) / (len(rows) - there)


def without_class(rows: Samples, side: str) -> float:
    """Acc of Section G.1: without the images of the class that targeted attacks aim at."""
    return float(rows.take((rows["label"] != TARGET_CLASS).nonzero()[:, 0])[side].mean())


def by_attack(rows: Samples, side: str, of: Callable[[Samples, str, str], float] = accuracy) -> dict[str, float]:
    """What the paper calls an attack -> accuracy, by attackers who know the target alone."""
    known = rows.where(knowledge="victim")
    groups = {attack: mine for (attack,), mine in known.groups("attack") if attack == "clean" or attack in NAMES}
    found = {NAMES[attack]: of(mine, attack, side) for attack, mine in groups.items() if attack != "clean"}
    return found | {CLEAN: float(groups["clean"][side].mean())}


def table_of(seen: Mapping[str, Seen]) -> dict[Address, float]:
    """A row for each defence and one for none, a column for each attack, clean images and the attacker who knows."""
    first = next(iter(seen.values())).rows
    table = {(NO_DEFENCE, column): n for column, n in by_attack(first, "right_attacked").items()}
    for name, each in seen.items():
        table |= {(name, column): n for column, n in by_attack(each.rows, "right_restored").items()}
        table[name, AWARE] = each.rows.where(knowledge="defence").mean("right")
    return table


def attacked(t: Table, row: str, columns: Sequence[str] = EIGHT) -> list[Number]:
    """The numbers of a row under attack."""
    return [t[row, column] for column in columns]


def rows_named(table: PaperTable, **names: str) -> PaperTable:
    """A paper's table with some of its rows under other names."""
    rows = [{**row, "keys": {"model": names.get(row["keys"]["model"], row["keys"]["model"])}} for row in table.rows]
    return replace(table, rows=tuple(rows))


def lines(t: Table, columns: Sequence[str], printed: Table | None = None) -> Figure:
    """Each row of a table over its columns, beside those of the paper where it prints them."""
    panels = {"ours": t} | ({} if printed is None else {"the paper": printed})
    return curve(
        {name: {row: {c: of[row, c] for c in columns} for row in of.rows} for name, of in panels.items()},
        truth=(NO_DEFENCE,),
        title="Accuracy of the target on restored images",
    )


# ---- targets ------------------------------------------------------------------------------------------------------

TARGETS = {"MNIST": "@mnist", "Fashion-MNIST": "@fmnist", "CIFAR-10": "@cifar", "SVHN": "@svhn"}
HERE = ("MNIST", "Fashion-MNIST")
"""Data sets of the cards at ``small``."""


def targets() -> Study:
    """Clean accuracy of the targets (Tables 1 and 2)."""
    paper = paper_table("add_defense", "targets")
    near = {"MNIST": 0.01, "Fashion-MNIST": 0.02}
    rows = tuple(row for row in paper.rows if row["keys"]["dataset"] in HERE)
    return Study(
        id="add_defense/targets",
        title="The attacked targets on clean images",
        runs={name: [TARGETS[name], "@pgd", METHODS[APE], "@ape"] for name in HERE},
        evaluations={name: Evaluation(run=name, overrides=("@whole", *DIAGNOSIS)) for name in HERE},
        numbers=lambda seen: {
            (name, "accuracy"): each.rows.where(attack="clean").mean("right_clean") for name, each in seen.items()
        },
        claims={
            f"{name}: within {by} of {printed}": partial(_near, name=name, printed=printed, by=by)
            for name, by in near.items()
            for printed in [paper.row(dataset=name)["accuracy"]]
        },
        paper=replace(paper, rows=rows),
        paper_data="MNIST and Fashion-MNIST, 10,000 test images each",
        notes=("CIFAR-10 and SVHN, which the paper has, too, are in Table 1. Their targets are not trained here.",),
    )


def _near(t: Table, name: str, printed: float, by: float) -> Claim:
    return t[name, "accuracy"].near(printed, by=by)


# ---- one known pair, eight attacks --------------------------------------------------------------------------------


def _table1(
    study: str, data: str, printed: str, paper_data: str, claims: Mapping[str, Callable[[Table], Claim]]
) -> Study:
    """Table 1: the known attacks are PGD, untargeted and towards class 3."""
    runs, paper = trained(data), paper_table("add_defense", study.replace("_", "."))
    return Study(
        id=f"add_defense/{study}",
        title=f"Eight attacks, of which PGD is known ({printed})",
        runs=runs,
        evaluations=tested(runs, f"@test_{data[1:]}"),
        numbers=table_of,
        claims=claims,
        figure=lambda _, t: lines(t, (*EIGHT, CLEAN), Table.printed(paper)),
        paper=paper,
        paper_data=paper_data,
        notes=NOTES,
    )


def better(t: Table) -> Claim:
    """ADD-Defense is at least as good as APE-GAN under most attacks."""
    return most(t[ADD, c] >= t[APE, c] for c in EIGHT)


def widest_on_pgd(t: Table) -> Claim:
    """No attack has a wider gap between ADD-Defense and APE-GAN than PGD_u."""
    return every(t[ADD, PGD_U] - t[APE, PGD_U] > t[ADD, c] - t[APE, c] for c in EIGHT[1:])


def helps(t: Table, names: Sequence[str] = (APE, ADD)) -> Claim:
    """Far better than no defence."""
    return every(t[NO_DEFENCE, c] + 0.3 < t[name, c] for name in names for c in EIGHT)


ADD_BEATS_APE = {
    f"{ADD} >= {APE} under most of the eight attacks": better,
    f"the gap is widest under {PGD_U}": widest_on_pgd,
    f"{ADD} above {APE} by 0.2 or more under {PGD_U}": lambda t: t[APE, PGD_U] + 0.2 <= t[ADD, PGD_U],
    "both far better than no defence (by more than 0.3 under every attack)": helps,
}


def table1_fmnist() -> Study:
    """Table 1, Fashion-MNIST."""
    paper = paper_table("add_defense", "table1.fmnist")
    printed = {name: paper.row(model=name) for name in (ADD, APE)}

    def near(t: Table, name: str) -> Claim:
        return every(t[name, c].near(printed[name][c], by=0.05) for c in EIGHT)

    claims = ADD_BEATS_APE | {
        f"{name}: within 0.05 of the printed value under every attack": partial(near, name=name) for name in (ADD, APE)
    }
    return _table1(
        "table1_fmnist", "@fmnist", "Table 1, Fashion-MNIST", "Fashion-MNIST, probably 3,000 test images", claims
    )


def table1_cifar() -> Study:
    """Table 1, CIFAR-10."""
    rest = [c for c in EIGHT if c != PGD_U]
    claims = {
        f"{ADD} > {APE} under {PGD_U}": lambda t: t[ADD, PGD_U] > t[APE, PGD_U],
        "the others within 0.03": lambda t: every(t[ADD, c].near(t[APE, c], by=0.03) for c in rest),
        "restored clean images far below the clean target (by more than 0.1)": lambda t: every(
            t[name, CLEAN] + 0.1 < t[NO_DEFENCE, CLEAN] for name in (ADD, APE)
        ),
    }
    return _table1("table1_cifar", "@cifar", "Table 1, CIFAR-10", "CIFAR-10, probably 3,000 test images", claims)


def table1_svhn() -> Study:
    """Table 1, SVHN."""
    claims = {k: v for k, v in ADD_BEATS_APE.items() if "0.2" not in k}
    claims[f"{ADD} above {APE} by 0.1 or more under {PGD_U}"] = lambda t: t[APE, PGD_U] + 0.1 <= t[ADD, PGD_U]
    return _table1("table1_svhn", "@svhn", "Table 1, SVHN", "SVHN, probably 5,000 test images", claims)


def _fig3(panel: str, known: str, what: str) -> Study:
    """One panel of Fig. 3: which of three defences is the most stable over attacks."""
    runs = trained("@mnist", known=known, names=(ADD, APE, APE_D))
    return Study(
        id=f"add_defense/{panel}",
        title=f"Eight attacks on MNIST, of which {what} is known (Fig. {panel[3:]})",
        runs=runs,
        evaluations=tested(runs, "@test_mnist"),
        numbers=table_of,
        claims={
            f"{ADD} >= {APE} on average": lambda t: average(attacked(t, ADD)) >= average(attacked(t, APE)),
            f"{APE_D} does not close the gap": lambda t: average(attacked(t, APE_D)) < average(attacked(t, ADD)),
            f"{ADD} is the most stable (largest less smallest)": lambda t: every(
                span(attacked(t, ADD)) < span(attacked(t, name)) for name in (APE, APE_D)
            ),
            "all far better than no defence (by more than 0.3 under every attack)": partial(
                helps, names=(ADD, APE, APE_D)
            ),
        },
        figure=lambda _, t: lines(t, (*EIGHT, CLEAN)),
        notes=(*NOTES, "The paper draws these bars and prints no number of them."),
    )


def fig3a() -> Study:
    """Fig. 3a: PGD is known."""
    return _fig3("fig3a", "@pgd", "PGD")


def fig3b() -> Study:
    """Fig. 3b: DDN is known."""
    return _fig3("fig3b", "@ddn", "DDN")


DEF_ADV = "Def-adv"
UNTARGETED = ("PGD_u", "C&W_u", "BA_u", "LS_u", "DDN_u")


def fig1a() -> Study:
    """Fig. 1a: one known attack, FGSM; adversarial training of the target beside ADD-Defense."""
    runs = {
        ADD: ["@mnist", "@fgsm", METHODS[ADD], "@add"],
        DEF_ADV: ["@mnist", "@fgsm", "method=hardened", "@hardened"],
    }

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for name, each in seen.items():
            found = by_attack(each.rows, "right")
            table |= {(name, c): found[c] for c in (*UNTARGETED, CLEAN)}
            table[name, AWARE] = each.rows.where(knowledge="defence").mean("right")
        return table

    return Study(
        id="add_defense/fig1a",
        title="One known attack: adversarial training, and ADD-Defense (Fig. 1a)",
        runs=runs,
        evaluations=tested(runs, "@test_mnist"),
        numbers=numbers,
        claims={
            f"{DEF_ADV} fluctuates more over attacks (largest less smallest)": lambda t: (
                span(attacked(t, ADD, UNTARGETED)) < span(attacked(t, DEF_ADV, UNTARGETED))
            ),
            f"{ADD} is higher on average": lambda t: (
                average(attacked(t, DEF_ADV, UNTARGETED)) < average(attacked(t, ADD, UNTARGETED))
            ),
        },
        figure=lambda _, t: lines(t, UNTARGETED),
        notes=(
            f"Attacks are made on the target as it was, as the heights in the paper's figure suggest; against "
            f"{DEF_ADV} they are transferred. Only '{AWARE}' attacks the trained network itself.",
        ),
    )


NO_PRIOR, NO_DP = "No prior", "No D_P"
KNOWN, UNKNOWN = EIGHT[:2], EIGHT[2:]


def fig12() -> Study:
    """Fig. 12: without the prior, and without the game against D_P; here on Fashion-MNIST."""
    full = trained("@fmnist", names=(ADD,))[ADD]
    runs = {
        ADD: full,
        NO_PRIOR: [*full, "method.lambda_prior=0"],
        NO_DP: [*full, "method.lambda_perturbation=0"],
    }

    def drop(t: Table, columns: Sequence[str]) -> Number:
        return average([t[ADD, c] - t[NO_PRIOR, c] for c in columns])

    return Study(
        id="add_defense/fig12",
        title="Without the prior, and without D_P (Fig. 12)",
        runs=runs,
        evaluations=tested(runs, "@test_fmnist"),
        numbers=table_of,
        claims={
            "each removal costs accuracy on average": lambda t: every(
                average(attacked(t, name)) < average(attacked(t, ADD)) for name in (NO_PRIOR, NO_DP)
            ),
            "the prior matters more under unknown attacks": lambda t: drop(t, KNOWN) < drop(t, UNKNOWN),
        },
        figure=lambda _, t: lines(t, (*EIGHT, CLEAN)),
        notes=(*NOTES, "The paper's figure is of SVHN and prints no number."),
    )


STUDIES = {
    study.__name__: study for study in (targets, fig1a, fig3a, fig3b, table1_fmnist, table1_cifar, table1_svhn, fig12)
}
