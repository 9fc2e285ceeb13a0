"""The attention-U-Net GAN, which recovers images from attacks of one step and very large budgets.

"Robust Recovery of Adversarial Examples" (ICML 2021 workshop): a U-Net with attention gates, self- and cross-attention
turns an attacked image into one that ordinary classifiers get right. First it is trained against a discriminator, with
L1 and the cross-entropy of a frozen classifier, the guide (stage 1); then by the guide's features alone (stage 2), a
second run with other weights of the losses that starts from the first (``init``). It gives the image, or what is to be
added to the attacked one.

The paper leaves depth, widths and the discriminator open; those here are ours, within its bound on the parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.batch import AttackBatch
from redlab.methods.base import Method, OptimizerPartial, SchedulerPartial, chosen
from redlab.nn import Frame, least_squares_deception_loss, least_squares_real_or_fake_loss
from redlab.victims import ImageClassifier

OUTPUTS = ("image", "noise")

# ---- losses -------------------------------------------------------------------------------------------------------


def pixel_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """L_1: the mean absolute error.

    Args:
        restored: (N, C, H, W) in [-1, 1].
        clean: likewise.
    """
    return (restored - clean).abs().mean()


def feature_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """L_feat: the mean absolute difference of the guide's features.

    Args:
        restored: (N, ...) features of the restored images.
        clean: those of the clean ones, without gradient.
    """
    return (restored - clean.detach()).abs().mean()


# ---- networks -----------------------------------------------------------------------------------------------------


def _stage(before: int, width: int, kernel: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(before, width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.PReLU(width))


class Upsample(nn.Sequential):
    """Twice the size by PixelShuffle, whose four filters of a channel start equal (ICNR), so that it draws no grid.

    Args:
        before: channels.
        width: channels that come out.
    """

    def __init__(self, before: int, width: int) -> None:
        spread = nn.Conv2d(before, 4 * width, 1)
        bias = cast(Tensor, spread.bias)
        with torch.no_grad():
            spread.weight.copy_(spread.weight[::4].repeat_interleave(4, dim=0))
            bias.copy_(bias[::4].repeat_interleave(4))
        super().__init__(spread, nn.PixelShuffle(2), nn.BatchNorm2d(width), nn.PReLU(width))


class AttentionGate(nn.Module):
    """What of a skip connection goes on, as the coarser level asks ("Attention U-Net", 2018).

    Args:
        skip: channels of the skip connection, at least 2.
        coarse: channels of the coarser level.
    """

    def __init__(self, skip: int, coarse: int) -> None:
        super().__init__()
        inner = skip // 2
        self.theta = nn.Conv2d(skip, inner, 2, 2, bias=False)
        self.phi = nn.Conv2d(coarse, inner, 1)
        self.psi = nn.Conv2d(inner, 1, 1)
        self.out = nn.Sequential(nn.Conv2d(skip, skip, 1), nn.BatchNorm2d(skip))

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        """(B, skip, H, W), (B, coarse, H/2, W/2) -> (B, skip, H, W)."""
        share = self.psi(F.relu(self.theta(x) + self.phi(coarse))).sigmoid()
        share = F.interpolate(share, size=x.shape[2:], mode="bilinear", align_corners=False)
        gated: Tensor = self.out(share * x)
        return gated


class Attention(nn.Module):
    """x + gamma * attention of x to a context, at first nothing; of x to itself it is self-attention.

    Args:
        channels: of both.
        window: side of the square around each place that it attends to; None: everywhere.
    """

    def __init__(self, channels: int, window: int | None = None) -> None:
        super().__init__()
        inner = max(channels // 8, 8)
        self.query, self.key = nn.Conv2d(channels, inner, 1), nn.Conv2d(channels, inner, 1)
        self.value, self.gamma = nn.Conv2d(channels, channels, 1), nn.Parameter(torch.zeros(()))
        self.window = window

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W) and a context of the same shape -> (B, C, H, W)."""
        seen = x if context is None else context
        attend = dense_attention if self.window is None or x.is_cuda else shifted_attention
        return x + self.gamma * attend(self.query(x), self.key(seen), self.value(seen), self.window)


def dense_attention(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """softmax(Q K / sqrt(d)) V over the places of a window, by a matrix of all pairs of places.

    Args:
        query: (B, d, H, W).
        key: likewise.
        value: (B, C, H, W).
        window: odd side of the square around each place; None: everywhere.
    """
    near = None if window is None else neighbours(value.shape[2], value.shape[3], window, value.device)
    q, k, v = (part.flatten(2).transpose(1, 2)[:, None] for part in (query, key, value))  # of one head
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=near)
    return found[:, 0].transpose(1, 2).reshape(value.shape)


