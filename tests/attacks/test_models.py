"""What a model may be: whatever answers images with logits, however it is made; the rest is refused with a remedy."""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from redlab.attacks import (
    APGD,
    BPDA,
    DDN,
    EOT,
    FAB,
    FGSM,
    PGD,
    RP2,
    AutoAttack,
    Boundary,
    CarliniWagnerL2,
    DeepFool,
    Defended,
    FeatureAttack,
    LocalSearch,
    Patch,
    SmoothedPGD,
    SpatialTransform,
    Square,
    WassersteinPGD,
)
from redlab.crafting import AttackMix, Component
from redlab.victims import Victim

BY_GRADIENT = {
    "fgsm": FGSM(eps=0.1),
    "pgd": PGD(eps=0.1, steps=3),
    "apgd": APGD(eps=0.1, steps=3),
    "cw": CarliniWagnerL2(c=10.0, steps=3, binary_search_steps=1),
    "deepfool": DeepFool(steps=3),
    "fab": FAB(steps=2),
    "ddn": DDN(steps=3),
    "autoattack": AutoAttack(eps=0.1, steps=2, queries=3, targets=1),
    "rp2": RP2(masks=[[[0, 1, 0, 1]]], canvas=4, steps=2),
    "spatial": SpatialTransform(steps=2),
    "wasserstein": WassersteinPGD(steps=1, window=3, dual_steps=3),
}
BLACK_BOXES = {
    "square": Square(eps=0.1, queries=5),
    "boundary": Boundary(steps=5, starts=20),
    "local_search": LocalSearch(steps=2, candidates=8),
}
ALL = BY_GRADIENT | BLACK_BOXES
CORE = ("pgd", "autoattack", "local_search")  # the others are marked slow


def over(attacks: dict[str, Any], core: tuple[str, ...] = CORE) -> pytest.MarkDecorator:
    marks = {name: () if name in core else (pytest.mark.slow,) for name in attacks}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks[name], id=name) for name in attacks])


every, by_gradient, black_box = over(ALL), over(BY_GRADIENT), over(BLACK_BOXES)

X = torch.rand(4, 3, 6, 5, generator=torch.Generator().manual_seed(0))


def network(activation: nn.Module | None = None) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), activation or nn.Tanh(), nn.Dropout(), nn.Flatten()]
        net = nn.Sequential(*body, nn.Linear(48, 3)).eval()
    with torch.no_grad():
        net[-1].weight.mul_(5)
        net[-1].bias.sub_(net(X).mean(0))
    return net


NET = network()
with torch.no_grad():
    Y = NET(X).argmax(1)


@functools.cache
def expected(name: str) -> Tensor:
    """What the attack makes of the plain network."""
    return ALL[name](NET, X, Y)  # type: ignore[no-any-return]


