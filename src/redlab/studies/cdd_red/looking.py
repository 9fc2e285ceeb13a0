"""Where a victim looks on what a denoiser estimates: Figs. 2, 5, 6 and A1."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

from redlab.metrics import Samples, auroc, roc
from redlab.probes import Attribution, AttributionShift
from redlab.report.plots import distributions, image_grid, roc_figure
from redlab.studies.cdd_red.comparing import RUNS, best, diagnosed
from redlab.studies.numbers import every, most
from redlab.studies.study import Evaluation, Seen, Study, by_column
from redlab.studies.table import Address, Table

IOU = {
    "IoU(x_RED, x, y)": "iou_restored_y",
    "IoU(x_RED, x, y')": "iou_restored_y'",
    "IoU(x'_RED, x', y)": "iou_readded_y",
    "IoU(x'_RED, x', y')": "iou_readded_y'",
}


LOOKING = diagnosed(probe=Attribution(), keep_images=1)


def fig5() -> Study:
    """Fig. 5: where the victim looks on estimates and on the truth; the scores are those of Fig. 6."""
    # Neither the layer nor the threshold of IoU is given: the last convolutional block, half of a map's maximum.

    def figure(seen: Mapping[str, Seen], _: Table) -> Figure:
        shown = (next(iter(seen.values())).of["attacked"] > 0).nonzero()[:3, 0]

        def pair(each: Seen, first: str, second: str) -> Tensor:
            return torch.stack([each.pictures[name][shown] for name in (first, second)], dim=1).flatten(0, 1)

        truth = next(iter(seen.values()))
        maps = {name: (each, "restored", "readded") for name, each in seen.items()} | {"truth": (truth, "clean", "adv")}
        columns = {"image": pair(truth, "clean", "adv")}
        for name, (each, first, second) in maps.items():
            for c in ("y", "y'"):
                columns[f"{name}: {c} (map)"] = pair(each, f"cam_{first}_{c}", f"cam_{second}_{c}")
        return image_grid(columns, rows=["x", "x'"] * len(shown), title="Where the victim looks")

    return Study(
        id="cdd_red/fig5",
        title="Where the victim looks (Fig. 5)",
        runs=RUNS,
        evaluations=LOOKING,
        numbers=by_column(lambda rows: {t: 100 * rows.mean(c) for t, c in IOU.items()}, attacked=1, knowledge="victim"),
        claims={
            "CDD-RED closest in three of four scores": lambda t: most((best(t, score) for score in IOU), at_least=3)
        },
        figure=figure,
        units=dict.fromkeys(IOU, "%"),
        notes=("A map of less than 4 x 4 positions, as VGG has on images of 32 x 32, makes IoU meaningless.",),
    )


def fig6() -> Study:
    """Fig. 6: how the scores of Fig. 5 are distributed."""
    kinds: dict[str, Callable[[Tensor], Tensor]] = {"mean": torch.mean, "median": torch.median}

    def numbers(rows: Samples) -> dict[str, float]:
        scores = {score: rows[column] for score, column in IOU.items()}
        known = {score: values[~values.isnan()] for score, values in scores.items()}
        return {f"{score}, {kind}": 100 * float(of(v)) for score, v in known.items() for kind, of in kinds.items()}

    def figure(seen: Mapping[str, Seen], _: Table) -> Figure:
        told = {name: each.rows.where(attacked=1, knowledge="victim") for name, each in seen.items()}
        return distributions(
            {score: {name: rows[column] for name, rows in told.items()} for score, column in IOU.items()},
            title="How far the victim looks at the same place",
        )

    return Study(
        id="cdd_red/fig6",
        title="Overlap of where the victim looks (Fig. 6)",
        runs=RUNS,
        evaluations=LOOKING,
        numbers=by_column(numbers, attacked=1, knowledge="victim"),
        claims={
            "CDD-RED has the highest mean and median in three of four scores": lambda t: most(
                (every(best(t, f"{score}, {kind}") for kind in kinds) for score in IOU), at_least=3
            )
        },
        figure=figure,
        units={f"{score}, {kind}": "%" for score in IOU for kind in kinds},
        notes=(
            "Intersection over union of where a map is at least half of its maximum; the paper gives no threshold.",
        ),
    )


def fig2() -> Study:
    """Fig. 2: denoising alone, beside the truth, on single images."""
    name, far = "DO", 75

    def figure(seen: Mapping[str, Seen], _: Table) -> Figure:
        each = seen[name]
        shown = (each.of["attacked"] > 0).nonzero()[:4, 0]
        columns = {"image: x": each.pictures["clean"][shown], "image: x'": each.pictures["adv"][shown]}
        pairs = {"truth": ("clean", "adv"), name: ("restored", "readded")}
        for head, images in pairs.items():
            for image, text in zip(images, ("x", "x'") if head == "truth" else ("x_RED", "x'_RED"), strict=True):
                for c in ("y", "y'"):
                    columns[f"{head}: {text}, {c} (map)"] = each.pictures[f"cam_{image}_{c}"][shown]
        return image_grid(columns, title="Where the victim looks after denoising alone")

    return Study(
        id="cdd_red/fig2",
        title="Where the victim looks after denoising alone (Fig. 2)",
        runs={name: RUNS[name]},
        evaluations={name: LOOKING[name]},
        numbers=by_column(lambda rows: {t: 100 * rows.mean(c) for t, c in IOU.items()}, attacked=1, knowledge="victim"),
        claims={
            f"its maps differ from the truth: overlap below {far} % in all four": lambda t: every(
                t[score, name] < far for score in IOU
            )
        },
        figure=figure,
        units=dict.fromkeys(IOU, "%"),
        notes=(
            f"The paper shows one image, and gives no number; below {far} % is our reading of a visible difference.",
        ),
    )


def figA1() -> Study:
    """Fig. A1: attacks found by where the victim looks before and after denoising."""
    names = ("DS", "CDD-RED")
    area = {"cosine": "attribution", "overlap": "attribution_iou"}

    def told(each: Seen) -> Samples:
        return each.rows.where(knowledge="victim")

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        return {
            (f"area, by {way}", name): auroc(told(each), score)
            for name, each in seen.items()
            for way, score in area.items()
        }

    row = "area, by cosine"
    return Study(
        id="cdd_red/figA1",
        title="Attacks found by where the victim looks (Fig. A1)",
        runs={name: RUNS[name] for name in names},
        evaluations={name: Evaluation(run=name, probe=AttributionShift()) for name in names},
        numbers=numbers,
        claims={"area: 0.5 < DS < CDD-RED": lambda t: (t[row, "DS"] > 0.5) & (t[row, "DS"] < t[row, "CDD-RED"])},
        figure=lambda seen, _: roc_figure(
            {name: roc(told(each), "attribution") for name, each in seen.items()},
            title="Attacks found by where the victim looks",
        ),
        notes=(
            "The maps of what the victim says of an image and of its estimate, each for its own class. An attacker who "
            "knows of the comparison is not in the paper, and not here: a low area says that it fails, a high one does "
            "not say that it defends.",
        ),
    )


STUDIES = {study.__name__: study for study in (fig2, fig5, fig6, figA1)}
