"""How well a restorer gives back the clean image and the perturbation, per (attack, victim) cell and overall."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from redlab.batch import CLEAN, AttackBatch, check_name
from redlab.metrics.functional import cosine, logit_distance, pixel_distance, prediction_alignment, psnr

QUANTITIES = (
    "clean_accuracy",
    "attacked_accuracy",
    "restored_accuracy",
    "pa_benign",
    "pa_adv",
    "d",
    "logit_d_benign",
    "logit_d_adv",
    "cosine",
    "psnr",
    "d_attack",
)
"""In the order of the rows of the metric's state."""

CELL_MEANS = ("pa_benign", "pa_adv")
"""Pooled as the unweighted mean over cells, as CDD-RED (2022) does; all else is the mean over images."""


class RestorationMetrics(Metric):
    """Means over the valid rows of each (attack, victim) cell.

    ``compute`` gives a flat dict of floats. Each quantity is there as ``<name>/<attack>/<victim>``, ``<name>/<attack>``
    and, over the attacked cells alone, ``<name>``; so are the numbers of rows, as ``count``. No rows, no key.

    The states are sums, so several ranks add up to what one would have counted.

    Args:
        attack_names: names by attack id; id 0 is clean.
        victim_names: names by victim id.

    Raises:
        ValueError: a list of names is empty, has duplicates, or a name that would break a key.

    Example:
        >>> metric = RestorationMetrics(["clean", "fgsm"], ["lenet"])
        >>> x, ids = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.int64)
        >>> batch = AttackBatch(x, x + 0.1, ids, ids + 1, ids, ids, ids, ids - 1, ids, ids == 0, ids == 0)
        >>> right, wrong = torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[0.0, 1.0]] * 2)
        >>> metric.update(batch, x, right, wrong, right, wrong)
        >>> values = metric.compute()
        >>> values["restored_accuracy"], values["attacked_accuracy/fgsm/lenet"], values["d"]
        (1.0, 0.0, 0.0)
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, attack_names: Sequence[str], victim_names: Sequence[str]) -> None:
        super().__init__()
        for kind, names in (("component", attack_names), ("victim", victim_names)):
            for name in names:
                check_name(kind, name)
            if not names or len(set(names)) < len(names):
                raise ValueError(f"need names without duplicates, got {list(names)}")
        self.attack_names, self.victim_names = tuple(attack_names), tuple(victim_names)
        cells = (len(attack_names), len(victim_names))
        self.add_state("total", torch.zeros(len(QUANTITIES), *cells, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(*cells, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        batch: AttackBatch,
        restored: Tensor,
        logits_clean: Tensor,
        logits_adv: Tensor,
        logits_restored: Tensor,
        logits_adv_red: Tensor,
    ) -> None:
        """Adds a batch. All logits are those of the victim that each row was crafted on.

        Args:
            batch: B pairs.
            restored: (B, C, H, W), x_RED, the estimate of the clean images.
            logits_clean: (B, K), f(x).
            logits_adv: (B, K), f(x').
            logits_restored: (B, K), f(x_RED).
            logits_adv_red: (B, K), f(x'_RED) with x'_RED = x' - x_RED + x.

        Raises:
            ValueError: an attack or victim id has no name, or shapes do not fit.
        """
        for ids, names in ((batch.attack, self.attack_names), (batch.victim, self.victim_names)):
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(names):
                raise ValueError(
                    f"ids must be in 0..{len(names) - 1} for {list(names)}, got {sorted(set(ids.tolist()))}"
                )
        values = {
            "clean_accuracy": logits_clean.argmax(1) == batch.label,
            "attacked_accuracy": logits_adv.argmax(1) == batch.label,
            "restored_accuracy": logits_restored.argmax(1) == batch.label,
            "pa_benign": prediction_alignment(logits_restored, logits_clean),
            "pa_adv": prediction_alignment(logits_adv_red, logits_adv),
            "d": pixel_distance(restored, batch.clean),
            "logit_d_benign": logit_distance(logits_restored, logits_clean),
            "logit_d_adv": logit_distance(logits_adv_red, logits_adv),
            "cosine": cosine(batch.adv - batch.clean, batch.adv - restored),
            "psnr": psnr(restored, batch.clean),
            "d_attack": pixel_distance(batch.adv, batch.clean),
        }
        rows = torch.stack([values[name].double() for name in QUANTITIES])[:, batch.valid]  # (Q, N)
        cell = (batch.attack * len(self.victim_names) + batch.victim)[batch.valid]
        # A product with one-hot rows, since scattered additions have no fixed order on a GPU.
        one_hot = torch.nn.functional.one_hot(cell, self.count.numel()).double()
        self.total = self.total + (rows @ one_hot).view_as(self.total)
        self.count = self.count + one_hot.sum(0).view_as(self.count)

    def compute(self) -> dict[str, float]:
        """Means so far, as described at the class."""
        total, count = self.total.cpu(), self.count.cpu()
        attacked = torch.arange(len(self.attack_names)) != CLEAN
        groups = {"": attacked[:, None] & torch.ones_like(count, dtype=torch.bool)}
        for a, attack in enumerate(self.attack_names):
            groups[f"/{attack}"] = torch.zeros_like(count, dtype=torch.bool)
            groups[f"/{attack}"][a] = True
            for v, victim in enumerate(self.victim_names):
                groups[f"/{attack}/{victim}"] = torch.zeros_like(count, dtype=torch.bool)
                groups[f"/{attack}/{victim}"][a, v] = True
        out = {}
        for suffix, group in groups.items():
            filled = group & (count > 0)
            if not filled.any():
                continue
            out[f"count{suffix}"] = float(count[filled].sum())
            for name, sums in zip(QUANTITIES, total, strict=True):
                if name in CELL_MEANS:
                    out[name + suffix] = float((sums[filled] / count[filled]).mean())
                else:
                    out[name + suffix] = float(sums[filled].sum() / count[filled].sum())
        return out
