"""The attention-U-Net GAN and HGD: their parts against a transcription, their sizes, who learns from what."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import make_pairs, make_victim
from redlab.methods import HGD, AttentionUNetGAN, hold_then_decay
from redlab.methods.attunet_gan import (
    Attention,
    AttentionGate,
    Discriminator,
    Generator,
    Upsample,
    dense_attention,
    feature_loss,
    neighbours,
    pixel_loss,
    shifted_attention,
)
from redlab.methods.hgd import Denoiser
from redlab.nn import least_squares_deception_loss, least_squares_real_or_fake_loss
from redlab.victims import ImageClassifier
from redlab.victims.architectures import vgg13
from reference import attunet_gan as reference

ADAM = partial(torch.optim.Adam, lr=1e-3)


def victims():
    return {n: ImageClassifier(make_victim(s), num_classes=4, feature_layer="2").eval() for s, n in enumerate("ab")}


def attunet(**options):
    torch.manual_seed(0)
    given = {"channels": 1, "image_size": 8, "width": 4, "window": 3, **options}
    players = dict.fromkeys(("discriminator", "generator"), ADAM)
    return AttentionUNetGAN(victims=victims(), optimizer=players, **given)


def count(net):
    return sum(p.numel() for p in net.parameters())


# ---- networks -------------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_sheet():
    sizes = {16: 286_395, 32: 1_135_403, 64: 4_523_547, 80: 7_063_391, 96: 10_166_819}
    assert {width: count(Generator(3, width)) for width in sizes} == sizes
    assert count(Discriminator(3)) == 661_953
    assert count(Denoiser(3)) == 11_033_984


def test_the_generator_is_smaller_than_vgg13():
    """The paper's claim, by the strictest reading: one linear layer behind the convolutions."""
    assert count(Generator(3)) < count(vgg13(10, 3, 32)) <= 9_941_322


@torch.no_grad()
def test_the_attention_gate_is_that_of_the_sheet():
    torch.manual_seed(0)
    gate = AttentionGate(6, 5).eval()
    x, g = torch.randn(2, 6, 8, 6), torch.randn(2, 5, 4, 3)
    share = torch.stack([reference.gate(gate, *pair) for pair in zip(x, g, strict=True)])
    assert torch.allclose(gate(x, g), gate.out(share[:, None] * x), atol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("across", [False, True])
@torch.no_grad()
def test_attention_is_that_of_the_sheet(window, across):
    torch.manual_seed(0)
    module = Attention(6, window)
    x, context = torch.randn(2, 6, 4, 5), torch.randn(2, 6, 4, 5)
    assert torch.equal(module(x), x)  # at first nothing
    module.gamma.fill_(0.7)
    seen = context if across else x
    by_hand = torch.stack([reference.attention(module, *pair, window) for pair in zip(x, seen, strict=True)])
    assert torch.allclose(module(x, context if across else None), by_hand, atol=1e-5)


@pytest.mark.parametrize("window", [1, 3, 7, 13])
def test_two_ways_to_attend_are_one(window):
    torch.manual_seed(0)
    given = [torch.randn(2, c, 6, 5, dtype=torch.float64, requires_grad=True) for c in (8, 8, 3)]
    found = [way(*given, window) for way in (dense_attention, shifted_attention)]
    assert torch.allclose(*found, atol=1e-12)
    slopes = [torch.autograd.grad((of * torch.arange(5)).sum(), given, retain_graph=True) for of in found]
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*slopes, strict=True))
    if window == 13:  # wider than the image
        assert torch.allclose(found[0], dense_attention(*given, None), atol=1e-12)


def test_neighbours_are_in_one_window():
    near = neighbours(3, 4, 3)
    assert near[0].nonzero()[:, 0].tolist() == [0, 1, 4, 5]
    assert int(near[5].sum()) == 9
    assert neighbours(3, 4, 99).all()


@torch.no_grad()
def test_a_fresh_upsampling_draws_no_grid():
    """Four equal filters: each pixel of the coarse image becomes a flat square."""
    torch.manual_seed(0)
    up = Upsample(5, 3).eval()
    found = up(torch.randn(2, 5, 4, 4))
    assert found.shape == (2, 3, 8, 8)
    squares = found.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert torch.allclose(squares, squares[..., :1].expand_as(squares))
    assert squares[..., 0].std() > 0.01


