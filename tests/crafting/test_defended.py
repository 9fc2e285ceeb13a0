"""What an attacker who knows the defence differentiates, by capability."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from redlab.attacks import PGD, Defended
from redlab.crafting.defended import InStages, WithAlarm, WithoutAlarm, needs_victim, surface


class Linear(nn.Module):
    """Logits W x + b of flattened images."""

    def __init__(self, classes: int = 3, seed: int = 0, shift: float = 0.0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, 8, generator=g))
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight.T + self.shift


class Scores(nn.Module):
    """A detector whose verdict is one of two scores."""

    verdict = "first"

    def __init__(self, scale: float = 5.0) -> None:
        super().__init__()
        self.scale = scale

    def adversarial_scores(self, x: Tensor) -> dict[str, Tensor]:
        return {"other": -x.flatten(1).sum(1), "first": self.scale * (x.flatten(1)[:, 0] - 0.5)}


class Names(nn.Module):
    attack_names = ("clean", "one", "two")

    def attack_logits(self, x: Tensor) -> Tensor:
        return 4 * x.flatten(1)[:, :3]


class Halves(nn.Module):
    def restore(self, x: Tensor) -> Tensor:
        return x / 2


class Robust(nn.Module):
    def class_logits(self, x: Tensor) -> Tensor:
        return 7 * x.flatten(1)[:, :3]


X = torch.rand(64, 2, 2, 2, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shift", [0.0, -100.0])
def test_the_alarm_is_the_greatest_logit_exactly_where_the_verdict_says_so(shift: float) -> None:
    """Also of a victim whose logits are all negative."""
    victim, detector = Linear(shift=shift), Scores()
    logits, verdict = victim(X), detector.adversarial_scores(X)["first"]
    found = surface(detector, victim)(X)
    assert found.shape == (64, 4)
    raised = logits + (1 - logits.amax(1)).clamp(min=0)[:, None]
    assert raised.amax(1).min() >= 1 - 1e-5
    torch.testing.assert_close(found[:, :3], raised)
    torch.testing.assert_close(found[:, 3], (verdict + 1) * raised.amax(1))
    assert 10 < int((verdict > 0).sum()) < 54
    assert torch.equal(found.argmax(1), torch.where(verdict > 0, 3, logits.argmax(1)))


def test_an_identifier_alone_raises_the_alarm_where_an_attack_is_more_likely_than_none() -> None:
    victim, names = Linear(), Names()
    found = surface(names, victim)(X)
    attacked = names.attack_logits(X).softmax(1)[:, 1:].sum(1) > 0.5
    assert 5 < int(attacked.sum()) < 60
    assert torch.equal(found.argmax(1) == 3, attacked)


def test_the_constant_takes_part_in_no_gradient() -> None:
    """The raised logits have the gradient of the victim's, not none."""
    victim = Linear(shift=-100.0)
    x = X.clone().requires_grad_()
    (own,) = torch.autograd.grad(victim(x)[:, 0].sum(), x)
    (raised,) = torch.autograd.grad(surface(Scores(), victim)(x)[:, 0].sum(), x)
    torch.testing.assert_close(raised, own)


def test_labelers_restorers_and_classifiers() -> None:
    victim = Linear()
    assert torch.equal(surface(Robust(), None)(X), Robust().class_logits(X))
    assert torch.equal(surface(Halves(), victim)(X), victim(X / 2))
    assert isinstance(surface(Halves(), victim), Defended)
    assert surface(victim, None) is victim

    class Both(Robust, Halves):
        pass

    class Chosen(Both):
        capabilities = frozenset({"restorer"})

    class Own(Both):
        def surface(self, victim: nn.Module) -> nn.Module:
            return nn.Sequential(victim, nn.Softplus())

    class Repairs(Scores, Halves):
        pass

    assert torch.equal(surface(Both(), victim)(X), Robust().class_logits(X))
    assert torch.equal(surface(Chosen(), victim)(X), victim(X / 2))
    assert torch.equal(surface(Own(), victim)(X), nn.functional.softplus(victim(X)))
    assert torch.equal(surface(Repairs(), victim)(X), victim(X / 2))
    needs = {Both: False, Chosen: True, Own: True, Repairs: True, Scores: True, Robust: False, Linear: False}
    assert {kind: needs_victim(kind()) for kind in needs} == needs
    with pytest.raises(ValueError, match="object is no defence"):
        surface(object(), victim)


