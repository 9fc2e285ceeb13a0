"""Small stand-ins: pairs made by hand, a victim that needs no training, a data module without attacks."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from redlab.batch import AttackBatch
from redlab.evaluation import Evaluator
from redlab.methods import CDDRED


def make_victim(seed=0, classes=4, channels=1):
    """Untrained, but spread enough that perturbations change its mind. It has batch statistics to spoil."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 64, classes)
    )
    with torch.no_grad():
        net[-1].weight.mul_(8)
    return net.eval()


def make_pairs(n=8, seed=0, valid=None, channels=1):
    g = torch.Generator().manual_seed(seed)
    clean = torch.rand(n, channels, 8, 8, generator=g)
    attack = torch.arange(n) % 2
    noise = torch.randint(0, 2, clean.shape, generator=g) * 0.4 - 0.2
    adv = torch.where(attack.view(-1, 1, 1, 1) == 0, clean, (clean + noise).clamp(0, 1))
    valid = torch.ones(n, dtype=torch.bool) if valid is None else valid
    setting, knowledge, index = torch.zeros(3, n, dtype=torch.int64).unbind()
    label, victim = torch.arange(n) % 4, torch.arange(n) // 2 % 2
    return AttackBatch(clean, adv, label, attack, setting, victim, knowledge, index - 1, index, valid, attack > 0)


class Pairs(LightningDataModule):
    """Loads indices and makes pairs after the transfer, as the real one crafts."""

    def __init__(self, n=8, batch_size=4, adaptive=(False,), valid=None):
        super().__init__()
        self.pairs, self.batch_size = make_pairs(n, valid=valid), batch_size
        self.mix = SimpleNamespace(names=("clean", "fgsm"))
        self.victims = {"a": make_victim(0), "b": make_victim(1)}
        self.adaptive = adaptive

    def _loader(self):
        return DataLoader(range(len(self.pairs)), batch_size=self.batch_size)

    def train_dataloader(self):
        return self._loader()

    def val_dataloader(self):
        return self._loader()

    def test_dataloader(self):
        return [self._loader() for _ in self.adaptive]

    def setup(self, stage):
        names = self.mix.names
        self.trainer.lightning_module.evaluator = Evaluator(victims=self.victims, attack_names=names)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        pairs = self.pairs[batch]
        knows = self.trainer.testing and self.adaptive[dataloader_idx]
        return replace(pairs, knowledge=torch.full_like(pairs.label, int(knows)))


@pytest.fixture
def pairs():
    return make_pairs


@pytest.fixture
def datamodule():
    return Pairs


@pytest.fixture
def method():
    """Builds a small CDD-RED; the denoiser's first weights depend on nothing but the seed below."""

    def build(victims=None, lr=1e-3, scheduler=None, started=True, **options):
        victims = victims or {"a": make_victim(0), "b": make_victim(1)}
        options = {"channels": 1, "depth": 3, "width": 8, **options}
        torch.manual_seed(0)
        module = CDDRED(victims=victims, optimizer=partial(torch.optim.Adam, lr=lr), scheduler=scheduler, **options)
        if started:  # away from the identity, where only the last layer has a gradient
            with torch.no_grad():
                module.denoiser.net[-1].weight.normal_(std=0.05)
        return module

    return build


@pytest.fixture
def trainer(tmp_path):
    def build(**options):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "log_every_n_steps": 1}
        quiet["enable_checkpointing"] = "callbacks" in options
        return Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, **(quiet | options))

    return build