def shifted_attention(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """The same by moving keys and values through the window: many small steps, on a CPU several times as fast.

    Args:
        query: see ``dense_attention``, as the others.
        key: see there.
        value: see there.
        window: not None.
    """
    high, wide = value.shape[2:]
    reach = ((window or 1) - 1) // 2
    inside = torch.ones(high, wide, dtype=torch.bool, device=value.device)
    keys, values, inside = (F.pad(part, (reach,) * 4) for part in (key, value, inside))
    places = list(itertools.product(range(2 * reach + 1), repeat=2))
    near = [(slice(top, top + high), slice(left, left + wide)) for top, left in places]
    scores = torch.stack([(query * keys[:, :, rows, columns]).sum(1) for rows, columns in near], 1)
    outside = ~torch.stack([inside[rows, columns] for rows, columns in near])
    weight = (scores / math.sqrt(query.shape[1])).masked_fill(outside, -torch.inf).softmax(1)
    found = torch.zeros_like(value)
    for place, (rows, columns) in enumerate(near):
        found = found + weight[:, place : place + 1] * values[:, :, rows, columns]
    return found


def neighbours(height: int, width: int, window: int, device: torch.device | None = None) -> Tensor:
    """(H W, H W) bool: whether two places are in one window, in rows and in columns."""
    row, column = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    reach = (window - 1) // 2
    down, across = ((of.flatten()[:, None] - of.flatten()[None]).abs() <= reach for of in (row, column))
    return down & across


class Generator(nn.Module):
    """The U-Net: four levels of one convolution each; sides must be multiples of 8.

    Args:
        channels: of the images.
        width: of the finest level, even; the others have twice, four and eight times as many.
        window: of the attention at the two finer levels, see ``Attention``.

    >>> sum(p.numel() for p in Generator(3).parameters())
    4523547
    """

    def __init__(self, channels: int, width: int = 64, window: int | None = 7) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"width must be even and at least 2, got {width}")
        if window is not None and (window < 1 or window % 2 == 0):
            raise ValueError(f"window must be odd and positive, or None, got {window}")
        a, b, c, d = (width * 2**level for level in range(4))
        self.down = nn.ModuleList([_stage(channels, a), _stage(a, b), _stage(b, c), _stage(c, d)])
        self.gating = _stage(d, d, 1)
        self.gates = nn.ModuleList([AttentionGate(c, d), AttentionGate(b, c), AttentionGate(a, b)])
        self.up = nn.ModuleList([Upsample(d, c), Upsample(c, b), Upsample(b, a)])
        self.join = nn.ModuleList([_stage(2 * c, c), _stage(2 * b, b), _stage(2 * a, a)])
        self.attend = nn.ModuleList([Attention(c), Attention(b, window), Attention(a, window)])
        self.after, self.across = Attention(a, window), Attention(a, window)
        self.last = nn.Conv2d(a, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, C, H, W), before tanh."""
        levels: list[Tensor] = []
        for place, stage in enumerate(self.down):
            x = stage(F.max_pool2d(x, 2) if place else x)
            levels.append(x)
        first, *middle = levels[:-1]
        coarse = self.gating(x)
        for skip, gate, up, join, attend in zip(
            [*middle[::-1], first], self.gates, self.up, self.join, self.attend, strict=True
        ):
            x = attend(join(torch.cat([gate(skip, coarse), up(x)], dim=1)))
            coarse = x
        out: Tensor = self.last(self.across(self.after(x), first))
        return out


class Discriminator(nn.Sequential):
    """D: a score for each patch, real images near 1; its weights start as N(0, 0.02).

    Args:
        channels: of the images.
        width: of its first layer.

    >>> sum(p.numel() for p in Discriminator(3).parameters())
    661953
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        a, b, c = width, 2 * width, 4 * width
        super().__init__(
            *(nn.Conv2d(channels, a, 4, 2, 1), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(b, c, 4, 2, 1), nn.BatchNorm2d(c), nn.LeakyReLU(0.2)),
            nn.Conv2d(c, 1, 3, padding=1),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)


# ---- the method ---------------------------------------------------------------------------------------------------


