"""The control: noise of a known size, the same for the same images whatever the batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from redlab.attacks import GaussianNoise, SampleRng


class Untouchable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("a control asked the victim")


X, Y = torch.full((6, 3, 32, 32), 0.5), torch.arange(6)
RNG = SampleRng(3, "train", 1, torch.tensor([5, 9, 2, 7, 1, 0]))


def test_noise_has_the_size_that_it_is_said_to_have() -> None:
    sigma = torch.tensor([0.0, 0.01, 0.02, 0.05, 0.1, 0.01])
    delta = GaussianNoise(sigma=sigma)(Untouchable(), X, Y, rng=RNG) - X
    torch.testing.assert_close(delta.flatten(1).std(1), sigma, rtol=0.05, atol=1e-6)
    assert delta.flatten(1).mean(1).abs().max() < 0.006
    same_size = torch.corrcoef(torch.stack([delta[1].flatten(), delta[5].flatten()]))[0, 1]
    assert same_size.abs() < 0.06  # no two rows have the same noise


def test_a_row_does_not_depend_on_its_batch() -> None:
    control = GaussianNoise(sigma=0.1)
    whole = control(Untouchable(), X, Y, rng=RNG)
    assert torch.equal(
        torch.cat([control(Untouchable(), X[i : i + 1], Y[:1], rng=RNG[i : i + 1]) for i in range(6)]), whole
    )
    assert torch.equal(control(Untouchable(), X, Y), control(Untouchable(), X, Y))
    with torch.inference_mode():
        inside = control(Untouchable(), X.clone(), Y.clone(), rng=RNG)
    assert not inside.is_inference()
    assert torch.equal(inside, whole)


def test_images_stay_images() -> None:
    x_adv = GaussianNoise(sigma=1.0)(Untouchable(), X, Y)
    assert x_adv.min() == 0
    assert x_adv.max() == 1


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"sigma must be .* got 8; .* did you mean 8/255"):
        GaussianNoise(sigma=8)(Untouchable(), X, Y)
    with pytest.raises(ValueError, match="GaussianNoise is untargeted"):
        GaussianNoise()(Untouchable(), X, Y, target=Y + 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        GaussianNoise().sigma = 1  # type: ignore[misc]


def test_its_yaml_says_the_default() -> None:
    said = OmegaConf.load(Path(__file__).parents[2] / "conf" / "attack" / "gaussian_noise.yaml")
    assert said == {"_target_": "redlab.attacks.GaussianNoise", "sigma": "8/255"}
    assert GaussianNoise() == GaussianNoise(sigma=8 / 255)
