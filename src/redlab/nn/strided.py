"""Stacks of strided 4x4 convolutions without normalisation: E, G and D_I of ADD-Defense (Table 4).

They see images in [-1, 1], centred in black in a square of a fixed size.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 32
"""Pixels of a side of what they see."""

SLOPE = 0.2


@dataclass(frozen=True)
class Frame:
    """Puts images in [0, 1] into a square of numbers in [-1, 1], and takes them out again.

    The margin is black. An odd difference goes to the right and the bottom.

    Args:
        side: of the square.
        image_size: side of the images.

    Raises:
        ValueError: an image is larger than the square.

    >>> import torch
    >>> frame, x = Frame(32, 28), torch.rand(2, 1, 28, 28)
    >>> frame.inside(x).shape, torch.allclose(frame.outside(frame.inside(x)), x, atol=1e-6)
    (torch.Size([2, 1, 32, 32]), True)
    """

    side: int
    image_size: int

    def __post_init__(self) -> None:
        if self.image_size > self.side:
            raise ValueError(f"images must be at most {self.side} pixels a side, got {self.image_size}")

    def inside(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, C, side, side) in [-1, 1]."""
        return self.around(2 * x) - 1

    def around(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, side, side), with zeros around it."""
        before = (self.side - self.image_size) // 2
        after = self.side - self.image_size - before
        return F.pad(x, (before, after, before, after))

    def outside(self, framed: Tensor) -> Tensor:
        """(B, C, side, side) in [-1, 1] -> (B, C, H, W) in [0, 1]."""
        before = (self.side - self.image_size) // 2
        there = slice(before, before + self.image_size)
        return (framed[..., there, there] + 1) / 2


def initialise(net: nn.Module) -> None:
    """Weights that keep the size of a signal through leaky ReLUs (He et al. 2015), and no bias.

    Without normalisation PyTorch's own start makes ten layers shrink it to nothing: training then stays at one grey
    image for hundreds of steps, or for good. Of a transposed convolution an output has a quarter of the kernel's terms.
    """
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            fan = module.weight[0].numel()
            if isinstance(module, nn.ConvTranspose2d):
                fan = module.in_channels * module.weight[0, 0].numel() // (module.stride[0] * module.stride[1])
            nn.init.normal_(module.weight, std=math.sqrt(2 / (1 + SLOPE**2) / fan))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def narrow(widths: tuple[int, ...], divisor: int) -> tuple[int, ...]:
    """Widths divided by a factor.

    Raises:
        ValueError: the factor leaves nothing of one of them.
    """
    if divisor < 1 or min(widths) // divisor < 1:
        raise ValueError(f"width_divisor must be from 1 to {min(widths)}, got {divisor}")
    return tuple(width // divisor for width in widths)


class Encoder(nn.Module):
    """E: five convolutions to one position; the last one twice, for the mean and the log-variance of a Gaussian.

    Args:
        channels: of the images.
        width_divisor: divides all widths.
        gaussian: with the log-variance, which Table 4 does not have.

    Attributes:
        size: numbers of a latent vector, 2048 at full width.

    >>> [sum(p.numel() for p in Encoder(c, gaussian=False).parameters()) for c in (3, 1)]
    [44574592, 44570496]
    """

    def __init__(self, channels: int, width_divisor: int = 1, *, gaussian: bool = True) -> None:
        super().__init__()
        widths = narrow((128, 256, 512, 1024, 2048), width_divisor)
        layers: list[nn.Module] = []
        for before, width in zip((channels, *widths[:-2]), widths[:-1], strict=True):
            layers += [nn.Conv2d(before, width, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        self.size = widths[-1]
        self.body = nn.Sequential(*layers)
        self.mean = nn.Conv2d(widths[-2], self.size, 4, 2, 1)
        self.log_variance = nn.Conv2d(widths[-2], self.size, 4, 2, 1) if gaussian else None
        initialise(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, 32, 32) in [-1, 1] -> (B, size) mean, and (B, size) log-variance in [-10, 10] or None."""
        h = self.body(x)
        mean = self.mean(h).flatten(1)
        return mean, None if self.log_variance is None else self.log_variance(h).flatten(1).clamp(-10, 10)


class Decoder(nn.Module):
    """G: five transposed convolutions from a latent vector to an image, and tanh, which Table 4 does not list.

    Args:
        channels: of the images.
        width_divisor: divides all widths.

    >>> [sum(p.numel() for p in Decoder(c).parameters()) for c in (3, 1)]
    [44572547, 44568449]
    """

    def __init__(self, channels: int, width_divisor: int = 1) -> None:
        super().__init__()
        widths = narrow((2048, 1024, 512, 256, 128), width_divisor)
        layers: list[nn.Module] = []
        for before, width in itertools.pairwise(widths):
            layers += [nn.ConvTranspose2d(before, width, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        self.net = nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1), nn.Tanh())
        initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        """(B, size) -> (B, C, 32, 32) in [-1, 1]."""
        image: Tensor = self.net(z[:, :, None, None])
        return image


class ImageDiscriminator(nn.Module):
    """D_I: four convolutions and two linear layers.

    Args:
        channels: of the images.
        width_divisor: divides all widths.

    >>> [sum(p.numel() for p in ImageDiscriminator(c).parameters()) for c in (3, 1)]
    [1215457, 1214433]
    """

    def __init__(self, channels: int, width_divisor: int = 1) -> None:
        super().__init__()
        *widths, hidden = narrow((32, 64, 128, 256, 512), width_divisor)
        layers: list[nn.Module] = []
        for before, width in zip((channels, *widths[:-1]), widths, strict=True):
            layers += [nn.Conv2d(before, width, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        left = widths[-1] * (SIDE // 16) ** 2
        head = nn.Linear(left, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, 1)
        self.net = nn.Sequential(*layers, nn.Flatten(), *head)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 32, 32) in [-1, 1] -> (B,) logits, larger means more likely an original."""
        logits: Tensor = self.net(x)[:, 0]
        return logits
