"""What is printed of rows: means, areas, worst cases. Pure functions of ``Samples``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_roc,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from redlab.metrics.samples import Samples

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


def cell_mean(rows: Samples, column: str) -> float:
    """Unweighted mean over cells (attack, setting, victim) of the means over their images; NaN without rows."""
    means = [group.mean(column) for _, group in rows.groups("attack", "setting", "victim")]
    known = [mean for mean in means if mean == mean]
    return sum(known) / len(known) if known else torch.nan


def _detection(rows: Samples, score: str) -> tuple[Tensor, Tensor] | None:
    """Ranks of the scores in [0, 1], and what was attacked; None without images of both kinds."""
    values, attacked = rows[f"score_{score}"], rows["attacked"] > 0
    known = ~values.isnan()
    values, attacked = values[known], attacked[known]
    if not bool(attacked.any()) or bool(attacked.all()):
        return None
    ranks = torch.unique(values, return_inverse=True)[
        1
    ].double()  # not the scores: torchmetrics takes the sigmoid of those
    return ranks / max(float(ranks.max()), 1.0), attacked.long()


def auroc(rows: Samples, score: str) -> float:
    """Area under the ROC curve of a score, attacked images against all others in the rows; NaN if there is one kind."""
    pair = _detection(rows, score)
    return torch.nan if pair is None else float(binary_auroc(*pair))


def roc(rows: Samples, score: str) -> tuple[Tensor, Tensor]:
    """False and true alarm rates of a score at all of its thresholds, from (0, 0) to (1, 1).

    Raises:
        ValueError: the rows have images of one kind only.
    """
    pair = _detection(rows, score)
    if pair is None:
        raise ValueError("a ROC curve needs rows of attacked and of other images")
    false, true, _ = binary_roc(*pair)
    return false, true


def tpr_at_fpr(rows: Samples, score: str, fpr: float = 0.01) -> float:
    """Share of attacked images above the threshold that at most ``fpr`` of the others exceed; NaN without a kind."""
    if _detection(rows, score) is None:
        return torch.nan
    false, true = roc(rows, score)
    return float(true[false <= fpr].max())


def confusion(rows: Samples) -> tuple[Tensor, tuple[str, ...], tuple[str, ...]]:
    """How often which attack (rows) was taken for which (columns): counts, names of rows, names of columns.

    An attack that the identifier was not trained on has a row and no column.
    """
    columns = tuple(name.removeprefix("p_") for name in rows.columns if name.startswith("p_"))
    truth, known = rows["attack"], rows.names["attack"]
    present = tuple(known[code] for code in torch.unique(truth).tolist())
    size = max(len(known), len(columns))
    counts = multiclass_confusion_matrix(rows["said"].long(), truth, num_classes=size)
    return counts[[known.index(name) for name in present], : len(columns)], present, columns


def calibration_error(rows: Samples, bins: int = 15) -> float:
    """Expected calibration error of an identifier over the attacks that it knows (Guo et al. 2017); NaN without any."""
    columns = [name for name in rows.columns if name.startswith("p_")]
    known = rows.take(~rows["identified"].isnan())
    if not len(known) or not columns:
        return torch.nan
    names = rows.names["attack"]
    places = torch.tensor([columns.index(f"p_{n}") if f"p_{n}" in columns else -1 for n in names])
    probabilities = torch.stack([known[name] for name in columns], dim=1)
    truth = places[known["attack"]]
    return float(multiclass_calibration_error(probabilities, truth, num_classes=len(columns), n_bins=bins))


def worst(rows: Samples, column: str = "right") -> Samples:
    """One row per judge and image: the least value of a column over all attacks, settings and knowledge.

    Cells that an image is not in do not count for it: its attack failed there, and ``only_fooled`` left it out.
    """
    if not len(rows):
        return rows
    pairs = torch.stack([rows["judge"], rows["image"]], dim=1)
    each, place = torch.unique(pairs, dim=0, return_inverse=True)
    least = torch.full((len(each),), torch.inf, dtype=torch.float64)
    least = least.scatter_reduce(0, place, rows[column], "amin")
    columns = {"judge": each[:, 0], "image": each[:, 1], column: least}
    return Samples(columns, {"judge": rows.names["judge"]})


def numbers(rows: Samples) -> dict[str, float]:
    """The flat numbers of an evaluation.

    ``<measure>`` is over all attacked images of attackers who know the victim only (``clean_accuracy`` over the clean
    ones where there are any), ``<measure>/<attack>`` and ``<measure>/<attack>/<victim>`` over some of them;
    ``adaptive_<measure>...`` over those of attackers who know the defence; ``count...`` says how many images;
    ``worst_accuracy`` is the share of images on which the defence is right whatever the attacker does. Without rows
    there is no number.

    >>> names = {"attack": ("clean", "fgsm"), "knowledge": ("victim", "defence"), "victim": ("net",)}
    >>> columns = {"attack": [0, 1, 1], "knowledge": [0, 0, 1], "victim": [0, 0, 0], "attacked": [0, 1, 1]}
    >>> rows = Samples(columns | {"right": [1, 1, 0]}, names)
    >>> found = numbers(rows)
    >>> found["defended_accuracy/clean"], found["defended_accuracy/fgsm"], found["adaptive_defended_accuracy/fgsm/net"]
    (1.0, 1.0, 0.0)
    """
    out: dict[str, float] = {}
    for knowledge, head in (("victim", ""), ("defence", "adaptive_")):
        mine = rows.where(knowledge=knowledge)
        clean = mine.where(attack="clean") if len(mine) else mine
        for tail, group in _groups(mine):
            out |= {f"{head}{name}{tail}": value for name, value in _of_group(group, clean).items()}
        if len(clean) and "right_clean" in clean:
            out[f"{head}clean_accuracy"] = clean.mean("right_clean")
    if {"right", "judge"} <= rows.columns.keys() and len(rows):
        least = worst(rows)
        out["worst_accuracy"] = least.mean("right")
        out |= {f"worst_accuracy/{judge}": group.mean("right") for (judge,), group in least.groups("judge")}
    return {key: value for key, value in out.items() if value == value}


def _groups(rows: Samples) -> Iterator[tuple[str, Samples]]:
    """The tail of the key, and its rows: all attacked ones, by attack, by attack and victim."""
    if not len(rows):
        return
    attacked = rows.where(attacked=1)
    yield "", attacked if len(attacked) else rows
    for (attack,), group in rows.groups("attack"):
        yield f"/{attack}", group
        for (victim,), cell in group.groups("victim"):
            yield f"/{attack}/{victim}", cell


def _of_group(rows: Samples, clean: Samples) -> Mapping[str, float]:
    """Every measure of some rows; detection sets them against the clean images of the same victims."""
    out = {"count": float(len(rows))}
    for column, name in MEANS.items():
        if column in rows:
            out[name] = cell_mean(rows, column) if column in CELL_MEANS else rows.mean(column)
    scores = [name.removeprefix("score_") for name in rows.columns if name.startswith("score_")]
    if scores and len(clean) and bool((rows["attacked"] > 0).any()):
        both = Samples.cat([clean.where(victim=list(rows.values("victim"))), rows.where(attacked=1)])
        for score in scores:
            tail = "" if len(scores) == 1 else f"_{score}"
            out |= {f"auroc{tail}": auroc(both, score), f"tpr_at_fpr1{tail}": tpr_at_fpr(both, score)}
    if "identified" in rows:
        out["calibration_error"] = calibration_error(rows)
    return out
