"""Attacks on defended, stochastic and smoothed models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from redlab.attacks import BPDA, EOT, FGSM, PGD, Defended, SampleRng, SmoothedPGD
from redlab.attacks.wrappers import Expected, StraightThrough

SHAPE = (1, 4, 4)


class Linear(nn.Module):
    """Logits (0, <w, x - 1/2>): the cross-entropy of class 0 grows along w."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: Tensor) -> Tensor:
        score = ((x - 0.5) * self.w).sum((1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Steps(nn.Module):
    """Rounds to eight grey values: no gradient at all."""

    def restore(self, x: Tensor) -> Tensor:
        return (x * 7).round() / 7


def images(rows: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.rand(rows, *SHAPE, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    return x, torch.zeros(rows, dtype=torch.int64)


def test_bpda_attacks_where_the_gradient_is_shattered() -> None:
    model, (x, y) = Defended(Steps(), Linear()), images()
    attack = PGD(eps=0.2, random_start=False)
    assert torch.equal(attack(model, x, y), x)  # nothing to follow
    x_adv = BPDA(attack=attack)(model, x, y)
    torch.testing.assert_close(x_adv, x + 0.2 * model.victim.w.sign())


def test_bpda_sees_the_very_logits() -> None:
    model, (x, _) = Defended(Steps(), Linear()), images()
    assert torch.equal(StraightThrough(model)(x), model(x))


def test_bpda_says_what_it_needs() -> None:
    class Halves(nn.Module):
        def restore(self, x: Tensor) -> Tensor:
            return x[..., ::2]

    x, y = images()
    with pytest.raises(ValueError, match="got Linear"):
        BPDA()(Linear(), x, y)
    with pytest.raises(ValueError, match=r"keeps \(6, 1, 4, 4\), got \(6, 1, 4, 2\)"):
        BPDA()(Defended(Halves(), Linear()), x, y)


class Coin(nn.Module):
    """Turns the sign of the score in four draws of ten, which are torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * torch.where(torch.rand(len(x), 1) < 0.4, -1.0, 1.0)


def test_eot_follows_the_mean_of_the_draws() -> None:
    model, (x, y) = Coin(), images(40)
    w = model.inner.w.sign()

    def right(x_adv: Tensor) -> Tensor:
        return ((x_adv - x).sign() == w).flatten(1).all(1)

    state = torch.get_rng_state()
    one = right(FGSM(eps=0.1)(model, x, y))
    many = EOT(attack=FGSM(eps=0.1), samples=200)(model, x, y)
    assert 10 < one.sum() < 35
    assert right(many).sum() >= 38
    assert torch.equal(many, EOT(attack=FGSM(eps=0.1), samples=200)(model, x, y))
    assert torch.equal(torch.get_rng_state(), state)


def test_expected_is_the_mean_probability() -> None:
    """E[sigmoid(a + b z)] by the trapezium rule; 20,000 draws are good to 0.01."""
    model, (x, _) = Linear(), images(3)
    noise = 0.25 * SampleRng(0, "test", 0, torch.arange(20_000)).normal("z", *SHAPE)
    p = Expected(model, len(noise), noise)(x).exp()
    z = torch.linspace(-8, 8, 4001).double()
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    spread = 0.25 * model.w.double().norm()
    for row, score in zip(p, model(x)[:, 1].double(), strict=True):
        expected = torch.trapezoid(torch.sigmoid(score + spread * z) * density, z)
        assert abs(float(row[1]) - float(expected)) < 0.01
    torch.testing.assert_close(p.sum(1), torch.ones(3))


def test_smoothed_pgd_with_no_noise_is_pgd() -> None:
    x, y = images()
    rng = SampleRng(2, "train", 5, torch.arange(6))
    for norm in ("linf", "l2"):
        plain = PGD(norm=norm, eps=0.1, steps=4)(Linear(), x, y, rng=rng)
        smoothed = SmoothedPGD(norm=norm, eps=0.1, steps=4, sigma=0.0, samples=2)(Linear(), x, y, rng=rng)
        torch.testing.assert_close(smoothed, plain, atol=1e-6, rtol=0)


def test_smoothed_pgd_fools_the_smoothed_model_better() -> None:
    """A model that has ripples: its own gradient says little, that of its smooth version is right."""

    class Ripples(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean((1, 2, 3)) - 0.5
            wave = 0.02 * torch.sin(400 * mean)  # local slopes that mean nothing
            return torch.stack([wave - mean, mean - wave], dim=1) * 200

    x, y = torch.full((8, *SHAPE), 0.45), torch.zeros(8, dtype=torch.int64)
    x = x + torch.linspace(-0.01, 0.01, 8).view(-1, 1, 1, 1)
    noise = 0.2 * SampleRng(9, "test", 0, torch.arange(20_000)).normal("z", *SHAPE)
    judge, settings = Expected(Ripples(), len(noise), noise), {"eps": 0.03, "steps": 1, "random_start": False}
    before = judge(x)[:, 0]
    plain = judge(PGD(**settings)(Ripples(), x, y))[:, 0]
    smoothed = judge(SmoothedPGD(**settings, sigma=0.2, samples=2000)(Ripples(), x, y))[:, 0]
    assert bool((smoothed < before).all())
    assert bool((plain > before).any())
