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


def _rectifier(method: Any) -> Any:
    if not all(hasattr(method, name) for name in ("suspects", "masked", "rectified", "classifier")):
        raise ValueError(
            f"{type(method).__name__} is no rectifier: it has no suspects, masked, rectified and classifier"
        )
    return method


@dataclass(frozen=True, kw_only=True)
class Rectification:
    """What each step of a rectifier does (GRED, Section 3.4), without its detector: columns ``mask``, 1 where the
    classifier is right on the overwritten image, ``tuned``, where the rectifier is on the image as it is, and ``both``,
    where the rectifier is on the overwritten one."""

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``.

        Raises:
            ValueError: the method is no rectifier.
        """
        method, x = _rectifier(method), batch.adv
        with torch.no_grad(), full_precision():
            logits = {
                "mask": method.classifier(method.masked(x)),
                "tuned": method.rectifier(x),
                "both": method.rectified(x),
            }
        return {name: (z.argmax(1) == batch.label).double() for name, z in logits.items()}


@dataclass(frozen=True, kw_only=True)
class Masking:
    """How much is to be overwritten (GRED, Fig. 5): columns ``mask_<mode>_<alpha>``, 1 where the classifier is right on
    the overwritten image, ``both_<mode>_<alpha>``, where the rectifier is, and ``share_<mode>_<alpha>``, the share of
    its numbers that are marked.

    Attributes:
        alphas: each in [0, 1].
        modes: of a rectifier's ``mask``.
    """

    alphas: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    modes: Sequence[str] = ("range", "quantile")

    def __post_init__(self) -> None:
        if not self.alphas or not all(0 <= alpha <= 1 for alpha in self.alphas):
            raise ValueError(f"alphas must be in [0, 1], got {self.alphas}")

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``.

        Raises:
            ValueError: the method is no rectifier.
        """
        method, columns = _rectifier(method), {}
        with torch.no_grad(), full_precision():
            for mode in self.modes:
                for alpha in self.alphas:
                    marked = method.suspects(batch.adv, alpha, mode)
                    x = method.masked(batch.adv, marked=marked)
                    for name, net in (("mask", method.classifier), ("both", method.rectifier)):
                        columns[f"{name}_{mode}_{alpha:g}"] = (net(x).argmax(1) == batch.label).double()
                    columns[f"share_{mode}_{alpha:g}"] = marked.flatten(1).double().mean(1)
        return columns
