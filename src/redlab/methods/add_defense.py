"""ADD-Defense, which restores an image from a representation that says nothing of the attack.

"Towards Defending Widespread Adversarial Examples via Perturbation-Invariant Representation" (2021): an encoder E maps
an image, attacked or not, to a latent vector z; a generator G makes an image of z that an unchanged classifier gets
right. The domains are the originals and each known attack. E is trained so that they do not differ in z (L_mmd), so
that a discriminator D_P cannot tell them apart (L_p), so that z is Gaussian (L_g) and keeps the class (L_c); G so that
the image is near the original (L_mse) and looks like one to a discriminator D_I (L_adv). The classifier is in no loss.

Where eqs. 2 and 7 as printed are unbounded games, each player has a cross-entropy of its own instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from redlab.batch import AttackBatch
from redlab.methods.base import Method, OptimizerPartial, SchedulerPartial
from redlab.methods.purifying import target_id, with_targets
from redlab.nn import Decoder, Encoder, Frame, ImageDiscriminator, deception_loss, real_or_fake_loss
from redlab.nn.strided import SIDE, SLOPE, narrow
from redlab.rng import generator

GAMES = ("split", "literal")
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""2 sigma^2 of the kernels of L_mmd, as multiples of the median squared distance."""

# ---- losses -------------------------------------------------------------------------------------------------------


def domain_weights(domain: Tensor, domains: int) -> Tensor:
    """(N, K): 1 / n_k where a row is one of the n_k of domain k, else 0; a sum with it is the mean of each domain.

    Args:
        domain: (N,) int64 in 0..K-1.
        domains: K.
    """
    one_hot = F.one_hot(domain, domains).float()
    return one_hot / one_hot.sum(0).clamp(min=1)