class AttentionUNetGAN(Method):
    """Restorer. Two players: D, where it has a weight, then G.

    Stage 1: ``lambda_pixel``, ``lambda_adv`` and ``lambda_class``. Stage 2: ``lambda_feature`` alone, or with a small
    ``lambda_adv`` ("Image Reconstruction-2").

    Args:
        victims: classifiers by name, images in [0, 1] -> logits.
        channels: of the images.
        image_size: side of the images; they are centred in black where it is no multiple of 8.
        optimizer: of the players ``discriminator`` and ``generator``, see ``Method``.
        scheduler: likewise.
        guide: name of the victim that is the guide; None: the first one.
        output: "image", or "noise": what is to be added to the attacked image.
        noise_scale: largest noise in [0, 1], such as the largest eps of the training; None: as large as an image.
        width: of both networks.
        window: of the attention, see ``Attention``.
        lambda_pixel: weight of L_1.
        lambda_adv: weight of the adversarial loss; at 0 there is no game.
        lambda_class: weight of the guide's cross-entropy.
        lambda_feature: weight of L_feat.

    Raises:
        ValueError: an option is unknown or out of range, or the guide has no feature layer where one is needed.
    """

    guide: nn.Module
    frozen = ("guide",)

    def __init__(
        self,
        *,
        victims: Mapping[str, nn.Module],
        channels: int,
        image_size: int,
        optimizer: Mapping[str, OptimizerPartial],
        scheduler: Mapping[str, SchedulerPartial | None] | None = None,
        guide: str | None = None,
        output: str = "image",
        noise_scale: float | None = None,
        width: int = 64,
        window: int | None = 7,
        lambda_pixel: float = 100.0,
        lambda_adv: float = 1.0,
        lambda_class: float = 1.0,
        lambda_feature: float = 0.0,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        weights = (lambda_pixel, lambda_adv, lambda_class, lambda_feature)
        if not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
            raise ValueError(f"loss weights must be finite, not negative and not all 0, got {weights}")
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {OUTPUTS}, got {output!r}")
        if noise_scale is not None and (output != "noise" or not 0 < noise_scale <= 1):
            raise ValueError(f"noise_scale must be in (0, 1], and goes with output=noise, got {noise_scale}")
        guide = chosen("guide", guide, victims)
        self.save_hyperparameters(ignore=["victims", "optimizer", "scheduler"])
        self.guide = victims[guide].requires_grad_(False).eval()
        if lambda_feature and getattr(self.guide, "feature_layer", None) is None:
            raise ValueError(f"lambda_feature needs a guide with a feature layer: set victims.{guide}.feature_layer")
        self.lambda_pixel, self.lambda_adv, self.lambda_class, self.lambda_feature = weights
        self.output, self.noise_scale = output, 1.0 if noise_scale is None else 2 * noise_scale
        self.frame = Frame(8 * math.ceil(image_size / 8), image_size)
        self.generator = Generator(channels, width, window)
        self.discriminator = Discriminator(channels, width)
        self.players = {"discriminator": [self.discriminator], "generator": [self.generator]}

    def estimate(self, x: Tensor) -> Tensor:
        """(B, C, H, W) attacked, in [0, 1] -> (B, C, H, W), the restored image; beyond [0, 1] by noise alone."""
        return self.frame.outside(self._framed(self.frame.inside(x)))

    def restore(self, x: Tensor) -> Tensor:
        """The same as images: clamped to [0, 1]."""
        return self.clamped_estimate(x)

    def training_step(self, batch: AttackBatch, batch_idx: int) -> None:
        """One step of each player."""
        batch = batch.valid_rows()
        clean = self.frame.inside(batch.clean)
        restored = self._framed(self.frame.inside(batch.adv)).clamp(-1, 1)
        if self.lambda_adv:
            told = least_squares_real_or_fake_loss(self.discriminator(clean), self.discriminator(restored.detach()))
            self.play("discriminator", told)
            self.log("train/discriminator", told)
        terms = self.loss_terms(batch, restored, clean)
        weights = {
            "pixel": self.lambda_pixel,
            "deception": self.lambda_adv,
            "class": self.lambda_class,
            "feature": self.lambda_feature,
        }
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        self.play("generator", loss)
        self.log_dict({f"train/{name}": term for name, term in terms.items()})
        self.log("train/loss", loss, prog_bar=True)

    def loss_terms(self, batch: AttackBatch, restored: Tensor, clean: Tensor) -> dict[str, Tensor]:
        """L_1 ("pixel"), L_adv ("deception"), L_ce ("class") and L_feat ("feature"), those that have a weight: scalars.

        Args:
            batch: N pairs.
            restored: (N, C, H', W') in [-1, 1], in the frame.
            clean: likewise.
        """
        terms, image = {}, self.frame.outside(restored)
        if self.lambda_pixel:
            terms["pixel"] = pixel_loss(restored, clean)
        if self.lambda_adv:
            terms["deception"] = least_squares_deception_loss(self.discriminator(restored))
        if self.lambda_class:
            terms["class"] = F.cross_entropy(self.guide(image), batch.label)
        if self.lambda_feature:
            guide = cast(ImageClassifier, self.guide)
            with torch.no_grad():
                truth = guide.features(batch.clean)
            terms["feature"] = feature_loss(guide.features(image), truth)
        return terms

    def _framed(self, x: Tensor) -> Tensor:
        said: Tensor = self.generator(x).tanh()
        return said if self.output == "image" else x + self.noise_scale * said
