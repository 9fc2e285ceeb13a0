"""The boundary attack: the optimum on a plane, the geometry of a step, the adaptation, the count of queries."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from redlab.attacks import Boundary
from redlab.attacks.boundary import _propose

SHAPE, ROWS = (2, 4, 3), 5


class Linear(nn.Module):
    """Class 1 wins where w . (x - 1/2) > 0. Counts the images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)))
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        score = ((x - 0.5) * self.w).flatten(1).sum(1)
        return torch.stack([-score, score], 1)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([0.0, 1.0]).expand(len(x), 2)


def images() -> Tensor:
    return torch.rand(ROWS, *SHAPE, generator=torch.Generator().manual_seed(5)) * 0.5 + 0.25


def test_comes_close_to_the_plane() -> None:
    model, x = Linear(), images()
    logits = model(x)
    y = logits.argmax(1)
    distance = logits[:, 1].abs() / model.w.norm()
    model.seen = 0
    x_adv, used = Boundary(steps=600, spherical_step=0.1, source_step=0.05).run(model, x, y)
    assert int(used.sum()) == model.seen
    assert bool((model(x_adv).argmax(1) != y).all())
    ratio = (x_adv - x).flatten(1).norm(dim=1) / distance
    assert ratio.min() > 1 - 1e-4
    assert ratio.max() < 1.25


def test_a_model_may_answer_with_labels() -> None:
    net, x = Linear(), images()
    y = net(x).argmax(1)
    attack = Boundary(steps=60, spherical_step=0.1)
    expected, used = attack.run(net, x, y)
    for dtype in (torch.int64, torch.int32, torch.bool):
        found, queries = attack.run(lambda x, dtype=dtype: net(x).argmax(1).to(dtype), x, y)
        assert torch.equal(found, expected)
        assert torch.equal(queries, used)


@pytest.mark.parametrize("answer", [lambda x: torch.zeros(3).long(), lambda x: torch.zeros(len(x)), lambda x: None])
def test_neither_labels_nor_logits(answer: object) -> None:
    with pytest.raises(ValueError, match=r"the model (must )?return"):
        Boundary(steps=1)(answer, images(), torch.zeros(ROWS, dtype=torch.int64))


def test_more_steps_are_never_farther() -> None:
    model, x = Linear(), images()
    y = model(x).argmax(1)
    runs = [Boundary(steps=n, spherical_step=0.1)(model, x, y) for n in (1, 10, 60)]
    length = torch.stack([(run - x).flatten(1).norm(dim=1) for run in runs])
    assert bool((length[1:] <= length[:-1]).all())
    assert bool((length[2] < length[0]).all())


def test_rows_that_are_wrong_already_or_find_no_start() -> None:
    x = images()
    x_adv, used = Boundary(steps=3, starts=7).run(Constant(), x, torch.tensor([0, 1, 0, 1, 1]))
    assert torch.equal(x_adv, x)
    assert used.tolist() == [1, 8, 1, 8, 8]


def test_a_step_stays_on_the_sphere_and_then_goes_inwards() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.full((4, *SHAPE), 0.5)
    best, way = x + 0.1 * torch.randn(4, *SHAPE, generator=g), torch.randn(4, *SHAPE, generator=g)
    around, inwards = torch.tensor([0.0, 0.1, 0.5, 2.0]), torch.tensor([0.2, 0.0, 0.1, 0.5])
    circled, tried = _propose(x, best, way, around, inwards)
    out, on, after = ((t - x).flatten(1) for t in (best, circled, tried))
    torch.testing.assert_close(on.norm(dim=1), out.norm(dim=1))
    torch.testing.assert_close(after.norm(dim=1), out.norm(dim=1) * (1 - inwards))
    cosine = (out * on).sum(1) / out.norm(dim=1) ** 2
    torch.testing.assert_close(
        cosine, (1 + around**2) ** -0.5
    )  # the way is orthogonal, so the angle's tangent is around


@pytest.mark.parametrize(("yes", "change"), [(0, -1), (1, 0), (3, 0), (4, 1)])
def test_steps_change_by_the_share_of_successes(yes: int, change: int) -> None:
    attack, answers = Boundary(step_adaptation=2.0), torch.full((1, 4), math.nan)
    for k in range(4):
        assert bool(answers.isnan().any())
        answers, factor = attack._judge(answers, torch.tensor([k < yes]), 0.2, 0.8)
        assert float(factor) == (2.0**change if k == 3 else 1.0)
    assert bool(answers.isnan().all()) == bool(change)  # forgotten where something changed
