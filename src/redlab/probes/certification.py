"""What a smoothed classifier can promise behind a denoiser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from redlab.batch import AttackBatch, estimate
from redlab.evaluation import Answers
from redlab.metrics import certificate, votes
from redlab.precision import full_precision
from redlab.probes.probe import by_victim, restored
from redlab.rng import generator


@dataclass(frozen=True, kw_only=True)
class Certification:
    """The radius in which denoised smoothing is right for certain (CDD-RED, Fig. A3).

    The smoothed classifier says what F(D(z + n)) says most often, n ~ N(0, sigma^2), F the attacked victim. Columns
    ``radius``, and ``radius_plain`` without D: the certified l2 radius around the clean image; -1 where the class is
    not the label, or nothing is certain. Needs a restorer.

    Attributes:
        sigma: of the noise, in units of [0, 1].
        draws: that are counted.
        select: others, by which the class is chosen.
        alpha: how often a certificate may be wrong.
        seed: of the noise, which is the same for every image.
    """

    sigma: float = 0.25
    draws: int = 1000
    select: int = 100
    alpha: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and 0 < self.alpha < 1 and min(self.draws, self.select) >= 1):
            raise ValueError(f"sigma, draws, select and alpha must be positive, alpha below 1, got {self}")

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``.

        Raises:
            ValueError: the defence restores nothing.
        """
        restored(said)
        columns = {name: torch.full((len(batch),), -1.0, dtype=torch.float64) for name in ("radius", "radius_plain")}
        for _, victim, rows in by_victim(victims, batch):
            for name, column in columns.items():
                column[rows.cpu()] = self._radius(method if name == "radius" else None, victim, batch[rows])
        return columns

    def _radius(self, method: Any, victim: nn.Module, batch: AttackBatch) -> Tensor:
        def classify(x: Tensor) -> Tensor:
            return cast(Tensor, victim(x if method is None else estimate(method, x).float()))

        with torch.no_grad(), full_precision():
            chosen, counted = (
                votes(classify, batch.clean, self._noises(batch.clean, many, purpose))
                for many, purpose in ((self.select, "select"), (self.draws, "certify"))
            )
        found = certificate(chosen, counted, sigma=self.sigma, alpha=self.alpha)
        return torch.where(found.label == batch.label, found.radius.double(), -1.0).cpu()

    def _noises(self, x: Tensor, draws: int, purpose: str) -> Iterator[Tensor]:
        source = generator(purpose, self.seed, device=x.device)
        return (self.sigma * torch.randn(1, *x.shape[1:], generator=source, device=x.device) for _ in range(draws))
