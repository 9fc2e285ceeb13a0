"""Networks for images of 28, 32 or 64 pixels, and the ImageNet models of torchvision and timm as they are.

Every function returns a freshly initialised network that maps images to logits; ``__all__`` is the registry from which
checkpoints may name one. What is known of a network besides its layers stands above its function, as ``Facts``. Where
torchvision has the network, it is taken from there and only its stem is changed: 3x3 with stride 1 and no max-pooling,
so that a small image is not shrunk before anything has looked at it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.inception import BasicConv2d, Inception3
from torchvision.models.vgg import cfgs, make_layers

from redlab.extras import require
from redlab.victims.cifar_resnet import cifar_resnet
from redlab.victims.facts import IMAGENET, Facts, architecture

__all__ = [
    "alexnet",
    "cifar_resnet",
    "cw_net",
    "densenet121",
    "fashion_cnn",
    "inception_v3",
    "lenet",
    "resnet18",
    "resnet50",
    "small_cnn",
    "svhn_cnn",
    "timm_model",
    "torchvision_model",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
]


@architecture()
def small_cnn(num_classes: int, channels: int, image_size: int, *, widths: Sequence[int] = (16, 32, 64)) -> nn.Module:
    """The fast default: a 3x3 convolution, batch norm, ReLU and 2x2 max-pooling per width, then one linear layer."""
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be a list of positive numbers, got {list(widths)}")
    blocks: list[nn.Module] = []
    for before, width in zip((channels, *widths), widths, strict=False):
        blocks += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    side = _left(image_size // 2 ** len(widths), "small_cnn", image_size)
    return _stacked(blocks, nn.Linear(widths[-1] * side**2, num_classes))


@architecture()
def lenet(num_classes: int, channels: int, image_size: int) -> nn.Module:
    """The MNIST LeNet of the ADD-Defense paper: 2 convolutions of 32 and 64, 200 hidden units; 648,226 parameters."""
    side = _left(image_size // 4, "lenet", image_size)
    return _stacked(
        [
            *(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        ],
        nn.Sequential(nn.Linear(64 * side**2, 200), nn.ReLU(), nn.Linear(200, num_classes)),
    )


@architecture()
def fashion_cnn(num_classes: int, channels: int, image_size: int) -> nn.Module:
    """The Fashion-MNIST target of ADD-Defense: 3 convolutions with Swish; the first pooling has stride 1; 46,570."""
    side = _left((image_size - 1) // 2 // 2, "fashion_cnn", image_size)
    return _stacked(
        [
            *(nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(), nn.MaxPool2d(2, stride=1)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.SiLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.SiLU(), nn.MaxPool2d(2)),
        ],
        nn.Linear(64 * side**2, num_classes),
    )


@architecture(Facts(smallest=32, mean=0.5, std=0.5))
def svhn_cnn(num_classes: int, channels: int, image_size: int, *, dropout: float = 0.3) -> nn.Module:
    """The SVHN target of ADD-Defense: 7 convolutions in 4 pooled blocks; 584,746 parameters.

    Needs 32 pixels at least; larger images end in an average over the positions that are left.
    """
    layers: list[nn.Module] = []
    before = channels
    for width, padding, pooled in [
        *((32, 1, False), (32, 1, True), (64, 1, False), (64, 1, True)),
        *((128, 1, False), (128, 1, True), (256, 0, True)),
    ]:
        norm = nn.BatchNorm2d(width, affine=False)
        layers += [nn.Conv2d(before, width, 3, padding=padding), norm, nn.ReLU(), nn.Dropout(dropout)]
        layers += [nn.MaxPool2d(2)] if pooled else []
        before = width
    return _stacked([*layers, nn.AdaptiveAvgPool2d(1)], nn.Linear(256, num_classes))


@architecture(Facts(mean=0.5))  # the original takes images in [-0.5, 0.5]
def cw_net(num_classes: int, channels: int, image_size: int, *, width: int = 32, hidden: int = 200) -> nn.Module:
    """The network of Carlini and Wagner: 32 and 200 wide for MNIST (312,202), 64 and 256 for CIFAR-10 (1,147,978)."""
    wide = 2 * width
    side = _left(((image_size - 4) // 2 - 4) // 2, "cw_net", image_size)
    return _stacked(
        [
            *(nn.Conv2d(channels, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, wide, 3), nn.ReLU(), nn.Conv2d(wide, wide, 3), nn.ReLU(), nn.MaxPool2d(2)),
        ],
        nn.Sequential(
            *(nn.Linear(wide * side**2, hidden), nn.ReLU(), nn.Dropout(0.5)),
            *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)),
        ),
    )


@architecture()
def resnet18(num_classes: int, channels: int, image_size: int) -> nn.Module:
    """torchvision's ResNet-18 with a small-image stem; 11,173,962 parameters for 3 channels and 10 classes."""
    return _small_stem(torchvision.models.resnet18(num_classes=num_classes), channels)


