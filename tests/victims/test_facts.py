"""What is known of an architecture stands with it, and holds wherever a victim does not say otherwise."""

import copy

import pytest
import torch
from torch import nn

from redlab.victims import Victim, architectures
from redlab.victims.facts import Facts, facts_of


def build(name, *arguments, **settings):
    with torch.device("meta"):
        return getattr(architectures, name)(*arguments, **settings)


class Tap(nn.Module):
    """Flattens what it gets: shows what the wrapper hands to the backbone."""

    def forward(self, x):
        return x.flatten(1)


def tap(**known):
    net = Tap()
    net.redlab_facts = Facts(**known)
    return net


@pytest.mark.parametrize(
    ("name", "settings", "layer"),
    [
        ("small_cnn", {}, "features.8"),
        ("small_cnn", {"widths": [4]}, "features.0"),  # it follows the settings of the network
        ("small_cnn", {"widths": [4, 4, 4, 4]}, "features.12"),
        ("lenet", {}, "features.3"),
        ("fashion_cnn", {}, "features.8"),
        ("svhn_cnn", {}, "features.27"),
        ("cw_net", {}, "features.7"),
        ("alexnet", {}, "features.10"),
        ("vgg11", {}, "features.25"),
        ("vgg13", {}, "features.31"),
        ("vgg16", {}, "features.40"),
        ("vgg19", {}, "features.49"),
        ("vgg11", {"batch_norm": False}, "features.18"),
        ("resnet18", {}, "layer4"),
        ("resnet50", {}, "layer4"),
        ("cifar_resnet", {}, "layer3"),
        ("cifar_resnet", {"shortcut": "B"}, "layer3"),
        ("densenet121", {}, "features.norm5"),
        ("inception_v3", {}, "Mixed_7c"),
    ],
)
def test_where_the_features_are(name, settings, layer):
    assert Victim(build(name, 10, 3, 32, **settings), num_classes=10).feature_layer == layer


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4"),
        ("vgg16", "features.28"),
        ("inception_v3", "Mixed_7c"),
        ("googlenet", "inception5b"),  # and not the head beside it, which only training asks
        ("efficientnet_b0", "features.8"),
        ("vit_b_16", None),  # its one convolution cuts the image into patches
        ("swin_t", None),
    ],
)
def test_where_the_features_of_torchvisions_models_are(name, layer):
    more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    net = Victim(build("torchvision_model", name, **more), num_classes=1000)
    assert net.feature_layer == layer
    assert net.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert net.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


@pytest.mark.slow  # timm takes seconds to import
def test_timm_knows_how_its_models_are_normalised():
    for name, mean in (("resnet18", 0.485), ("vit_tiny_patch16_224", 0.5)):
        assert facts_of(build("timm_model", name)).mean[0] == mean
    assert facts_of(build("timm_model", "resnet18")).feature_layer == "layer4"
    assert facts_of(build("timm_model", "vit_tiny_patch16_224")).feature_layer is None


@pytest.mark.parametrize(
    ("name", "channels", "mean", "std"),
    [
        ("lenet", 1, [0.0], [1.0]),
        ("cw_net", 3, [0.5], [1.0]),
        ("svhn_cnn", 1, [0.5], [0.5]),
        ("cifar_resnet", 3, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("cifar_resnet", 1, [0.0], [1.0]),  # what is known is for images in colour
    ],
)
def test_how_images_are_normalised(name, channels, mean, std):
    victim = Victim(getattr(architectures, name)(10, channels, 32), num_classes=10)
    assert victim.mean.flatten().tolist() == pytest.approx(mean)
    assert victim.std.flatten().tolist() == pytest.approx(std)
    assert victim(torch.rand(2, channels, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg19", "svhn_cnn"])
def test_the_least_size_of_a_network_gives_way_to_larger_images(name):
    with torch.device("meta"):
        for pixels in (28, 48):
            victim = Victim(build(name, 10, 1, pixels), num_classes=10)
            assert victim(torch.zeros(2, 1, pixels, pixels)).shape == (2, 10)
        with pytest.raises(RuntimeError):
            victim.backbone(torch.zeros(2, 1, 28, 28))


def test_only_what_is_too_small_is_padded():
    victim = Victim(tap(smallest=6), num_classes=48)
    out = victim(torch.ones(2, 1, 4, 8)).view(2, 6, 8)
    assert out[:, 1:5].min() == 1
    assert not out[:, [0, 5]].any()
    assert torch.equal(victim(torch.ones(2, 1, 6, 8)), torch.ones(2, 48))


def test_what_a_victim_says_comes_before_what_is_known():
    known = {"mean": 0.5, "std": [0.5, 0.25, 0.2], "smallest": 4}
    x = torch.rand(2, 3, 4, 4)
    victim = Victim(tap(**known), num_classes=48)
    assert torch.allclose(victim(x), ((x - 0.5) / torch.tensor([0.5, 0.25, 0.2]).view(1, 3, 1, 1)).flatten(1))
    assert torch.equal(Victim(tap(**known), num_classes=48, mean=0, std=1)(x), x.flatten(1))
    assert Victim(tap(**known), num_classes=108, input_size=6)(x).shape == (2, 108)
    net = architectures.small_cnn(3, 1, 8, widths=(4, 6))
    assert Victim(net, num_classes=3, feature_layer="features.0").layer() is net.features[0]


def test_of_anybodys_own_module_nothing_is_known():
    victim = Victim(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), num_classes=2)
    assert victim.feature_layer is None
    assert (victim.mean.tolist(), victim.std.tolist()) == ([[[[0.0]]]], [[[[1.0]]]])


def test_a_copy_of_a_network_keeps_what_is_known():
    net = architectures.svhn_cnn(10, 3, 32)
    assert (
        facts_of(copy.deepcopy(net))
        == facts_of(net)
        == Facts(feature_layer="features.27", smallest=32, mean=0.5, std=0.5)
    )
