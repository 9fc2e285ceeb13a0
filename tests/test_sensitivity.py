"""The probes of input sensitivity, on a network whose gradients are known."""

import pytest
import torch
from torch import nn

from redlab.batch import AttackBatch
from redlab.evaluation import Answers
from redlab.probes import Masking, Rectification, Removal, Sensitivity


class Sum(nn.Module):
    """Class 1 where the weighted sum of the pixels is above 2."""

    weights = torch.tensor([4.0, 3.0, 2.0, 1.0, *[0.0] * 12]).view(1, 1, 4, 4)

    def forward(self, x):
        total = (x * self.weights).sum((1, 2, 3)) - 2
        return torch.stack([torch.zeros_like(total), total], 1)


class Method:
    def sensitivity(self, x):
        return Sum.weights.expand_as(x)


def batch(x, label=0):
    zeros = torch.zeros(len(x), dtype=torch.int64)
    ones = torch.ones(len(x), dtype=torch.bool)
    return AttackBatch(x, x, zeros + label, zeros + 1, zeros, zeros, zeros, zeros - 1, torch.arange(len(x)), ones, ones)


def look(probe, x, method=None, **options):
    return probe(method or Method(), {"sum": Sum()}, batch(x, **options), Answers())


def test_the_norm_of_each_image():
    found = look(Sensitivity(), torch.rand(3, 1, 4, 4))
    assert found["insen"].tolist() == pytest.approx([30**0.5] * 3)


def test_an_attack_survives_until_its_pixels_are_gone():
    x = torch.full((2, 1, 4, 4), 0.5)  # 5 without removal; 3 without the first pixel, 1.5 without two
    found = look(Removal(shares=(0.0, 1 / 16, 2 / 16)), x)
    assert [found[f"survives_{share:g}"].tolist() for share in (0.0, 1 / 16, 2 / 16)] == [[1, 1], [1, 1], [0, 0]]
    assert look(Removal(shares=(0.0,)), x, label=1)["survives_0"].tolist() == [0, 0]


def test_random_pixels_are_those_of_the_image_and_as_many():
    x = torch.full((400, 1, 4, 4), 0.5)
    found = look(Removal(shares=(2 / 16,)), x)["random_0.125"]
    # wrong unless the sum falls to 2 or below: of pairs of pixels, 4 + 3 (1.5) and 4 + 2 (2.0, not above)
    assert float(found.mean()) == pytest.approx(1 - 2 / 120, abs=0.02)
    again = look(Removal(shares=(2 / 16,)), x[:7])["random_0.125"]
    assert torch.equal(again, found[:7])


def test_what_cannot_be_looked_at_is_refused():
    with pytest.raises(ValueError, match=r"object has no sensitivity\(x\)"):
        look(Sensitivity(), torch.rand(1, 1, 4, 4), object())
    for shares in ((), (1.5,)):
        with pytest.raises(ValueError, match=r"shares must be in \[0, 1\]"):
            Removal(shares=shares)


class Rectifier(Method):
    """Marks by alpha alone, overwrites with black, and has a classifier of its own."""

    classifier = Sum()

    def suspects(self, x, alpha=1 / 16, mode="range"):
        marked = torch.zeros_like(x, dtype=torch.bool)
        marked.flatten(1)[:, : round(alpha * 16)] = True
        return ~marked if mode == "quantile" else marked

    def masked(self, x, marked=None):
        return torch.where(self.suspects(x) if marked is None else marked, 0.0, x)

    def rectifier(self, x):
        return Sum()(x).flip(1)

    def rectified(self, x):
        return self.rectifier(self.masked(x))


def test_each_step_of_a_rectifier():
    x = torch.stack([torch.full((1, 4, 4), 0.5), torch.full((1, 4, 4), 0.25)])  # 5 and 2.5; 3 and 1.5 without the first
    found = look(Rectification(), x, Rectifier(), label=1)
    assert {name: values.tolist() for name, values in found.items()} == {
        "mask": [1, 0],
        "tuned": [0, 0],
        "both": [0, 1],
    }


def test_how_much_is_masked():
    x = torch.full((1, 1, 4, 4), 0.5)
    found = look(Masking(alphas=(0.125, 0.25)), x, Rectifier(), label=0)
    assert {name: float(value) for name, value in found.items()} == {
        **{"mask_range_0.125": 1, "both_range_0.125": 0, "share_range_0.125": 0.125},  # 1.5 are left
        **{"mask_range_0.25": 1, "both_range_0.25": 0, "share_range_0.25": 0.25},
        **{"mask_quantile_0.125": 0, "both_quantile_0.125": 1, "share_quantile_0.125": 0.875},  # 3.5
        **{"mask_quantile_0.25": 0, "both_quantile_0.25": 1, "share_quantile_0.25": 0.75},
    }


def test_only_a_rectifier_can_be_looked_at_like_that():
    for probe in (Rectification(), Masking()):
        with pytest.raises(ValueError, match="Method is no rectifier"):
            look(probe, torch.rand(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"alphas must be in \[0, 1\]"):
        Masking(alphas=(2.0,))