def test_a_verdict_that_an_attacker_cannot_use_is_named() -> None:
    class Hard(Scores):
        def adversarial_scores(self, x: Tensor) -> dict[str, Tensor]:
            return {"first": (x.flatten(1)[:, 0] > 0.5).float()}

    class Wide(Scores):
        def adversarial_scores(self, x: Tensor) -> dict[str, Tensor]:
            return {"first": x.flatten(1)}

    y = torch.zeros(64, dtype=torch.int64)
    with pytest.raises(ValueError, match="the verdict of Hard does not depend on the images"):
        PGD()(surface(Hard(), Linear()), X, y)
    with pytest.raises(ValueError, match=re.escape("one score per image, (64,), got (64, 8)")):
        surface(Wide(), Linear())(X)
    assert surface(Hard(), Linear())(X).shape == (64, 4)  # a black box needs no gradient


# ---------------------------------------------------------------- attacks on it


class Guarded(nn.Module):
    """Class 1 and 2 lie along pixels 0 and 1 of the image; the detector watches pixel 0 alone."""

    verdict = "seen"

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.flatten(1)[:, 0], x.flatten(1)[:, 1]
        return 4 * torch.stack([torch.full_like(first, 0.6), 1.5 * first, second], 1)

    def adversarial_scores(self, x: Tensor) -> dict[str, Tensor]:
        return {"seen": 8 * (x.flatten(1)[:, 0] - 0.3)}


def says(model: nn.Module, x: Tensor) -> list[int]:
    with torch.no_grad():
        return [int(k) for k in model(x).argmax(1)]


def test_aiming_at_a_class_and_plain_ascent_are_weaker_than_the_alarm_counted_as_the_true_class() -> None:
    """On images whose most likely wrong class is the one that the detector watches."""
    guarded = Guarded()
    x, y = torch.full((40, 2, 2, 2), 0.2), torch.zeros(40, dtype=torch.int64)
    x += 0.02 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    whole = surface(guarded, guarded)
    assert says(whole, x) == [0] * 40
    attack = PGD(eps=0.5, steps=40)
    on_victim = attack(guarded, x, y)
    assert says(whole, on_victim) == [3] * 40  # an alarm
    assert says(whole, attack(whole, x, y)) == [3] * 40  # plain ascent is content with it
    likely = guarded(x)[:, 1:].argmax(1) + 1
    assert set(likely.tolist()) == {1}
    assert set(says(whole, attack(whole, x, y, target=likely))) <= {0, 3}
    assert says(whole, attack(WithoutAlarm(whole, 0), x, y)) == [2] * 40
    exact = attack(WithoutAlarm(whole, 0, exact=True), x, y)
    assert says(whole, exact).count(2) < 30  # its gradient jumps to and fro


def test_on_networks_at_random_the_alarm_counted_as_the_true_class_beats_plain_ascent() -> None:
    """And the attack on the victim alone; aiming at the most likely wrong class wins as often here."""
    torch.manual_seed(0)
    victim = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    watch = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 1))
    x = torch.rand(200, 1, 8, 8)
    with torch.no_grad():
        victim[3].weight *= 6
        watch[3].weight *= 10
        watch[3].bias -= watch(x).quantile(0.9)
        y = victim(x).argmax(1)

    class Watches(Scores):
        def adversarial_scores(self, x: Tensor) -> dict[str, Tensor]:
            return {"first": watch(x)[:, 0]}

    whole, attack = surface(Watches(), victim), PGD(eps=0.1, steps=20)
    found = {"victim": attack(victim, x, y), "plain": attack(whole, x, y), "settled": x.clone(), "stages": x.clone()}
    for label in y.unique().tolist():
        for name, scheme in (("settled", WithoutAlarm), ("stages", InStages)):
            found[name][y == label] = attack(scheme(whole, label), x[y == label], y[y == label])
    won = {}
    for name, x_adv in found.items():
        said = whole(x_adv).argmax(1)
        won[name] = float(((said != y) & (said != 10)).float().mean())
    assert won["settled"] > 0.95
    assert won["stages"] > 0.95
    assert won["victim"] < 0.9
    assert won["plain"] < 0.8