@torch.no_grad()
def test_the_levels_of_the_generator():
    torch.manual_seed(0)
    net, seen = Generator(3, 4).eval(), {}
    parts = {"bottom": net.down[3], "fine": net.join[2], "across": net.across}
    for name, part in parts.items():
        part.register_forward_hook(lambda _m, _x, out, name=name: seen.__setitem__(name, out.shape[1:]))
    fed = {}
    net.across.register_forward_pre_hook(lambda _m, args: fed.update(query=args[0], context=args[1]))
    net.down[0].register_forward_hook(lambda _m, _x, out: fed.update(first=out))
    assert net(torch.rand(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    assert seen == {"bottom": (32, 4, 4), "fine": (4, 32, 32), "across": (4, 32, 32)}
    assert torch.equal(fed["context"], fed["first"])  # keys and values are those of the encoder


@torch.no_grad()
def test_the_denoiser_of_hgd():
    torch.manual_seed(0)
    net, sides = Denoiser(3, 4).eval(), []
    for stage in (*net.down, *net.up):
        stage.register_forward_hook(lambda _m, _x, out: sides.append((out.shape[1], out.shape[-1])))
    net(torch.rand(1, 3, 32, 32))
    assert sides == [(4, 32), (8, 16), (16, 8), (16, 4), (16, 2), (16, 4), (16, 8), (8, 16), (4, 32)]
    assert [sum(isinstance(m, nn.Conv2d) for m in stage) for stage in net.down] == [2, 3, 3, 3, 3]
    assert [sum(isinstance(m, nn.Conv2d) for m in stage) for stage in net.up] == [3, 3, 3, 2]


# ---- outputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 11, 28])
@pytest.mark.parametrize("make", [attunet, lambda **o: attunet(output="noise", **o)])
def test_images_of_every_size_come_back(size, make):
    method, x = make(image_size=size).eval(), torch.rand(2, 1, size, size)
    assert method.restore(x).shape == x.shape


@torch.no_grad()
def test_the_noise_is_bounded_by_the_range_of_the_training():
    method, x = attunet(output="noise", noise_scale=0.1).eval(), torch.rand(4, 1, 8, 8)
    method.generator.last.weight.mul_(1e4)
    change = method.estimate(x) - x
    assert float(change.abs().max()) == pytest.approx(0.1, abs=1e-4)
    free = attunet(output="noise").eval()
    free.generator.last.weight.mul_(1e4)
    assert float((free.estimate(x) - x).abs().max()) == pytest.approx(0.5, abs=1e-3)  # 1 of [-1, 1]
    image = attunet().eval()
    image.generator.last.weight.mul_(1e4)
    assert image.estimate(x).aminmax() == (0, 1)


# ---- losses ---------------------------------------------------------------------------------------------------------


def terms_of(method):
    batch = make_pairs()
    restored = method._framed(method.frame.inside(batch.adv)).clamp(-1, 1)
    return batch, restored, method.loss_terms(batch, restored, method.frame.inside(batch.clean))


def test_the_losses_are_those_of_the_sheet():
    method = attunet(lambda_feature=1.0).eval()
    batch, restored, terms = terms_of(method)
    image = (restored + 1) / 2
    assert float(terms["pixel"].detach()) == pytest.approx(2 * float((image - batch.clean).abs().mean().detach()))
    score = method.discriminator(restored)
    assert float(terms["deception"].detach()) == pytest.approx(float(((score - 1) ** 2).mean().detach()))
    logits = method.guide(image)
    by_hand = -logits.log_softmax(1)[torch.arange(len(batch)), batch.label].mean()
    assert float(terms["class"].detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)
    mine, theirs = method.guide.features(image), method.guide.features(batch.clean)
    assert float(terms["feature"].detach()) == pytest.approx(float((mine - theirs).abs().mean().detach()), rel=1e-5)


def test_the_least_squares_game_by_hand():
    real, fake = torch.tensor([0.5, 2.0]), torch.tensor([1.0, -1.0, 0.0])
    assert float(least_squares_real_or_fake_loss(real, fake)) == pytest.approx(0.5 * 0.625 + 0.5 * 2 / 3)
    assert float(least_squares_deception_loss(fake)) == pytest.approx(5 / 3)
    assert float(pixel_loss(real, torch.zeros(2))) == 1.25
    assert float(feature_loss(real, torch.ones(2))) == 0.75


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, {"pixel", "deception", "class"}),
        ({"lambda_pixel": 0, "lambda_adv": 0, "lambda_class": 0, "lambda_feature": 1}, {"feature"}),
        ({"lambda_pixel": 0, "lambda_adv": 0.01, "lambda_class": 0, "lambda_feature": 1}, {"deception", "feature"}),
    ],
)
def test_stages_differ_in_their_losses(options, left):
    method, played = attunet(**options), []
    assert terms_of(method)[2].keys() == left
    method.log = method.log_dict = lambda *_, **__: None
    method.play = lambda player, loss, clip=None: played.append(player)
    method.training_step(make_pairs(), 0)
    assert played == (["discriminator"] if "deception" in left else []) + ["generator"]


