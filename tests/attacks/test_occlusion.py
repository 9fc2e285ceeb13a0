"""The rectangular occlusion attack: where it puts its rectangle, and what it paints there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.attacks import Occlusion

ROWS, SHAPE = 6, (2, 9, 7)


class Linear(nn.Module):
    """Class 1 wins where w . (x - 1/2) > 0."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: Tensor) -> Tensor:
        score = ((x - 0.5) * self.w).flatten(1).sum(1) / 10
        return torch.stack([-score, score], 1) / 2


def images() -> Tensor:
    return torch.rand(ROWS, *SHAPE, generator=torch.Generator().manual_seed(4)) * 0.8 + 0.1


def rectangle(x: Tensor, found: Tensor) -> tuple[int, int, int, int]:
    """First and last row and column that changed."""
    changed = (found != x).any(0)
    rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def places(height: int, width: int, stride: int) -> list[tuple[int, int]]:
    tops, lefts = range(0, SHAPE[1] - height + 1, stride), range(0, SHAPE[2] - width + 1, stride)
    return [(top, left) for top in tops for left in lefts]


def grey(x: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    hidden = x.clone()
    hidden[:, top : top + height, left : left + width] = 0.5
    return hidden


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_rectangle_is_where_grey_hurts_most_and_is_painted_as_it_hurts_most(targeted: bool, stride: int) -> None:
    model, x, y = Linear(), images(), torch.arange(ROWS) % 2
    attack = Occlusion(height=3, width=2, stride=stride, steps=60)
    found = attack(model, x, y, target=1 - y if targeted else None)
    way = (1 - 2 * y).float()[:, None, None, None]
    for i in range(ROWS):
        hurt = {}
        for place in places(3, 2, stride):
            hidden = grey(x[i], *place, 3, 2)
            hurt[place] = float(F.cross_entropy(model(hidden[None]), y[i : i + 1]))
        top, left = max(hurt, key=hurt.__getitem__)
        best = x[i].clone()
        window = (slice(None), slice(top, top + 3), slice(left, left + 2))
        best[window] = ((way[i] * model.w).sign()[window] + 1) / 2  # black or white: 0.5 / 0.01 steps are enough
        torch.testing.assert_close(found[i], best, rtol=0, atol=1e-5)


def test_by_gradient_it_looks_at_the_places_with_the_largest_squares() -> None:
    model, x, y = Linear(), images(), torch.arange(ROWS) % 2
    found = Occlusion(height=3, width=2, search="gradient", candidates=1, stride=1, steps=1)(model, x, y)
    weight = model.w.square().sum(0)
    top, left = max(places(3, 2, 1), key=lambda p: float(weight[p[0] : p[0] + 3, p[1] : p[1] + 2].sum()))
    for i in range(ROWS):
        assert rectangle(x[i], found[i]) == (top, top + 2, left, left + 1)
    everywhere = Occlusion(height=3, width=2, search="gradient", candidates=99, stride=1, steps=3)(model, x, y)
    assert torch.equal(everywhere, Occlusion(height=3, width=2, stride=1, steps=3)(model, x, y))


def test_nothing_outside_the_rectangle_changes() -> None:
    model, x, y = Linear(), images(), torch.arange(ROWS) % 2
    found = Occlusion(height=4, width=3, steps=5)(model, x, y)
    for i in range(ROWS):
        first, last, left, right = rectangle(x[i], found[i])
        assert (last - first + 1, right - left + 1) == (4, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": "x"}, "search must be one of"),
        ({"height": 0}, "height must be a whole number of at least 1, got 0"),
        ({"stride": 1.5}, "stride must be a whole number of at least 1, got 1.5"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Occlusion(**options)  # type: ignore[arg-type]


def test_a_rectangle_larger_than_the_image_covers_it() -> None:
    model, x, y = Linear(), images(), torch.arange(ROWS) % 2
    found = Occlusion(height=99, width=2, stride=1, steps=2)(model, x, y)
    for i in range(ROWS):
        first, last, left, right = rectangle(x[i], found[i])
        assert (first, last, right - left) == (0, 8, 1)


def test_rows_may_have_steps_of_their_own() -> None:
    model, x, y = Linear(), images(), torch.arange(ROWS) % 2
    steps = torch.tensor([1, 5, 2, 60, 3, 1])
    found = Occlusion(height=3, width=3, steps=steps)(model, x, y)
    for i in range(ROWS):
        alone = Occlusion(height=3, width=3, steps=int(steps[i]))(model, x[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], alone)
