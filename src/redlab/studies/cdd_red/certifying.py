"""What a smoothed classifier behind a denoiser can promise: Fig. A3."""

from __future__ import annotations

from collections.abc import Mapping

from redlab.probes import Certification
from redlab.report.plots import curve
from redlab.studies.cdd_red.comparing import RUNS
from redlab.studies.numbers import Number, every, most
from redlab.studies.study import DIAGNOSIS, Evaluation, Seen, Study
from redlab.studies.table import Address, Table

RADII = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
PLAIN = "no denoiser"


def figA3() -> Study:
    """Fig. A3: certified accuracy over the radius."""
    probe = Certification()

    def row(radius: float) -> str:
        return f"certified at {radius:g}"

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        found: dict[Address, float] = {}
        for name, each in seen.items():
            rows = each.rows.where(attack="clean")
            for radius in RADII:
                for column, radii in ((name, "radius"), (PLAIN, "radius_plain")):
                    found[row(radius), column] = 100 * float((rows[radii] >= radius).double().mean())
        return found

    def line(t: Table, name: str) -> dict[float, Number]:
        return {radius: t[row(radius), name] for radius in RADII}

    return Study(
        id="cdd_red/figA3",
        title="Certified accuracy of denoised smoothing (Fig. A3)",
        runs=RUNS,
        evaluations={name: Evaluation(run=name, overrides=("@certified", *DIAGNOSIS), probe=probe) for name in RUNS},
        numbers=numbers,
        claims={
            "DO <= DS <= CDD-RED at most radii": lambda t: most(
                (t[row(r), "DO"] <= t[row(r), "DS"]) & (t[row(r), "DS"] <= t[row(r), "CDD-RED"]) for r in RADII
            ),
            "all three above no denoiser at radius 0": lambda t: every(t[row(0), n] > t[row(0), PLAIN] for n in RUNS),
        },
        figure=lambda _, t: curve(
            {"certified accuracy, in %": {name: line(t, name) for name in (*RUNS, PLAIN)}},
            x_title="radius, L2",
            truth=[PLAIN],
            title="Certified accuracy of denoised smoothing",
        ),
        units={row(r): "%" for r in RADII},
        notes=(
            f"Noise of standard deviation {probe.sigma:g}, {probe.draws} draws of it, wrong once in "
            f"{round(1 / probe.alpha)} (Cohen et al. 2019). The denoisers are those of Table 1, trained without noise. "
            "The paper gives neither sigma nor draws.",
        ),
    )


STUDIES = {study.__name__: study for study in (figA3,)}
