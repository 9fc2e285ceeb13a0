"""What is printed of the rows of an identifier: which attack it took for which, how sure it was, what was new to it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

from redlab.metrics.samples import Samples


def confusion(rows: Samples) -> tuple[Tensor, tuple[str, ...], tuple[str, ...]]:
    """How often which attack was taken for which: (R, A) counts, names of the R attacks, names of the A answers.

    The attacks are those that occur in the rows. One that the identifier was not trained on has a row and no column.

    Raises:
        ValueError: the rows are not those of an identifier.
    """
    said, attack = rows["said"], rows["attack"]
    answers, known = rows.names["said"], rows.names["attack"]
    counts = torch.bincount(attack * len(answers) + said, minlength=len(known) * len(answers)).view(len(known), -1)
    return counts[[known.index(name) for name in rows.attacks]], rows.attacks, answers


def calibration_error(rows: Samples, bins: int = 15) -> float:
    """Expected calibration error of an identifier over the attacks that it knows (Guo et al. 2017); NaN without any.

    Raises:
        ValueError: the rows are not those of an identifier.
    """
    return calibration(*answered(rows), bins)


def answered(rows: Samples) -> tuple[Tensor, Tensor]:
    """(N, A) probabilities of the answers of an identifier, and the place of the true one, -1 where it is none.

    Raises:
        ValueError: the rows are not those of an identifier.
    """
    answers = _answers(rows)
    places = torch.tensor([answers.index(name) if name in answers else -1 for name in rows.names["attack"]])
    return torch.stack([rows[f"p_{name}"] for name in answers], dim=1), places[rows["attack"]]


def _answers(rows: Samples) -> tuple[str, ...]:
    if "said" not in rows:
        raise ValueError(f"the rows are not those of an identifier: there is no 'said' in {', '.join(rows.columns)}")
    return tuple(rows.names["said"])


def calibration(probabilities: Tensor, truth: Tensor, bins: int = 15) -> float:
    """The same of what ``answered`` gives."""
    known = truth >= 0
    if not bool(known.any()):
        return torch.nan
    return float(
        multiclass_calibration_error(
            probabilities[known], truth[known], probabilities.shape[1], n_bins=bins, validate_args=False
        )
    )


def identified_per_attack(rows: Samples) -> dict[str, float]:
    """Share of the images of each attack, "clean" among them, that are told as such, all its settings together.

    Attacks that the identifier does not know are left out.

    Raises:
        ValueError: the rows are not those of an identifier.
    """
    known = _answers(rows)
    return {name: group.mean("identified") for (name,), group in rows.groups("attack") if name in known}


def identified_total(rows: Samples, weights: Mapping[str, float]) -> float:
    """Weighted mean of the shares of ``identified_per_attack``, however many rows each attack has.

    Args:
        rows: of an identifier.
        weights: name of an attack -> its weight.

    Raises:
        ValueError: an attack with a weight has no rows, or the rows are not those of an identifier.
    """
    found = identified_per_attack(rows)
    if missing := weights.keys() - found.keys():
        raise ValueError(f"there are no rows of {min(missing)}, which has a weight")
    return sum(weight * found[name] for name, weight in weights.items()) / sum(weights.values())


def unknown_auroc(rows: Samples) -> float:
    """How well an identifier's own doubt, 1 - its largest probability, finds attacks that it does not know.

    AUROC of images of unknown attacks against all others, clean ones among them; NaN where one of both is missing.

    Raises:
        ValueError: the rows are not those of an identifier.
    """
    probabilities, truth = answered(rows)
    unknown = truth < 0
    if not bool(unknown.any()) or bool(unknown.all()):
        return torch.nan
    return float(binary_auroc(1 - probabilities.amax(1), unknown.long(), validate_args=False))
