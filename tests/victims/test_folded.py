"""The faster twin of a victim: the same numbers, never stale, and out of the way where somebody looks inside."""

import copy
import time

import pytest
import torch
from torch import nn
from torch.nn.utils import prune  # noqa: F401 - or torch.nn.utils.prune is not there

from redlab.victims import Victim, architectures

NETS = {
    "small_cnn": lambda: architectures.small_cnn(5, 3, 16),
    "resnet18": lambda: architectures.resnet18(5, 3, 32),
    "cifar_resnet A": lambda: architectures.cifar_resnet(5, 3, 16, depth=14),
    "cifar_resnet B": lambda: architectures.cifar_resnet(5, 3, 16, depth=14, shortcut="B"),
    "vgg11": lambda: architectures.vgg11(5, 3, 32, width_divisor=16),
    "densenet121": lambda: architectures.densenet121(5, 3, 32),
    "lenet": lambda: architectures.lenet(5, 3, 32),
}


def lived_in(net):
    """BatchNorms with statistics and weights that are not 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return net


@torch.no_grad()
def change_weights(victim):
    victim.backbone[0][0].weight.mul_(2)


def assign_state(victim):
    state = {key: t.clone().mul_(2) if t.is_floating_point() else t for key, t in victim.backbone.state_dict().items()}
    victim.backbone.load_state_dict(state, assign=True)


def new_head(victim):
    victim.backbone[2] = seeded(lambda: nn.Linear(victim.backbone[2].in_features, 5))


def new_weight(victim):
    victim.backbone[0][0].weight = nn.Parameter(victim.backbone[0][0].weight * 2)


def another_activation(victim):
    victim.backbone[0][2] = nn.Sigmoid()


def normed_weight(victim):
    nn.utils.parametrizations.weight_norm(victim.backbone[0][0])
    with torch.no_grad():
        victim.backbone[0][0].parametrizations.weight.original0.mul_(2)


def pruned(victim):
    nn.utils.prune.l1_unstructured(victim.backbone[0][0], "weight", amount=0.5)


def halved_in_place_of_data(victim):
    victim.backbone[0][0].weight.data = victim.backbone[0][0].weight.data * 2


def new_buffer(victim):
    victim.backbone[0][1].running_mean = torch.full_like(victim.backbone[0][1].running_mean, 3.0)


def without_norm(victim):
    victim.backbone[0][1] = nn.Identity()


def another_forward(victim):
    first = victim.backbone[0][0]
    first.forward = lambda x: nn.Conv2d.forward(first, 3 * x)


def hook_on_a_new_module(victim):
    new_head(victim)
    victim.backbone[2].register_forward_hook(lambda _module, _given, out: 2 * out)


class Draws(nn.Module):
    """A head of one's own, which answers differently each time."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + torch.rand(1)


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().requires_grad_(False)


def victim(name="small_cnn"):
    return Victim(lived_in(NETS[name]()), num_classes=5, mean=0.4, std=0.3)


def plain(victim, x):
    return victim.backbone((x - victim.mean) / victim.std)


def norms(network):
    return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize("name", [n if n != "densenet121" else pytest.param(n, marks=pytest.mark.slow) for n in NETS])
def test_same_logits_and_gradients(name):
    """In float64: in float32 a ReLU near its kink may fall to the other side."""
    frozen = victim(name).double()
    size = 16 if name == "small_cnn" else 32
    x = torch.rand(2, 3, size, size, dtype=torch.float64, requires_grad=True)
    ours, theirs = frozen(x), plain(frozen, x)
    torch.testing.assert_close(ours, theirs)
    grads = (torch.autograd.grad(logits.square().sum(), x)[0] for logits in (ours, theirs))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(("name", "left"), [("small_cnn", 0), ("resnet18", 0), ("vgg11", 0)])
def test_every_batch_norm_behind_a_convolution_is_folded(name, left):
    frozen = victim(name)
    assert norms(frozen.backbone) > 0
    assert norms(frozen._network()) == left


def test_the_twin_is_no_part_of_the_victim():
    frozen = victim()
    before = list(frozen.state_dict())
    frozen(torch.rand(1, 3, 16, 16))
    assert list(frozen.state_dict()) == before
    assert norms(frozen) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.load_state_dict({k: t + 0.1 for k, t in v.state_dict().items()}),
        change_weights,
        lambda v: v.double(),
        lambda v: v.backbone.double(),
        assign_state,
        new_head,
        new_weight,
        another_activation,
        normed_weight,
        pruned,
        halved_in_place_of_data,
        new_buffer,
        without_norm,
        another_forward,
        hook_on_a_new_module,
    ],
    ids=lambda change: change.__name__,
)
def test_never_stale(change):
    frozen, x = victim(), torch.rand(2, 3, 16, 16)
    before = frozen(x)
    change(frozen)
    x = x.to(next(frozen.parameters()).dtype)
    torch.testing.assert_close(frozen(x), plain(frozen, x), rtol=1e-4, atol=1e-4)
    if x.dtype == torch.float32:
        assert (frozen(x) - before).abs().max() > 1e-2


def test_a_copy_has_its_own():
    first, x = victim(), torch.rand(2, 3, 16, 16)
    before = first(x)
    second = copy.deepcopy(first)
    change_weights(second)
    assert (second(x) - before).abs().max() > 1e-2
    assert torch.equal(first(x), before)


def test_first_used_under_inference_mode_it_still_has_gradients():
    frozen = victim()
    with torch.inference_mode():
        frozen(torch.rand(1, 3, 16, 16))
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    assert torch.autograd.grad(frozen(x).sum(), x)[0].abs().max() > 0


def test_hooks_are_called():
    frozen, seen = victim(), []
    frozen(torch.rand(1, 3, 16, 16))
    handle = frozen.layer("features.0").register_forward_hook(lambda *_: seen.append(1))
    frozen(torch.rand(1, 3, 16, 16))
    assert seen == [1]
    handle.remove()
    assert norms(frozen._network()) == 0


def test_a_module_of_ones_own_runs_its_own_code():
    """One that draws, or counts, or branches, would be fixed by tracing it."""

    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls = architectures.small_cnn(5, 3, 16), 0

        def forward(self, x):
            self.calls += 1
            return self.net(x)

    frozen = Victim(Mine(), num_classes=5)
    for _ in range(3):
        frozen(torch.rand(1, 3, 16, 16))
    assert frozen.backbone.calls == 3


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_part_of_ones_own_in_a_network_of_ours_runs_its_own_code(when):
    frozen, x = victim(), torch.rand(2, 3, 16, 16)
    if when == "after":
        frozen(x)
    frozen.backbone[2] = Draws(frozen.backbone[2])
    assert not torch.equal(frozen(x), frozen(x))


def test_looking_for_changes_is_cheap():
    """It is done at every call: here that of a network of 18 layers, on one image."""
    folded, x = victim("resnet18")._folded, torch.rand(1, 3, 32, 32)
    twin = folded.fastest()

    def least(work):
        times = []
        for _ in range(10):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        return min(times)

    with torch.no_grad():
        assert least(folded.fastest) < 0.05 * least(lambda: twin(x))
    assert folded.fastest() is twin
