"""Attackers who know GRED: Tables 4 to 6. They attack classifier and detector as one network of L + 1 classes.

All rates are fractions of the test images that the classifier gets right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

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
SCHEMES = {"one stage": "joint", "two stages": "exact"}
UNTARGETED_NOTE = (
    "Untargeted attacks are made twice, and one of the two has to succeed. One stage: they climb log(exp of the logit "
    "of the class + exp of the alarm's). Two: the class first, then the alarm. The paper has two stages as well; what "
    "they are is in a supplement that is not to be had."
)


def success(several: Sequence[Samples], knowledge: str) -> float:
    """Share of the images that are right without an attack on which one of several attacks succeeds."""
    won = torch.unique(torch.cat([rows.where(knowledge=knowledge, attacked=1)["image"] for rows in several]))
    return len(won) / max(len(several[0].clean), 1)


def smallest(rows: Samples) -> float:
    """The mean over images of the least L2 size of their attacks; NaN without rows."""
    images, place = torch.unique(rows["image"], return_inverse=True)
    least = torch.full((len(images),), torch.inf, dtype=torch.float64)
    return float(least.scatter_reduce(0, place, rows["d_attack"].double(), "amin").mean())


def _known(run: str, key: str) -> dict[str, Evaluation]:
    """A run's attack by somebody who knows the detector: by each of the schemes, or the only one if it is targeted."""
    component = f"mix.components.{key}"
    knows = (f"{component}.knowledge=defence", "@knowing", *DIAGNOSIS)
    schemes = {"one stage": "exact"} if key.endswith("_t") else SCHEMES
    return {
        f"{run}, {name}": Evaluation(run=run, overrides=(*knows, f"{component}.gradient={gradient}"))
        for name, gradient in schemes.items()
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
    schemes = [name for name in SCHEMES if name == "one stage" or attacks is UNTARGETED]
    by_key = {key: NAMES[key] for key in attacks}
    runs = detectors("@mnist", names=by_key)
    runs |= {f"{run}, {IS}": words for run, words in detectors("@mnist", *ALONE, names=by_key).items()}
    evaluations: dict[str, Evaluation] = {}
    for key, name in attacks.items():
        evaluations[f"{whole[name]}, {NONE}"] = Evaluation(run=whole[name])
        evaluations |= _known(whole[name], key) | _known(alone[name], key)

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        found: dict[Address, float] = {}
        for name in attacks.values():
            found[name, NONE] = success([seen[f"{whole[name]}, {NONE}"].rows], "victim")
            for detector, runs in ((IS, alone), (GRED, whole)):
                rows = {scheme: seen[f"{runs[name]}, {scheme}"].rows for scheme in schemes}
                found[name, detector] = success(list(rows.values()), "defence")
                if len(rows) > 1:
                    found |= {(name, f"{detector}, {scheme}"): success([of], "defence") for scheme, of in rows.items()}
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
        (UNTARGETED_NOTE,),
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
    evaluations = {f"{name}, {NONE}": Evaluation(run=name) for name in attacks.values()}
    evaluations |= {k: v for key, name in attacks.items() for k, v in _known(name, key).items()}

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        found: dict[Address, float] = {}
        for name in attacks.values():
            schemes = [scheme for scheme in SCHEMES if f"{name}, {scheme}" in seen]
            known = Samples.cat([seen[f"{name}, {s}"].rows.where(knowledge="defence", attacked=1) for s in schemes])
            found[without, name] = seen[f"{name}, {NONE}"].rows.where(knowledge="victim", attacked=1).mean("d_attack")
            found[with_it, name] = smallest(known)
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
        notes=(
            NOTES[0],
            UNTARGETED_NOTE,
            "Ours are all of MNIST; where no attack succeeds there is no number, and of two the smaller counts.",
        ),
    )


STUDIES = {study.__name__: study for study in (table4, table5, table6)}
