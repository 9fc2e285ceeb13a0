"""A victim that is trained on, until it withstands attacks itself: what ADD-Defense is compared with.

* Def-adv, on images attacked once and for all: a mix of clean images and a known attack on the victim.
* Adversarial training ("Towards Deep Learning Models Resistant to Adversarial Attacks", 2018) and DOA ("Defending
  Against Physically Realizable Attacks on Image Classification", 2020): a mix whose attack has ``knowledge=defence``,
  on the network as it is at that moment.
* Randomised smoothing ("Certified Adversarial Robustness via Randomized Smoothing", 2019): ``noise``.
* ADD-re: ``RestoredClassifier``, on the images that an ADD-Defense makes of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.batch import AttackBatch
from redlab.methods.base import Method, OptimizerPartial, SchedulerPartial, chosen
from redlab.metrics import Certificate, certificate, votes
from redlab.nn import Decoder, Encoder, Frame
from redlab.nn.strided import SIDE
from redlab.rng import generator
from redlab.victims import ImageClassifier


class Hardened(Method):
    """Labeler: its own network answers.

    Args:
        victims: classifiers by name; a copy of one of them is trained.
        optimizer: partial, see ``Method``.
        scheduler: partial, see ``Method``.
        victim: name of the one that is copied; None: the first one.
        fresh: the copy starts from new weights.
        noise: standard deviation of Gaussian noise on the images, in training, which then sees no attacked ones, and in
            answers; 0 for none.
        draws: of the noise for an answer, which is then that of the mean probabilities.
        seed: of the noise.

    Raises:
        ValueError: an option is out of range, or there is no such victim.
    """

    def __init__(
        self,
        *,
        victims: Mapping[str, nn.Module],
        optimizer: OptimizerPartial,
        scheduler: SchedulerPartial | None = None,
        victim: str | None = None,
        fresh: bool = False,
        noise: float = 0.0,
        draws: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise must be finite and not negative, got {noise}")
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}")
        victim = chosen("victim", victim, victims)
        self.save_hyperparameters(ignore=["victims", "optimizer", "scheduler"])
        self.net = trainable(victims[victim])
        if fresh:
            for module in self.net.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
        self.noise, self.draws, self.seed = noise, draws, seed

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K) logits of the network itself."""
        logits: Tensor = self.net(x)
        return logits

    def class_logits(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K) logits; with noise the logarithm of mean probabilities.

        The noise is the same in every call and for every image, so that answers can be repeated, and an attacker who
        knows of it meets no surprise.
        """
        if not self.noise:
            return self.forward(x)
        said = [self(x + noise).log_softmax(1) for noise in self._noises(x, self.draws, "answer")]
        return torch.stack(said).logsumexp(0) - math.log(self.draws)

    @torch.no_grad()
    def certify(self, x: Tensor, *, draws: int = 1000, select: int = 100, alpha: float = 0.001) -> Certificate:
        """What randomised smoothing is sure of (Cohen et al. 2019, CERTIFY).

        Args:
            x: (B, C, H, W) in [0, 1].
            draws: that the certificate counts.
            select: others, by which the class is chosen.
            alpha: how often a certificate may be wrong.

        Raises:
            ValueError: it is without noise, or a number is out of range.
        """
        if not self.noise:
            raise ValueError("only a classifier with noise can certify: set method.noise")
        if min(draws, select) < 1 or not 0 < alpha < 1:
            raise ValueError(f"draws, select and alpha must be positive, alpha below 1: {(draws, select, alpha)}")
        votes = (self._votes(x, *of) for of in ((select, "select"), (draws, "certify")))
        return certificate(*votes, sigma=self.noise, alpha=alpha)

    def training_step(self, batch: AttackBatch, batch_idx: int) -> Tensor:
        """Cross-entropy on the attacked images; or, with noise, on the clean ones and noise."""
        batch = batch.valid_rows()
        x = batch.clean if self.noise else batch.adv
        if self.noise:
            name: Any = ("noise", self.seed, self.batches, batch_idx, self.global_rank)
            draws = generator(*name, device=x.device)
            x = x + self.noise * torch.randn(x.shape, generator=draws, device=x.device)
        loss = F.cross_entropy(self(x), batch.label)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _noises(self, x: Tensor, draws: int, purpose: str) -> Iterator[Tensor]:
        """(1, C, H, W) each."""
        source = generator(purpose, self.seed, device=x.device)
        return (self.noise * torch.randn(1, *x.shape[1:], generator=source, device=x.device) for _ in range(draws))

    def _votes(self, x: Tensor, draws: int, purpose: str) -> Tensor:
        """(B, K) how many draws say each class."""
        return votes(self, x, self._noises(x, draws, purpose))


def trainable(victim: nn.Module) -> nn.Module:
    """A copy of a victim that can be trained."""
    if not isinstance(victim, ImageClassifier):
        return copy.deepcopy(victim).requires_grad_(True).train()
    around: Any = {key: getattr(victim, key) for key in ("num_classes", "input_size", "feature_layer", "name")}
    copied = ImageClassifier(copy.deepcopy(victim.backbone), **around)
    copied.mean, copied.std = victim.mean.clone(), victim.std.clone()
    return copied.requires_grad_(True).train()


class RestoredClassifier(Hardened):
    """ADD-re: trained on what an ADD-Defense restores, and answers for the restored image. Labeler.

    E and G come from a run of ADD-Defense by ``init``, and stay as they are.

    Args:
        victims: see ``Hardened``, as all others but the last four.
        optimizer: see there.
        scheduler: see there.
        victim: see there.
        fresh: see there.
        channels: of the images.
        image_size: side of the images, at most 32.
        width_divisor: that of the ADD-Defense.
        gaussian: that of the ADD-Defense.
    """

    def __init__(
        self,
        *,
        victims: Mapping[str, nn.Module],
        optimizer: OptimizerPartial,
        scheduler: SchedulerPartial | None = None,
        victim: str | None = None,
        fresh: bool = False,
        channels: int,
        image_size: int,
        width_divisor: int = 1,
        gaussian: bool = True,
    ) -> None:
        super().__init__(victims=victims, optimizer=optimizer, scheduler=scheduler, victim=victim, fresh=fresh)
        self.save_hyperparameters(ignore=["victims", "optimizer", "scheduler"])
        self.frame = Frame(SIDE, image_size)
        self.encoder = Encoder(channels, width_divisor, gaussian=gaussian).requires_grad_(False)
        self.decoder = Decoder(channels, width_divisor).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K) logits of the network for the restored images."""
        restored = self.frame.outside(self.decoder(self.encoder(self.frame.inside(x))[0]))
        logits: Tensor = self.net(restored)
        return logits
