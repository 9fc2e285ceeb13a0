"""What is refused when a mix is built, before any victim is trained: numbers, settings without effect, names."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from redlab.attacks import (
    APGD,
    BPDA,
    DDN,
    EOT,
    FGSM,
    PGD,
    RFGSM,
    RP2,
    AutoAttack,
    Boundary,
    CarliniWagnerL2,
    CarliniWagnerLinf,
    DeepFool,
    FeatureAttack,
    LocalSearch,
    Patch,
    SmoothedPGD,
    SpatialTransform,
    Square,
    Stored,
    WassersteinFrankWolfe,
    WassersteinPGD,
)
from redlab.attacks.project import checked_length
from redlab.crafting import AttackMix, Component


class Untouchable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("a victim was asked")


def guides(*_: Any) -> Tensor:
    raise AssertionError("the data set was read")


def mix_of(attack: Any, **rest: Any) -> AttackMix:
    return AttackMix({"one": Component(attack=attack, **rest)})


# ---------------------------------------------------------------- numbers


X = torch.full((2, 1, 6, 6), 0.5)
Y = torch.tensor([0, 1])


BEYOND = [
    *(FGSM(eps=8), RFGSM(eps=8), PGD(eps=8), APGD(eps=8), AutoAttack(eps=8), Square(eps=8), Patch(size=2, eps=8)),
    *(CarliniWagnerLinf(eps=8), SmoothedPGD(eps=8), EOT(attack=PGD(eps=8)), Stored(attack=PGD(eps=8))),
    *(FeatureAttack(guides=guides, eps=8), FGSM(eps=torch.tensor([0.1, 8.0]))),
]


@pytest.mark.parametrize("attack", BEYOND, ids=lambda attack: type(attack).__name__)
def test_eps_beyond_the_range_of_images(attack: Any) -> None:
    """In a notebook, and when a mix is built."""
    message = "eps must be finite and in [0, 1], got 8; images are in [0, 1]: did you mean 8/255?"
    with pytest.raises(ValueError, match=re.escape(message)):
        attack(Untouchable(), X, Y)
    if not isinstance(getattr(attack, "eps", 8), Tensor):
        with pytest.raises(ValueError, match=r"one\.attack.* eps must|one\.attack\.eps must"):
            mix_of(attack)


@pytest.mark.parametrize(
    "spec", [{"uniform": [4, 8]}, {"choice": [0.1, 8]}, {"integers": [1, 8]}, {"shuffled": [1, 8]}]
)
def test_drawn_eps_beyond_the_range_of_images(spec: dict[str, Any]) -> None:
    least = {"uniform": 4}.get(next(iter(spec)), 8)
    message = rf"one\.params\.eps must be .*\[0, 1\], got {least}; images are in \[0, 1\]: did you mean {least}/255\?"
    for attack in (FGSM(), PGD(), CarliniWagnerLinf(), FeatureAttack(guides=guides)):
        with pytest.raises(ValueError, match=message):
            mix_of(attack, params={"eps": spec})


def test_an_l2_budget_goes_as_far_as_images_do() -> None:
    assert checked_length("eps", 6.0, X, "l2").tolist() == [6.0, 6.0]
    for value in (6.01, torch.tensor([0.1, 6.01])):
        with pytest.raises(
            ValueError, match=r"eps must be .*\[0, 6\], got 6\.01; .* no two of this size are farther apart"
        ):
            checked_length("eps", value, X, "l2")
    mix_of(PGD(norm="l2", eps=3.0, step_size=2.0))
    mix_of(APGD(norm="l2"), params={"eps": {"uniform": [0.5, 20]}})


BAD = [
    (PGD(steps=-3), {}, "one.attack.steps must be finite and in [1, inf], got -3"),
    (PGD(step_size=2), {}, "one.attack.step_size must be finite and in [0, 1], got 2; images are in [0, 1]: did you"),
    (PGD(step_size=-0.1), {}, "one.attack.step_size must be"),
    (RFGSM(alpha=0.5), {}, "one.attack.alpha must not be greater than eps"),
    (FGSM(eps="8/255"), {}, "one.attack.eps must be real numbers, got '8/255'"),
    (SmoothedPGD(sigma=64), {}, "one.attack.sigma must be finite and in [0, 1], got 64"),
    (DDN(gamma=2.0), {}, "one.attack.gamma"),
    (CarliniWagnerL2(c=-1.0), {}, "one.attack.c must"),
    (CarliniWagnerL2(binary_search_steps=0), {}, "one.attack.binary_search_steps"),
    (Patch(size=0), {}, "one.attack.size must be"),
    (Square(queries=0), {}, "one.attack.queries"),
    (Boundary(source_step=-1.0), {}, "one.attack.source_step"),
    (LocalSearch(stretch=3.0), {}, "one.attack.stretch"),
    (SpatialTransform(lr=-1.0), {}, "one.attack.lr"),
    (WassersteinPGD(eps=8), {}, "one.attack.eps must be finite and in [0, 2.82843], got 8"),
    (WassersteinFrankWolfe(entropy=0.0), {}, "one.attack.entropy"),
    (RP2(lr=20), {}, "one.attack.lr must be finite and in [0, 1], got 20"),
    (RP2(mask=9), {}, "one.attack.mask"),
    (EOT(attack=PGD(steps=0)), {}, "one.attack: steps must be finite"),
    (Stored(attack=DeepFool(steps=0)), {}, "one.attack: steps must be finite"),
    (FeatureAttack(guides=guides, steps=0), {}, "one.attack.steps must be"),
    (BPDA(), {}, "one.attack: BPDA attacks a Defended"),
    (PGD(), {"params": {"steps": {"integers": [0, 3]}}}, "one.params.steps must be finite and in [1, inf], got 0"),
    (PGD(), {"params": {"steps": {"uniform": [1, 3]}}}, "one.params.steps must be whole numbers, got torch.float32"),
    (DDN(), {"params": {"steps": {"choice": [5, 0]}}}, "one.params.steps must be"),
    (
        RFGSM(),
        {"params": {"eps": {"uniform": [0.1, 0.2]}, "alpha": {"uniform": [0.05, 0.15]}}},
        "one.params.alpha must not be greater than eps, got 0.15 > 0.1",
    ),
    (PGD(), {"params": {"norm": {"choice": [1, 2]}}}, "one.params.norm must be one of linf, l2"),
    (PGD(), {"params": {"random_start": {"choice": [0, 1]}}}, "one.params: random_start cannot be drawn for each row"),
    (DeepFool(), {"target": "random"}, "one.attack: DeepFool is untargeted"),
    (Boundary(), {"target": 3}, "one.attack: Boundary is untargeted"),
    (PGD, {}, "one.attack must be an attack such as PGD()"),
    ("pgd", {}, "one.attack must be an attack such as PGD(), got 'pgd'"),
]


@pytest.mark.parametrize(("attack", "rest", "message"), BAD, ids=[message[:50] for *_, message in BAD])
def test_bad_settings_of_an_attack(attack: Any, rest: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        mix_of(attack, **rest)


def test_what_only_data_or_a_network_can_tell_is_let_through() -> None:
    mix_of(FeatureAttack(guides=guides, layer="backbone.layer4"))
    mix_of(EOT(attack=FeatureAttack(guides=guides, layer="layer4")))
    mix_of(Patch(size=200), target=999)
    mix_of(Patch(), params={"size": {"choice": [4, 200]}})
    mix_of(RP2(masks=[[[0, 0, 0, 0]]], canvas=300))
    mix_of(BPDA(), knowledge="defence")
    mix_of(PGD(), knowledge="defence", gradient="bpda")
    mix_of(PGD(), knowledge="defence", gradient={"eot": 4})

    def own(model: nn.Module, x: Tensor, y: Tensor, *, target: Any = None, rng: Any = None) -> Tensor:
        return nn.functional.conv2d(x, torch.ones(3, 3, 1, 1))  # for three channels

    mix_of(own)


def test_building_a_mix_leaves_the_random_state() -> None:
    state = torch.get_rng_state()

    def own(model: nn.Module, x: Tensor, y: Tensor, *, target: Any = None, rng: Any = None) -> Tensor:
        return torch.rand_like(x)

    mix_of(own)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_the_data_tell() -> None:
    facts: dict[str, Any] = {"channels": 3, "image_size": 32, "num_classes": 10}
    mix_of(Patch(size=32)).check(["a"], **facts)
    with pytest.raises(ValueError, match=r"one\.attack\.size must be finite and in \[1, 32\], got 33"):
        mix_of(Patch(size=33)).check(["a"], **facts)
    with pytest.raises(ValueError, match=r"one\.params\.size must be finite and in \[1, 32\], got 64"):
        mix_of(Patch(), params={"size": {"choice": [4, 64]}}).check(["a"], **facts)
    with pytest.raises(ValueError, match=r"one\.attack\.eps must be finite and in \[0, 55\.4256\], got 60"):
        mix_of(PGD(norm="l2", eps=60)).check(["a"], **facts)
    with pytest.raises(ValueError, match=r"one\.target=10 does not exist: there are 10 classes"):
        mix_of(PGD(), target=10).check(["a"], **facts)
    with pytest.raises(ValueError, match="'one' attacks the unknown victim 'b'"):
        mix_of(PGD(), victims=["b"]).check(["a"])
    mix_of(Patch(size=33)).check(["a"], num_classes=10)


# ---------------------------------------------------------------- settings without effect


def test_a_value_that_params_draw_cannot_be_set_as_well() -> None:
    eps = {"eps": {"uniform": [0.01, 0.02]}}
    message = "one.attack.eps=0.1 has no effect, since one.params.eps draws it: set that, or take it out of params"
    with pytest.raises(ValueError, match=re.escape(message)):
        mix_of(PGD(eps=0.1), params=eps)
    mix_of(PGD(), params=eps)  # its default is what anybody has who said nothing
    mix_of(CarliniWagnerLinf(eps=None), params=eps)
    mix_of(PGD(), params={"step_size": {"uniform": [0.01, 0.02]}})


@pytest.mark.parametrize(
    ("components", "options", "message"),
    [
        ({"one": Component(attack=FGSM(), weight=3)}, {"deal": "all"}, "one.weight=3 has no effect where deal=all"),
        ({"one": Component(attack=FGSM(), gradient="bpda")}, {}, "one.gradient='bpda' has no effect"),
        ({"clean": Component(attack=None, target=3)}, {}, "clean.target=3 has no effect"),
        ({"clean": Component(attack=None, knowledge="defence")}, {}, "clean.knowledge='defence' has no effect"),
        ({"clean": Component(attack=None, gradient="bpda")}, {}, "clean.gradient='bpda' has no effect"),
        ({}, {"quantize": 8}, "quantize=8 has no effect in a mix without an attack"),
        ({}, {"only_fooled": True}, "only_fooled has no effect in a mix without an attack"),
        (
            {"one": Component(attack=FGSM())},
            {"rounding": "nearest"},
            "rounding='nearest' has no effect without quantize",
        ),
    ],
)
def test_settings_without_effect(components: dict[str, Component], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        AttackMix(components, **options)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["pgd 8/255", "", " ", "pgd ", "pgd\nfgsm", "a\tb", "$x$", "all attacks", "no attack"])
def test_names_that_break_a_key_or_a_table(name: str) -> None:
    with pytest.raises(ValueError, match="the name of a component must") as refused:
        AttackMix({name: Component(attack=FGSM())})
    assert repr(name) in str(refused.value)
    mix = AttackMix({"fgsm": Component(attack=FGSM())})
    with pytest.raises(ValueError, match="the name of a victim must"):
        mix.cells(["a", name])
    with pytest.raises(ValueError, match="the name of a victim must"):
        mix.check([name])


def test_names_that_are_one_once_they_are_text() -> None:
    with pytest.raises(ValueError, match="different names"):
        AttackMix({"1": Component(attack=FGSM()), 1: Component(attack=PGD())})  # type: ignore[dict-item]
