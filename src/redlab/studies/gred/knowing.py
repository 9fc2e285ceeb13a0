"""Attackers who know GRED: Tables 4 to 6. They attack classifier and detector as one network of L + 1 classes.

All rates are fractions of the test images that the classifier gets right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from redlab.metrics import Samples
from redlab.studies.gred.detecting import GRED, IS, MNIST, NAMES, detectors
from redlab.studies.numbers import Claim, every, most
from redlab.studies.paper_numbers import PaperTable, paper_table
from redlab.studies.study import DIAGNOSIS, Evaluation, Seen, Study
from redlab.studies.table import Address, Table

NONE = "NoDET"
UNTARGETED = {"fgsm_u": "FGSM", "deepfool_u": "DFool", "pgd_u": "PGD", "cw_u": "CW", "ddn_u": "DDN"}
TARGETED = {"pgd_t": "PGD", "cw_t": "CW", "ddn_t": "DDN"}
ALONE = ("method.decides=sen",)

NOTES = (
    "Success: the classifier is wrong, or says the target class, and there is no alarm. Gradients go through InSen, so "
    "second derivatives are taken. NoDET: the same attack on the classifier alone.",
    "DET_IS is trained again, as the detector whose verdict is that of InSen alone.",
)
ONE_STAGE = (
    "Untargeted attacks climb log(exp of the class's logit + exp of the alarm's) in one stage; the paper's two stages "
    "are in a supplement that is not to be had."
)


def success(rows: Samples, knowledge: str) -> float:
    """Share of the images that are right without an attack whose attack succeeds."""
    return len(rows.where(knowledge=knowledge, attacked=1)) / max(len(rows.clean), 1)


def _seen(run: str, key: str) -> dict[str, Evaluation]:
    """A run's own test, and the same attack by somebody who knows the detector."""
    return {
        f"{run}, {NONE}": Evaluation(run=run),
        f"{run}, known": Evaluation(run=run, overrides=(f"mix.components.{key}.knowledge=defence", *DIAGNOSIS)),
    }


def _of_mnist(table: str) -> PaperTable:
    paper = paper_table("gred", table)
    rows = [row for row in paper.rows if row["keys"]["dataset"] == "MNIST"]
    return replace(paper, rows=tuple({**row, "keys": {"attacker": row["keys"]["attacker"]}} for row in rows))


def _white(
    table: str,
    title: str,
    attacks: Mapping[str, str],
    claims: Mapping[str, Callable[[Table], Claim]],
    notes: tuple[str, ...],
) -> Study:
    whole = {name: NAMES[key] for key, name in attacks.items()}
    alone = {name: f"{run}, {IS}" for name, run in whole.items()}
    by_key = {key: NAMES[key] for key in attacks}
    runs = detectors("@mnist", names=by_key)
    runs |= {f"{run}, {IS}": words for run, words in detectors("@mnist", *ALONE, names=by_key).items()}
    evaluations: dict[str, Evaluation] = {}
    for key, name in attacks.items():
        evaluations |= _seen(whole[name], key)
        evaluations |= {k: v for k, v in _seen(alone[name], key).items() if k.endswith("known")}

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        found: dict[Address, float] = {}
        for name in attacks.values():
            found[name, NONE] = success(seen[f"{whole[name]}, {NONE}"].rows, "victim")
            found[name, IS] = success(seen[f"{alone[name]}, known"].rows, "defence")
            found[name, GRED] = success(seen[f"{whole[name]}, known"].rows, "defence")
        return found

    return Study(
        id=f"gred/{table}",
        title=title,
        runs=runs,
        evaluations=evaluations,
        numbers=numbers,
        claims=claims,
        paper=_of_mnist(table),
        paper_data=MNIST,
        notes=(*NOTES, *notes),
    )


def table4() -> Study:
    """Table 4: untargeted attacks."""
    names = UNTARGETED.values()
    return _white(
        "table4",
        "Untargeted attackers who know the detector (Table 4)",
        UNTARGETED,
        {
            "fewer attacks succeed with GRED than without": lambda t: most(t[n, GRED] < t[n, NONE] for n in names),
            "with GRED most attacks succeed less than half of the time": lambda t: most(
                t[n, GRED] < 0.5 for n in names
            ),
            "FGSM and CW hardly ever (at most 0.05)": lambda t: every(t[n, GRED] <= 0.05 for n in ("FGSM", "CW")),
        },
        (ONE_STAGE,),
    )


def table5() -> Study:
    """Table 5: targeted attacks."""
    names = TARGETED.values()
    return _white(
        "table5",
        "Targeted attackers who know the detector (Table 5)",
        TARGETED,
        {
            "fewer PGD and CW succeed with GRED than without": lambda t: every(
                t[n, GRED] < t[n, NONE] for n in ("PGD", "CW")
            ),
            "with GRED every attack succeeds less than half of the time": lambda t: every(
                t[n, GRED] < 0.5 for n in names
            ),
        },
        (),
    )


def table6() -> Study:
    """Table 6: what it costs in L2 not to be found."""
    attacks = {"ddn_u": "DDN-U", "deepfool_u": "DFool-U", "ddn_t": "DDN-T"}
    runs = detectors("@mnist", names=attacks)
    without, with_it = "Without detector", "With DET_GRED"
    evaluations = {k: v for key, name in attacks.items() for k, v in _seen(name, key).items()}

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        found: dict[Address, float] = {}
        for name in attacks.values():
            for row, which, knowledge in ((without, NONE, "victim"), (with_it, "known", "defence")):
                rows = seen[f"{name}, {which}"].rows.where(knowledge=knowledge, attacked=1)
                found[row, name] = rows.mean("d_attack") if len(rows) else float("nan")
        return found

    return Study(
        id="gred/table6",
        title="Size of successful attacks without and with the detector (Table 6)",
        runs=runs,
        evaluations=evaluations,
        numbers=numbers,
        claims={
            "larger with the detector in all three": lambda t: every(
                t[without, n] < t[with_it, n] for n in attacks.values()
            )
        },
        paper=paper_table("gred", "table6"),
        paper_data="MNIST (DDN-U) and CIFAR-10",
        units={without: "L2", with_it: "L2"},
        notes=(NOTES[0], ONE_STAGE, "Ours are all of MNIST; where no attack succeeds there is no number."),
    )


STUDIES = {study.__name__: study for study in (table4, table5, table6)}
