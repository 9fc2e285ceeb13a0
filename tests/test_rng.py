from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from redlab.rng import SampleRng

MASK = (1 << 64) - 1


def rng(seed: int = 0, stage: str = "train", epoch: int = 0, rows: int = 500, first: int = 0) -> SampleRng:
    return SampleRng(seed, stage, epoch, torch.arange(first, first + rows))


def splitmix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def transcription(words: tuple[object, ...], index: int, place: int) -> int:
    """The same 64 bits in Python's whole numbers."""
    key = int.from_bytes(hashlib.blake2b(repr(words).encode(), digest_size=8).digest(), "little")
    row = splitmix((index * 0x9E3779B97F4A7C15 + key) & MASK)
    return splitmix((row + (place + 1) * 0x9E3779B97F4A7C15) & MASK)


def test_equals_a_transcription() -> None:
    index = torch.tensor([0, 1, 2, 49_999, 2**40 + 7, 2**62])
    r = SampleRng(11, "val", 4, index).fork("f")
    uniform, sign, whole, normal = r.uniform("a", 3), r.sign("a", 3), r.integers("a", 1000, 3), r.normal("a", 3)
    for i, number in enumerate(index.tolist()):
        for place in range(3):
            bits = {k: transcription((11, "val", 4, "f", k, "a"), number, place) for k in ("uniform", "sign")}
            assert uniform[i, place].item() == (bits["uniform"] >> 40) / 2**24
            assert sign[i, place].item() == (1 if bits["sign"] >> 63 else -1)
            b = transcription((11, "val", 4, "f", "integers", "a"), number, place)
            assert whole[i, place].item() == ((b >> 32) * 1000) >> 32
            b = transcription((11, "val", 4, "f", "normal", "a"), number, place)
            z = math.sqrt(-2 * math.log(((b >> 32) + 1) / 2**32)) * math.cos(2 * math.pi * (b & 0xFFFFFFFF) / 2**32)
            assert normal[i, place].item() == pytest.approx(z, abs=1e-6)


def test_golden_values() -> None:
    """A change here changes every attacked data set: say so in the changelog."""
    r = SampleRng(1, "train", 2, torch.tensor([0, 1, 49_999]))
    expected = torch.tensor([[0.37954807, 0.67939073], [0.86903983, 0.45617402], [0.42708731, 0.62909478]])
    torch.testing.assert_close(r.uniform("a", 2), expected, rtol=0, atol=1e-7)
    expected = torch.tensor([[0.60317785, 1.05998814], [-1.64269304, -1.08466661], [-0.07883012, 0.33945814]])
    torch.testing.assert_close(r.normal("a", 2), expected, rtol=0, atol=1e-6)
    assert r.sign("a", 4).tolist() == [[-1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, -1]]
    assert r.integers("a", 1000, 2).tolist() == [[53, 408], [773, 467], [942, 885]]
    assert r.fork("f").integers("a", 1000).tolist() == [649, 183, 999]


@pytest.mark.parametrize("shape", [(), (200,)], ids=str)
def test_uniform_is_uniform(shape: tuple[int, ...]) -> None:
    """Within a sample's draw, and across samples at one place (shape ())."""
    u = rng(rows=100_000 if shape == () else 500).uniform("a", *shape)
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    n = u.numel()
    assert abs(u.mean() - 0.5) < 4 / math.sqrt(12 * n)
    assert abs(u.var() - 1 / 12) < 4 / math.sqrt(180 * n)
    counts = torch.histc(u, bins=64, min=0, max=1)
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 63 + 4 * math.sqrt(2 * 63)


@pytest.mark.parametrize("shape", [(), (200,)], ids=str)
def test_normal_is_normal(shape: tuple[int, ...]) -> None:
    z = rng(rows=100_000 if shape == () else 500).normal("a", *shape).flatten()
    n = len(z)
    assert z.dtype == torch.float32
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    quantile = torch.special.ndtr(z.double()).sort().values
    assert (quantile - torch.arange(n) / n).abs().max() < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov at 0.1 %


def test_sign_is_balanced() -> None:
    s = rng().sign("a", 200)
    assert set(s.unique().tolist()) == {-1.0, 1.0}
    assert abs(s.mean()) < 4 / math.sqrt(s.numel())
    assert s.mean(0).abs().max() < 5 / math.sqrt(500)
    assert s.mean(1).abs().max() < 5 / math.sqrt(200)


@pytest.mark.parametrize("high", [1, 2, 7, 100])
def test_integers_favour_no_value(high: int) -> None:
    k = rng().integers("a", high, 200)
    assert k.dtype == torch.int64
    counts = torch.bincount(k.flatten(), minlength=high).double()
    assert len(counts) == high
    expected = k.numel() / high
    assert ((counts - expected) ** 2 / expected).sum() <= (high - 1) + 4 * math.sqrt(2 * (high - 1))