def mmd_loss(z: Tensor, weights: Tensor) -> Tensor:
    """L_mmd (eq. 1): the mean over all K^2 pairs of domains of the maximum mean discrepancy, not squared.

    The estimator is the biased one of Appendix B. The kernel is the mean of five Gaussians whose widths are multiples
    of the median squared distance in the batch, which carries no gradient. A root has infinite slope at 0, hence 1e-8.

    Args:
        z: (N, Z).
        weights: (N, K), ``domain_weights``; a pair with a domain that is not there counts as 0.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        length = z.square().sum(1)
        distance = (length[:, None] + length[None] - 2 * z @ z.T).clamp(min=0)
        apart = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        median = distance.detach()[apart].median().clamp(min=1e-12) if len(z) > 1 else distance.new_ones(())
        kernel = torch.stack([torch.exp(-distance / (median * width)) for width in BANDWIDTHS]).mean(0)
        weights = weights.to(kernel.dtype)
        inner = weights.T @ kernel @ weights
        squared = inner.diagonal()[:, None] - 2 * inner + inner.diagonal()[None]
        there = weights.sum(0) > 0
        pairs = (there[:, None] & there[None]).fill_diagonal_(False)
        root = (squared.clamp(min=0) + 1e-8).sqrt()
        return torch.where(pairs, root, 0.0).sum() / weights.shape[1] ** 2


def specific_loss(logits: Tensor, domain: Tensor, weights: Tensor) -> Tensor:
    """What D_P minimises (eq. 2, split): the sum over domains of its cross-entropy with the true one.

    Args:
        logits: (N, K) of D_P.
        domain: (N,) int64.
        weights: (N, K), ``domain_weights``.
    """
    return torch.sum(F.cross_entropy(logits, domain, reduction="none") * weights.sum(1))


def confused_loss(logits: Tensor, weights: Tensor) -> Tensor:
    """What E minimises (eq. 2, split): the sum over domains of the cross-entropy with 1/K for each; at least K log K.

    Args:
        logits: (N, K) of D_P.
        weights: (N, K), ``domain_weights``.
    """
    return -torch.sum(logits.log_softmax(1).mean(1) * weights.sum(1))


def literal_loss(logits: Tensor, domain: Tensor, weights: Tensor) -> Tensor:
    """L_p as eq. 2 prints it, which E minimises and D_P maximises: the true logit less the mean of all of them.

    Args:
        logits: (N, K) of D_P.
        domain: (N,) int64.
        weights: (N, K), ``domain_weights``.
    """
    return torch.sum((logits.gather(1, domain[:, None])[:, 0] - logits.mean(1)) * weights.sum(1))


def prior_loss(mean: Tensor, log_variance: Tensor, weights: Tensor) -> Tensor:
    """L_g (eq. 3): KL(N(mean, variance) || N(0, I)) of each image, summed over z, mean over images and domains.

    Args:
        mean: (N, Z).
        log_variance: (N, Z).
        weights: (N, K), ``domain_weights``.
    """
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
    return torch.sum(divergence * weights.sum(1)) / weights.shape[1]


def moment_prior_loss(z: Tensor, weights: Tensor) -> Tensor:
    """L_g (eq. 3) of an encoder that draws nothing: KL of the mean and variance over a domain's images, from N(0, I).

    Even for perfect z it is about Z / n with n images of a domain.

    Args:
        z: (N, Z).
        weights: (N, K), ``domain_weights``.
    """
    mean = weights.T @ z
    variance = weights.T @ z.square() - mean.square()
    divergence = 0.5 * (mean.square() + variance - 1 - (variance.clamp(min=0) + 1e-6).log()).sum(1)
    return torch.where(weights.sum(0) > 0, divergence, 0.0).sum() / weights.shape[1]


def label_loss(logits: Tensor, label: Tensor, weights: Tensor) -> Tensor:
    """L_c (eq. 4): the sum over domains of the cross-entropy with the true class.

    Args:
        logits: (N, M) of C.
        label: (N,) int64.
        weights: (N, K), ``domain_weights``.
    """
    return torch.sum(F.cross_entropy(logits, label, reduction="none") * weights.sum(1))


def restoration_loss(restored: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """L_mse (eq. 6): the sum over domains of the mean squared error, a mean over pixels and images.

    Args:
        restored: (N, C, H, W) in [-1, 1].
        target: (N, C, H, W) in [-1, 1].
        weights: (N, K), ``domain_weights``.
    """
    return torch.sum((restored - target).square().flatten(1).mean(1) * weights.sum(1))


# ---- networks -----------------------------------------------------------------------------------------------------


class PerturbationDiscriminator(nn.Module):
    """D_P: four linear layers that tell by z what made an image.

    Args:
        size: numbers of z.
        domains: K.
        width_divisor: divides all widths.
        bounded: spectral normalisation of each layer, for the literal game, which has no bound otherwise.

    >>> sum(p.numel() for p in PerturbationDiscriminator(2048, 3).parameters())
    2377219
    """

    def __init__(self, size: int, domains: int, width_divisor: int = 1, *, bounded: bool = False) -> None:
        super().__init__()
        widths = (size, *narrow((1024, 256, 64), width_divisor), domains)
        layers: list[nn.Module] = []
        for before, width in itertools.pairwise(widths):
            linear = nn.Linear(before, width)
            layers += [spectral_norm(linear) if bounded else linear, nn.LeakyReLU(SLOPE)]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, z: Tensor) -> Tensor:
        """(N, Z) -> (N, K) logits."""
        logits: Tensor = self.net(z)
        return logits


class ClassHead(nn.Module):
    """C: two linear layers, of which the paper says only that they see z.

    Args:
        size: numbers of z.
        classes: M.
        width_divisor: divides the width between them.

    >>> sum(p.numel() for p in ClassHead(2048, 10).parameters())
    1054218
    """

    def __init__(self, size: int, classes: int, width_divisor: int = 1) -> None:
        super().__init__()
        (hidden,) = narrow((512,), width_divisor)
        self.net = nn.Sequential(nn.Linear(size, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, classes))

    def forward(self, z: Tensor) -> Tensor:
        """(N, Z) -> (N, M) logits."""
        logits: Tensor = self.net(z)
        return logits


# ---- the method ---------------------------------------------------------------------------------------------------


class ADDDefense(Method):
    """Restorer. Three players, in this order: D_P, D_I, and E with G and C.

    The domains are the classes of the mix that it is trained on, clean images among them; ``deal=all`` has every image
    in each of them. Losses, sums and means over domains alike, do not depend on how many images a domain has.

    Args:
        attack_names: of the mix; the first is "clean".
        num_classes: M.
        channels: of the images.
        image_size: side of the images, at most 32; they are centred in black in 32 x 32 pixels.
        optimizer: of the players ``perturbation``, ``image`` and ``restorer``, see ``Method``.
        scheduler: likewise.
        width_divisor: divides all widths; 1 is the paper's.
        gaussian: E gives mean and variance, of which training draws z, and L_g is in closed form; otherwise z is what E
            says, as in Table 4, and L_g that of a batch's moments.
        game: of D_P: "split": a cross-entropy for each player; "literal": eq. 2 as printed, with a bounded D_P.
        lambda_prior: weight of L_g (lambda_1).
        lambda_perturbation: weight of L_p (lambda_2).
        lambda_class: weight of L_c (lambda_3).
        lambda_mse: weight of L_mse (theta).
        max_norm: largest norm of the gradients of E, G and C together.
        two_phase: epochs in which z is learnt without G, after which E and C stay as they are; 0: all at once.
        target: what all images are to become, a name of the mix: "clean", or an attack (Section G.3).
        seed: of the draws of z.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    def __init__(
        self,
        *,
        attack_names: Sequence[str],
        num_classes: int,
        channels: int,
        image_size: int,
        optimizer: Mapping[str, OptimizerPartial],
        scheduler: Mapping[str, SchedulerPartial | None] | None = None,
        width_divisor: int = 1,
        gaussian: bool = True,
        game: str = "split",
        lambda_prior: float = 1e-4,
        lambda_perturbation: float = 1.0,
        lambda_class: float = 1e-3,
        lambda_mse: float = 1e3,
        max_norm: float = 5.0,
        two_phase: int = 0,
        target: str = "clean",
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        weights = (lambda_prior, lambda_perturbation, lambda_class, lambda_mse)
        if not (min(weights) >= 0 and sum(weights) < math.inf):
            raise ValueError(f"loss weights must be finite and not negative, got {weights}")
        if game not in GAMES:
            raise ValueError(f"game must be one of {GAMES}, got {game!r}")
        if not max_norm > 0:
            raise ValueError(f"max_norm must be positive, got {max_norm}")
        if two_phase < 0:
            raise ValueError(f"two_phase must be at least 0, got {two_phase}")
        self.save_hyperparameters(ignore=["attack_names", "optimizer", "scheduler"])
        self.domains, self.target = len(attack_names), target_id(target, attack_names)
        self.lambda_prior, self.lambda_perturbation, self.lambda_class, self.lambda_mse = weights
        self.game, self.max_norm, self.two_phase, self.seed = game, max_norm, two_phase, seed
        self.frame = Frame(SIDE, image_size)
        self.encoder = Encoder(channels, width_divisor, gaussian=gaussian)
        self.decoder = Decoder(channels, width_divisor)
        self.class_head = ClassHead(self.encoder.size, num_classes, width_divisor)
        size = self.encoder.size
        self.tells_attacks = PerturbationDiscriminator(size, self.domains, width_divisor, bounded=game == "literal")
        self.tells_images = ImageDiscriminator(channels, width_divisor)
        mine = [self.encoder, self.decoder, self.class_head]
        self.players = {"perturbation": [self.tells_attacks], "image": [self.tells_images], "restorer": mine}

    def latent(self, x: Tensor) -> Tensor:
        """(B, C, H, W) attacked, in [0, 1] -> (B, Z), z: the mean where E gives a distribution."""
        z: Tensor = self.encoder(self.frame.inside(x))[0]
        return z

    def estimate(self, x: Tensor) -> Tensor:
        """(B, C, H, W) attacked, in [0, 1] -> (B, C, H, W), G(E(x)), in [0, 1] by its last layer."""
        return self.frame.outside(self.decoder(self.latent(x)))

    def restore(self, x: Tensor) -> Tensor:
        """The same for images on any device."""
        return self.clamped_estimate(x)

    def training_step(self, batch: AttackBatch, batch_idx: int) -> None:
        """One step of each player."""
        batch, target = with_targets(batch, self.target)
        wanted, weights = self.frame.inside(target), domain_weights(batch.attack, self.domains)
        first, second = self.current_epoch < self.two_phase, 0 < self.two_phase <= self.current_epoch
        with torch.set_grad_enabled(not second):
            mean, log_variance = self.encoder(self.frame.inside(batch.adv))
            z = self._drawn(mean, log_variance, batch_idx)
        terms: dict[str, Tensor] = {}
        if not second:
            terms["perturbation"] = self._tell_attacks(z.detach(), batch.attack, weights)
            self.play("perturbation", terms["perturbation"])
        restored = None if first else self.decoder(z)
        if restored is not None:
            real = wanted[batch.attack == 0] if bool((batch.attack == 0).any()) else wanted
            share = weights.sum(1) / (weights.sum(0) > 0).sum()
            fake = self.tells_images(restored.detach())
            terms["image"] = real_or_fake_loss(self.tells_images(real), fake, share)
            self.play("image", terms["image"])
            terms["deception"] = deception_loss(self.tells_images(restored), share)
            terms["mse"] = restoration_loss(restored, wanted, weights)
        if not second:
            terms["mmd"] = mmd_loss(z, weights)
            said = self.tells_attacks(z)
            split = self.game == "split"
            terms["confusion"] = confused_loss(said, weights) if split else literal_loss(said, batch.attack, weights)
            with_variance = log_variance is not None
            terms["prior"] = prior_loss(mean, log_variance, weights) if with_variance else moment_prior_loss(z, weights)
            terms["class"] = label_loss(self.class_head(z), batch.label, weights)
            told = (said.argmax(1) == batch.attack).float()
            self.log("train/domain_told", torch.sum(told * weights.sum(1)) / self.domains)
        loss = self.weighted(terms)
        self.play("restorer", loss, clip=self.max_norm)
        self.log_dict({f"train/{name}": term for name, term in terms.items()})
        self.log("train/loss", loss, prog_bar=True)

    def weighted(self, terms: Mapping[str, Tensor]) -> Tensor:
        """What E, G and C minimise: eq. 5 and eq. 7 together, as far as their terms are there."""
        weights = {
            "mmd": 1.0,
            "prior": self.lambda_prior,
            "confusion": self.lambda_perturbation,
            "class": self.lambda_class,
            "deception": 1.0,
            "mse": self.lambda_mse,
        }
        return torch.stack([weight * terms[name] for name, weight in weights.items() if name in terms]).sum()

    def _tell_attacks(self, z: Tensor, domain: Tensor, weights: Tensor) -> Tensor:
        said = self.tells_attacks(z)
        if self.game == "split":
            return specific_loss(said, domain, weights)
        return -literal_loss(said, domain, weights)

    def _drawn(self, mean: Tensor, log_variance: Tensor | None, batch_idx: int) -> Tensor:
        """z of a training step: mean + sigma * noise."""
        if log_variance is None:
            return mean
        name: Any = ("latent", self.seed, self.batches, batch_idx, self.global_rank)
        noise = torch.randn(mean.shape, generator=generator(*name, device=mean.device), device=mean.device)
        return mean + (0.5 * log_variance).exp() * noise
