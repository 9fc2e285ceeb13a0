"""What is printed of rows: means, areas, worst cases. Pure functions of ``Samples``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_roc

from redlab.metrics.identification import answered, calibration, unknown_auroc
from redlab.metrics.samples import CELL, Samples

MEANS = {
    "right_clean": "clean_accuracy",
    "right_attacked": "attacked_accuracy",
    "right_restored": "restored_accuracy",
    "right": "defended_accuracy",
    "pa_benign": "pa_benign",
    "pa_adv": "pa_adv",
    "d": "d",
    "logit_d_benign": "logit_d_benign",
    "logit_d_adv": "logit_d_adv",
    "cosine": "cosine",
    "psnr": "psnr",
    "d_attack": "d_attack",
    "alarm": "alarm_rate",
    "identified": "identified",
}
"""Column -> what its mean is called among the numbers of a run."""

CELL_MEANS = ("pa_benign", "pa_adv")
"""Pooled as the unweighted mean over cells, as CDD-RED (2022) does; all else is the mean over images."""

BESIDE_CLEAN = ("auroc", "tpr_at_fpr1", "detection_accuracy")
"""Measures of attacked images beside clean ones, without which they say nothing."""


def cell_mean(rows: Samples, column: str) -> float:
    """Unweighted mean over cells (``CELL``) of the means over their rows; NaN without rows that have the number.

    Raises:
        ValueError: there is no such column.
    """
    cells, values = rows.codes(*(name for name in CELL if name in rows))
    means = _means(rows[column], cells, len(values))
    return float(means[~means.isnan()].mean())


def _means(values: Tensor, groups: Tensor, many: int) -> Tensor:
    """(many,) means of the values of each group, NaN left out; NaN for a group that has none."""
    known = ~values.isnan()
    sums = torch.bincount(groups[known], values[known], minlength=many)
    return sums / torch.bincount(groups[known], minlength=many)


def roc(rows: Samples, score: str) -> tuple[Tensor, Tensor]:
    """False and true alarm rates of a score at all of its thresholds, from (0, 0) to (1, 1).

    The true ones are shares of the attacked rows, the false ones of all others; rows without the score do not count.

    Raises:
        ValueError: there is no such score, or the rows are of one kind only.
    """
    curve = _roc(rows[f"score_{score}"], rows["attacked"])
    if curve is None:
        raise ValueError(f"a ROC curve needs attacked rows and others, got {len(rows)} of one kind")
    return curve


def auroc(rows: Samples, score: str) -> float:
    """Area under the ROC curve of a score; NaN if the rows are of one kind only.

    Raises:
        ValueError: there is no such score.
    """
    return _area(_roc(rows[f"score_{score}"], rows["attacked"]))


def tpr_at_fpr(rows: Samples, score: str, fpr: float = 0.01) -> float:
    """Largest share of attacked rows above a threshold that at most ``fpr`` of the others exceed.

    NaN if the rows are of one kind only.

    Raises:
        ValueError: there is no such score.
    """
    return _true_rate(_roc(rows[f"score_{score}"], rows["attacked"]), fpr)


def _roc(scores: Tensor, attacked: Tensor) -> tuple[Tensor, Tensor] | None:
    """False and true alarm rates; None without scores of both kinds."""
    known = ~scores.isnan()
    scores, attacked = scores[known], attacked[known] > 0
    if not bool(attacked.any()) or bool(attacked.all()):
        return None
    ranks = torch.unique(scores, return_inverse=True)[1].double()  # torchmetrics takes the sigmoid of other numbers
    false, true, _ = binary_roc(ranks / max(float(ranks.max()), 1.0), attacked.long(), validate_args=False)
    return false.double(), true.double()


def _area(curve: tuple[Tensor, Tensor] | None) -> float:
    return torch.nan if curve is None else float(torch.trapezoid(curve[1], curve[0]))


def _true_rate(curve: tuple[Tensor, Tensor] | None, fpr: float) -> float:
    return torch.nan if curve is None else float(curve[1][curve[0].float() <= fpr].max())


def worst(rows: Samples, column: str = "right") -> Samples:
    """One row per judge and image: the least value of a column over all attacks, settings, victims and knowledge.

    Rows without the number do not count. Nor does a cell that an image is not in, so leave no image out of a cell
    before this: who keeps only the successes of each attack keeps only the failures of the defence.

    Raises:
        ValueError: there is no such column.
    """
    rows = rows.take(~rows[column].isnan())
    many = int(rows["image"].max()) + 1 if len(rows) else 1
    each, place = torch.unique(rows["judge"] * many + rows["image"], return_inverse=True)
    least = torch.full((len(each),), torch.inf, dtype=torch.float64)
    least = least.scatter_reduce(0, place, rows[column], "amin")
    return Samples({"judge": each // many, "image": each % many, column: least}, {"judge": rows.names["judge"]})


def numbers(rows: Samples) -> dict[str, float]:
    """The flat numbers of an evaluation.

    ``<measure>`` is over all attacked rows of attackers who know the victim only, ``<measure>/<attack>`` and
    ``<measure>/<attack>/<victim>`` over some of them (``<measure>`` is over the rows that are not attacked where there
    are no such attackers); ``clean_accuracy`` is over the clean rows where there are any; ``adaptive_<measure>...`` is
    over those of attackers who know the defence; ``count...`` says how many rows; ``unknown_auroc`` is of an
    identifier that is tested with attacks that it does not know; ``worst_accuracy`` is the share of images on which the
    defence is right whatever the attacker does. What no row has is not there.

    >>> names = {"attack": ("clean", "fgsm"), "knowledge": ("victim", "defence"), "victim": ("net",)}
    >>> columns = {"attack": [0, 1, 1], "knowledge": [0, 0, 1], "victim": [0, 0, 0], "attacked": [0, 1, 1]}
    >>> rows = Samples(columns | {"right": [1, 1, 0]}, names)
    >>> found = numbers(rows)
    >>> found["defended_accuracy/clean"], found["defended_accuracy/fgsm"], found["adaptive_defended_accuracy/fgsm/net"]
    (1.0, 1.0, 0.0)
    """
    out: dict[str, float] = {}
    if not len(rows):
        return out
    clean = rows.clean
    for (knowledge,), mine in rows.groups("knowledge"):
        head = "" if knowledge == "victim" else "adaptive_"
        attacked = mine.where(attacked=1)
        for level in ((), ("attack",), ("attack", "victim")):
            some = mine if level or not len(attacked) else attacked
            groups, names = some.codes(*level)
            tails = ["".join(f"/{name}" for name in group) for group in names]
            for measure, values in _measures(some, groups, len(names), clean):
                out |= {f"{head}{measure}{tail}": value for tail, value in zip(tails, values, strict=True)}
        if "right_clean" in mine and len(mine.clean):
            out[f"{head}clean_accuracy"] = mine.clean.mean("right_clean")
    if "said" in rows:
        out["unknown_auroc"] = unknown_auroc(rows.where(knowledge="victim"))
    if "right" in rows and "judge" in rows:
        least = worst(rows)
        out["worst_accuracy"] = least.mean("right")
        out |= {f"worst_accuracy/{judge}": group.mean("right") for (judge,), group in least.groups("judge")}
    return {key: value for key, value in out.items() if value == value}


def _measures(rows: Samples, groups: Tensor, many: int, clean: Samples) -> Iterator[tuple[str, list[float]]]:
    """Every measure of each of some groups of rows; detection sets them against clean rows of the same victims."""
    yield "count", torch.bincount(groups, minlength=many).double().tolist()
    cells, cell_names = rows.codes(*(name for name in CELL if name in rows))
    group_of = torch.zeros(len(cell_names), dtype=torch.int64).scatter(0, cells, groups)
    for column, name in MEANS.items():
        if column in rows and column in CELL_MEANS:
            yield name, _means(_means(rows[column], cells, len(cell_names)), group_of, many).tolist()
        elif column in rows:
            yield name, _means(rows[column], groups, many).tolist()
    members = torch.split(groups.argsort(stable=True), torch.bincount(groups, minlength=many).tolist())
    for place, score in enumerate(score_names(rows)):
        tail = f"_{score}" if place else ""
        curves = [_beside(rows, mine, clean, f"score_{score}") for mine in members]
        yield f"auroc{tail}", [_area(curve) for curve in curves]
        yield f"tpr_at_fpr1{tail}", [_true_rate(curve, 0.01) for curve in curves]
    if "alarm" in rows:
        yield "detection_accuracy", [_told(rows, mine, clean) for mine in members]
    if "said" in rows:
        probabilities, truth = answered(rows)
        yield "calibration_error", [calibration(probabilities[mine], truth[mine]) for mine in members]


def _beside(rows: Samples, mine: Tensor, clean: Samples, column: str) -> tuple[Tensor, Tensor] | None:
    """The ROC curve of the attacked among some rows, against the clean rows of the same victims."""
    attacked, others = _both(rows, mine, clean, column)
    return _roc(torch.cat([attacked, others]), torch.arange(len(attacked) + len(others)) < len(attacked))


def _told(rows: Samples, mine: Tensor, clean: Samples) -> float:
    """Half from alarms on attacked rows, half from none on clean rows; NaN without both."""
    attacked, others = _both(rows, mine, clean, "alarm")
    return float((attacked.nanmean() + 1 - others.nanmean()) / 2)


def _both(rows: Samples, mine: Tensor, clean: Samples, column: str) -> tuple[Tensor, Tensor]:
    """A column of the attacked among some rows, and of the clean rows of the same victims."""
    mine = mine[rows["attacked"][mine] > 0]
    return rows[column][mine], clean[column][torch.isin(clean["victim"], torch.unique(rows["victim"][mine]))]


def score_names(rows: Samples) -> tuple[str, ...]:
    """Names of the scores of a detector that the rows have; the first decides."""
    return tuple(name.removeprefix("score_") for name in rows.columns if name.startswith("score_"))
