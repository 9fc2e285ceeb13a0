"""Small methods that stand in for those of papers: one of each capability, and one of two players that has three."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redlab.batch import CLEAN, AttackBatch
from redlab.methods.base import Method, OptimizerPartial, SchedulerPartial


def reader(channels: int, width: int, outputs: int) -> nn.Module:
    """(B, C, H, W) -> (B, outputs), for images of any size."""
    layers = nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(16 * width, outputs))


class Detector(Method):
    """Says whether an image was attacked."""

    verdict = "attacked"

    def __init__(self, *, channels: int, width: int = 8, optimizer: OptimizerPartial) -> None:
        super().__init__(optimizer=optimizer)
        self.save_hyperparameters("channels", "width")
        self.net = reader(channels, width, 1)

    def adversarial_scores(self, x: Tensor) -> dict[str, Tensor]:
        return {"attacked": self.net(x)[:, 0]}

    def training_step(self, batch: AttackBatch, batch_idx: int) -> Tensor:
        batch = batch.valid_rows()
        loss = F.binary_cross_entropy_with_logits(self.net(batch.adv)[:, 0], (batch.attack != CLEAN).float())
        self.log("train/loss", loss)
        return loss


class Identifier(Method):
    """Says by which attack of the mix that it is trained on."""

    def __init__(
        self, *, channels: int, attack_names: Sequence[str], width: int = 8, optimizer: OptimizerPartial
    ) -> None:
        super().__init__(optimizer=optimizer)
        self.save_hyperparameters("channels", "width")
        self.attack_names = list(attack_names)
        self.net = reader(channels, width, len(attack_names))

    def attack_logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: AttackBatch, batch_idx: int) -> Tensor:
        batch = batch.valid_rows()
        loss = F.cross_entropy(self.net(batch.adv), batch.attack)
        self.log("train/loss", loss)
        return loss


class Labeler(Method):
    """A classifier of its own, trained on attacked images of other victims."""

    def __init__(self, *, channels: int, num_classes: int, width: int = 8, optimizer: OptimizerPartial) -> None:
        super().__init__(optimizer=optimizer)
        self.save_hyperparameters("channels", "num_classes", "width")
        self.net = reader(channels, width, num_classes)

    def class_logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: AttackBatch, batch_idx: int) -> Tensor:
        batch = batch.valid_rows()
        loss = F.cross_entropy(self.net(batch.adv), batch.label)
        self.log("train/loss", loss)
        return loss


class Adversarial(Method):
    """Two players: a critic tells clean from attacked and restored images, a generator restores, and deceives it."""

    verdict = "attacked"

    def __init__(
        self,
        *,
        channels: int,
        attack_names: Sequence[str],
        width: int = 8,
        deceive: float = 0.01,
        max_norm: float = 5.0,
        optimizer: Mapping[str, OptimizerPartial],
        scheduler: Mapping[str, SchedulerPartial | None] | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.save_hyperparameters("channels", "width", "deceive", "max_norm")
        self.attack_names, self.deceive, self.max_norm = list(attack_names), deceive, max_norm
        first, second = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1)
        self.generator = nn.Sequential(first, nn.ReLU(), second)
        self.critic = reader(channels, width, 1 + len(attack_names))
        self.players = {"generator": [self.generator], "critic": [self.critic]}

    def estimate(self, x: Tensor) -> Tensor:
        estimate: Tensor = x - self.generator(x)
        return estimate

    def restore(self, x: Tensor) -> Tensor:
        return self.clamped_estimate(x)

    def adversarial_scores(self, x: Tensor) -> dict[str, Tensor]:
        return {"attacked": self.critic(x)[:, 0]}

    def attack_logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.critic(x)[:, 1:]
        return logits

    def training_step(self, batch: AttackBatch, batch_idx: int) -> None:
        batch = batch.valid_rows()
        restored = self.estimate(batch.adv)
        said, fake = self.critic(batch.adv), self.critic(restored.detach())[:, 0]
        attacked = (batch.attack != CLEAN).float()
        told = F.binary_cross_entropy_with_logits(said[:, 0], attacked) + F.cross_entropy(said[:, 1:], batch.attack)
        critic = told + self.deceive * F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))
        self.play("critic", critic, clip=self.max_norm)
        fake = self.critic(restored)[:, 0]
        deceived = F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
        generator = (restored - batch.clean).abs().mean() + self.deceive * deceived
        self.play("generator", generator)
        self.log_dict({"train/loss": generator, "train/critic": critic})
