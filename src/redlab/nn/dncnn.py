"""DnCNN, the residual denoiser of "Beyond a Gaussian Denoiser" (2017), as denoised smoothing and CDD-RED use it."""

from __future__ import annotations

from torch import Tensor, nn


class DnCNN(nn.Module):
    """Convolutions that estimate what to subtract from an image; fully convolutional, any image size.

    The last convolution starts at zero, so a fresh network is exactly the identity. The other weights start
    orthogonal. Nothing is clamped: the output is real, close to [0, 1].

    Args:
        channels: channels of the images.
        depth: number of convolutions, at least 2.
        width: channels between them.
        bn_momentum: in PyTorch's sense: 0.95 makes the running statistics almost those of the last batch.
        bn_eps: added to the variance in batch normalisation.

    Raises:
        ValueError: a size is too small, or the momentum not in [0, 1].

    Example:
        >>> import torch
        >>> x = torch.rand(2, 3, 8, 8)
        >>> torch.equal(DnCNN(3, depth=4, width=8)(x), x)
        True
        >>> sum(p.numel() for p in DnCNN(3).parameters())
        558400
    """

    def __init__(
        self, channels: int, depth: int = 17, width: int = 64, bn_momentum: float = 0.95, bn_eps: float = 1e-4
    ) -> None:
        super().__init__()
        for what, size, least in (("channels", channels, 1), ("depth", depth, 2), ("width", width, 1)):
            if size < least:
                raise ValueError(f"{what} must be at least {least}, got {size}")
        if not 0 <= bn_momentum <= 1:
            raise ValueError(f"bn_momentum must be in [0, 1], got {bn_momentum}")
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width, eps=bn_eps, momentum=bn_momentum),
                nn.ReLU(inplace=True),
            ]
        last = nn.Conv2d(width, channels, 3, padding=1, bias=False)
        self.net = nn.Sequential(*layers, last)
        for module in self.net:
            if isinstance(module, nn.Conv2d):
                nn.init.orthogonal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) noisy -> (B, C, H, W) denoised, not clamped."""
        noise: Tensor = self.net(x)
        return x - noise