class Calls(nn.Module):
    """A model that is what a function makes of a network."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any], net: nn.Module = NET) -> None:
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.net, x)


def writes(net: nn.Module, x: Tensor) -> Tensor:
    """Normalises in place, as many a script does, and asks a network that undoes it."""
    return net(x.sub_(7.0).div_(0.5) * 0.5 + 7.0)


def writes_without_gradient(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        x.sub_(7.0)
    return net(x + 7.0)


def writes_past_autograd(net: nn.Module, x: Tensor) -> Tensor:
    x.data.sub_(7.0)
    return net(x + 7.0)


WRITERS = {f.__name__: Calls(f) for f in (writes, writes_without_gradient, writes_past_autograd)}


@pytest.mark.parametrize("model", WRITERS.values(), ids=WRITERS)
@every
def test_a_model_that_writes_into_its_input(name: str, model: nn.Module) -> None:
    x = X.clone()
    x_adv = ALL[name](model, x, Y)
    assert torch.equal(x, X)
    torch.testing.assert_close(x_adv, expected(name), rtol=0, atol=1e-3)


@every
def test_a_first_layer_that_works_in_place(name: str) -> None:
    """With gradients torch itself refuses a leaf that is written to, and without it is written to."""
    first, x = nn.Sequential(nn.Hardtanh(0.2, 0.8, inplace=True), NET), X.clone()
    x_adv = ALL[name](first, x, Y)
    assert torch.equal(x, X)
    torch.testing.assert_close(x_adv, ALL[name](nn.Sequential(nn.Hardtanh(0.2, 0.8), NET), X, Y))


class Keeps(nn.Module):
    """A defence that does nothing, but to the tensor it is given."""

    def restore(self, x: Tensor) -> Tensor:
        return x


class Overwrites(nn.Module):
    def restore(self, x: Tensor) -> Tensor:
        return x.mul_(0.5).add_(0.25)


class Halves(nn.Module):
    def restore(self, x: Tensor) -> Tensor:
        return x * 0.5 + 0.25


INSIDE = {
    "defended": lambda net: PGD(eps=0.1, steps=2)(Defended(Keeps(), net), X.clone(), Y),
    "bpda": lambda net: BPDA(attack=PGD(eps=0.1, steps=2))(Defended(Keeps(), net), X.clone(), Y),
    "eot": lambda net: EOT(attack=PGD(eps=0.1, steps=2), samples=2)(net, X.clone(), Y),
    "smoothed": lambda net: SmoothedPGD(eps=0.1, steps=2, samples=2, sigma=0.1)(net, X.clone(), Y),
    "patch": lambda net: Patch(size=3, steps=2, eps=0.1)(net, X.clone(), Y),
    "feature": lambda net: FeatureAttack(guides=1 - X, layer="", steps=2)(net, X.clone(), Y),
}


@pytest.mark.parametrize("attack", INSIDE.values(), ids=INSIDE)
@pytest.mark.parametrize("model", WRITERS.values(), ids=WRITERS)
def test_writing_inside_a_wrapper(attack: Any, model: nn.Module) -> None:
    torch.testing.assert_close(attack(model), attack(Calls(lambda net, x: net(x))), rtol=0, atol=1e-3)


@pytest.mark.parametrize("wrapper", [lambda attack: attack, lambda attack: BPDA(attack=attack)], ids=["exact", "bpda"])
def test_a_restorer_that_writes_into_its_input(wrapper: Any) -> None:
    x, attack = X.clone(), wrapper(PGD(eps=0.1, steps=2))
    x_adv = attack(Defended(Overwrites(), NET), x, Y)
    assert torch.equal(x, X)
    assert torch.equal(x_adv, attack(Defended(Halves(), NET), x, Y))


@pytest.mark.parametrize("target", [None, 1, "least_likely"])
def test_a_mix_with_a_model_that_writes_into_its_input(target: Any) -> None:
    mix = AttackMix({"pgd": Component(attack=PGD(eps=0.3, steps=2), target=target)})
    plan = mix.plan(torch.arange(4), torch.arange(4), stage="test", epoch=0, victim_names=["net"])
    expected = mix.craft({"net": NET}, X.clone(), Y, plan, want_fooled=True)
    x = X.clone()
    found = mix.craft({"net": WRITERS["writes"]}, x, Y, plan, want_fooled=True)
    assert torch.equal(x, X)
    assert torch.equal(found.clean, X)
    torch.testing.assert_close(found.adv, expected.adv, rtol=0, atol=1e-3)
    assert torch.equal(found.fooled, expected.fooled)
    assert torch.equal(found.target, expected.target)


def test_a_mix_checks_the_results_of_any_attack() -> None:
    mix = AttackMix({"mine": Component(attack=lambda model, x, y, target=None, rng=None: x - 2.0)})
    plan = mix.plan(torch.arange(4), torch.arange(4), stage="test", epoch=0, victim_names=["net"])
    with pytest.raises(ValueError, match=r"adv must be in \[0, 1\], got values from -1\.99"):
        mix.craft({"net": NET}, X, Y, plan)


# What models answer with.


class Output(OrderedDict[str, Tensor]):
    """Like that of a library for transformers: a dict whose entries are attributes as well."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


def answers_function(x: Tensor) -> Tensor:
    return NET(x)


class Caller:
    """No module, but it can be called."""

    def __init__(self) -> None:
        self.nets = [NET]

    def __call__(self, x: Tensor) -> Tensor:
        return self.nets[0](x)

    def predict(self, x: Tensor) -> Tensor:
        return self(x)


def compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")  # type: ignore[return-value]


