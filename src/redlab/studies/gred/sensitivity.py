"""What InSen looks like under attack (Fig. 2), and what is left of an attack without its pixels (Table 1)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure

from redlab.probes import Removal, Sensitivity
from redlab.report.plots import curve
from redlab.studies.gred.detecting import NAMES, detectors
from redlab.studies.numbers import Number, every
from redlab.studies.paper_numbers import paper_table
from redlab.studies.study import DIAGNOSIS, Evaluation, Seen, Study
from redlab.studies.table import Address, Table

# Of the classifier alone: seen in a run of which nothing else enters.
RUN = dict(list(detectors("@mnist").items())[:1])
(LOOKED,) = RUN
CLEAN = "clean"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def fig2() -> Study:
    """Fig. 2: the size of InSen."""
    row, ratio = "median of ||S||", "over clean images"

    def medians(seen: Mapping[str, Seen], at: float = 0.5) -> dict[str, float]:
        known = seen[LOOKED].rows.where(knowledge="victim")
        return {
            NAMES.get(attack, CLEAN): float(torch.quantile(of["insen"], at)) for (attack,), of in known.groups("attack")
        }

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        found = medians(seen)
        table = {(row, name): n for name, n in found.items()}
        return table | {(ratio, name): n / found[CLEAN] for name, n in found.items() if name != CLEAN}

    def figure(seen: Mapping[str, Seen], _: Table) -> Figure:
        lines: dict[str, dict[float, Number]] = {}
        for at in QUANTILES:
            for name, n in medians(seen, at).items():
                lines.setdefault(name, {})[at] = Number((float(torch.tensor(n).log10()),))
        return curve({"log10 of ||S||": lines}, x_title="quantile", truth=(CLEAN,), title="Size of InSen")

    return Study(
        id="gred/fig2",
        title="The size of InSen (Fig. 2)",
        runs=RUN,
        evaluations={LOOKED: Evaluation(run=LOOKED, overrides=("@mnist_attacks", *DIAGNOSIS), probe=Sensitivity())},
        numbers=numbers,
        claims={
            "more than ten times that of clean images under DeepFool, CW and DDN": lambda t: every(
                t[ratio, name] > 10 for name in ("DFool-U", "CW-U", "CW-T", "DDN-U", "DDN-T")
            ),
            "at most ten times under PGD": lambda t: every(t[ratio, name] <= 10 for name in ("PGD-U", "PGD-T")),
        },
        figure=figure,
        notes=("The paper draws it and prints no number. Of clean images those count that the classifier gets right.",),
    )


def table1() -> Study:
    """Table 1: what is left of an attack without the most sensitive pixels."""
    columns = {"Deepfool": "deepfool_u", "CW": "cw_u", "DDN": "ddn_u"}
    shares = {"top 0%": 0.0, "top 5%": 0.05, "top 10%": 0.1}
    chance = {f"random {name.partition(' ')[2]}": share for name, share in shares.items() if share}
    (run,) = list(detectors("@fmnist"))[:1]

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        rows = seen[run].rows.where(knowledge="victim")
        found = {}
        for head, of in (("survives", shares), ("random", chance)):
            for name, share in of.items():
                for column, attack in columns.items():
                    found[name, column] = rows.where(attack=attack).mean(f"{head}_{share:g}")
        return found

    def each(t: Table, row: str) -> list[Number]:
        return [t[row, column] for column in columns]

    return Study(
        id="gred/table1",
        title="Attacks without the most sensitive pixels (Table 1)",
        runs={run: detectors("@fmnist")[run]},
        evaluations={run: Evaluation(run=run, overrides=("@fmnist_attacks", *DIAGNOSIS), probe=Removal())},
        numbers=numbers,
        claims={
            "without 5 % fewer attacks succeed": lambda t: every(n < 1 for n in each(t, "top 5%")),
            "without 10 % more than without 5 %": lambda t: every(
                a < b for a, b in zip(each(t, "top 5%"), each(t, "top 10%"), strict=True)
            ),
            "random pixels do less than the most sensitive 5 %": lambda t: every(
                a < b for a, b in zip(each(t, "top 5%"), each(t, "random 5%"), strict=True)
            ),
        },
        paper=paper_table("gred", "table1"),
        paper_data="not named, probably CIFAR-10",
        notes=("Pixels are set to 0. The rows of random pixels are not in the paper.",),
    )


STUDIES = {study.__name__: study for study in (fig2, table1)}