def test_integers_with_a_bound_per_row() -> None:
    high = torch.arange(500) % 5 + 1
    k = rng().integers("a", high, 300)
    assert bool((k >= 0).all())
    assert bool((k.amax(1) == high - 1).all())
    assert torch.equal(k[3], rng().integers("a", 4, 300)[3])
    assert torch.equal(
        rng().integers("b", high), torch.stack([rng().integers("b", int(h))[i] for i, h in enumerate(high)])
    )


@pytest.mark.parametrize("high", [0, -4, 2**31 + 1])
def test_integers_out_of_range(high: int) -> None:
    with pytest.raises(ValueError, match=str(high)):
        rng().integers("a", high)
    with pytest.raises(ValueError, match=str(high)):
        rng().integers("a", torch.full((500,), high))


STREAMS: dict[str, Callable[[], Tensor]] = {
    "next index": lambda: rng(first=1).uniform("a", 200),
    "index far away": lambda: rng(first=65_536).uniform("a", 200),
    "name": lambda: rng().uniform("b", 200),
    "longer name": lambda: rng().uniform("aa", 200),
    "next epoch": lambda: rng(epoch=1).uniform("a", 200),
    "next seed": lambda: rng(seed=1).uniform("a", 200),
    "seed and epoch exchanged": lambda: rng(seed=1, epoch=-1).uniform("a", 200),
    "stage": lambda: rng(stage="val").uniform("a", 200),
    "fork": lambda: rng().fork("a").uniform("a", 200),
    "fork of fork": lambda: rng().fork("a").fork("a").uniform("a", 200),
    "kind normal": lambda: torch.special.ndtr(rng().normal("a", 200)),
    "kind sign": lambda: rng().sign("a", 200),
    "kind integers": lambda: rng().integers("a", 1000, 200).float(),
    "next place": lambda: rng().uniform("a", 201)[:, 1:],
}


@pytest.mark.parametrize("stream", STREAMS)
def test_neighbouring_streams_are_not_correlated(stream: str) -> None:
    one, other = rng().uniform("a", 200), STREAMS[stream]()
    assert not torch.equal(one, other)
    n = one.numel()
    for x, y in ((one, other), ((one - 0.5).abs(), (other - other.mean()).abs())):
        if y.std() > 1e-3:  # the absolute value of a sign says nothing
            assert abs(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1]) < 4 / math.sqrt(n)


def test_no_two_samples_agree() -> None:
    bits = rng(rows=20_000).integers("a", 2**31, 2)
    assert len(bits.unique(dim=0)) == 20_000


def test_a_sample_keeps_its_numbers() -> None:
    r = rng(3, "test", 9, rows=64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(64) % 3 == 0
    draws: list[Callable[[SampleRng], Tensor]] = [
        lambda r: r.uniform("a", 2, 3),
        lambda r: r.normal("a", 17),
        lambda r: r.sign("a"),
        lambda r: r.integers("a", 9, 2),
        lambda r: r.fork("b").normal("a", 5),
    ]
    for draw in draws:
        whole = draw(r)
        assert torch.equal(draw(r), whole)
        assert torch.equal(draw(r[order]), whole[order])
        assert torch.equal(draw(r[mask]), whole[mask])
        assert torch.equal(torch.cat([draw(r[i : i + 7]) for i in range(0, 64, 7)]), whole)
        assert torch.equal(torch.cat([draw(r[i : i + 1]) for i in range(64)]), whole)


def test_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    rng().normal("a", 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_shapes_and_empty_batches() -> None:
    assert rng(rows=3).uniform("a").shape == (3,)
    assert rng(rows=3).normal("a", 2, 0).shape == (3, 2, 0)
    assert rng(rows=0).sign("a", 2).shape == (0, 2)
    assert len(rng(rows=3)) == 3


def test_for_batch() -> None:
    x = torch.zeros(5, 1, 2, 2)
    default = SampleRng.for_batch(x)
    assert (default.seed, default.stage, default.epoch, default.index.tolist()) == (0, "test", 0, [0, 1, 2, 3, 4])
    r = rng(rows=5)
    assert SampleRng.for_batch(x, r) is r
    with pytest.raises(ValueError, match="4 indices for 5"):
        SampleRng.for_batch(x, rng(rows=4))


@pytest.mark.parametrize("index", [torch.zeros(2, 2, dtype=torch.int64), torch.zeros(3), torch.zeros(3).int()])
def test_bad_index(index: Tensor) -> None:
    with pytest.raises(ValueError, match=str(index.dtype)):
        SampleRng(0, "test", 0, index)


@pytest.mark.gpu
def test_same_numbers_on_an_accelerator() -> None:
    r, far = rng(), SampleRng(0, "train", 0, torch.arange(500, device="cuda"))
    assert torch.equal(far.uniform("a", 20).cpu(), r.uniform("a", 20))
    assert torch.equal(far.sign("a", 20).cpu(), r.sign("a", 20))
    assert torch.equal(far.integers("a", 77, 20).cpu(), r.integers("a", 77, 20))
    torch.testing.assert_close(far.normal("a", 20).cpu(), r.normal("a", 20), rtol=1e-6, atol=1e-7)