def test_the_guide_lets_the_gradient_through_and_learns_nothing():
    method = attunet(lambda_feature=1.0)
    for name in ("class", "feature"):
        method.zero_grad()
        terms_of(method)[2][name].backward()
        assert any(p.grad is not None and p.grad.any() for p in method.generator.parameters()), name
        assert all(p.grad is None for p in method.guide.parameters())


@pytest.mark.parametrize("guidance", ["pixel", "features", "logits"])
def test_hgd_compares_where_its_guidance_is(guidance):
    torch.manual_seed(0)
    method = HGD(victims=victims(), channels=1, image_size=8, width=4, guidance=guidance, optimizer=ADAM).eval()
    method.log = lambda *_, **__: None
    batch = make_pairs()
    restored = method.estimate(batch.adv)
    guide = method.guide
    seen = {"pixel": lambda x: x, "features": guide.features, "logits": guide}[guidance]
    by_hand = F.l1_loss(seen(restored), seen(batch.clean))
    assert float(method.training_step(batch, 0).detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)


def test_a_rate_that_holds_and_then_falls():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule, rates = hold_then_decay(optimizer, epochs=8), []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([2, 2, 2, 2, 2, 1.5, 1, 0.5])
    assert optimizer.param_groups[0]["lr"] == 0
    for wrong in ({"epochs": 0}, {"epochs": 3, "hold": 1.0}, {"epochs": 3, "hold": -0.1}):
        with pytest.raises(ValueError, match="epochs must be at least 1 and hold in"):
            hold_then_decay(optimizer, **wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "x"}, "output must be one of"),
        ({"noise_scale": 0.1}, "noise_scale must be in .0, 1., and goes with output=noise, got 0.1"),
        ({"output": "noise", "noise_scale": 2.0}, "noise_scale must be in"),
        ({"lambda_pixel": 0, "lambda_adv": 0, "lambda_class": 0}, "not all 0"),
        ({"lambda_adv": -1}, "not negative"),
        ({"guide": "c"}, r"guide must be one of \['a', 'b'\], got 'c'"),
        ({"width": 3}, "width must be even and at least 2, got 3"),
        ({"window": 4}, "window must be odd and positive, or None, got 4"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        attunet(**options)


def test_a_guide_without_features_is_refused_where_they_count():
    plain = {"a": make_victim(0)}
    players = dict.fromkeys(("discriminator", "generator"), ADAM)
    with pytest.raises(ValueError, match=r"set victims\.a\.feature_layer"):
        AttentionUNetGAN(victims=plain, channels=1, image_size=8, lambda_feature=1, optimizer=players)
    with pytest.raises(ValueError, match=r"set victims\.a\.feature_layer"):
        HGD(victims=plain, channels=1, image_size=8, optimizer=ADAM)
    for wrong, message in (({"guidance": "x"}, "guidance must be one of"), ({"width": 0}, "width must be at least 1")):
        with pytest.raises(ValueError, match=message):
            HGD(victims=victims(), channels=1, image_size=8, optimizer=ADAM, **wrong)
    with pytest.raises(ValueError, match="guide must be one of"):
        HGD(victims=victims(), channels=1, image_size=8, optimizer=ADAM, guide="c")
