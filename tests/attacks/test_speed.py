"""Anybody's network is faster while it is attacked, and afterwards what it was, to the address of its weights."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import vgg11_bn
from torchvision.models.inception import BasicConv2d
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from redlab.attacks import APGD, DDN, EOT, FGSM, PGD, CarliniWagnerL2, Defended, FeatureAttack, Square, speed
from redlab.victims import Victim, architectures

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0])


def network(*tail: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(4)
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.1, 0.5)
        body = [nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2)]
        return nn.Sequential(*body, *(tail or (nn.Flatten(),)), nn.Linear(32, 3)).eval()


class Looks(nn.Module):
    """Notes how its network is laid out and computed at each call."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.seen = net, []

    def forward(self, x: Tensor) -> Tensor:
        convolutions = [m for m in self.net.modules() if isinstance(m, nn.Conv2d)]
        norms = [m for m in self.net.modules() if isinstance(m, nn.BatchNorm2d)]
        self.seen.append((all(m.weight.stride(1) == 1 for m in convolutions), all("forward" in vars(m) for m in norms)))
        return self.net(x)


def facts(net: nn.Module) -> list[Any]:
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    own = [(name, id(t), t.data_ptr(), t.stride(), t._version, t.requires_grad) for name, t in tensors.items()]
    return [own, [sorted(vars(m)) for m in net.modules()]]


@pytest.mark.parametrize(
    "attack", [FGSM(), PGD(steps=3), Square(queries=4), EOT(attack=PGD(steps=2), samples=2)], ids=str
)
def test_faster_inside_and_as_before_afterwards(attack: Any) -> None:
    model = Looks(network())
    before = facts(model.net)
    x_adv = attack(model, X, Y)
    assert set(model.seen) == {(True, True)}
    assert facts(model.net) == before
    assert not torch.equal(x_adv, X)


def test_as_before_after_an_exception() -> None:
    model = network(nn.Flatten())
    model.register_forward_hook(lambda *_: {}["broken"])
    before = facts(model)
    with pytest.raises(KeyError):
        PGD(steps=2)(model, X, Y)
    assert facts(model) == before