@architecture()
def resnet50(num_classes: int, channels: int, image_size: int) -> nn.Module:
    """torchvision's ResNet-50 with a small-image stem."""
    return _small_stem(torchvision.models.resnet50(num_classes=num_classes), channels)


@architecture(Facts(smallest=32))
def vgg11(
    num_classes: int, channels: int, image_size: int, *, batch_norm: bool = True, width_divisor: int = 1
) -> nn.Module:
    """torchvision's VGG-11 convolutions with one linear layer; 9,231,114 parameters for 3 channels and 10 classes.

    Needs 32 pixels at least; larger images end in an average over the positions that are left.
    """
    return _vgg("A", num_classes, channels, batch_norm, width_divisor)


@architecture(Facts(smallest=32))
def vgg13(
    num_classes: int, channels: int, image_size: int, *, batch_norm: bool = True, width_divisor: int = 1
) -> nn.Module:
    """VGG-13, else as ``vgg11``."""
    return _vgg("B", num_classes, channels, batch_norm, width_divisor)


@architecture(Facts(smallest=32))
def vgg16(
    num_classes: int, channels: int, image_size: int, *, batch_norm: bool = True, width_divisor: int = 1
) -> nn.Module:
    """VGG-16, else as ``vgg11``."""
    return _vgg("D", num_classes, channels, batch_norm, width_divisor)


@architecture(Facts(smallest=32))
def vgg19(
    num_classes: int, channels: int, image_size: int, *, batch_norm: bool = True, width_divisor: int = 1
) -> nn.Module:
    """VGG-19, else as ``vgg11``."""
    return _vgg("E", num_classes, channels, batch_norm, width_divisor)


@architecture(Facts(feature_layer="features.norm5"))
def densenet121(num_classes: int, channels: int, image_size: int) -> nn.Module:
    """torchvision's DenseNet-121 with a small-image stem."""
    net: nn.Module = torchvision.models.densenet121(num_classes=num_classes)
    features = net.get_submodule("features")
    features.conv0 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    features.pool0 = nn.Identity()
    return net


@architecture()
def inception_v3(num_classes: int, channels: int, image_size: int) -> nn.Module:
    """torchvision's Inception-v3 without auxiliary head, its stem replaced by one 3x3 convolution of 192; 21.64 M."""
    net: nn.Module = Inception3(num_classes, aux_logits=False, init_weights=False)
    net.Conv2d_1a_3x3 = BasicConv2d(channels, 192, kernel_size=3, padding=1)
    for name in ("Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"):
        setattr(net, name, nn.Identity())
    return net


@architecture()
def alexnet(num_classes: int, channels: int, image_size: int) -> nn.Module:
    """torchvision's AlexNet convolutions with a 3x3 stride-1 stem, an average over positions and one linear layer."""
    features: nn.Module = torchvision.models.AlexNet(num_classes).features
    layers = [nn.Conv2d(channels, 64, 3, padding=1), *list(features.children())[1:], nn.AdaptiveAvgPool2d(1)]
    return _stacked(layers, nn.Linear(256, num_classes))


