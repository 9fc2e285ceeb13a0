"""CDD-RED and its baselines on attacks that they were not trained on: Tables 2 and A2 to A4."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from redlab.metrics import worst
from redlab.studies.cdd_red.comparing import (
    NEAR,
    NOTES,
    PA_ADV,
    PA_BENIGN,
    RUNS,
    UNITS,
    D,
    alignment,
    as_good_as_ds,
    best,
    between,
)
from redlab.studies.numbers import Claim, every
from redlab.studies.paper_numbers import PaperTable, paper_table
from redlab.studies.study import DIAGNOSIS, Evaluation, Seen, Study, by_column
from redlab.studies.table import Address, Table

MEASURES = (D, PA_BENIGN, PA_ADV)
BLIND = "These attackers do not know the denoiser; cdd_red/table2_adaptive has one who does."
CLASS_MEASURES = (PA_BENIGN, PA_ADV)


def others(attack: str, *words: str) -> tuple[str, ...]:
    """An evaluation under one of the attacks that nobody is trained on, with what a scale says of it."""
    return ("mix=cdd_red_unseen", f"only={attack}", f"@{attack}", *words)


def named(rows: Mapping[str, float], attack: str) -> dict[str, float]:
    """Rows as Table 2 names them."""
    return {f"{row}, {attack}": value for row, value in rows.items()}


# ---- Table 2 ------------------------------------------------------------------------------------------------------

AUTO, FEATURE, ADAPTIVE = "AutoAttack", "Feature Attack", "Adaptive Attack"


def _elsewhere(study: str, title: str, attack: str, key: str, claims: Mapping[str, Callable[[Table], Claim]]) -> Study:
    return Study(
        id=f"cdd_red/{study}",
        title=title,
        runs=RUNS,
        evaluations={name: Evaluation(run=name, overrides=others(key, *DIAGNOSIS)) for name in RUNS},
        numbers=by_column(lambda rows: named(alignment(rows), attack), attacked=1, knowledge="victim"),
        claims=claims,
        paper=paper_table("cdd_red", study),
        paper_data=f"ImageNet, {attack}",
        units={f"{row}, {attack}": UNITS[row] for row in MEASURES},
        notes=(*NOTES, BLIND),
    )


def table2_auto() -> Study:
    """Table 2, AutoAttack."""
    return _elsewhere(
        "table2_auto",
        "AutoAttack (Table 2)",
        AUTO,
        "autoattack",
        {
            "d: DO < CDD-RED < DS": lambda t: between(t, f"{D}, {AUTO}"),
            "PA_benign and PA_adv: CDD-RED best": lambda t: every(best(t, f"{row}, {AUTO}") for row in CLASS_MEASURES),
        },
    )


def table2_feature() -> Study:
    """Table 2, the feature attack."""
    return _elsewhere(
        "table2_feature",
        "The feature attack (Table 2)",
        FEATURE,
        "feature",
        {
            "PA_adv: DO < DS, CDD-RED more than 15 points above": lambda t: (
                (t[f"{PA_ADV}, {FEATURE}", "DO"] < t[f"{PA_ADV}, {FEATURE}", "DS"])
                & (t[f"{PA_ADV}, {FEATURE}", "DS"] + 15 < t[f"{PA_ADV}, {FEATURE}", "CDD-RED"])
            ),
            "PA_benign: CDD-RED best": lambda t: best(t, f"{PA_BENIGN}, {FEATURE}"),
        },
    )


KNOWING = {"exact": "exact", "BPDA": "bpda", "EOT of 4": "{eot:4}"}
"""How an attacker who knows the defence differentiates it -> the component's word."""


def _knowing() -> str:
    pgd = "attack:{_target_:redlab.attacks.PGD,eps:20/255,step_size:2/255,steps:40}"
    parts = (
        f"pgd_{place}:{{_target_:redlab.crafting.Component,knowledge:defence,gradient:{word},{pgd}}}"
        for place, word in enumerate(KNOWING.values())
    )
    return f"mix.adaptive={{{','.join(parts)}}}"


