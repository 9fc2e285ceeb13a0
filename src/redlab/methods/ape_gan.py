"""APE-GAN, the generator that ADD-Defense is compared with.

"APE-GAN: Adversarial Perturbation Elimination with GAN" (2017): a generator G maps an attacked image to one that is
near the original and that a discriminator D takes for one. Here, as ADD-Defense, it sees the originals, too. The paper
on ADD-Defense also has a deeper one, of which it says no more; ours has E and G of ADD-Defense in the place of G.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from redlab.batch import AttackBatch
from redlab.methods.base import Method, OptimizerPartial, SchedulerPartial
from redlab.methods.purifying import target_id, with_targets
from redlab.nn import Decoder, Encoder, Frame, ImageDiscriminator, deception_loss, real_or_fake_loss
from redlab.nn.strided import SIDE, SLOPE, narrow


def _block(layer: nn.Module, width: int) -> list[nn.Module]:
    return [layer, nn.BatchNorm2d(width), nn.LeakyReLU(SLOPE)]


class Generator(nn.Sequential):
    """G: two strided convolutions, two transposed ones, tanh; sides must be multiples of 4.

    Args:
        channels: of the images.
        width_divisor: divides all widths.

    >>> [sum(p.numel() for p in Generator(c).parameters()) for c in (3, 1)]
    [269059, 264961]
    """

    def __init__(self, channels: int, width_divisor: int = 1) -> None:
        a, b = narrow((64, 128), width_divisor)
        super().__init__(
            *_block(nn.Conv2d(channels, a, 4, 2, 1), a),
            *_block(nn.Conv2d(a, b, 4, 2, 1), b),
            *_block(nn.ConvTranspose2d(b, a, 4, 2, 1), a),
            nn.ConvTranspose2d(a, channels, 4, 2, 1),
            nn.Tanh(),
        )


class DeepGenerator(nn.Module):
    """E and G of ADD-Defense, one after the other.

    Args:
        channels: of the images.
        width_divisor: divides all widths.
    """

    def __init__(self, channels: int, width_divisor: int = 1) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(channels, width_divisor, gaussian=False), Decoder(channels, width_divisor)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 32, 32) in [-1, 1] -> the same."""
        restored: Tensor = self.decoder(self.encoder(x)[0])
        return restored


class Discriminator(nn.Module):
    """D: three strided convolutions and a linear layer; logits, where the paper has a sigmoid behind them.

    Args:
        channels: of the images.
        side: of the images, at least 15.
        width_divisor: divides all widths.

    >>> [sum(p.numel() for p in Discriminator(c, side).parameters()) for c, side in ((1, 28), (3, 32))]
    [371457, 373889]
    """

    def __init__(self, channels: int, side: int, width_divisor: int = 1) -> None:
        super().__init__()
        a, b, c = narrow((64, 128, 256), width_divisor)
        for _ in range(3):
            side = (side - 1) // 2
        self.net = nn.Sequential(
            *(nn.Conv2d(channels, a, 3, 2), nn.LeakyReLU(SLOPE)),
            *_block(nn.Conv2d(a, b, 3, 2), b),
            *_block(nn.Conv2d(b, c, 3, 2), c),
            *(nn.Flatten(), nn.Linear(c * side**2, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, side, side) in [-1, 1] -> (B,) logits, larger means more likely an original."""
        logits: Tensor = self.net(x)[:, 0]
        return logits


class APEGAN(Method):
    """Restorer. Two players: D, then G, several times.

    Args:
        attack_names: of the mix; the first is "clean".
        channels: of the images.
        image_size: side of the images, at most 32; they are centred in black where a network needs another size.
        optimizer: of the players ``discriminator`` and ``generator``, see ``Method``.
        scheduler: likewise.
        deep: APE-GAN-D, with ADD-Defense's networks.
        width_divisor: divides all widths; 1 is the paper's.
        lambda_mse: weight of the mean squared error.
        lambda_adv: weight of the adversarial loss.
        generator_steps: of G for one of D.
        target: what all images are to become, see ``ADDDefense``.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        *,
        attack_names: Sequence[str],
        channels: int,
        image_size: int,
        optimizer: Mapping[str, OptimizerPartial],
        scheduler: Mapping[str, SchedulerPartial | None] | None = None,
        deep: bool = False,
        width_divisor: int = 1,
        lambda_mse: float = 0.7,
        lambda_adv: float = 0.3,
        generator_steps: int = 2,
        target: str = "clean",
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if not (min(lambda_mse, lambda_adv) >= 0 and lambda_mse + lambda_adv < math.inf):
            raise ValueError(f"loss weights must be finite and not negative, got {(lambda_mse, lambda_adv)}")
        if generator_steps < 1:
            raise ValueError(f"generator_steps must be at least 1, got {generator_steps}")
        self.save_hyperparameters(ignore=["attack_names", "optimizer", "scheduler"])
        self.lambda_mse, self.lambda_adv, self.generator_steps = lambda_mse, lambda_adv, generator_steps
        self.target = target_id(target, attack_names)
        self.frame = Frame(SIDE if deep else max(16, 4 * math.ceil(image_size / 4)), image_size)
        self.generator: nn.Module
        self.discriminator: nn.Module
        if deep:
            self.generator = DeepGenerator(channels, width_divisor)
            self.discriminator = ImageDiscriminator(channels, width_divisor)
        else:
            self.generator = Generator(channels, width_divisor)
            self.discriminator = Discriminator(channels, self.frame.side, width_divisor)
        self.players = {"discriminator": [self.discriminator], "generator": [self.generator]}

    def estimate(self, x: Tensor) -> Tensor:
        """(B, C, H, W) attacked, in [0, 1] -> (B, C, H, W), G(x), in [0, 1] by its last layer."""
        return self.frame.outside(self.generator(self.frame.inside(x)))

    def restore(self, x: Tensor) -> Tensor:
        """The same for images on any device."""
        return self.clamped_estimate(x)

    def training_step(self, batch: AttackBatch, batch_idx: int) -> None:
        """One step of D and ``generator_steps`` of G."""
        batch, target = with_targets(batch, self.target)
        x, wanted = self.frame.inside(batch.adv), self.frame.inside(target)
        restored = self.generator(x)
        told = real_or_fake_loss(self.discriminator(wanted), self.discriminator(restored.detach()))
        self.play("discriminator", told)
        for step in range(self.generator_steps):
            restored = self.generator(x) if step else restored
            mse, deception = F.mse_loss(restored, wanted), deception_loss(self.discriminator(restored))
            loss = self.lambda_mse * mse + self.lambda_adv * deception
            self.play("generator", loss)
        self.log_dict({"train/discriminator": told, "train/mse": mse, "train/deception": deception})
        self.log("train/loss", loss, prog_bar=True)