@pytest.mark.parametrize(
    "attack",
    [FGSM(), PGD(steps=3), APGD(steps=3), DDN(steps=3), CarliniWagnerL2(steps=3, binary_search_steps=1)],
    ids=str,
)
def test_the_same_images(attack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = attack(network(), X, Y)
    monkeypatch.setattr(speed, "_open_to_change", lambda _network: [])
    torch.testing.assert_close(fast, attack(network(), X, Y), rtol=0, atol=1e-4)


class Views(nn.Module):
    """What flattens with ``view``, as many scripts do, which wants images one channel after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1)


class ViewsBackwards(nn.Module):
    """The same in a backward pass."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.shape = x.shape
            return x * 1.0

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad.view(len(grad), -1).view(ctx.shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.Function.apply(x)


@pytest.mark.parametrize("kind", [Views, ViewsBackwards])
def test_a_network_that_cannot_take_it(kind: type[nn.Module]) -> None:
    def tail(*first: nn.Module) -> list[nn.Module]:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return [nn.ReLU(), *first, nn.Conv2d(8, 8, 1)]

    views = [*tail(), Views()] if kind is Views else [*tail(kind()), nn.Flatten()]
    model = Looks(network(*views))
    before = facts(model.net)
    x_adv = PGD(steps=2)(model, X, Y)
    assert facts(model.net) == before
    torch.testing.assert_close(x_adv, PGD(steps=2)(network(*tail(), nn.Flatten()), X, Y), rtol=0, atol=1e-4)
    assert model.seen[0] == (True, True)
    assert set(model.seen[1:]) == {(False, True)}
    model.seen.clear()
    PGD(steps=2)(model, X, Y)
    assert set(model.seen) == {(False, True)}
    assert len(model.seen) == 3  # it is remembered, and not tried again


def test_an_error_of_the_network_is_told() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("out of luck")

    model = network(Breaks())
    before, known = facts(model), len(speed._AS_THEY_ARE)
    with pytest.raises(RuntimeError, match="out of luck"):
        PGD(steps=2)(model, X, Y)
    assert facts(model) == before
    assert len(speed._AS_THEY_ARE) == known


def test_shared_weights_and_weights_that_are_views() -> None:
    first, second, flat = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), torch.rand(36)
    first.weight.data, second.weight = flat.view(4, 1, 3, 3), first.weight

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = first, second, nn.Linear(144, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert first.weight.stride() == (9, 1, 3, 1)
            return self.head((self.first(x) * self.second(x)).flatten(1))

    model = Both()
    before = facts(model)
    FGSM()(model, X, Y)
    assert facts(model) == before
    flat.zero_()
    assert first.weight.abs().max() == second.weight.abs().max() == 0


def test_in_the_middle_of_a_training_step() -> None:
    """Graphs made before the attack are still good after it, and the optimiser moves the weights."""
    model, plain = (network().train() for _ in range(2))
    for net, attacked in ((model, True), (plain, False)):
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            loss = F.cross_entropy(net(X), Y)
            if attacked:
                FGSM()(net, X, Y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch say that scripts are deprecated
        return torch.jit.script(network())  # type: ignore[no-any-return]


LEFT_ALONE: dict[str, Callable[[], nn.Module]] = {
    "float64": lambda: network().double(),
    "on another device": lambda: network().to("meta"),
    "scripted": scripted,
    "compiled": lambda: torch.compile(network(), backend="eager"),  # type: ignore[dict-item,return-value]
    "a victim with a twin": lambda: Victim(architectures.small_cnn(3, 1, 8), num_classes=3),
}


@pytest.mark.parametrize(
    "make", [pytest.param(m, id=n, marks=pytest.mark.slow if n == "compiled" else ()) for n, m in LEFT_ALONE.items()]
)
def test_left_alone(make: Callable[[], nn.Module]) -> None:
    model = make()
    before = facts(model)
    assert speed.quickly(model, lambda: facts(model)) == before


def test_a_twin_is_not_made_again() -> None:
    victim = Victim(architectures.small_cnn(3, 1, 8), num_classes=3)
    PGD(steps=1)(victim, X, Y)
    twin = victim._network()
    PGD(steps=1)(victim, X, Y)
    assert victim._network() is twin
    FeatureAttack(guides=1 - X, layer="features.1", steps=1)(victim, X, Y)
    assert victim._network() is twin


def test_a_victim_around_anothers_network() -> None:
    model = Looks(network())
    PGD(steps=1)(Victim(model, num_classes=3), X, Y)
    assert set(model.seen) == {(True, True)}


def test_a_restorer_too() -> None:
    class Restores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Looks(nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1)).eval())

        def restore(self, x: Tensor) -> Tensor:
            return self.net(x)  # type: ignore[no-any-return]

    restorer = Restores()
    FGSM()(Defended(restorer, network()), X, Y)
    assert set(restorer.net.seen) == {(True, True)}


def test_norms_with_hooks_modes_and_forwards_of_their_own() -> None:
    net, calls = network(), []
    net[1].register_forward_hook(lambda *_: calls.append("hook"))
    FGSM()(net, X, Y)
    assert calls == ["hook"]

    def own(x: Tensor) -> Tensor:
        calls.append("own")
        return nn.BatchNorm2d.forward(net[1], x)

    net[1].forward = own
    FGSM()(net, X, Y)
    assert calls == ["hook", "own", "hook"]
    assert net[1].forward is own


@pytest.mark.parametrize(
    "settings", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}], ids=str
)
@pytest.mark.parametrize("training", [True, False])
def test_norms_of_every_kind(settings: dict[str, Any], training: bool) -> None:
    norm = nn.BatchNorm2d(3, eps=0.1, **settings)
    norm.train(training)
    if norm.running_mean is not None and norm.weight is not None:
        for t, low in ((norm.running_mean, -1), (norm.running_var, 0.5), (norm.weight.data, -1), (norm.bias.data, -1)):
            t.uniform_(low, 1)
    other, x = copy.deepcopy(norm), torch.rand(5, 3, 4, 2)
    torch.testing.assert_close(speed.quickly(norm, lambda: norm(x)), other(x))
    torch.testing.assert_close(norm.state_dict(), other.state_dict())


