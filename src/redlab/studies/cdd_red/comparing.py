"""What most studies of CDD-RED compare: three methods, by distances and by prediction alignment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from redlab.metrics import Samples, cell_mean
from redlab.studies.numbers import Claim, Number, every, increasing
from redlab.studies.paper_numbers import PaperTable
from redlab.studies.study import DIAGNOSIS, Evaluation
from redlab.studies.table import Table

# The baselines are not augmented, whatever a scale chooses for CDD-RED.
RUNS = {
    "DO": ["method=do", "@denoiser", "method.aug_mode=none"],
    "DS": ["method=ds", "@denoiser", "method.aug_mode=none"],
    "CDD-RED": ["method=cdd_red", "@denoiser"],
}
OWN = {name: Evaluation(run=name) for name in RUNS}


def diagnosed(**asked: Any) -> dict[str, Evaluation]:
    """Each run looked at in the same way."""
    return {name: Evaluation(run=name, overrides=DIAGNOSIS, **asked) for name in RUNS}


D = "d(x, x_RED)"
LOGIT_BENIGN = "d(f(x), f(x_RED))"
LOGIT_ADV = "d(f(x'), f(x'_RED))"
PA_BENIGN, PA_ADV = "PA_benign", "PA_adv"
RMS, RMS_ATTACK = "rms(x_RED - x)", "rms(x' - x)"
ATTACKED, RESTORED = "accuracy, attacked", "accuracy, restored"
ADAPTIVE = "accuracy, restored, attacker knows the defence"
UNITS = {D: "L2", LOGIT_BENIGN: "L2", LOGIT_ADV: "L2", PA_BENIGN: "%", PA_ADV: "%", RMS: "1/255", RMS_ATTACK: "1/255"}
UNITS |= {ATTACKED: "%", RESTORED: "%", ADAPTIVE: "%"}

NEAR = 5.0
"""How many points of prediction alignment we read as "about equal"; the paper's own differ by 0.93."""

NOTES = (
    "d is a Euclidean norm over the image and grows with its size, so it can be compared across methods only, not with "
    "the paper's; rms(x_RED - x) = d / sqrt(C*H*W), in grey levels of 1/255, is free of the size. The paper's d over "
    "3*224*224 values (a size that the paper implies, not states) would be 6.1 (DO), 12.6 (DS) and 8.6 (CDD-RED) grey "
    "levels, on other data and attacks.",
    f"≈ is read as within {NEAR:g} points; the paper gives no number for it.",
)
IMAGENET = "ImageNet, 28K attacked images, FGSM, PGD and CW on five classifiers"


def alignment(rows: Samples) -> dict[str, float]:
    """The three measures of most tables; PA is the mean over cells, as the authors' code has it."""
    return {
        D: rows.mean("d"),
        PA_BENIGN: 100 * cell_mean(rows, "pa_benign"),
        PA_ADV: 100 * cell_mean(rows, "pa_adv"),
    }


def distances(rows: Samples) -> dict[str, float]:
    """Alignment, and how far the logits are from those that they should be."""
    return alignment(rows) | {LOGIT_BENIGN: rows.mean("logit_d_benign"), LOGIT_ADV: rows.mean("logit_d_adv")}


def among(table: PaperTable, *columns: str) -> PaperTable:
    """Some columns of a paper's table."""
    rows = tuple({**row, "values": {c: row["values"][c] for c in columns}} for row in table.rows)
    return replace(table, columns=columns, rows=rows)


class Trio(NamedTuple):
    """The columns that a conclusion of the paper compares."""

    do: str = "DO"
    red: str = "CDD-RED"
    ds: str = "DS"


OF_TABLE1 = Trio()


def between(t: Table, row: str, of: Trio = OF_TABLE1) -> Claim:
    """The order of the paper's distances."""
    return increasing(t[row, name] for name in of)


def best(t: Table, row: str, of: Trio = OF_TABLE1) -> Claim:
    """CDD-RED above both baselines."""
    return every(t[row, of.red] > t[row, name] for name in (of.ds, of.do))


def as_good_as_ds(t: Table, of: Trio = OF_TABLE1) -> Claim:
    """In PA_benign CDD-RED is about equal to DS, and both are far above DO."""
    return (
        t[PA_BENIGN, of.red].near(t[PA_BENIGN, of.ds], by=NEAR)
        & (t[PA_BENIGN, of.do] + 15 < t[PA_BENIGN, of.ds])
        & (t[PA_BENIGN, of.do] + 15 < t[PA_BENIGN, of.red])
    )


def conclusions(of: Trio = OF_TABLE1) -> dict[str, Callable[[Table], Claim]]:
    """What the paper concludes from Table 1, of three columns of a table."""
    return {
        "d: DO < CDD-RED < DS": lambda t: between(t, D, of),
        "PA_benign: CDD-RED ≈ DS (within 5 points) ≫ DO (by more than 15 points)": lambda t: as_good_as_ds(t, of),
        "PA_adv: CDD-RED > DS, DO": lambda t: best(t, PA_ADV, of),
        "benign logit d: CDD-RED ≤ DS < DO": lambda t: (
            (t[LOGIT_BENIGN, of.red] <= t[LOGIT_BENIGN, of.ds]) & (t[LOGIT_BENIGN, of.ds] < t[LOGIT_BENIGN, of.do])
        ),
        "adversarial logit d: CDD-RED < DO < DS": lambda t: increasing(
            t[LOGIT_ADV, name] for name in (of.red, of.do, of.ds)
        ),
    }


def over(t: Table, names: Mapping[str, str]) -> dict[str, dict[str, dict[str, Number]]]:
    """Panels of the three measures, over columns by what they are called in a figure."""
    return {row: {"CDD-RED": {x: t[row, c] for x, c in names.items()}} for row in (D, PA_BENIGN, PA_ADV)}
