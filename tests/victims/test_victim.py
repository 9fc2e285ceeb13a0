"""The wrapper: padding, normalisation, freezing, features."""

import copy

import pytest
import torch
from torch import nn

from redlab.victims import ImageClassifier, Victim, architectures, state_hash


class Tap(nn.Module):
    """Flattens what it gets: shows what the wrapper hands to the backbone."""

    def forward(self, x):
        return x.flatten(1)


def small(**settings):
    return Victim(architectures.small_cnn(3, 1, 8, widths=(4, 6)), num_classes=3, **settings)


def test_padding_comes_before_normalisation_and_is_central():
    x = torch.rand(2, 3, 2, 3)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    out = Victim(Tap(), num_classes=75, mean=mean, std=std, input_size=5)(x).view(2, 3, 5, 5)
    padded = torch.zeros(2, 3, 5, 5)
    padded[:, :, 1:3, 1:4] = x  # 3 rows to add: 1 above, 2 below; 2 columns: 1 on each side
    for channel in range(3):
        assert torch.equal(out[:, channel], (padded[:, channel] - mean[channel]) / std[channel])


def test_28_pixels_in_the_middle_of_32():
    out = Victim(Tap(), num_classes=1024, input_size=32)(torch.ones(1, 1, 28, 28)).view(32, 32)
    assert out.sum() == 28 * 28
    assert out[2:30, 2:30].min() == 1


def test_images_as_large_as_input_size_pass_as_they_are():
    x = torch.rand(2, 1, 6, 6)
    for size in (None, 6):
        assert torch.equal(Victim(Tap(), num_classes=36, input_size=size)(x), x.flatten(1))


@pytest.mark.parametrize("shape", [(6, 6), (6, 3), (3, 6)])
@pytest.mark.parametrize("kind", [Victim, ImageClassifier])
def test_images_larger_than_input_size_are_refused(kind, shape):
    """They went through unpadded, as if nothing had been set."""
    net = kind(Tap(), num_classes=36, input_size=4, name="net")
    said = rf"victim 'net' takes images of at most input_size=4 .* got {shape[0]}x{shape[1]}: "
    said += r"set victims.net.input_size to 6, or to null for no padding, or data.image_size to 4"
    with pytest.raises(ValueError, match=said):
        net(torch.rand(2, 1, *shape))


def test_one_number_normalises_every_channel():
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(Victim(Tap(), num_classes=48, mean=0.5)(x), (x - 0.5).flatten(1))


def test_a_victim_is_frozen_and_in_eval_mode_for_good():
    backbone = architectures.svhn_cnn(10, 1, 32)
    backbone.train()
    victim = Victim(backbone, num_classes=10)
    x = torch.rand(2, 1, 32, 32)
    before, first = state_hash(victim), victim(x)
    nn.Sequential(victim).train()  # what a parent does to its children
    assert not any(module.training for module in victim.modules())
    assert not any(p.requires_grad for p in victim.parameters())
    assert torch.equal(victim(x), first)
    assert state_hash(victim) == before


def test_the_plain_classifier_is_not_frozen():
    net = ImageClassifier(architectures.small_cnn(3, 1, 8, widths=(4, 6)), num_classes=3)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())


def test_gradient_reaches_the_image_through_padding_and_normalisation():
    weights = torch.arange(32.0)
    linear = nn.Linear(16, 2, bias=False)
    linear.weight.data = weights.view(2, 16)
    victim = Victim(nn.Sequential(nn.Flatten(), linear), num_classes=2, std=0.5, input_size=4)
    x = torch.rand(3, 1, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(victim(x)[:, 1].sum(), x)
    assert torch.allclose(gradient, (weights[16:].view(4, 4)[1:3, 1:3] / 0.5).expand(3, 1, 2, 2))


def test_features_are_the_output_of_the_layer_even_if_the_next_works_in_place():
    backbone = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 2))
    victim = Victim(backbone, num_classes=2, feature_layer="0")
    x = torch.rand(3, 1, 4, 4, requires_grad=True)
    features = victim.features(x)
    assert torch.equal(features, backbone[0](x))
    assert features.min() < 0
    assert torch.autograd.grad(features.sum(), x)[0].abs().sum() > 0
    assert not backbone[0]._forward_hooks


def test_the_hook_is_gone_after_an_error_too():
    victim = small(feature_layer="features.0")
    with pytest.raises(RuntimeError):
        victim.features(torch.rand(1, 2, 8, 8))
    assert not victim.layer()._forward_hooks


def test_layers_by_name():
    victim = small(feature_layer="features.4", name="mine")
    assert victim.layer() is victim.backbone.features[4]
    assert victim.layer("head") is victim.backbone.head
    with pytest.raises(ValueError, match=r"'mine' has no layer 'featuers.4'.*features.4"):
        victim.layer("featuers.4")
    with pytest.raises(ValueError, match="feetures"):
        small(feature_layer="feetures.4")
    with pytest.raises(ValueError, match="no feature_layer"):
        Victim(Tap(), num_classes=64).features(torch.rand(1, 1, 8, 8))


def test_a_layer_that_is_not_used_is_reported():
    backbone = Tap()
    backbone.spare = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"'spare'.*not used"):
        Victim(backbone, num_classes=4, feature_layer="spare").features(torch.rand(1, 1, 2, 2))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_classes": 1}, "1"),
        ({"num_classes": 3, "std": [0.5, 0.0, 1.0]}, "0.0"),
        ({"num_classes": 3, "mean": [0.5, 0.5], "std": [1.0, 1.0, 1.0]}, "length"),
        ({"num_classes": 3, "input_size": 0}, "0"),
    ],
)
def test_bad_settings(settings, said):
    with pytest.raises(ValueError, match=said):
        Victim(Tap(), **settings)


def test_shapes_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="normalises 3 channels, the images have 1"):
        Victim(Tap(), num_classes=4, mean=[0.1, 0.2, 0.3])(torch.rand(2, 1, 2, 2))
    with pytest.raises(ValueError, match=r"logits \(2, 5\), got \(2, 4\)"):
        Victim(Tap(), num_classes=5)(torch.rand(2, 1, 2, 2))


def test_inference_mode():
    with torch.inference_mode():
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        with pytest.raises(ValueError, match="inference_mode"):
            Victim(backbone, num_classes=2)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.inference_mode():
        victim = Victim(backbone, num_classes=2, mean=0.5)
    x = torch.rand(1, 1, 2, 2, requires_grad=True)
    torch.autograd.grad(victim(x).sum(), x)


def test_state_hash_sees_weights_buffers_and_normalisation():
    victim = small()
    same = copy.deepcopy(victim)
    assert state_hash(victim) == state_hash(same)
    same.backbone.features[1].running_mean[0] += 1e-6
    assert state_hash(victim) != state_hash(same)
    other = Victim(victim.backbone, num_classes=3, mean=0.5)
    assert state_hash(victim) != state_hash(other)