def table2_adaptive() -> Study:
    """Table 2, the attacker who knows the denoiser."""
    auto, worst_of = ", AutoAttack", "accuracy under the worst of the three"
    known = {name: Evaluation(run=name, overrides=("only=fgsm", "@adaptive", _knowing())) for name in RUNS}
    evaluations = known | {
        f"{name}{auto}": Evaluation(run=name, overrides=others("autoattack", *DIAGNOSIS)) for name in RUNS
    }
    both = paper_table("cdd_red", "table2_adaptive"), paper_table("cdd_red", "table2_auto")
    paper: PaperTable = replace(both[0], rows=(*both[0].rows, *both[1].rows))

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        found: dict[Address, float] = {}
        for name in RUNS:
            rows = seen[name].rows.where(knowledge="defence")
            attackers = dict(zip(KNOWING, rows.values("attack"), strict=True))
            for way, attack in attackers.items():
                attackers_name = ADAPTIVE if way == "exact" else f"{ADAPTIVE}, {way}"
                mine = named(alignment(rows.where(attack=attack)), attackers_name)
                found |= {(row, name): value for row, value in mine.items()}
            found[worst_of, name] = 100 * worst(rows, "right").mean("right")
            mine = named(alignment(seen[f"{name}{auto}"].rows.where(attacked=1, knowledge="victim")), AUTO)
            found |= {(row, name): value for row, value in mine.items()}
        return found

    rows = [f"{row}, {ADAPTIVE}" for row in CLASS_MEASURES]
    return Study(
        id="cdd_red/table2_adaptive",
        title="Who knows the denoiser (Table 2)",
        runs=RUNS,
        evaluations=evaluations,
        numbers=numbers,
        claims={
            "PA_benign and PA_adv more than 15 points below those under AutoAttack": lambda t: every(
                t[f"{row}, {ADAPTIVE}", name] + 15 < t[f"{row}, {AUTO}", name]
                for row in CLASS_MEASURES
                for name in RUNS
            ),
            "PA_benign: DS < DO <= CDD-RED": lambda t: (
                (t[rows[0], "DS"] < t[rows[0], "DO"]) & (t[rows[0], "DO"] <= t[rows[0], "CDD-RED"])
            ),
            "PA_adv: DO < DS <= CDD-RED": lambda t: (
                (t[rows[1], "DO"] < t[rows[1], "DS"]) & (t[rows[1], "DS"] <= t[rows[1], "CDD-RED"])
            ),
        },
        paper=paper,
        paper_data="ImageNet, PGD on denoiser and classifier together, and AutoAttack",
        units=dict.fromkeys((*rows, worst_of), "%"),
        notes=(
            *NOTES,
            "PGD of eps 20/255 (the paper's), 40 steps of 2/255, on denoiser and victim together; all images count. "
            "The worst of the three is taken image by image.",
        ),
    )


# ---- the measures alone -------------------------------------------------------------------------------------------


def _appendix(
    study: str,
    title: str,
    words: Sequence[str],
    claims: Mapping[str, Callable[[Table], Claim]],
    paper_data: str,
    *notes: str,
) -> Study:
    return Study(
        id=f"cdd_red/{study}",
        title=title,
        runs=RUNS,
        evaluations={name: Evaluation(run=name, overrides=(*words, *DIAGNOSIS)) for name in RUNS},
        numbers=by_column(alignment, attacked=1, knowledge="victim"),
        claims=claims,
        paper=paper_table("cdd_red", study),
        paper_data=paper_data,
        units=UNITS,
        notes=(*NOTES, BLIND, *notes),
    )


def tableA2() -> Study:
    """Table A2: images of another data set."""
    return _appendix(
        "tableA2",
        "Images of another data set (Table A2)",
        ("@other_data",),
        {
            "d: DO < CDD-RED < DS": lambda t: between(t, D),
            "PA_benign: CDD-RED ≈ DS (within 5 points) ≫ DO (by more than 15 points)": as_good_as_ds,
            "PA_adv: CDD-RED best": lambda t: best(t, PA_ADV),
        },
        "CIFAR-10, PGD of 10 steps and eps 8/255; the denoisers are those of ImageNet",
        "The denoisers are those of Table 1; the victims are trained on the other images, and attacked by PGD.",
    )


def tableA3() -> Study:
    """Table A3: the Wasserstein attack."""
    return _appendix(
        "tableA3",
        "The Wasserstein attack (Table A3)",
        others("wasserstein"),
        {
            "PA_adv below 50 %, and within 5 points of each other": lambda t: every(
                (t[PA_ADV, name] < 50) & t[PA_ADV, name].near(t[PA_ADV, "CDD-RED"], by=NEAR) for name in RUNS
            ),
            "PA_benign: DO <= DS <= CDD-RED": lambda t: (
                (t[PA_BENIGN, "DO"] <= t[PA_BENIGN, "DS"]) & (t[PA_BENIGN, "DS"] <= t[PA_BENIGN, "CDD-RED"])
            ),
        },
        "ImageNet, radius 0.1, 400 iterations",
    )


def tableA4() -> Study:
    """Table A4: PGD on a smoothed classifier."""
    return _appendix(
        "tableA4",
        "PGD on a smoothed classifier (Table A4)",
        others("smoothed_pgd"),
        {
            "PA_benign and PA_adv: CDD-RED best": lambda t: every(best(t, row) for row in CLASS_MEASURES),
            "d: CDD-RED ≈ DO (within a tenth) < DS": lambda t: (
                t[D, "CDD-RED"].near(t[D, "DO"], by=0.1 * t[D, "DO"].mean) & (t[D, "CDD-RED"] < t[D, "DS"])
            ),
        },
        "ImageNet, eps 20/255, 10 steps, sigma 0.25",
    )


STUDIES = {study.__name__: study for study in (table2_auto, table2_feature, table2_adaptive, tableA2, tableA3, tableA4)}
