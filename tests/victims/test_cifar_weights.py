"""Public CIFAR-10 weights in our residual networks, named on a command line: how many images they get right, and what
storing does to an attack that goes just over the boundary."""

import os
from pathlib import Path

import pytest
import torch

from redlab.attacks import DeepFool, Stored
from redlab.data.loader import Key
from redlab.runs.build import build_victims, shared_data
from redlab.runs.config import compose, finalise

pytestmark = pytest.mark.realdata

DATA = Path(os.environ.get("REDLAB_DATA", Path(__file__).parents[2] / "data"))
IMAGES = DATA / "cifar10_first4000"  # the first 4,000 training images, lossless, on which they were trained


def public(depth):
    file = DATA / "victims" / f"cifar10_resnet{depth}.safetensors"
    for needed in (IMAGES, file):
        if not needed.exists():
            pytest.skip(f"there is no {needed}")
    words = [f"data.root={IMAGES}", f"victim=resnet{depth}", f"victims.resnet{depth}.weights={file}"]
    cfg = finalise(compose(["data=cifar10_first4000", *words]))
    data = shared_data(cfg)
    return build_victims(cfg, data=data)[f"resnet{depth}"], data


@pytest.mark.parametrize(("depth", "expected"), [(20, 3992), (32, 4000), (44, 3999), (56, 4000)])
def test_public_weights_are_right_on_what_they_were_trained_on(depth, expected):
    victim, data = public(depth)
    right = count = 0
    for part in data.splits:  # the folders train and test of the copy; CIFAR-10's own test set is not in it
        for rows in torch.arange(len(part)).split(250):
            batch = part.__getitems__([Key(int(i), 0, True) for i in rows])
            with torch.no_grad():
                right += int((victim(batch.image / 255).argmax(1) == batch.label).sum())
            count += len(rows)
    print(f"resnet{depth}: {right} of {count}")
    assert count == 4000
    assert abs(right - expected) <= 1  # one may tip over with other rounding


def test_rounding_to_the_nearest_value_undoes_deepfool():
    """Why REDRL's mixes do not: the authors' way, cutting decimals off, leaves what its Table 4 has, 7 to 12 %."""
    victim, data = public(20)
    batch = data.splits.test.__getitems__([Key(i, 0, True) for i in range(0, 1000, 10)])
    x, y = batch.image / 255, batch.label

    def right(images):
        with torch.no_grad():
            return int((victim(images).argmax(1) == y).sum())

    attack = DeepFool(norm="l2", steps=50, overshoot=0.02)
    levels = 255 * attack(victim, x, y)
    found = {"nearest": right(levels.round() / 255), "floor": right(levels.floor() / 255)}
    found["so that they fool"] = right(Stored(attack=attack)(victim, x, y))
    print(f"of 100 images, {right(x)} before the attack: {found}")
    assert found["nearest"] > 90
    assert found["floor"] < 20
    assert found["so that they fool"] == 0
