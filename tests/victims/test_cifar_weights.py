"""Public CIFAR-10 weights in our residual networks, named on a command line: how many images they get right."""

import os
from pathlib import Path

import pytest
import torch

from redlab.data.loader import Key
from redlab.runs.build import build_victims, shared_data
from redlab.runs.config import compose, finalise

pytestmark = pytest.mark.realdata

DATA = Path(os.environ.get("REDLAB_DATA", Path(__file__).parents[2] / "data"))
IMAGES = DATA / "cifar10_first4000"  # the first 4,000 training images, lossless, on which they were trained


@pytest.mark.parametrize(("depth", "expected"), [(20, 3992), (32, 4000), (44, 3999), (56, 4000)])
def test_public_weights_are_right_on_what_they_were_trained_on(depth, expected):
    file = DATA / "victims" / f"cifar10_resnet{depth}.safetensors"
    for needed in (IMAGES, file):
        if not needed.exists():
            pytest.skip(f"there is no {needed}")
    name = f"resnet{depth}"
    words = [f"data.root={IMAGES}", "data.num_classes=10", "data.image_size=32", f"victims.{name}.weights={file}"]
    cfg = finalise(compose(["data=image_folder", f"victim={name}", *words]))
    data = shared_data(cfg)
    victim = build_victims(cfg, data=data)[name]
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
