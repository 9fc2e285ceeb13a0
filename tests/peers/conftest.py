"""Victims trained on Fashion-MNIST for the comparison with other libraries, once per session.

A library that is missing fails these tests: a skip could hide a comparison that was not made.
"""

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from redlab.attacks import PGD, SampleRng
from redlab.data import fashion_mnist
from redlab.runs.build import build_victims
from redlab.runs.config import compose, finalise
from redlab.victims import Victim, architectures

IMAGES = 256


@pytest.fixture(scope="session")
def contestants():
    """benchmarks/contestants.py, which knows how everybody's attacks are called."""
    path = Path(__file__).parents[2] / "benchmarks" / "contestants.py"
    spec = spec_from_file_location("contestants", path)
    module = sys.modules[spec.name] = module_from_spec(spec)  # a dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def data():
    return fashion_mnist(finalise(compose(["data=fashion_mnist"])).data.root)


@pytest.fixture(scope="session")
def standard(data, tmp_path_factory):
    """An ordinarily trained victim, and the first test images that it gets right."""
    words = [
        "data=fashion_mnist",
        "victim=small_cnn",
        "victims.small_cnn.backbone.widths=[8,16,32]",
        "victim_training.limit_train=30_000",
        "victim_training.batch_size=128",
    ]
    quiet = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "victim_training.max_epochs=2"]
    root = tmp_path_factory.mktemp("victims")
    victim = build_victims(finalise(compose([*words, *quiet, f"victim_root={root}"])))["small_cnn"]
    x, y = data.test.images[: 2 * IMAGES].float() / 255, data.test.labels[: 2 * IMAGES]
    with torch.no_grad():
        right = victim(x).argmax(1) == y
    return victim, x[right][:IMAGES], y[right][:IMAGES]


@pytest.fixture(scope="session")
def robust(data):
    """(classes, eps) -> a victim trained on PGD in linf, with the first test images of these classes."""
    made = {}

    def of_classes(part, classes):
        rows = torch.isin(part.labels, torch.tensor(classes))
        return part.images[rows].float() / 255, torch.searchsorted(torch.tensor(classes), part.labels[rows])

    def make(classes, eps):
        if (classes, eps) not in made:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                net = architectures.small_cnn(len(classes), 1, 28, widths=[8, 16, 32])
                x, y = of_classes(data.train, classes)
                optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
                for epoch in range(2):
                    for rows in torch.randperm(len(x))[:12_000].split(64):
                        attack = PGD(eps=eps, steps=5)
                        x_adv = attack(net.train(), x[rows], y[rows], rng=SampleRng(0, "train", epoch, rows))
                        optimizer.zero_grad()
                        F.cross_entropy(net(x_adv), y[rows]).backward()
                        optimizer.step()
            victim = Victim(net, num_classes=len(classes), name=f"robust {classes}")
            made[classes, eps] = (victim, *(t[:IMAGES] for t in of_classes(data.test, classes)))
        return made[classes, eps]

    return make


@pytest.fixture(scope="session", autouse=True)
def _all_libraries():
    missing = [p for p in ("torchattacks", "foolbox", "adv_lib", "art", "pyautoattack") if not find_spec(p)]
    if missing:
        pytest.fail(f"not installed: {', '.join(missing)} (docs/attacks.md says how)")
