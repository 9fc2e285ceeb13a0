"""The feature attack: its optimum for linear features, its layers and hooks, and its guides."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import lsq_linear
from torch import Tensor, nn

from redlab.attacks import FeatureAttack, GuideBank, SampleRng
from redlab.attacks.feature import features_of
from redlab.crafting import AttackMix, Component

ROWS, SHAPE = 6, (2, 4, 3)


def network(hidden: int = 10, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(24, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, 4))


def images(rows: int = ROWS, seed: int = 4) -> Tensor:
    wide = torch.rand(rows, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 1.4 - 0.2
    return wide.clamp(0, 1)


def labels(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


def distance(model: nn.Module, layer: str | None, a: Tensor, b: Tensor) -> Tensor:
    with torch.no_grad(), features_of(model, model, layer) as phi:
        return (phi(a) - phi(b)).square().sum(1)


@pytest.mark.parametrize("eps", [0.05, 0.2])
def test_comes_close_to_the_optimum_of_linear_features(eps: float) -> None:
    """Least squares in a box, solved by scipy."""
    model, x, guides = network(), images(), images(seed=5)
    weight = model[1].weight.detach().double()
    x_adv = FeatureAttack(guides=guides, layer="1", eps=eps)(model, x, labels(model, x))
    reached = distance(model, "1", x_adv, guides)
    for i in range(ROWS):
        row = x[i].flatten().double()
        box = ((row - eps).clamp(min=0).numpy(), (row + eps).clamp(max=1).numpy())
        best = lsq_linear(weight.numpy(), (weight @ guides[i].flatten().double()).numpy(), box, tol=1e-12)
        assert 2 * best.cost > 1e-3
        assert reached[i] <= 2 * best.cost * 1.03
        assert reached[i] >= 2 * best.cost * (1 - 1e-4)


@pytest.mark.parametrize("step_size", [None, 0.03])
def test_equals_its_transcription(step_size: float | None) -> None:
    model, x, guides, eps = network().double(), images(), images(seed=5), 0.1
    exact = nn.Sequential(Cast(torch.float64), model, Cast(torch.float32))
    steps = torch.tensor([3, 1, 8, 3, 5, 8])
    y = labels(exact, x)
    x_adv = FeatureAttack(guides=guides, eps=eps, step_size=step_size, steps=steps)(exact, x, y)
    for i in range(ROWS):
        now, tried = x[i : i + 1].double(), []
        goal = model[:3](guides[i : i + 1].double())
        for k in range(int(steps[i]) + 1):
            now = now.detach().requires_grad_()
            far = ((model[:3](now) - goal) ** 2).sum()
            tried.append((far.item(), now.detach()))
            (grad,) = torch.autograd.grad(far, now)
            moved = now - (step_size or eps / 4) * (1 - k / steps[i]) * grad.sign()
            now = moved.clamp(x[i] - eps, x[i] + eps).clamp(0, 1)
        expected = min(tried, key=lambda pair: pair[0])[1]
        torch.testing.assert_close(x_adv[i : i + 1], expected.float(), rtol=0, atol=1e-6)


def test_reaches_the_guide_where_the_box_allows() -> None:
    """The network then says of the image what it says of the guide: another class, and the target if there is one."""
    model, x, pictures = network(seed=13), images(40), images(60, seed=9)
    y, known = labels(model, x), labels(model, pictures)
    bank, rng = GuideBank(pictures, known), SampleRng(0, "test", 0, torch.arange(40))
    attack = FeatureAttack(guides=bank, layer="1", eps=1.0)
    assert torch.unique(known).tolist() == [0, 1, 2, 3]
    for target in (None, (y + 1 + torch.arange(40) % 3) % 4):
        guides = bank(x, y, target, rng)
        x_adv = attack(model, x, y, target=target, rng=rng)
        assert (distance(model, "1", x_adv, guides) / distance(model, "1", x, guides)).max() < 0.02
        assert (labels(model, x_adv) == (labels(model, guides) if target is None else target)).float().mean() > 0.9
        assert torch.equal(FeatureAttack(guides=guides, layer="1", eps=1.0)(model, x, y), x_adv)


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


# ---- layers and hooks ------------------------------------------------------------------------------------------------


class Around(nn.Module):
    """Two networks, of which the second one answers; a third one is there for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.first, self.body = network(seed=1), network(seed=2), network(seed=3)
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        self.pair(x)
        return self.body(x) + 0.0 * self.first(x).sum()


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_a_layer_is_found_by_its_name_or_the_end_of_it() -> None:
    model, x = Around(), images()
    hidden = model.body[1](x.flatten(1)).detach()
    first = model.first[1](x.flatten(1)).detach()
    late = nn.Sequential(model, nn.Identity())

    def features(net: nn.Module, layer: str | None) -> Tensor:
        with torch.no_grad(), features_of(net, net, layer) as phi:
            return phi(x)

    for net, name in ((model, "body.1"), (late, "0.body.1"), (late, "body.1")):
        assert torch.equal(features(net, name), hidden), name  # before the ReLU, which works in place
    assert torch.equal(features(model, "first.1"), first)
    assert torch.equal(features(model.body, "1"), hidden)
    assert torch.equal(features(late, ""), model(x))
    assert torch.equal(features(model.body, None), hidden.relu())
    assert torch.equal(features(nn.Flatten(), None), x.flatten(1))  # the logits


