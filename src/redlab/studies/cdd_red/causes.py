"""Why Table 1 of CDD-RED does not come out at a small scale: each suspect changed by itself, on validation images."""

from __future__ import annotations

from collections.abc import Callable

from redlab.report.plots import heat
from redlab.studies.cdd_red.comparing import (
    NOTES,
    OF_TABLE1,
    PA_ADV,
    PA_BENIGN,
    RUNS,
    UNITS,
    Trio,
    conclusions,
    distances,
)
from redlab.studies.numbers import Claim, Number
from redlab.studies.study import DIAGNOSIS, Evaluation, Study, by_column
from redlab.studies.table import Table

LAMBDAS = (0.008, 0.08, 0.25)
"""Of CDD-RED, around its 0.025."""
DS_WEIGHTS = (0.01, 0.03, 0.3, 1.0)
"""Of DS, around our 0.1; the paper does not print its own."""
WHOLE = {"ten times as long": "@longer", "full width": "@wide", "guide trained less": "@weak_guide"}
"""What all three methods are given -> its words in a scale."""
VALIDATION = ("data.test_on=val", *DIAGNOSIS)


def _weighted() -> dict[str, tuple[str, list[str]]]:
    """Name of a run -> the method of Table 1 and its words."""
    red = {
        f"CDD-RED, lambda={v}": ("CDD-RED", [f"method.lambda_benign={v}", f"method.lambda_adv={v}"]) for v in LAMBDAS
    }
    return red | {f"DS, weight={v}": ("DS", [f"method.lambda_benign={v}"]) for v in DS_WEIGHTS}


def _conditions() -> dict[str, Trio]:
    """What is changed -> the runs that are compared."""
    found = {"as in Table 1": Trio()}
    for name, (method, _) in _weighted().items():
        found[name] = Trio(red=name) if method == "CDD-RED" else Trio(ds=name)
    return found | {how: Trio(*(f"{name}, {how}" for name in Trio())) for how in WHOLE}


def why_table1() -> Study:
    """The conclusions of Table 1, with one thing changed at a time."""
    runs = dict(RUNS) | {name: [*RUNS[method], *words] for name, (method, words) in _weighted().items()}
    runs |= {f"{name}, {how}": [*RUNS[name], words] for how, words in WHOLE.items() for name in RUNS}
    claims: dict[str, Callable[[Table], Claim]] = {
        f"{how}: {text}": claim for how, trio in _conditions().items() for text, claim in conclusions(trio).items()
    }
    return Study(
        id="cdd_red/why_table1",
        title="Table 1 with one thing changed at a time, on validation images",
        runs=runs,
        evaluations={name: Evaluation(run=name, overrides=VALIDATION) for name in runs},
        numbers=by_column(distances, attacked=1),
        claims=claims,
        figure=lambda _, t: heat(_panels(t), low=40, high=100, title="Table 1 with one thing changed, in %"),
        units=UNITS,
        notes=(
            *NOTES,
            "Not in the paper. Validation images of each seed: none of the test images is looked at. Which attackers "
            "know the denoiser is the matter of Table 1 and of table2_adaptive.",
            "A fourth suspect cannot be changed alone: that ten classes are easier than a thousand.",
        ),
    )


def _panels(t: Table) -> dict[str, dict[str, dict[str, Number]]]:
    """Prediction alignment of the three methods under each of the conditions."""
    of = _conditions()
    return {
        row: {how: {name: t[row, run] for name, run in zip(OF_TABLE1, trio, strict=True)} for how, trio in of.items()}
        for row in (PA_BENIGN, PA_ADV)
    }


STUDIES = {"why_table1": why_table1}
"""Name under ``cdd_red/`` -> the study."""
