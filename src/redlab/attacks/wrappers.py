"""Attacks on what is not a plain classifier: a defended, a stochastic or a smoothed one.

Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security", ICML 2018 (BPDA, EOT).
Salman et al., "Provably robust deep learning via adversarially trained smoothed classifiers", NeurIPS 2019 (smoothed).

Each wrapper hands another model to the attack inside: one with the same answers whose gradients an attacker can use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import is_whole, logits_of
from redlab.attacks.pgd import PGD
from redlab.attacks.project import checked_length
from redlab.batch import Attack, Restorer, estimate
from redlab.rng import SampleRng


class Defended(nn.Module):
    """Restorer and then victim, as one classifier: what an attacker who knows of the defence differentiates.

    Args:
        restorer: has ``restore``, (B, C, H, W) -> the same shape, or ``estimate``, see ``redlab.batch.estimate``.
        victim: (B, C, H, W) -> (B, K) logits.
    """

    def __init__(self, restorer: Restorer, victim: nn.Module) -> None:
        super().__init__()
        self.restorer = restorer
        self.victim = victim

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) logits of the victim on the restored images."""
        return logits_of(self.victim, estimate(self.restorer, x), 0)


class StraightThrough(nn.Module):
    """``defended`` with a backward pass that takes the restorer for the identity.

    Args:
        defended: the restorer must keep the shape of its images.
    """

    def __init__(self, defended: Defended) -> None:
        super().__init__()
        self.defended = defended

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K), the very logits of ``defended``."""
        with torch.no_grad():
            restored = estimate(self.defended.restorer, x)
        if restored.shape != x.shape:
            raise ValueError(f"BPDA needs a restorer that keeps {tuple(x.shape)}, got {tuple(restored.shape)}")
        return logits_of(self.defended.victim, _TakenForIdentity.apply(x, restored), 0)


class _TakenForIdentity(torch.autograd.Function):
    """Forward ``restored``, backward as if it were ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, restored: Tensor) -> Tensor:
        return restored.view_as(restored)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class Expected(nn.Module):
    """log of the mean softmax over several draws of a model that draws: its expected answer.

    Args:
        model: (B, C, H, W) -> (B, K) logits, another answer at each call.
        samples: number of draws, at least 1; they go through the model side by side.
        noise: (samples, C, H, W) added to the images of each draw, or None.
    """

    def __init__(self, model: nn.Module, samples: int, noise: Tensor | None = None) -> None:
        super().__init__()
        self.model, self.samples, self.noise = model, samples, noise

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) logarithms of probabilities."""
        draws = x.expand(self.samples, *x.shape)
        if self.noise is not None:
            draws = draws + self.noise[:, None]
        answers = logits_of(self.model, draws.reshape(-1, *x.shape[1:]), 0).log_softmax(1)
        return answers.view(self.samples, len(x), -1).logsumexp(0) - math.log(self.samples)


@dataclass(frozen=True, kw_only=True)
class BPDA(GuardedAttack):
    """Backward pass differentiable approximation: ``attack`` on a ``Defended``, whose restorer counts as identity.

    Forward exact f(g(x)), backward the gradient of f at g(x). For restorers whose own gradient is missing or misleads;
    where it does not, attack the ``Defended`` itself, which is the stronger attack. Costs what ``attack`` costs.

    Args:
        attack: any attack by gradients.
    """

    attack: Attack = field(default_factory=PGD)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``.

        Raises:
            ValueError: ``model`` is not a ``Defended``, or its restorer changes the shape of images.
        """
        if not isinstance(model, Defended):
            raise ValueError(f"BPDA attacks a Defended(restorer, victim), got {type(model).__name__}")
        return self.attack(StraightThrough(model), x, y, target=target, rng=rng)


@dataclass(frozen=True, kw_only=True)
class EOT(GuardedAttack):
    """Expectation over a model that draws: ``attack`` on log E[softmax f(x)], estimated afresh at each call.

    The model's own draws come from torch's generator, which ``guard`` seeds: the same batch gives the same result, but
    a row may depend on its neighbours, since the model's draws do. Costs ``samples`` times what ``attack`` costs.

    Args:
        attack: any attack by gradients.
        samples: number of draws per call, at least 1.
    """

    attack: Attack = field(default_factory=PGD)
    samples: int = 16

    def __post_init__(self) -> None:
        _check_samples(self.samples)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``."""
        return self.attack(Expected(model, self.samples), x, y, target=target, rng=rng)


@dataclass(frozen=True, kw_only=True)
class SmoothedPGD(GuardedAttack):
    """PGD on the Gaussian-smoothed classifier E_n[softmax f(x + n)], n ~ N(0, sigma^2): equation (6) of Salman et al.

    The draws of n are the same at every step, as theirs are, and for every row, so that no row depends on another; they
    differ by the seed, stage and epoch of ``rng``. Costs ``samples`` times what ``PGD`` costs.

    Args:
        norm: "linf" or "l2".
        eps: budget in that norm, in units of [0, 1], a number or one per row.
        step_size: length of a step in that norm; None means eps / 4.
        steps: number of steps, at least 1, a number or one per row.
        random_start: start at a random point of the ball.
        sigma: standard deviation of the noise, in units of [0, 1].
        samples: number of draws, at least 1.

    Raises:
        ValueError: unknown norm, or no samples.
    """

    norm: str = "linf"
    eps: float | Tensor = 8 / 255
    step_size: float | Tensor | None = None
    steps: int | Tensor = 10
    random_start: bool = True
    sigma: float = 0.25
    samples: int = 16

    def __post_init__(self) -> None:
        _check_samples(self.samples)
        self._inner()

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``. The draw is called "smoothing"."""
        sigma = checked_length("sigma", self.sigma, x[:1], "linf")
        draws = SampleRng(rng.seed, rng.stage, rng.epoch, torch.arange(self.samples, device=x.device), rng.path)
        noise = draws.normal("smoothing", *x.shape[1:]).mul_(sigma)
        return self._inner()(Expected(model, self.samples, noise), x, y, target=target, rng=rng)

    def _inner(self) -> PGD:
        return PGD(
            norm=self.norm, eps=self.eps, step_size=self.step_size, steps=self.steps, random_start=self.random_start
        )


def _check_samples(samples: int) -> None:
    if not is_whole(samples) or samples < 1:
        raise ValueError(f"samples must be a whole number, at least 1, got {samples!r}")
