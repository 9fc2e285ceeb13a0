"""Probes of ADD-Defense's representation and of local intrinsic dimension."""

import math

import pytest
import torch
from torch import nn

from redlab.batch import AttackBatch
from redlab.evaluation import Answers
from redlab.probes import FirstMap, IntrinsicDimension, Latents, intrinsic_dimension
from redlab.probes.representation import layers
from redlab.victims import Victim


def batch(n=6, channels=1, side=8):
    source = torch.Generator().manual_seed(0)
    clean = torch.rand(n, channels, side, side, generator=source)
    adv = (clean + 0.1 * torch.rand(clean.shape, generator=source)).clamp(0, 1)
    zeros, yes = torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool)
    return AttackBatch(
        clean=clean, adv=adv, label=zeros, attack=zeros + 1, setting=zeros, victim=torch.arange(n) % 2,
        knowledge=zeros, target=zeros - 1, index=torch.arange(n), valid=yes, attacked=yes,
    )  # fmt: skip


def victims():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(72, 3)) for _ in "ab"]
    return {name: Victim(net, num_classes=3) for name, net in zip("ab", nets, strict=True)}


class Method:
    def latent(self, x):
        return x.flatten(1)[:, :10]


def test_latents_are_columns_evenly_spread():
    pairs = batch()
    found = Latents(most=4)(Method(), {}, pairs, Answers())
    assert list(found) == ["z0", "z1", "z2", "z3"]
    for name, place in zip(found, (0, 3, 6, 9), strict=True):
        assert torch.allclose(found[name], pairs.adv.flatten(1)[:, place].double())
    assert len(Latents()(Method(), {}, pairs, Answers())) == 10
    with pytest.raises(ValueError, match="has no latent vector"):
        Latents()(object(), {}, pairs, Answers())
    with pytest.raises(ValueError, match="most must be at least 1"):
        Latents(most=0)


def test_the_first_map_is_one_channel_brought_to_0_and_1():
    from redlab.nn import Encoder, Frame

    method = Method()
    torch.manual_seed(0)
    method.encoder, method.frame = Encoder(1, 32), Frame(32, 8)
    pairs = batch()
    found = FirstMap(channel=2)(method, {}, pairs, Answers())["map"]
    whole = nn.functional.leaky_relu(method.encoder.body[0](method.frame.inside(pairs.adv)), 0.2)[:, 2]
    low, high = whole.amin((1, 2), keepdim=True), whole.amax((1, 2), keepdim=True)
    assert torch.allclose(found[:, 0], (whole - low) / (high - low), atol=1e-6)
    assert found.shape == (6, 1, 16, 16)
    with pytest.raises(ValueError, match="has no encoder"):
        FirstMap()(Method(), {}, pairs, Answers())


def test_the_intrinsic_dimension_of_a_plane_is_2():
    """Points of a plane in ten dimensions, and of a line."""
    source = torch.Generator().manual_seed(0)
    flat = torch.zeros(2000, 10)
    flat[:, :2] = torch.rand(2000, 2, generator=source)
    assert float(intrinsic_dimension(flat, flat, 20).median()) == pytest.approx(2, rel=0.15)
    line = flat.clone()
    line[:, 1] = 0
    assert float(intrinsic_dimension(line, line, 20).median()) == pytest.approx(1, rel=0.15)


def test_the_intrinsic_dimension_by_hand():
    """The nearest point is left out, whatever it is."""
    reference = torch.tensor([[0.0], [1.0], [3.0], [7.0], [100.0]])
    (found,) = intrinsic_dimension(torch.tensor([[0.0]]), reference, 3).tolist()
    logs = [math.log(d / 7) for d in (1, 3, 7)]
    assert found == pytest.approx(-1 / (sum(logs) / 3))


def test_each_row_is_measured_by_the_layers_of_its_victim():
    pairs, nets = batch(8), victims()
    restored = pairs.clean.clone()
    found = IntrinsicDimension(neighbours=3)(object(), nets, pairs, Answers(restored=restored))
    assert {name.rpartition("_")[0] for name in found} == {"adv", "clean", "noisy", "restored"}
    assert all(len([n for n in found if n.startswith(f"{what}_")]) == 4 for what in ("adv", "noisy"))
    assert torch.equal(found["restored_2"], found["clean_2"])  # it restores the clean image
    assert not torch.equal(found["adv_2"], found["clean_2"])
    for number, net in enumerate(nets.values()):
        mine = pairs.victim == number
        inside, reference = layers(net, pairs.adv)[0], layers(net, pairs.clean)[0]
        assert torch.equal(found["adv_0"][mine], intrinsic_dimension(inside, reference, 3)[mine])
    again = IntrinsicDimension(neighbours=3)(object(), nets, pairs, Answers())
    assert torch.equal(again["noisy_1"], found["noisy_1"])
    assert "restored_0" not in again


def test_layers_are_what_they_say_before_the_next_one_works_in_place():
    net = victims()["a"]
    x = batch().clean
    convolved, rectified, flat, logits = layers(net, x)
    assert torch.equal(rectified, convolved.clamp(min=0))
    assert (convolved < 0).any()
    assert torch.equal(flat, rectified)
    assert torch.allclose(logits, net(x), atol=1e-6)


def test_the_noise_is_as_long_as_the_attack():
    pairs, seen = batch(8), []
    net = victims()["a"]
    hook = net.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pairs = AttackBatch(**{**vars(pairs), "victim": torch.zeros(8, dtype=torch.int64)})
    IntrinsicDimension(neighbours=3)(object(), {"a": net}, pairs, Answers())
    hook.remove()
    noisy = next(x for x in seen if not any(torch.allclose(x, y) for y in (pairs.clean, pairs.adv)))
    lengths = [(x - pairs.clean).flatten(1).norm(dim=1) for x in (noisy, pairs.adv)]
    assert torch.allclose(*lengths, rtol=1e-4)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="two images"):
        IntrinsicDimension()(object(), victims(), batch(1), Answers())
    with pytest.raises(ValueError, match="neighbours must be at least 1"):
        IntrinsicDimension(neighbours=0)