@pytest.mark.slow
def test_it_is_worth_it() -> None:
    """Against the bare loop, in turn, on a network with two thirds of its time in convolutions and BatchNorm."""
    torch.set_num_threads(1)
    net = architectures.small_cnn(10, 1, 28).eval().requires_grad_(False)
    x, y, ratios = torch.rand(64, 1, 28, 28), torch.zeros(64, dtype=torch.int64), []
    for _ in range(5):
        start = time.process_time()
        for _ in range(6):
            point = x.clone().requires_grad_()
            torch.autograd.grad(F.cross_entropy(net(point), y, reduction="sum"), point)
        middle = time.process_time()
        PGD(steps=5)(net, x, y)
        ratios.append((time.process_time() - middle) / (middle - start))
    assert sorted(ratios)[2] < 0.85


# ---- convolution and BatchNorm in one -------------------------------------------------------------------------------


def shaken(net: nn.Module) -> nn.Module:
    """Batch statistics that make a difference."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-0.3, 0.3)
            m.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.2, 0.2)
    return net.eval()


class Layerwise(nn.Module):
    """Goes through the layers of a sequence by itself, and looks at what is between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for layer in self.layers:
            x = layer(x)
            seen.append(x.mean((2, 3)))
        return self.head(seen[0] + seen[-1])


class Widened(BasicBlock):
    """Of a type of its own, with another forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.conv1(x)


def small_resnet(block: type[nn.Module]) -> nn.Module:
    return ResNet(block, [1, 1, 1, 1], num_classes=3)  # type: ignore[arg-type]


def basic_conv(channels: int) -> nn.Module:
    return BasicConv2d(channels, 4, kernel_size=3)


ODD: dict[str, Callable[[], nn.Module]] = {
    "blocks": lambda: small_resnet(BasicBlock),
    "bottlenecks": lambda: small_resnet(Bottleneck),
    "blocks of one's own": lambda: small_resnet(Widened),
    "inception": lambda: nn.Sequential(basic_conv(3), basic_conv(4), nn.Flatten(), nn.LazyLinear(3)),
    "vgg": lambda: nn.Sequential(*vgg11_bn().features[:8], nn.Flatten(), nn.LazyLinear(3)),
}


@pytest.mark.parametrize("name", ODD)
def test_folded_answers_and_gradients_are_the_plain_ones(name: str) -> None:
    torch.manual_seed(0)
    net, x = ODD[name](), torch.rand(2, 3, 32, 32, requires_grad=True)
    net(x)
    net = shaken(net)
    before, calls = facts(net), []

    def asked() -> tuple[Tensor, Tensor]:
        logits = net(x)
        (gradient,) = torch.autograd.grad(logits.square().sum(), x)
        return logits.detach(), gradient

    plain = asked()
    with pytest.MonkeyPatch.context() as patch:
        really = speed._multiply_and_add
        patch.setattr(speed, "_multiply_and_add", lambda *a: calls.append(a[0]) or really(*a))
        quick = speed.quickly(net, asked)
    for a, b in zip(plain, quick, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))
    assert facts(net) == before
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    left = {"blocks": 1, "bottlenecks": 1, "blocks of one's own": norms - 3, "inception": 0, "vgg": 0}  # the stem
    assert len(calls) == left[name]


def test_who_looks_between_convolution_and_norm_sees_what_is_there() -> None:
    torch.manual_seed(0)
    layerwise = shaken(Layerwise())
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(speed.quickly(layerwise, lambda: layerwise(x)), layerwise(x), rtol=1e-5, atol=1e-6)

    hooked, seen = shaken(network()), []
    hooked[0].register_forward_hook(lambda _m, _x, out: seen.append(out.detach().clone()))
    speed.quickly(hooked, lambda: hooked(x))
    torch.testing.assert_close(seen[0], nn.Conv2d.forward(hooked[0], x), rtol=1e-5, atol=1e-6)

    shared = network()
    shared[0].padding_mode = "circular"
    shared[0].padding, shared[0]._reversed_padding_repeated_twice = (1, 1), [1, 1, 1, 1]
    shared = nn.Sequential(*list(shared)[:3], nn.Flatten(), nn.Linear(4 * 64, 3)).eval()
    torch.testing.assert_close(speed.quickly(shared, lambda: shared(x)), shared(x), rtol=1e-4, atol=1e-5)


def test_a_norm_in_training_mode_is_not_folded() -> None:
    net = network()
    net[1].train()
    x = torch.rand(8, 1, 8, 8)
    expected = copy.deepcopy(net)(x)
    torch.testing.assert_close(speed.quickly(net, lambda: net(x)), expected)
    assert int(net[1].num_batches_tracked) == 1