def test_of_several_the_layer_that_is_called_last() -> None:
    """In a restorer before a victim, both may have a layer of the name."""
    model, x = Around(), images()
    for layer, expected in (("1", model.first[1]), (None, None)):
        with torch.no_grad(), features_of(model, model, layer) as phi:
            got = phi(x)
        if expected is not None:
            assert torch.equal(got, expected(x.flatten(1)).detach())
        else:
            assert torch.equal(got, model.first[:3](x).detach())


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("bodyy.1", r"no layer 'bodyy\.1'; near names: body\.1"),
        ("unused.1", "'unused.1' is not used"),
        ("pair", "'pair' must give a tensor with 6 rows, got tuple"),
    ],
)
def test_a_wrong_layer(layer: str, says: str) -> None:
    model, x = Around(), images()
    with pytest.raises(ValueError, match=says):
        FeatureAttack(guides=x, layer=layer)(model, x, labels(model, x))
    assert not hooks(model)


class Breaks(nn.Module):
    """Raises at the third call."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.calls = network(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise KeyError("the model broke")
        return self.net(x)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("layer", [None, "net.1"])
def test_no_hook_is_left(layer: str | None) -> None:
    model, x = Breaks(), images()
    attack, y = FeatureAttack(guides=images(seed=5), layer=layer, steps=3), torch.zeros(ROWS, dtype=torch.int64)
    with pytest.raises(KeyError):
        attack(model, x, y)
    assert not hooks(model)
    attack(model, x, y)
    assert not hooks(model)


# ---- guides ----------------------------------------------------------------------------------------------------------

LABELS = torch.tensor([2, 0, 0, 2, 5, 0])


def numbered() -> GuideBank:
    """Image i is i / 8 everywhere."""
    return GuideBank((torch.arange(6) / 8)[:, None, None, None].expand(6, *SHAPE), LABELS)


def test_guides_are_of_another_class_and_all_of_them_equally_likely() -> None:
    rows = 7000
    y, x = torch.arange(rows) % 7, torch.zeros(rows, *SHAPE)
    place = (numbered()(x, y, None, SampleRng(0, "test", 0, torch.arange(rows)))[:, 0, 0, 0] * 8).long()
    assert bool((LABELS[place] != y).all())
    for label in range(7):
        counts = torch.bincount(place[y == label], minlength=6)[label != LABELS]
        assert (counts - counts.float().mean()).abs().max() < 4 * 1000**0.5 * 0.5


def test_guides_of_the_target_class() -> None:
    target, x = torch.tensor([0, 2, 5] * 100), torch.zeros(300, *SHAPE)
    y = torch.full_like(target, 1)
    place = (numbered()(x, y, target, SampleRng(0, "test", 0, torch.arange(300)))[:, 0, 0, 0] * 8).long()
    assert torch.equal(LABELS[place], target)
    assert set(place.tolist()) == set(range(6))


def test_a_guide_does_not_depend_on_the_batch() -> None:
    y, x, rng = torch.arange(20) % 3, torch.zeros(20, *SHAPE), SampleRng(2, "train", 1, torch.arange(20) * 3)
    whole = numbered()(x, y, None, rng)
    odd = torch.arange(19, 0, -2)
    assert torch.equal(numbered()(x[odd], y[odd], None, rng[odd]), whole[odd])


def test_no_guide_qualifies() -> None:
    x, rng = torch.zeros(2, *SHAPE), SampleRng(0, "test", 0, torch.arange(2))
    for target, missing in ((torch.tensor([2, 1]), 1), (torch.tensor([9, 2]), 9)):
        with pytest.raises(ValueError, match=f"no guide of class {missing}"):
            numbered()(x, torch.tensor([0, 0]), target, rng)
    with pytest.raises(ValueError, match="no guide of another class than 3"):
        GuideBank(x, torch.tensor([3, 3]))(x, torch.tensor([1, 3]), None, rng)


@pytest.mark.parametrize(
    ("pictures", "names", "says"),
    [
        (torch.zeros(2, 4, 4), torch.tensor([0, 1]), r"\(2, 4, 4\)"),
        (torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64), r"\(0, 1, 4, 4\)"),
        (torch.zeros(2, 1, 4, 4), torch.tensor([0, 1, 2]), r"\[0, 1, 2\]"),
        (torch.zeros(2, 1, 4, 4), torch.tensor([0, -1]), r"\[0, -1\]"),
        (torch.zeros(2, 1, 4, 4), torch.tensor([0.0, 1.0]), r"\[0\.0, 1\.0\]"),
    ],
)
def test_a_wrong_bank(pictures: Tensor, names: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GuideBank(pictures, names)


def test_in_a_mix() -> None:
    """With parameters of its own per row, and the same images whatever the batch."""
    net, x = network(), images(12)
    y, index = labels(net, x), torch.arange(12)
    bank = GuideBank((images(30, seed=8) * 255).byte(), torch.arange(30) % 4)
    feature = Component(attack=FeatureAttack(guides=bank, steps=6), params={"eps": {"uniform": [0.1, 0.3]}})
    mix = AttackMix({"clean": Component(attack=None), "feature": feature})

    def craft(rows: Tensor) -> Tensor:
        plan = mix.plan(index[rows], index[rows], stage="train", epoch=0, victim_names=["net"])
        return mix.craft({"net": net}, x[rows], y[rows], plan).adv

    whole = craft(index)
    assert (whole != x).flatten(1).any(1).tolist() == [False, True] * 6
    torch.testing.assert_close(torch.cat([craft(rows) for rows in index.split(5)]), whole, rtol=0, atol=1e-6)
