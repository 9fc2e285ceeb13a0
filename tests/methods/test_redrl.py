"""REDRL: its losses against a transcription, where gradients go, its networks, its baselines."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from conftest import make_pairs, make_victim
from redlab.batch import attackable, capabilities
from redlab.evaluation import Evaluator, answers
from redlab.methods import REDRL
from redlab.methods.redrl import Recogniser, Reconstructor, feature_loss, reconstruction_loss, residual
from redlab.methods.schedules import warm_up
from redlab.victims import ImageClassifier
from reference import redrl as reference

ATTACKS = ("clean", "fgsm")


def features(channels=1):
    torch.manual_seed(3)
    layers = nn.Conv2d(channels, 6, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 4)
    return ImageClassifier(nn.Sequential(*layers), num_classes=4, feature_layer="2")


def redrl(**options):
    torch.manual_seed(0)
    given = {"channels": 1, "width": 4, "blocks": 2, "recogniser_width": 4, "stem": "cifar", **options}
    if given.get("input", "redrl") != "redrl":
        given |= {"lambda_pixel": 0, "lambda_feature": 0, "lambda_class": 0}
    victims, adam = {"a": make_victim(0), "b": make_victim(1)}, partial(torch.optim.Adam, lr=1e-3)
    return REDRL(victims=victims, helpers={"features": features()}, attack_names=ATTACKS, optimizer=adam, **given)


# ---- losses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_losses_are_those_of_the_paper(rescale, smoothing):
    method, batch = redrl(rescale=rescale, label_smoothing=smoothing).eval(), make_pairs(6)
    with torch.no_grad():
        method.reconstructor.last.bias += 0.5  # some of what it says is beyond 1, where the residual alone clamps
        method.reconstructor.last.weight.mul_(20)
        assert (method.estimate(batch.adv) > 1).any()
        ours = {name: float(term) for name, term in method.loss_terms(batch).items()}
    theirs = reference.terms(method, features().features, make_victim(0), batch, smoothing, rescale)
    assert ours == pytest.approx(theirs, rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("seen", ["redrl", "image", "delta"])
def test_what_nobody_attacked_is_to_be_called_clean(seen):
    """Of a control the recogniser learns that it is no attack; it is to be restored all the same."""
    method, batch = redrl(input=seen).eval(), make_pairs(6)
    clean = method.loss_terms(replace(batch, attack=torch.zeros_like(batch.attack)))
    control = method.loss_terms(replace(batch, attacked=torch.zeros_like(batch.attacked)))
    attacked = method.loss_terms(batch)
    assert clean["attack"] == control["attack"] != attacked["attack"]
    assert {name: attacked[name] for name in attacked if name != "attack"} == {
        name: control[name] for name in control if name != "attack"
    }


@torch.no_grad()
def test_the_loss_is_their_weighted_sum():
    method = redrl(lambda_pixel=0.5, lambda_feature=0.25, lambda_class=2.0)
    terms = method.loss_terms(make_pairs(6))
    method.log = method.log_dict = lambda *_, **__: None
    expected = terms["attack"] + 0.5 * terms["pixel"] + 0.25 * terms["feature"] + 2.0 * terms["class"]
    assert float(method.training_step(make_pairs(6), 0)) == pytest.approx(float(expected), rel=1e-6)


def test_at_64_pixels_weights_are_the_papers():
    """Then the factors are 1: 3 x 64 x 64 numbers of an image, 256 x 16 x 16 of its features."""
    large, small = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 32, 32)
    assert float(reconstruction_loss(large, large + 0.01)) == pytest.approx(122.88, rel=1e-4)
    assert float(reconstruction_loss(small, small + 0.01)) * 12288 / 3072 == pytest.approx(122.88, rel=1e-4)
    of_large, of_small = torch.zeros(1, 256, 16, 16), torch.zeros(1, 256, 8, 8)
    at_large, at_small = (float(feature_loss(f, f + 0.1)) for f in (of_large, of_small))
    assert at_small * (65536 / 16384) ** 0.5 == pytest.approx(at_large, rel=1e-4)


@pytest.mark.parametrize(
    ("off", "left"),
    [
        ({"lambda_feature": 0, "lambda_class": 0}, {"attack", "pixel"}),
        ({"lambda_class": 0}, {"attack", "pixel", "feature"}),
        ({"lambda_feature": 0}, {"attack", "pixel", "class"}),
        ({}, {"attack", "pixel", "feature", "class"}),
    ],
)
def test_scenarios_leave_losses_and_their_networks_out(off, left):
    method = redrl(**off)
    assert method.loss_terms(make_pairs()).keys() == left
    frozen = {"feature": "features", "class": "classifier"}
    assert set(method.frozen) == {frozen[name] for name in left & frozen.keys()}


def gradients(method, name):
    """What one loss alone asks of the networks."""
    method.zero_grad()
    method.loss_terms(make_pairs())[name].backward()
    return {
        part: sum(float(p.grad.abs().sum()) for p in getattr(method, part).parameters() if p.grad is not None)
        for part in ("reconstructor", "recogniser", "classifier", "features")
    }


def test_gradients_go_where_the_paper_sends_them():
    method = redrl()
    for name in ("attack", "pixel", "feature", "class"):
        found = gradients(method, name)
        assert found["reconstructor"] > 0, name  # L_AC too: the residual is not cut off
        assert (found["recogniser"] > 0) == (name == "attack")
        assert found["classifier"] == found["features"] == 0


def test_the_clamp_of_the_residual_stops_the_gradient_outside():
    restored = torch.tensor([-0.5, 0.5, 1.5]).requires_grad_()
    found = residual(torch.full((3,), 0.25), restored)
    assert found.tolist() == [0.25, -0.25, -0.75]
    (slope,) = torch.autograd.grad(found.sum(), restored)
    assert slope.tolist() == [0, -1, 0]


# ---- networks -------------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_paper():
    def count(net):
        return sum(p.numel() for p in net.parameters())

    assert count(Reconstructor(3)) == 1_702_211
    assert count(Recogniser(6, 6)) == 11_202_598
    assert count(Recogniser(3, 6, bias=False)) == 11_193_126


def test_the_recogniser_is_torchvisions_resnet18():
    """With its weights, all but the last layers say the same."""
    torch.manual_seed(0)
    ours, theirs = Recogniser(3, 6, bias=False).eval(), resnet18().eval()
    whole = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    mine = [k for k in ours.state_dict() if not k.startswith("head.")]
    ours.load_state_dict(dict(zip(mine, whole.values(), strict=True)), strict=False)
    theirs.fc = nn.Identity()
    x = torch.rand(2, 3, 64, 64)
    assert torch.allclose(ours.head[:2](ours.stages(ours.stem(x))), theirs(x), atol=1e-5)


def test_nothing_carries_the_image_past_the_reconstructor():
    torch.manual_seed(0)
    net, x = Reconstructor(1, 4, 3), torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        net.last.weight.zero_()
        assert torch.equal(net(x), net.last.bias.view(1, 1, 1, 1).expand_as(x))
        shortcut = Reconstructor(1, 4, 3, global_skip=True)
        shortcut.last.weight.zero_()
        assert torch.allclose(shortcut(x), x + shortcut.last.bias)


def test_the_identity_inside_the_blocks():
    """With weights of 0 a block is the identity, or nothing."""
    x = torch.rand(2, 1, 8, 8)
    for skip in (True, False):
        net = Reconstructor(1, 4, 3, inner_skip=skip)
        with torch.no_grad():
            for block in net.blocks:
                block[2].weight.zero_()
            h = nn.functional.leaky_relu(net.first(x), 0.1) if skip else torch.zeros(2, 4, 8, 8)
            assert torch.allclose(net(x), net.last(h))


def test_each_pixel_sees_97_others_in_a_row():
    """48 convolutions of 3x3: 2 * 48 + 1."""
    net, x = Reconstructor(1, 2), torch.zeros(1, 1, 1, 121).requires_grad_()
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(0.1)
    (slope,) = torch.autograd.grad(net(x)[0, 0, 0, 60], x)
    assert int((slope != 0).sum()) == 97


def test_first_weights_of_the_blocks_are_small():
    torch.manual_seed(0)
    net = Reconstructor(3, 64, 2)
    for block in net.blocks:
        assert float(block[0].weight.detach().std()) == pytest.approx(0.1 * (2 / 576) ** 0.5, rel=0.03)
        assert not block[0].bias.any()


# ---- training -------------------------------------------------------------------------------------------------------


def test_the_learning_rate_of_every_epoch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule, rates = warm_up(optimizer), []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        schedule.step()
    for epoch, rate in enumerate(rates):
        rising = 0.01 * (1 - (epoch + 1) / 10) + (epoch + 1) / 10 if epoch < 9 else 1
        assert rate == pytest.approx(rising * 0.1 ** sum(epoch + 1 >= m for m in (40, 70, 90))), epoch
    assert rates[0] == pytest.approx(0.109)
    assert rates[38:40] == pytest.approx([1, 0.1])
    with pytest.raises(ValueError, match="epochs must be at least 0, got -1"):
        warm_up(optimizer, epochs=-1)


def test_biases_have_no_weight_decay():
    method = redrl()
    method.optimizer_partial = partial(torch.optim.Adam, lr=1e-3, weight_decay=5e-4)
    weights, biases = method.configure_optimizers().param_groups
    names = {id(p): name for name, p in method.named_parameters() if p.requires_grad}
    assert (weights["weight_decay"], biases["weight_decay"]) == (5e-4, 0)
    assert {names[id(p)].endswith("bias") for p in biases["params"]} == {True}
    assert {names[id(p)].endswith("weight") for p in weights["params"]} == {True}
    assert len(weights["params"]) + len(biases["params"]) == len(names)


# ---- baselines ------------------------------------------------------------------------------------------------------


def test_what_each_input_can():
    assert capabilities(redrl()) == {"identifier", "restorer"}
    for name in ("image", "delta"):
        baseline = redrl(input=name)
        assert capabilities(baseline) == {"identifier"}
        assert not hasattr(baseline, "reconstructor")
        assert baseline.frozen == ()
        with pytest.raises(ValueError, match=f"input={name} has no reconstructor"):
            baseline.restore(torch.rand(1, 1, 8, 8))


def test_what_the_recogniser_sees():
    batch, seen = make_pairs(), {}
    for name in ("redrl", "image", "delta"):
        method = redrl(input=name).eval()
        method.recogniser.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
        Evaluator(victims={"a": make_victim(0), "b": make_victim(1)}, attack_names=ATTACKS)(method, batch)
    restored = redrl().eval().estimate(batch.adv)
    assert torch.equal(seen["image"], batch.adv)
    assert torch.equal(seen["delta"], torch.cat([batch.adv - batch.clean, batch.adv], 1))
    assert torch.allclose(seen["redrl"], torch.cat([batch.adv - restored.clamp(0, 1), batch.adv], 1), atol=1e-6)


def test_the_oracle_is_no_defence():
    oracle, batch = redrl(input="delta").eval(), make_pairs()
    assert [attackable(redrl(input=name)) for name in ("redrl", "image", "delta")] == [True, True, False]
    assert torch.equal(oracle.predict_step(batch, 0)["attack_logits"], oracle.attack_logits(batch.adv, batch.clean))
    for ask in (oracle.attack_logits, lambda x: oracle.predict_step(x, 0), lambda x: answers(oracle, x)):
        with pytest.raises(ValueError, match="is an oracle"):
            ask(batch.adv)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": "noise"}, "input must be one of"),
        ({"stem": "x"}, "stem must be one of"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"blocks": -1}, "blocks must be at least 0, got -1"),
        ({"recogniser_width": 0}, "recogniser_width must be at least 1, got 0"),
        ({"lambda_pixel": -1}, "not negative"),
        ({"lambda_class": float("nan")}, "not negative"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\], got 1.5"),
        ({"classifier": "c"}, r"classifier must be one of \['a', 'b'\], got 'c'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        redrl(**options)


def test_losses_need_their_networks():
    adam = partial(torch.optim.Adam, lr=1e-3)
    given = {"attack_names": ATTACKS, "optimizer": adam, "channels": 1, "width": 4, "blocks": 1, "recogniser_width": 4}
    with pytest.raises(ValueError, match=r"helpers\.features"):
        REDRL(victims={"a": make_victim(0)}, helpers={}, **given)
    REDRL(victims={}, helpers={}, lambda_feature=0, lambda_class=0, **given)
    with pytest.raises(ValueError, match="no reconstructor to weigh losses of"):
        REDRL(victims={}, helpers={}, input="image", **given)