@architecture(IMAGENET)
def torchvision_model(
    name: str, num_classes: int = 1000, channels: int = 3, *, weights: str | None = None, **more: Any
) -> nn.Module:
    """A torchvision classification model as it is; inside ``torch.device("meta")`` its shape alone.

    Args:
        name: torchvision's name, for example "resnet50".
        num_classes: 1000 with ImageNet weights.
        channels: of the images; these models take 3.
        weights: None, "DEFAULT" or a name such as "IMAGENET1K_V1", which is downloaded.
        more: passed on to torchvision.

    Raises:
        ValueError: an unknown model or weights, or a shape that they do not have.
    """
    if channels != 3:
        raise ValueError(
            f"torchvision's {name} must be given images of 3 channels, got {channels}: choose data in colour, or a "
            "network for any number of channels, such as resnet18"
        )
    # its detectors fetch a backbone unasked
    if name.lower() not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(f"torchvision has no classifier {name!r}")
    if weights is not None:
        known = torchvision.models.get_model_weights(name).__members__
        if weights not in known:
            raise ValueError(f"torchvision's {name} has no weights {weights!r}; it must be one of {list(known)}")
        classes = len(known[weights].meta["categories"])
        if num_classes != classes:
            raise ValueError(
                f"the weights {weights} of torchvision's {name} tell {classes} classes apart, not {num_classes}: "
                "choose data with as many, or a network without weights, such as resnet18"
            )
    weights = None if _shape_alone() else weights
    net: nn.Module = torchvision.models.get_model(name, weights=weights, num_classes=num_classes, **more)
    return net


def _of_timm(name: str = "", **_: Any) -> Facts:
    timm = require("timm", "timm")
    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError:  # of a model that it cannot make either
        known = None
    return Facts(mean=known.mean, std=known.std) if known else Facts()


@architecture(_of_timm)
def timm_model(
    name: str, num_classes: int = 1000, channels: int = 3, *, pretrained: bool = False, **more: Any
) -> nn.Module:
    """A timm model as it is (extra ``timm``); inside ``torch.device("meta")`` its shape alone.

    Args:
        name: timm's name, for example "resnet50.a1_in1k".
        num_classes: another number than the weights' gives a fresh head.
        channels: of the images.
        pretrained: download the weights.
        more: passed on to timm.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm does not know the model.
    """
    timm = require("timm", "timm")
    pretrained = pretrained and not _shape_alone()
    try:
        net: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=num_classes, in_chans=channels, **more
        )
    except RuntimeError as error:
        raise ValueError(f"timm cannot make the model {name!r}: {error}") from error
    return net


def _shape_alone() -> bool:
    """Whether networks are made without memory, so that there is nothing to put weights into."""
    return torch.empty(0).is_meta


def _left(side: int, name: str, image_size: int) -> int:
    """The side of what the poolings leave of an image, if they leave anything."""
    if side < 1:
        raise ValueError(f"image_size is too small: the poolings of {name} leave nothing of {image_size} pixels")
    return side


def _stacked(features: list[nn.Module], head: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(features=nn.Sequential(*features), flatten=nn.Flatten(), head=head))


def _vgg(letter: str, num_classes: int, channels: int, batch_norm: bool, width_divisor: int) -> nn.Module:
    if not 1 <= width_divisor <= 64:
        raise ValueError(f"width_divisor must be in 1..64, got {width_divisor}")
    plan = [step if step == "M" else step // width_divisor for step in cfgs[letter]]
    convolutions = list(make_layers(plan, batch_norm=batch_norm))
    convolutions[0] = nn.Conv2d(channels, plan[0], 3, padding=1)  # torchvision's is fixed to 3 channels
    return _he_initialised(_stacked([*convolutions, nn.AdaptiveAvgPool2d(1)], nn.Linear(plan[-2], num_classes)))


def _small_stem(net: nn.Module, channels: int) -> nn.Module:
    net.conv1 = _he_initialised(nn.Conv2d(channels, 64, 3, padding=1, bias=False))
    net.maxpool = nn.Identity()
    return net


def _he_initialised(net: nn.Module) -> nn.Module:
    """He initialisation of the convolutions, without which the deep plain networks do not start to learn."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net
