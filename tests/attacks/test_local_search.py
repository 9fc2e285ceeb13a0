"""Local search: against a plain transcription, the values of changed pixels, the count of queries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from redlab.attacks import LocalSearch, SampleRng

SHAPE = (2, 6, 5)


class Curved(nn.Module):
    """Five classes, in float64, so that no two scores are equal by rounding. Counts the images that it sees."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(2)
        self.register_buffer("a", torch.randn(60, 16, generator=g).double() / 9)
        self.register_buffer("b", torch.randn(16, 5, generator=g).double() * (0 if flat else 1))
        self.register_buffer("c", torch.tensor([3.0, 0, 0, 0, 0]).double() * flat)
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return torch.tanh((x.double().flatten(1) - 0.5) @ self.a) @ self.b + self.c


def images(rows: int = 6) -> Tensor:
    return torch.rand(rows, *SHAPE, generator=torch.Generator().manual_seed(5))


def plain(model: nn.Module, image: Tensor, label: int, attack: LocalSearch, rng: SampleRng) -> tuple[Tensor, int]:
    """LocSearchAdv of the paper for one image, pixel by pixel."""
    height, width = SHAPE[1:]
    now, used = image - 0.5, 1
    eligible = [(r, c) for r in range(height) for c in range(width)]
    for turn in range(attack.steps):
        if int(model(now[None] + 0.5).argmax()) != label:
            return now + 0.5, used
        lot = rng.fork(f"round {turn}").uniform("pixel", height * width)[0]
        eligible.sort(key=lambda place: float(lot[place[0] * width + place[1]]))
        most = min(attack.candidates, int(attack.seeds * height * width)) if turn == 0 else attack.candidates
        scores = []
        for r, c in eligible[:most]:
            probed = now.clone()
            probed[:, r, c] = attack.probe * probed[:, r, c].sign()
            scores.append((float(model(probed[None] + 0.5).softmax(1)[0, label]), (r, c)))
        scores.sort()
        chosen = [place for _, place in scores[: attack.pixels]]
        for r, c in chosen:
            for channel in range(SHAPE[0]):
                value = attack.stretch * float(now[channel, r, c])
                now[channel, r, c] = value + 1 if value < -0.5 else value - 1 if value > 0.5 else value
        near = {(r + i, c + j) for r, c in chosen for i in range(-attack.reach, attack.reach + 1)
                for j in range(-attack.reach, attack.reach + 1)}  # fmt: skip
        eligible = [place for place in sorted(near) if 0 <= place[0] < height and 0 <= place[1] < width]
        used += len(scores) + 1
    return now + 0.5, used


@pytest.mark.parametrize(
    "attack",
    [
        LocalSearch(steps=4, pixels=2, reach=1, seeds=0.5, probe=1.5, candidates=5),
        LocalSearch(steps=3, pixels=4, reach=2, stretch=1.2, probe=3.0),
    ],
)
def test_equals_its_transcription(attack: LocalSearch) -> None:
    model, x = Curved(), images()
    y = model(x).argmax(1)
    rng = SampleRng(7, "test", 0, torch.arange(3, 9))
    x_adv, used = attack.run(model, x, y, rng=rng)
    for row in range(len(x)):
        expected, queries = plain(model, x[row], int(y[row]), attack, rng[row : row + 1])
        torch.testing.assert_close(x_adv[row], expected, rtol=0, atol=1e-6)
        assert int(used[row]) == queries


def test_changed_pixels_by_hand() -> None:
    x = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]).view(1, 1, 1, 7)
    out = LocalSearch(steps=1, seeds=1.0)(nn.Sequential(nn.Flatten(), Last()), x, torch.tensor([0]))
    expected = torch.tensor([0.75, 0.9, 0.2, 0.5, 0.8, 0.1, 0.25]).view(1, 1, 1, 7)
    torch.testing.assert_close(out, expected)


class Last(nn.Module):
    """Class 0, whatever it sees, but not with equal scores."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([100 + x[:, 0], x[:, 1] * 0], 1)


def test_queries_are_those_that_the_victim_answered() -> None:
    model, x = Curved(flat=True), images()
    y = torch.tensor([0, 0, 1, 0, 0, 0])
    x_adv, used = LocalSearch(steps=2, seeds=0.5, candidates=11).run(model, x, y)
    assert int(used.sum()) == model.seen
    assert used.tolist() == [25, 25, 1, 25, 25, 25]
    assert torch.equal(x_adv[2], x[2])
