"""Random draws that belong to a sample or to a name, not to a process.

Every draw of a `SampleRng` is a hash of (seed, stage, epoch, name of the draw, index of the sample, place in the draw),
so a sample gets the same numbers on any device, in any batch, in any order and under any number of processes.
There is no state to save.

The hash is splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) on int64 tensors,
whose products wrap around as the algorithm wants.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The int64 that has the bits of this uint64."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FACTOR_1 = _signed(0xBF58476D1CE4E5B9)
_FACTOR_2 = _signed(0x94D049BB133111EB)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's own drags the sign bit along."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """The output function of splitmix64, in place."""
    z.bitwise_xor_(_shift(z, 30)).mul_(_FACTOR_1)
    z.bitwise_xor_(_shift(z, 27)).mul_(_FACTOR_2)
    return z.bitwise_xor_(_shift(z, 31))


@dataclass(frozen=True, eq=False)
class SampleRng:
    """Named draws for a batch of samples.

    Draws of another name, kind, seed, stage, epoch or fork are independent; the same call gives the same numbers again.

    >>> rng = SampleRng(0, "train", 3, torch.arange(4))
    >>> bool((rng.uniform("start", 2)[2:] == rng[torch.tensor([2, 3])].uniform("start", 2)).all())
    True

    Args:
        seed: seed of the run.
        stage: "train", "val", "test", or any other word.
        epoch: constant for validation and test, so that these are one fixed set.
        index: (B,) int64, identity of each sample.
        path: names of the forks that led here.

    Raises:
        ValueError: ``index`` is not a one-dimensional int64 tensor.
    """

    seed: int
    stage: str
    epoch: int
    index: Tensor
    path: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.index.ndim != 1 or self.index.dtype != torch.int64:
            raise ValueError(f"index must be (B,) int64, got {tuple(self.index.shape)} {self.index.dtype}")

    @classmethod
    def for_batch(cls, x: Tensor, rng: SampleRng | None = None) -> SampleRng:
        """``rng`` on the device of ``x``, or the default ``SampleRng(0, "test", 0, arange(B))``.

        Args:
            x: (B, ...) the batch to draw for.
            rng: None for the default.

        Raises:
            ValueError: ``rng`` has not one index per row of ``x``.
        """
        if rng is None:
            return cls(0, "test", 0, torch.arange(len(x), device=x.device))
        if len(rng) != len(x):
            raise ValueError(f"rng has {len(rng)} indices for {len(x)} images")
        return rng if rng.index.device == x.device else replace(rng, index=rng.index.to(x.device))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor | slice) -> SampleRng:
        """The same streams for some of the rows (bool mask, index tensor or slice)."""
        return replace(self, index=self.index[rows])

    def fork(self, name: str) -> SampleRng:
        """An independent sub-stream for the same samples."""
        return replace(self, path=(*self.path, name))

    def uniform(self, name: str, *shape: int) -> Tensor:
        """(B, *shape) float32, uniform over the multiples of 2^-24 in [0, 1)."""
        return _shift(self._bits("uniform", name, shape), 40).float().mul_(2.0**-24)

    def normal(self, name: str, *shape: int) -> Tensor:
        """(B, *shape) float32, standard normal by Box and Muller, within +-6.7."""
        bits = self._bits("normal", name, shape)
        # In float64, and only then rounded: libraries of different devices and vector widths differ in the last bit.
        radius = _shift(bits, 32).double().add_(1.0).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = bits.bitwise_and_(0xFFFFFFFF).double().mul_(2.0 * math.pi * 2.0**-32)
        return radius.mul_(angle.cos_()).float()

    def sign(self, name: str, *shape: int) -> Tensor:
        """(B, *shape) float32, -1 or +1 with equal chances."""
        return _shift(self._bits("sign", name, shape), 63).float().mul_(2.0).sub_(1.0)

    def integers(self, name: str, high: int | Tensor, *shape: int) -> Tensor:
        """Whole numbers 0..high-1; no value is favoured by more than high / 2^32.

        Args:
            name: name of the draw.
            high: one bound, or (B,) int64 bounds; 1 to 2^31.
            *shape: shape of the draw of one sample.

        Returns:
            (B, *shape) int64.

        Raises:
            ValueError: a bound is out of range.
        """
        low_bound, high_bound = (high, high) if isinstance(high, int) else (int(high.min()), int(high.max()))
        if low_bound < 1 or high_bound > 1 << 31:
            raise ValueError(f"high must be in 1..2^31, got {low_bound if low_bound < 1 else high_bound}")
        bound = high if isinstance(high, int) else high.to(self.index.device).view(-1, *(1 for _ in shape))
        return _shift(self._bits("integers", name, shape), 32).mul_(bound) >> 32

    def _bits(self, kind: str, name: str, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) int64, 64 random bits each."""
        words = repr((int(self.seed), self.stage, int(self.epoch), *self.path, kind, name)).encode()
        stream = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little", signed=True)
        row = _mix(self.index * _GOLDEN + stream)
        place = torch.arange(1, math.prod(shape) + 1, device=row.device).mul_(_GOLDEN)
        return _mix(row[:, None] + place).view(len(row), *shape)


def generator(*name: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by a hash of its name, so that streams with different names are unrelated.

    Args:
        *name: what it is for.
        device: that it draws on; the same name draws other numbers on another kind of device.

    >>> int(torch.randint(1000, (), generator=generator("order", 0, 1)))
    520
    """
    digest = hashlib.blake2b(repr(name).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)
