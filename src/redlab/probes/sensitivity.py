"""How sensitive a classifier is to the pixels of an image (InSen of GRED), and what is left without those pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from redlab.batch import AttackBatch
from redlab.evaluation import Answers
from redlab.precision import full_precision
from redlab.probes.perturbation import of_victims
from redlab.rng import SampleRng


def _sensitivity(method: Any, x: Tensor) -> Tensor:
    if not hasattr(method, "sensitivity"):
        raise ValueError(f"{type(method).__name__} has no sensitivity(x) to look at")
    with full_precision():
        found: Tensor = method.sensitivity(x).detach()
    return found


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Column ``insen``: the L2 norm of a method's ``sensitivity(x)`` of each attacked image (GRED, Fig. 2)."""

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``.

        Raises:
            ValueError: the method has no such thing.
        """
        return {"insen": _sensitivity(method, batch.adv).flatten(1).norm(dim=1).double()}


@dataclass(frozen=True, kw_only=True)
class Removal:
    """Whether an attack survives when the numbers to which the classifier is most sensitive are set to 0 (GRED, Table
    1): columns ``survives_<share>``, 1 where the attacked victim is still wrong, and ``random_<share>``, the same after
    as many random ones.

    Attributes:
        shares: of the numbers of an image, each in [0, 1].
    """

    shares: Sequence[float] = (0.0, 0.05, 0.1)

    def __post_init__(self) -> None:
        if not self.shares or not all(0 <= share <= 1 for share in self.shares):
            raise ValueError(f"shares must be in [0, 1], got {self.shares}")

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``.

        Raises:
            ValueError: the method has no ``sensitivity(x)``.
        """
        x, columns = batch.adv, {}
        drawn = SampleRng(0, "removal", 0, batch.index).uniform("order", x[0].numel()).to(x.device)
        orders = {"survives": _sensitivity(method, x).flatten(1), "random": drawn}
        for name, order in orders.items():
            rank = order.argsort(dim=1, descending=True, stable=True).argsort(dim=1).view_as(x)
            for share in self.shares:
                kept = torch.where(rank < round(share * x[0].numel()), 0.0, x)
                with torch.no_grad(), full_precision():
                    said_now = of_victims(victims, batch, kept).argmax(1)
                columns[f"{name}_{share:g}"] = (said_now != batch.label).double()
        return columns
