"""Square in linf: no query is spent on an image that has been seen; as strong as its authors' code."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from redlab.attacks import SampleRng, Square
from redlab.attacks.square import _flips

spec = importlib.util.spec_from_file_location("reference", Path(__file__).parents[1] / "reference" / "square.py")
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


class Behind(nn.Module):
    """Class 1 never catches up with class 0, so that no row finishes early. Keeps what it saw, and class 1's score."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(shape, generator=torch.Generator().manual_seed(3)))
        self.seen: list[Tensor] = []
        self.scores: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        score = (torch.tanh(6 * (x - 0.5)) * self.w).flatten(1).sum(1)
        self.seen.append(x.clone())
        self.scores.append(score)
        return torch.stack([torch.full_like(score, 1e3), score], 1)


def images(rows: int, shape: tuple[int, int, int]) -> Tensor:
    """A third of the pixels black or white."""
    return (torch.rand(rows, *shape, generator=torch.Generator().manual_seed(1)) * 1.5 - 0.25).clamp(0, 1)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("p_init", [0.02, 0.8])
def test_every_proposal_changes_something(channels: int, p_init: float) -> None:
    shape, rows = (channels, 8, 6), 20
    model, x = Behind(shape), images(rows, shape)
    Square(eps=0.1, queries=80, p_init=p_init)(model, x, torch.zeros(rows, dtype=torch.int64))
    best, score, idle = model.seen[0], model.scores[0], 0
    for tried, now in zip(model.seen[1:], model.scores[1:], strict=True):
        idle += int((tried == best).flatten(1).all(1).sum())
        changed = (tried != best).any(1).flatten(1).sum(1)
        assert changed.max() <= max(1, round(0.8 * 48))
        best = torch.where((now > score)[:, None, None, None], tried, best)
        score = torch.maximum(now, score)
    assert idle == 0
    torch.testing.assert_close((best - x).abs().amax((1, 2, 3)), torch.full((rows,), 0.1))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_signs_drawn_again_are_any_others_with_equal_chances(channels: int) -> None:
    flips = _flips(torch.arange(0, 1, 1 / 8192), channels)[:, :, 0, 0]
    kinds, counts = flips.unique(dim=0, return_counts=True)
    assert len(kinds) == 2**channels - 1
    assert not (kinds == 1).all(1).any()
    assert counts.max() - counts.min() <= 1


def test_many_channels() -> None:
    flips = _flips(torch.tensor([0.0, 0.999999]), 40)[:, :, 0, 0]
    assert bool((flips == -1).any(1).all())
    assert bool((flips[:, 16:] == 1).all())


def test_as_strong_as_the_authors_code_on_one_channel() -> None:
    """And no stronger, which would mean that it is another attack; by the spread of the same images' gains."""
    shape, rows, eps, queries = (1, 6, 6), 48, 0.1, 40
    model, x, y = Behind(shape), images(rows, shape), torch.zeros(rows, dtype=torch.int64)
    attack, draws = Square(eps=eps, queries=queries), np.random.default_rng(0)
    ours = torch.stack([attack(model, x, y, rng=SampleRng(seed, "test", 0, torch.arange(rows))) for seed in range(8)])
    theirs = torch.stack([reference.square_linf(model, one, 0, eps, queries, 0.8, draws)[0] for one in x])
    gain = torch.stack([model(found)[:, 1] - model(x)[:, 1] for found in (*ours, theirs)])
    error = float((gain[:-1] - gain[:-1].mean(0)).std()) * (1 / rows + 1 / rows / 8) ** 0.5
    assert float(gain[-1].mean() - gain[:-1].mean()) == pytest.approx(0.0, abs=3 * error)
    assert error < 0.1 * gain[-1].mean()
