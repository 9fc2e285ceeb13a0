"""What an attack promises by being a `GuardedAttack`, shown by subclasses that would break every promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from redlab.attacks import PGD, FeatureAttack, SampleRng
from redlab.attacks.base import GuardedAttack

X = torch.rand(4, 3, 6, 5, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
Y = torch.tensor([0, 1, 2, 0])


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(48, 3))


@dataclass(frozen=True, kw_only=True)
class Does(GuardedAttack):
    """An attack that does what it is told to."""

    act: Callable[..., Any]
    eps: float | Tensor | None = None
    norm: str = "linf"

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Any:
        return self.act(model, x, y, target, rng)


def shifted(x: Tensor, by: float, row: int = 2) -> Tensor:
    """One pixel of one row moved."""
    x = x.clone()
    x[row, 0, 3, 1] += by
    return x


BAD_RESULTS = {
    "below": (lambda x: x - 1.0, "the result of Does must be in .* -0.7"),
    "above": (lambda x: x + 1.0, "outside"),
    "nan": (lambda x: x.where(x > 0.5, torch.nan), "nan"),
    "float64": (lambda x: x.double(), "float64"),
    "fewer rows": (lambda x: x[:3], r"\(4, 3, 6, 5\) on cpu like the images, got \(3, 3, 6, 5\)"),
    "another size": (lambda x: x[..., :4], r"got \(4, 3, 6, 4\)"),
    "with a cost": (lambda x: (x + 1.0, Y), "outside"),
}


@pytest.mark.parametrize(("change", "message"), BAD_RESULTS.values(), ids=BAD_RESULTS)
def test_a_result_is_checked_like_an_input(change: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Does(act=lambda model, x, *_: change(x))(network(), X, Y)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [0.1, torch.tensor([0.2, 0.2, 0.1, 0.0])], ids=["number", "per row"])
def test_a_result_outside_the_ball(norm: str, eps: float | Tensor) -> None:
    def to(by: float) -> Tensor:
        return Does(act=lambda model, x, *_: shifted(x, by), eps=eps, norm=norm)(network(), X, Y)

    assert torch.equal(to(0.1), shifted(X, 0.1))
    with pytest.raises(ValueError, match=rf"the result of Does must be within eps=0.1 in {norm}, row 2 is 0.1001 away"):
        to(0.1001)


def test_an_l2_ball_is_more_than_its_pixels() -> None:
    def act(model: nn.Module, x: Tensor, *_: Any) -> Tensor:
        return x + 0.05

    assert torch.equal(Does(act=act, eps=0.05)(network(), X, Y), X + 0.05)
    with pytest.raises(ValueError, match=r"eps=0.05 in l2, row \d is 0.474\d* away"):
        Does(act=act, eps=0.05, norm="l2")(network(), X, Y)


def test_rounding_is_not_taken_for_leaving_the_ball() -> None:
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    for norm, eps, order in (("linf", 1e-3, torch.inf), ("l2", 1e-3, 2.0), ("l2", 50.0, 2.0)):
        length = torch.linalg.vector_norm(step, ord=order, dim=(1, 2, 3), keepdim=True)
        found = (x + step * (eps / length)).clamp(0, 1)
        Does(act=lambda *_, found=found: found, eps=eps, norm=norm)(nn.Flatten(), x, Y[:2])


def rude(model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
    for module in model.modules():
        module.train(not module.training)
    for p in model.parameters():
        p.requires_grad_(not p.requires_grad)
    torch.manual_seed(7)
    torch.rand(3)
    return x.clone()


def breaks(*arguments: Any) -> Tensor:
    rude(*arguments)
    raise KeyError("the attack broke")


@pytest.mark.parametrize("act", [rude, breaks])
def test_a_subclass_that_alters_the_model(act: Callable[..., Tensor]) -> None:
    model = network().train()
    model[1].eval()
    model[0].bias.requires_grad_(False)

    def state() -> list[Any]:
        modes, needed = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
        return [modes, needed, torch.get_rng_state().tolist()]

    before = state()
    if act is breaks:
        with pytest.raises(KeyError):
            Does(act=act)(model, X, Y)
    else:
        Does(act=act)(model, X, Y)
    assert state() == before


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_what_craft_is_given(context: Callable[[], Any]) -> None:
    seen: dict[str, Any] = {}

    def act(model: nn.Module, x: Tensor, y: Tensor, target: Tensor, rng: SampleRng) -> Tensor:
        seen.update(x=x, y=y, target=target, index=rng.index, rng=rng)
        assert torch.is_grad_enabled()
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        point = x.requires_grad_(False).clone().requires_grad_()
        return point * (1.0 + 0.0 * model(point).sum())

    model = network()
    with context():
        x_adv = Does(act=act)(model, X.clone(), Y.clone(), target=(Y + 1) % 3)
    assert not any(t.is_inference() for t in (x_adv, *(seen[name] for name in ("x", "y", "target", "index"))))
    assert not x_adv.requires_grad
    assert (seen["rng"].seed, seen["rng"].stage, seen["rng"].epoch) == (0, "test", 0)
    assert seen["index"].tolist() == [0, 1, 2, 3]


@dataclass(frozen=True, kw_only=True)
class Unaimed(Does):
    targeted: ClassVar[bool] = False


def never(*_: Any) -> Tensor:
    raise AssertionError("crafted all the same")


def test_bad_input_never_reaches_craft() -> None:
    with pytest.raises(ValueError, match=r"Unaimed is untargeted, got target \[1, 2, 0\]"):
        Unaimed(act=never)(network(), X, Y, target=(Y + 1) % 3)
    for x, y, target, rng, message in (
        (X + 1.0, Y, None, None, "outside"),
        (X, Y.float(), None, None, "float32"),
        (X, Y, Y, None, "got 0 for both"),
        (X, Y, None, SampleRng(0, "test", 0, torch.arange(3)), "3 indices for 4"),
    ):
        with pytest.raises(ValueError, match=message):
            Does(act=never)(network(), x, y, target=target, rng=rng)
    with pytest.raises(ValueError, match="a model must be"):
        Does(act=never)("a name", X, Y)  # type: ignore[arg-type]


def test_the_cost_of_a_run() -> None:
    x_adv, cost = Does(act=lambda model, x, y, *_: (x.clone(), y + 5)).run(network(), X, Y)
    assert torch.equal(x_adv, X)
    assert cost is not None
    assert cost.tolist() == [5, 6, 7, 5]
    assert PGD(steps=1).run(network(), X, Y)[1] is None


def test_a_base_without_crafting_is_no_attack() -> None:
    with pytest.raises(TypeError, match="craft"):
        GuardedAttack()  # type: ignore[abstract]


def test_a_function_has_no_layers() -> None:
    net = network().eval()
    with pytest.raises(ValueError, match=r"looks into a torch.nn.Module, got function"):
        FeatureAttack(guides=X)(lambda x: net(x), X, Y)  # type: ignore[arg-type]
