"""Saliency of filters and of the input, against loops, closed forms and finite differences."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.batch import AttackBatch
from redlab.evaluation import Answers
from redlab.probes import Saliency, filter_saliency, input_saliency
from redlab.probes.saliency import _told, as_picture
from redlab.report.plots import profiles
from redlab.victims import Victim, architectures, state_hash


class Swapped(nn.Module):
    """Its second convolution is registered first; a ReLU in place and a BatchNorm come after the first."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(4, 3, 3)
        self.first = nn.Conv2d(1, 4, 3, bias=False)
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.relu(self.norm(self.first(x)))).mean((2, 3))


def victim(seed: int = 0, backbone: nn.Module | None = None) -> Victim:
    torch.manual_seed(seed)
    net = Victim(backbone or Swapped(), num_classes=3, mean=0.4, std=0.3, name="net")
    if backbone is None:
        net.backbone.norm.running_mean.uniform_(-0.2, 0.2)
        net.backbone.norm.running_var.uniform_(0.5, 2)
    return net


def images(n: int = 5, seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 8, 8, generator=g), torch.arange(n) % 3


def batch(n: int = 6, victims: int = 1) -> AttackBatch:
    adv, label = images(n, seed=2)
    zeros = torch.zeros(n, dtype=torch.int64)
    return AttackBatch(
        clean=adv, adv=adv, label=label, attack=zeros + 1, setting=zeros, victim=torch.arange(n) % victims,
        knowledge=zeros, target=zeros - 1, index=torch.arange(n), valid=zeros == 0, attacked=zeros == 0,
    )  # fmt: skip


def by_hand(net: Victim, x: Tensor, label: Tensor) -> Tensor:
    """One image, one filter at a time, through a plain copy of the network."""
    rows = []
    for image, y in zip(x, label, strict=True):
        copy = Swapped()
        copy.load_state_dict(net.backbone.state_dict())
        copy.eval()
        loss = F.cross_entropy(copy((image[None] - 0.4) / 0.3), y[None])
        loss.backward()
        filters = [*copy.first.weight.grad, *copy.second.weight.grad]  # as they work, not as they are registered
        rows.append([float(f.abs().sum()) / f.numel() for f in filters])
    return torch.tensor(rows)


def test_it_is_the_mean_slope_of_each_filter() -> None:
    net, (x, label) = victim(), images()
    found, layers = filter_saliency(net, x, label)
    assert layers == [4, 3]
    torch.testing.assert_close(found, by_hand(net, x, label), rtol=1e-5, atol=1e-8)


