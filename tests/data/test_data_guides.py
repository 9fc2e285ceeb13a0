"""Guides of the feature attack out of a data set, from Python and from YAML."""

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from redlab.attacks import FeatureAttack, SampleRng
from redlab.data import Guides, Splits, TensorSource, digits
from redlab.runs.config import compose, finalise


class Counted:
    def __init__(self, splits):
        self.splits, self.calls = splits, 0

    def __call__(self):
        self.calls += 1
        return self.splits


def small(per_class=(700, 3, 1)):
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(per_class)])
    images = torch.arange(len(labels)).remainder(256).byte()[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    images[:, 0, 1, 1] = labels.byte()
    return Splits(TensorSource(images, labels, "abc"), TensorSource(images[:0], labels[:0], "abc"))


def drawn(guides, y, target=None):
    x = torch.zeros(len(y), 1, 2, 2)
    return (guides(x, y, target, SampleRng(0, "test", 0, torch.arange(len(y)))) * 255).round().long()


def test_it_is_read_once_and_when_needed():
    source = Counted(small())
    guides = Guides(source, per_class=2)
    assert source.calls == 0
    y = torch.arange(400) % 3
    first = drawn(guides, y)
    assert torch.equal(drawn(guides, y), first)
    assert source.calls == 1
    assert bool((first[:, 0, 1, 1] != y).all())


def test_at_most_so_many_of_a_class():
    """A class that has fewer gives what it has; every run has the same ones."""
    for per_class, expected in ((1, [1, 1, 1]), (2, [2, 2, 1]), (5, [5, 3, 1])):
        target = torch.arange(900) % 3
        shown = drawn(Guides(small(), per_class=per_class), (target + 1) % 3, target)
        assert torch.equal(shown[:, 0, 1, 1], target)
        kinds = [len(shown[target == c].flatten(1).unique(dim=0)) for c in range(3)]
        assert kinds == expected
        assert torch.equal(shown, drawn(Guides(small(), per_class=per_class), (target + 1) % 3, target))


def test_per_class_must_be_positive():
    with pytest.raises(ValueError, match="per_class must be at least 1, got 0"):
        Guides(small(), per_class=0)


def test_from_yaml():
    """The guides of a mix are images of whatever data set the run has."""
    words = ["data=digits", "mix=attunet", "attack@mix.components.fgsm.attack=feature", "~mix.components.rfgsm"]
    cfg = finalise(compose([*words, "mix.components.fgsm.attack.steps=2", "~mix.components.fgsm.params"]))
    mix = instantiate(cfg.mix, seed=cfg.seed)
    attack = mix.components["fgsm"].attack
    assert isinstance(attack, FeatureAttack)
    assert (attack.steps, attack.eps, attack.guides.per_class) == (2, 10 / 255, 10)
    train = digits().train
    x, y = train.images[:8].float() / 255, train.labels[:8]
    net = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    plan = mix.plan(torch.arange(8), torch.arange(8), stage="test", epoch=0, victim_names=["net"])
    adv = mix.craft({"net": net}, x, y, plan).adv
    assert bool((adv != x).flatten(1).any(1).all())
    assert (adv - x).abs().max() <= 10 / 255 + 1e-6