@pytest.mark.parametrize("label", [0, 1, 2])
def test_what_wins_without_the_alarm_is_what_wins_against_the_defence(label: int) -> None:
    whole = WithAlarm(Scores(), Linear())
    said = whole(X).argmax(1)
    against = (said != label) & (said != 3)
    for settled in (WithoutAlarm(whole, label, exact=True)(X), InStages(whole, label)(X)):
        assert settled.shape == (64, 3)
        assert torch.equal(settled.argmax(1) != label, against)
        assert torch.equal(settled.argmax(1)[against], said[against])
    smooth = WithoutAlarm(whole, label)(X)
    won = smooth.argmax(1) != label
    assert 5 < int(won.sum()) <= int(against.sum())
    assert torch.equal(smooth.argmax(1)[won], said[won])
    failing = whole(X).softmax(1)[:, [label, 3]].sum(1).log()
    torch.testing.assert_close(smooth.log_softmax(1)[:, label], failing)


def test_in_stages_the_victim_has_the_gradient_first_and_the_alarm_once_the_class_is_wrong() -> None:
    victim, detector = Linear(), Scores()
    x = X.clone().requires_grad_()
    settled = InStages(WithAlarm(detector, victim), 0)(x)
    lead = settled[:, 0] - settled[:, 1:].amax(1)
    (grad,) = torch.autograd.grad(lead.sum(), x)
    logits, verdict = victim(X), detector.adversarial_scores(X)["first"]
    right, gap = logits.argmax(1) == 0, logits[:, 0] - logits[:, 1:].amax(1)
    assert 10 < int(right.sum()) < 54
    torch.testing.assert_close(lead, torch.where(right, gap + verdict.clamp(min=0), verdict))
    top = logits[:, 1:].argmax(1) + 1
    torch.testing.assert_close(grad[right].flatten(1), victim.weight.detach()[0] - victim.weight.detach()[top[right]])
    watched = torch.zeros(8)
    watched[0] = 5.0
    torch.testing.assert_close(grad[~right].flatten(1), watched.expand(int((~right).sum()), 8))


@pytest.mark.parametrize("kind", [WithoutAlarm, InStages])
def test_a_detector_that_is_very_sure_hides_no_way_out(kind: Any) -> None:
    """The cross-entropy of the alarm has no gradient in float32 where it leads by hundreds; see ``LEAD``."""
    victim = Guarded()
    x, y = torch.full((20, 2, 2, 2), 0.2), torch.zeros(20, dtype=torch.int64)
    x.flatten(1)[:, :2] = torch.tensor([0.45, 0.7])  # class 2, and an alarm

    class Sure(Guarded):
        def adversarial_scores(self, x: Tensor) -> dict[str, Tensor]:
            return {"seen": 1000 * (x.flatten(1)[:, 0] - 0.3)}

    whole = surface(Sure(), victim)
    joint = whole(x).logsumexp(1)
    assert float(joint.min()) > 100
    bare = x.clone().requires_grad_()
    logits = whole(bare)
    own = torch.cat([torch.logaddexp(logits[:, :1], logits[:, 3:]), logits[:, 1:3]], 1)
    (none,) = torch.autograd.grad(nn.functional.cross_entropy(own, y, reduction="sum"), bare)
    assert float(none.abs().max()) == 0
    found = PGD(eps=0.5, steps=40, random_start=False)(kind(whole, 0), x, y)
    assert says(whole, x) == [3] * 20
    assert says(whole, found) == [2] * 20


def kinds() -> dict[str, Any]:
    return {"detector": Scores(), "identifier": Names(), "restorer": Halves(), "labeler": Robust()}


@pytest.mark.parametrize("kind", kinds())
def test_a_surface_is_left_as_it_was(kind: str) -> None:
    victim = Linear()
    whole = surface(kinds()[kind], victim).train()
    model = WithoutAlarm(whole, 0) if getattr(whole, "rejects", False) else whole
    PGD(steps=2)(model, X, torch.zeros(64, dtype=torch.int64))
    assert whole.training
    assert victim.weight.grad is None
    assert victim.weight.requires_grad
