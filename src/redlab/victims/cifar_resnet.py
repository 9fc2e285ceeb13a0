"""Residual networks for CIFAR-10: He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from redlab.victims.facts import IMAGENET, Facts, architecture


def _of_cifar_resnet(channels: int = 3, **_: Any) -> Facts:
    return IMAGENET if channels == 3 else Facts()


@architecture(_of_cifar_resnet)
def cifar_resnet(
    num_classes: int, channels: int, image_size: int, *, depth: int = 20, shortcut: Literal["A", "B"] = "A"
) -> nn.Module:
    """The residual networks of He et al. (2016), section 4.2.

    One 3x3 convolution, three stages of n = (depth - 2) / 6 blocks with 16, 32 and 64 channels at full, half and
    quarter size, an average over positions and one linear layer. With shortcut A, 3 channels and 10 classes these are
    269,722 parameters at depth 20, 464,154 at 32, 658,586 at 44, 853,018 at 56 and 1,727,962 at 110.

    The names of its modules are those of the CIFAR-10 weights of Y. Idelbayev's pytorch_resnet_cifar10, and so is the
    normalisation of images in colour: ImageNet's.

    Args:
        num_classes: K.
        channels: of the images.
        image_size: any.
        depth: 6n + 2, from 8 to the 1202 of the paper.
        shortcut: what stands beside the first block of the second and third stage. "A", as in the paper: every second
            pixel, and zeros for the new channels, half of them before and half after; "B": a 1x1 convolution with
            stride 2 and batch norm.

    Raises:
        ValueError: ``depth`` or ``shortcut`` is another.
    """
    if not 8 <= depth <= 1202 or depth % 6 != 2:  # of more, a file could ask without end
        raise ValueError(f"depth must be 6n + 2 from 8 to 1202, such as 20, 32, 44, 56 or 110, got {depth}")
    if shortcut not in ("A", "B"):
        raise ValueError(f"shortcut must be 'A' or 'B', got {shortcut!r}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
    layers["bn1"], layers["relu"] = nn.BatchNorm2d(16), nn.ReLU()
    before = 16
    for stage, width in enumerate((16, 32, 64), start=1):
        blocks: list[nn.Module] = []
        for _ in range((depth - 2) // 6):
            blocks.append(_CifarBlock(before, width, shortcut))
            before = width
        layers[f"layer{stage}"] = nn.Sequential(*blocks)
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["linear"] = nn.Linear(64, num_classes)
    net = nn.Sequential(layers)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


class _CifarBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; where the width changes, the first of them has stride 2."""

    def __init__(self, before: int, width: int, shortcut: str) -> None:
        super().__init__()
        stride = 1 if before == width else 2
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2 and shortcut == "A":
            self.shortcut = _ZeroPadded(width - before)
        elif stride == 2:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class _ZeroPadded(nn.Module):
    """Every second pixel of (B, C, H, W), with zeros for so many new channels around those that there are."""

    def __init__(self, new: int) -> None:
        super().__init__()
        self.before, self.after = new // 2, new - new // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))