@functools.cache
def scripted(kind: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out
        if kind == "trace":
            return torch.jit.trace(network(), X)  # type: ignore[no-any-return]
        script = torch.jit.script(network())
        return script if kind == "script" else torch.jit.freeze(script)  # type: ignore[no-any-return]


SAME: dict[str, Callable[[], Any]] = {
    "object with logits": lambda: Calls(lambda net, x: SimpleNamespace(logits=net(x), loss=None)),
    "dict with logits": lambda: Calls(lambda net, x: {"features": x, "logits": net(x)}),
    "output of transformers": lambda: Calls(lambda net, x: Output(loss=x.mean(), logits=net(x))),
    "function": lambda: answers_function,
    "lambda that picks": lambda: lambda x: (NET(x), x)[0],
    "partial": lambda: functools.partial(lambda net, x: net(x), NET),
    "method": lambda: Caller().predict,
    "object": Caller,
    "method of the module": lambda: NET.forward,
    "script": lambda: scripted("script"),
    "trace": lambda: scripted("trace"),
    "frozen script": lambda: scripted("freeze"),
    "fx": lambda: torch.fx.symbolic_trace(network()),
    "checkpoint": lambda: Calls(lambda net, x: checkpoint(net, x, use_reentrant=False)),
    "data parallel": lambda: nn.DataParallel(network()),
    "weight norm": lambda: weight_normed(),
    "logits of another type": lambda: Calls(lambda net, x: net(x).double()),
}


def weight_normed() -> nn.Module:
    net = network()
    nn.utils.parametrizations.weight_norm(net[0])
    return net


@pytest.mark.parametrize("make", SAME.values(), ids=SAME)
@every
def test_models_that_are_the_same_network(name: str, make: Callable[[], Any]) -> None:
    torch.testing.assert_close(ALL[name](make(), X, Y), expected(name), rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile's own, which it hides elsewhere
def test_a_compiled_module() -> None:
    for attack in (PGD(eps=0.1, steps=2), Square(eps=0.1, queries=5)):
        torch.testing.assert_close(attack(compiled(network()), X, Y), attack(NET, X, Y), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@every
def test_weights_of_another_type(name: str, dtype: torch.dtype) -> None:
    """The images get the type of the weights; on 8-bit images the answers are near enough for an attack to work."""
    model = network().to(dtype)
    x_adv = ALL[name](model, X, Y)
    assert x_adv.dtype == torch.float32
    if dtype == torch.float64 and name != "wasserstein":  # which is not good at so few steps
        torch.testing.assert_close(x_adv, expected(name), rtol=0, atol=1e-3)
    if "eps" in vars(ALL[name]) and name != "wasserstein":
        assert (x_adv - X).abs().amax() <= 0.1 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_victim_around_weights_of_another_type(dtype: torch.dtype) -> None:
    victim = Victim(network().to(dtype), num_classes=3, mean=0.4, std=0.3)
    own = Victim(network(), num_classes=3, mean=0.4, std=0.3)
    torch.testing.assert_close(victim(X).float(), own(X), rtol=0, atol=0.2)
    assert not torch.equal(PGD(eps=0.1, steps=2)(victim, X, Y), X)


ONE_LOGIT = r"one logit per image, \(4{}\), .* lambda x: torch.cat"
CUT = "do not depend on the images by autograd .* black box such as Square, or BPDA"
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "tuple": (lambda: Calls(lambda net, x: (net(x), x)), r"got tuple; .* lambda x: model\(x\)\[0\]"),
    "list": (lambda: Calls(lambda net, x: [net(x)]), "got list; "),
    "dict": (lambda: Calls(lambda net, x: {"out": net(x), "aux": x}), "got dict with out, aux; "),
    "numpy": (lambda: Calls(lambda net, x: net(x.detach()).numpy()), "got ndarray; "),
    "none": (lambda: Calls(lambda net, x: None), "got NoneType; "),
    "one column": (lambda: Calls(lambda net, x: net(x)[:, :1]), ONE_LOGIT.format(", 1")),
    "no column": (lambda: Calls(lambda net, x: net(x)[:, 0]), ONE_LOGIT.format(",")),
    "a map of logits": (lambda: Calls(lambda net, x: net(x)[:, :, None]), r"\(4, 3, 1\)"),
    "nan": (lambda: Calls(lambda net, x: net(x) * torch.nan), "not finite .* in 4 rows"),
    "nan in one row": (lambda: Calls(lambda net, x: net(x) + nan_in_row_2(x)), "not finite .* in 1 rows"),
    "minus infinity": (lambda: Calls(lambda net, x: net(x) - 1e38 * 1e38), "not finite .* with -1e9 instead of -inf"),
    "no model": (lambda: "net", "module or a function, .* got str"),
}


def nan_in_row_2(x: Tensor) -> Tensor:
    """In the only row, where an attack asks row by row."""
    return torch.where(torch.arange(len(x)) == min(2, len(x) - 1), torch.nan, 0.0)[:, None]


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
@over(ALL, (*CORE, "boundary"))  # which asks the model once here
def test_models_that_no_attack_can_ask(name: str, make: Callable[[], Any], message: str) -> None:
    if name == "wasserstein":  # asks row by row, and says so
        message = message.replace("4", "1")
    with pytest.raises(ValueError, match=message):
        ALL[name](make(), X, Y)


def no_grad(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x)


def inference(net: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return net(x)


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return network()


class Unseen:
    """Hides its network from everybody, so that its weights stay as they are."""

    __slots__ = ("_net",)

    def __init__(self, net: nn.Module) -> None:
        self._net = net

    def __call__(self, x: Tensor) -> Tensor:
        return self._net(x.detach())


UNDIFFERENTIABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "no_grad": (lambda: Calls(no_grad), CUT),
    "inference_mode": (lambda: Calls(inference), CUT),
    "detach": (lambda: Calls(lambda net, x: net(x).detach()), CUT),
    "detached images": (lambda: lambda x: NET(x.detach()), CUT),
    "decisions": (lambda: Calls(lambda net, x: nn.functional.one_hot(net(x).argmax(1), 3)), CUT),
    "from numpy": (lambda: Calls(lambda net, x: torch.from_numpy(net(x).detach().numpy().copy())), CUT),
    "made in inference mode": (made_in_inference_mode, "made inside torch.inference_mode"),
    "re-entrant": (lambda: Calls(lambda net, x: checkpoint(net, x, use_reentrant=True)), "set use_reentrant=False"),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(("make", "message"), UNDIFFERENTIABLE.values(), ids=UNDIFFERENTIABLE)
@by_gradient
def test_models_without_a_gradient(name: str, make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ALL[name](make(), X, Y)


def test_a_function_that_hides_its_network() -> None:
    """Its weights want gradients, so that only the backward pass finds out."""
    with pytest.raises(ValueError, match=CUT):
        PGD()(Unseen(NET), X, Y)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # what re-entrant checkpoints say
@pytest.mark.parametrize("make", [make for make, _ in UNDIFFERENTIABLE.values()], ids=UNDIFFERENTIABLE)
@black_box
def test_black_boxes_need_nothing_but_the_call(name: str, make: Callable[[], Any]) -> None:
    model = make()
    with torch.no_grad():
        decisions = not model(X).is_floating_point()
    x_adv = ALL[name](model, X, Y)
    if not decisions or name == "boundary":  # which asks for no more
        torch.testing.assert_close(x_adv, expected(name), rtol=0, atol=1e-5)


def test_a_defence_without_a_gradient_is_pointed_to_bpda() -> None:
    class Jpeg(nn.Module):
        @torch.no_grad()
        def restore(self, x: Tensor) -> Tensor:
            return (x * 7).round() / 7

    defended = Defended(Jpeg(), NET)
    with pytest.raises(ValueError, match=CUT):
        PGD()(defended, X, Y)
    assert not torch.equal(BPDA(attack=PGD(steps=2))(defended, X, Y), X)


def test_a_function_around_a_network_in_train_mode_leaves_no_trace() -> None:
    net = network().train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    helpers: dict[str, Callable[[Tensor], Any]] = {
        "closure": lambda x: net(x),
        "list": lambda x, nets=[net]: sum(n(x) for n in nets),
        "method": net.forward,
    }
    for model in helpers.values():
        for attack in (FGSM(eps=0.1), Square(queries=3)):
            torch.testing.assert_close(attack(model, X, Y), attack(NET, X, Y))
            assert net.training
            assert all(p.requires_grad and p.grad is None for p in net.parameters())
            for name, t in net.state_dict().items():
                assert torch.equal(t, before[name])


def test_not_finite_logits_that_it_is_slow_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU they are counted, and named once at the end; here that is a device that claims not to be the CPU."""
    monkeypatch.setattr("redlab.attacks.guard._SLOW_TO_ASK", {"cpu"})
    asked: list[int] = []

    def counted(net: nn.Module, x: Tensor) -> Tensor:
        asked.append(len(x))
        return net(x) + nan_in_row_2(x)

    with pytest.raises(ValueError, match=r"not finite .* in 4 rows"):
        PGD(eps=0.1, steps=3)(Calls(counted), X, Y)
    assert len(asked) == 4
