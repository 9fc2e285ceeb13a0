"""Sizes of the papers' networks, shapes on small images, and every victim's YAML."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from redlab.victims import Victim, architectures
from reference import cifar_resnet as reference

CONF = Path(__file__).parents[2] / "conf"
YAMLS = sorted(path.stem for path in (CONF / "victim").glob("*.yaml"))
# of torchvision's ImageNet models one runs here; tests/test_config.py looks at the shapes of all
NAMES = [n for n in YAMLS if not n.startswith("torchvision_") or n == "torchvision_resnet50"]
HEAVY = {
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet110",
    "densenet121",
    "inception_v3",
    "torchvision_resnet50",
    "timm_resnet50",
}
MIDDLING = {"resnet18", "resnet20", "resnet32", "vgg13", "vgg16", "vgg19", "alexnet"}


def size(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("name", "channels", "pixels", "settings", "count"),
    [
        ("lenet", 1, 28, {}, 648_226),
        ("fashion_cnn", 1, 28, {}, 46_570),
        ("svhn_cnn", 3, 32, {}, 584_746),
        ("cw_net", 1, 28, {}, 312_202),
        ("cw_net", 3, 32, {"width": 64, "hidden": 256}, 1_147_978),
        ("vgg11", 3, 32, {}, 9_231_114),
        ("vgg11", 1, 32, {}, 9_229_962),
        ("resnet18", 3, 32, {}, 11_173_962),
        ("cifar_resnet", 3, 32, {"depth": 20}, 269_722),
        ("cifar_resnet", 3, 32, {"depth": 32}, 464_154),
        ("cifar_resnet", 3, 32, {"depth": 44}, 658_586),
        ("cifar_resnet", 3, 32, {"depth": 56}, 853_018),
        ("cifar_resnet", 3, 32, {"depth": 110}, 1_727_962),
    ],
)
def test_parameter_counts_of_the_papers(name, channels, pixels, settings, count):
    assert size(getattr(architectures, name)(10, channels, pixels, **settings)) == count


@pytest.mark.parametrize(("name", "millions"), [("densenet121", 6.956), ("inception_v3", 21.640)])
def test_parameter_counts_of_the_public_cifar_collection(name, millions):
    assert size(getattr(architectures, name)(10, 3, 32)) / 1e6 == pytest.approx(millions, abs=2e-3)


def test_vgg_detector_counts_and_depths():
    assert size(architectures.vgg11(2, 3, 32)) == 9_227_010
    assert size(architectures.vgg11(2, 1, 32)) == 9_225_858
    for name in ("vgg11", "vgg13", "vgg16", "vgg19"):
        net = getattr(architectures, name)(10, 1, 32, width_divisor=16)
        weighted = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        # torchvision counts the three linear layers of ImageNet's head in the name; here there is one
        assert len(weighted) == int(name.removeprefix("vgg")) - 2
    assert not any(isinstance(m, nn.BatchNorm2d) for m in architectures.vgg11(10, 1, 32, batch_norm=False).modules())


@pytest.mark.parametrize("depth", [8, 20, 32])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_the_residual_networks_of_cifar(depth, shortcut):
    """Their size and what they compute, against a transcription that knows no module."""
    net = architectures.cifar_resnet(5, 3, 12, depth=depth, shortcut=shortcut)
    assert size(net) == reference.count(depth, shortcut, classes=5)
    weighted = [m for m in net.modules() if isinstance(m, nn.Linear) or getattr(m, "kernel_size", 0) == (3, 3)]
    assert len(weighted) == depth
    generator = torch.Generator().manual_seed(0)
    for buffer in (b for b in net.buffers() if b.is_floating_point()):  # as if it had been trained
        buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    x = torch.rand(3, 3, 12, 9, generator=generator)
    expected = reference.logits(net.state_dict(), x, depth, shortcut)
    for victim in (net.eval(), Victim(net, num_classes=5, mean=0, std=1)):  # the second with its norms folded
        torch.testing.assert_close(victim(x), expected, rtol=1e-4, atol=1e-5)


def test_a_shortcut_without_parameters_keeps_the_channels_in_the_middle():
    net = architectures.cifar_resnet(10, 1, 8, depth=8)
    x = torch.rand(2, 16, 4, 6)
    out = net.layer2[0].shortcut(x)
    assert out.shape == (2, 32, 2, 3)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()
    assert not list(net.layer2[0].shortcut.parameters())
    assert isinstance(net.layer1[0].shortcut, nn.Identity)


@pytest.mark.parametrize("settings", [{"depth": 18}, {"depth": 2}, {"depth": 6 * 10**9 + 2}, {"shortcut": "C"}])
def test_residual_networks_that_there_are_not(settings):
    (value,) = settings.values()
    with pytest.raises(ValueError, match=str(value)):
        architectures.cifar_resnet(10, 3, 32, **settings)


def victim_config(name, channels, pixels):
    base = {"data": {"num_classes": 7, "channels": channels, "image_size": pixels, "name": "toy"}}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = OmegaConf.merge(base, compose(f"victim/{name}"))
    spec = cfg.victims[name]
    for key in ("weights", "pretrained"):  # no downloads here
        if key in spec.backbone:
            spec.backbone[key] = None if key == "weights" else False
    return spec


def sizes(name):
    if name in HEAVY:
        return [(3, 32)]
    if name in MIDDLING:
        return [(1, 28)]
    return [(channels, pixels) for channels in (1, 3) for pixels in (28, 32, 64)]


@pytest.mark.parametrize(
    ("name", "channels", "pixels"),
    # the shapes of all are looked at in tests/test_config.py, which draws no weights
    [pytest.param(n, *size, marks=pytest.mark.slow if n in HEAVY else ()) for n in NAMES for size in sizes(n)],
)
def test_every_victim_yaml_gives_logits_and_a_feature_map(name, channels, pixels):
    spec = victim_config(name, channels, pixels)
    assert set(spec) == {"backbone", "mean", "std", "input_size", "feature_layer", "weights", "training"}
    if "width_divisor" in spec.backbone:
        spec.backbone.width_divisor = 8  # for speed
    wrapper = {k: spec[k] for k in ("mean", "std", "input_size", "feature_layer")}
    victim = Victim(instantiate(spec.backbone), num_classes=7, name=name, **wrapper)
    logits = []
    victim.register_forward_hook(lambda _module, _input, output: logits.append(output))
    with torch.no_grad():
        features = victim.features(torch.rand(2, channels, pixels, pixels))
    assert logits[0].shape == (2, 7)
    assert torch.isfinite(logits[0]).all()
    assert features.ndim == 4
    assert len(features) == 2
    # the feature layer is where the last convolution ends: nothing with weights but a norm and the head comes after
    order = [n for n, m in victim.backbone.named_modules() if isinstance(m, nn.Conv2d)]
    assert order[-1].startswith(victim.feature_layer) or victim.feature_layer in ("features.norm5",)


def test_every_architecture_has_a_yaml():
    backbones = [OmegaConf.load(p).backbone for p in (CONF / "victim").glob("*.yaml")]
    targets = {backbone._target_.rsplit(".", 1)[1] for backbone in backbones if "_target_" in backbone}
    assert targets == set(architectures.__all__)


def test_networks_note_how_they_were_built():
    net = architectures.small_cnn(10, 1, 28, widths=OmegaConf.create([4, 8]))
    expected = {"num_classes": 10, "channels": 1, "image_size": 28, "widths": [4, 8]}
    assert net.redlab_arch == {"name": "small_cnn", "kwargs": expected}
    assert type(net.redlab_arch["kwargs"]["widths"]) is list
    more = architectures.torchvision_model("resnet18", 10, zero_init_residual=True).redlab_arch["kwargs"]
    assert more["zero_init_residual"] is True
    assert "more" not in more


def test_torchvision_and_timm_say_what_is_wrong():
    with pytest.raises(ValueError, match="3 channels, got 1"):
        architectures.torchvision_model("resnet18", channels=1)
    with pytest.raises(ValueError, match="no_such_net"):
        architectures.torchvision_model("no_such_net")
    with pytest.raises(ValueError, match="no_such_weights"):
        architectures.torchvision_model("resnet18", weights="no_such_weights")
    with pytest.raises(ValueError, match="'/etc/passwd'"):
        architectures.torchvision_model("resnet18", weights="/etc/passwd")


def test_nothing_is_fetched_unasked(monkeypatch):
    """A detector of torchvision fetches its backbone."""
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *args, **kwargs: pytest.fail("fetched"))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: pytest.fail("fetched"))
    with pytest.raises(ValueError, match="torchvision has no classifier 'fasterrcnn_resnet50_fpn'"):
        architectures.torchvision_model("fasterrcnn_resnet50_fpn", 10)


@pytest.mark.slow  # timm takes seconds to import
def test_timm_models():
    net = architectures.timm_model("resnet18", num_classes=5, channels=1)
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    with pytest.raises(ValueError, match="no_such_net"):
        architectures.timm_model("no_such_net")


def test_a_bad_width_divisor_is_named():
    with pytest.raises(ValueError, match="65"):
        architectures.vgg11(10, 3, 32, width_divisor=65)