def test_of_a_linear_network_in_closed_form() -> None:
    """Logit k is w_k mean(x): the slope of the loss by w_k is (p_k - [k = y]) mean(x)."""
    net = Victim(nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), num_classes=3)
    x, label = images()
    slopes = (net(x).softmax(1) - F.one_hot(label, 3)) * x.mean((1, 2, 3))[:, None]
    torch.testing.assert_close(filter_saliency(net, x, label)[0], slopes.abs(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "name", ["small_cnn", "lenet", "cifar_resnet", pytest.param("densenet121", marks=pytest.mark.slow)]
)
def test_any_victim_alone_or_together_and_left_as_it_was(name: str) -> None:
    more: dict[str, Any] = {"depth": 20, "shortcut": "A"} if name == "cifar_resnet" else {}
    torch.manual_seed(0)
    net = Victim(getattr(architectures, name)(num_classes=3, channels=1, image_size=8, **more), num_classes=3)
    x, label = images(2)
    before, logits = state_hash(net), net(x)
    with torch.inference_mode():
        found, layers = filter_saliency(net, x, label)
    assert found.shape == (2, sum(layers))
    assert len(layers) == sum(isinstance(m, nn.Conv2d) for m in net.modules())
    assert bool((found > 0).any(1).all())
    assert torch.equal(filter_saliency(net, x.flip(0), label.flip(0))[0].flip(0), found)
    torch.testing.assert_close(filter_saliency(net, x[1:], label[1:])[0], found[1:])
    assert state_hash(net) == before
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert not any(m.training or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(net(x), logits)


def test_a_network_without_filters_is_refused() -> None:
    with pytest.raises(ValueError, match="no convolution"):
        filter_saliency(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), *images())


def test_what_is_usual_comes_from_clean_validation_images() -> None:
    nets, asked = {"a": victim(0), "b": victim(1)}, []
    reference = images(9, seed=7)

    def clean(many: int) -> tuple[Tensor, Tensor]:
        asked.append(many)
        return reference

    probe = Saliency(reference=9).ready(nets, clean)
    assert asked == [9]
    for name, net in nets.items():
        s = by_hand(net, *reference)
        shat = (by_hand(net, *images()) - s.mean(0)) / s.std(0)
        found = filter_saliency(net, *images())[0]
        torch.testing.assert_close(probe.normalised(name, found), shat.abs(), rtol=1e-3, atol=1e-3)
        signed = replace(probe, absolute=False).normalised(name, found)
        assert bool((signed < 0).any())
        torch.testing.assert_close(signed, shat, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="not known yet"):
        Saliency().normalised("a", torch.zeros(7))
    with pytest.raises(ValueError, match="two validation images or more"):
        Saliency().ready(nets, lambda many: images(1))


def test_a_filter_without_spread_is_not_divided() -> None:
    x, label = images(1)
    probe = Saliency().ready({"a": victim()}, lambda many: (x.repeat(3, 1, 1, 1), label.repeat(3)))
    assert probe.usual is not None
    assert torch.equal(probe.usual["a"][1], torch.ones(7))


def test_columns_of_made_up_saliencies() -> None:
    """Five layers of one filter each are quarters of 1, 1, 1 and 2 layers; of few, the last is in the last."""
    salient = torch.tensor([[1.0, 2.0, 3.0, 4.0, 10.0]], dtype=torch.float64)
    found = [float(values) for values in _told(salient, [1] * 5)]
    assert found == pytest.approx([4, 0.05, 0.1, 0.15, 0.7, 1])
    wide = torch.tensor([[9.0, 1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    found = [float(values) for values in _told(wide, [1, 4])]  # a layer counts once, whatever its width
    assert found[1:5] == pytest.approx([0, 0.9, 0, 0.1])
    assert found[5] == 0


def test_columns_and_profiles_of_a_batch() -> None:
    nets = {"a": victim(0), "b": Victim(nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), num_classes=3)}
    probe = Saliency(reference=9).ready(nets, lambda many: images(many, seed=7))
    some = batch(6, victims=2)
    found = probe(None, nets, some, Answers())
    shares = torch.stack([found[f"saliency_q{n}"] for n in (1, 2, 3, 4)])
    torch.testing.assert_close(shares.sum(0), torch.ones(6, dtype=torch.float64))
    profile = found["profile"]
    assert profile.shape == (6, 1, 1, 7)
    shat = probe.normalised("a", filter_saliency(nets["a"], some.adv[::2], some.label[::2])[0])
    for row, values in zip(profile[::2, 0, 0], shat, strict=True):
        assert row.tolist() == [*sorted(values[:4].tolist(), reverse=True), *sorted(values[4:].tolist(), reverse=True)]
    assert bool(profile[1::2, 0, 0, 3:].isnan().all())
    torch.testing.assert_close(found["saliency"][::2], shat.mean(1).double(), rtol=1e-5, atol=1e-6)
    assert "input_saliency" not in found


def test_input_saliency_is_the_slope_of_the_distance() -> None:
    """By finite differences in double precision, of a smooth network."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = net.double().eval()
    x, label = images(1)
    x = x.double()

    def normalise(s: Tensor) -> Tensor:
        return ((s - 0.01) / 0.02).abs()

    def salient(image: Tensor) -> Tensor:
        weights = [net[0].weight, net[2].weight]
        gradients = torch.autograd.grad(F.cross_entropy(net(image), label), weights)
        return normalise(torch.cat([g.abs().flatten(1).mean(1) for g in gradients]))

    wanted = salient(x).clone()
    wanted[wanted.topk(2).indices] *= 5
    found = input_saliency(net, x, label, normalise, top=2, boost=5)
    for place in ((0, 0), (3, 4), (7, 7), (5, 2)):
        step = torch.zeros_like(x)
        step[0, 0, place[0], place[1]] = 1e-6
        ahead, behind = (1 - F.cosine_similarity(salient(x + s), wanted, dim=0) for s in (step, -step))
        assert float(found[0, 0, place[0], place[1]]) == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-4, abs=1e-9)


def test_maps_as_pictures() -> None:
    gradients = torch.linspace(-1, 1, 400).view(1, 1, 20, 20).repeat(2, 3, 1, 1)
    gradients[:, 1] = -2  # the largest counts, before its absolute value
    shown = as_picture(gradients)
    assert shown.shape == (2, 1, 20, 20)
    assert float(shown.min()) >= 0
    assert float(shown.max()) <= 1
    assert 0.05 < float((shown > 0).float().mean()) < 0.3
    nets = {"a": victim()}
    probe = Saliency(reference=5, maps=True).ready(nets, lambda many: images(many))
    maps = probe(None, nets, batch(3), Answers())["input_saliency"]
    assert maps.shape == (3, 1, 8, 8)
    assert bool((maps.amax((1, 2, 3)) > 0.3).all())


def test_wrong_numbers_are_refused() -> None:
    for wrong in ({"reference": 1}, {"top": 0}, {"boost": 0.0}, {"boost": math.nan}):
        with pytest.raises(ValueError, match="must be at least"):
            Saliency(**wrong)


def test_profiles_are_drawn_each_on_its_own_scale() -> None:
    figure = profiles({"clean": torch.rand(7), "pgd": 50 * torch.rand(7)}, title="net")
    clean, pgd = figure.axes
    assert clean.get_ylim()[1] < 2 < pgd.get_ylim()[1]
    with pytest.raises(ValueError, match="needs a curve"):
        profiles({})
