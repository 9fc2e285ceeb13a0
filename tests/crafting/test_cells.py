"""Settings, labels, controls, and attackers who know the defence: what is dealt, crafted and measured of them."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from redlab.attacks import (
    EOT,
    FGSM,
    PGD,
    Boundary,
    CarliniWagnerLinf,
    DeepFool,
    GaussianNoise,
    Patch,
    SampleRng,
    SmoothedPGD,
)
from redlab.batch import AttackBatch
from redlab.crafting import AttackMix, Cell, Component

K, SHAPE = 4, (1, 6, 6)


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.hidden = nn.Parameter(torch.randn(36, 16, generator=g) / 2)
        self.out = nn.Parameter(2 * torch.randn(16, K, generator=g))
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return torch.tanh((x - 0.5).flatten(1) @ self.hidden) @ self.out


def data(n: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, *SHAPE, generator=g), torch.randint(K, (n,), generator=g)


def craft(mix: AttackMix, n: int = 24, cell: Cell | None = None, stage: str = "train", **kw: Any) -> AttackBatch:
    x, y = data(n)
    rows, victims = torch.arange(n), {"a": Net(0), "b": Net(1)}
    plan = mix.plan(rows, rows, stage=stage, epoch=1, victim_names=victims, cell=cell)
    return mix.craft(victims, x, y, plan, **kw)


def one(attack: Any, **kw: Any) -> AttackMix:
    return AttackMix({"one": Component(attack=attack, **kw)})


# ---------------------------------------------------------------- settings

SETTINGS = [
    {"eps": 4 / 255, "steps": 2, "random_start": True, "norm": "linf"},
    {"eps": 16 / 255, "steps": 5, "random_start": False, "norm": "linf"},
    {"eps": 0.7, "steps": 3, "random_start": True, "norm": "l2"},
]


@pytest.mark.parametrize("deal", ["random", "stratified", "all"])
def test_each_row_of_a_training_batch_has_one_of_the_settings(deal: Any) -> None:
    """Rows equal those of the attack called apart; strings and bools can be set too."""
    mix = AttackMix({"one": Component(attack=PGD(), settings=SETTINGS), "other": Component(attack=FGSM())}, deal=deal)
    batch = craft(mix, 48)
    x, y = data(48)
    mine = batch.attack == 1
    assert set(batch.setting[mine].tolist()) == {0, 1, 2}
    assert set(batch.setting[~mine].tolist()) == {0}
    for i in mine.nonzero()[:, 0].tolist():
        row = batch.index[i : i + 1]
        rng = SampleRng(0, "train", 1, row).fork("one")
        alone = PGD(**SETTINGS[int(batch.setting[i])])(Net(int(batch.victim[i])), x[row], y[row], rng=rng)  # type: ignore[arg-type]
        torch.testing.assert_close(batch.adv[i : i + 1], alone, atol=1e-6, rtol=0)


def test_the_setting_of_a_row_is_its_own_draw() -> None:
    mix = one(FGSM(), settings=[{"eps": 0.1}, {"eps": 0.2}, {"eps": 0.3}])
    rows = torch.arange(6000)
    kw: dict[str, Any] = {"stage": "train", "victim_names": ["a", "b"]}
    setting = mix.plan(rows, rows, epoch=1, **kw).setting
    assert min(Counter(setting.tolist()).values()) > 1900
    assert 0.3 < float((mix.plan(rows, rows, epoch=2, **kw).setting == setting).float().mean()) < 0.37
    order = torch.randperm(6000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mix.plan(order, rows, epoch=1, **kw).setting, setting[order])


def test_settings_do_not_change_what_else_is_dealt() -> None:
    params = {"step_size": {"uniform": [0.01, 0.1]}}
    with_, without = (one(PGD(), params=params, settings=s) for s in ([{"eps": 0.1}, {"eps": 0.2}], ()))
    rows = torch.arange(50)
    kw: dict[str, Any] = {"stage": "train", "epoch": 3, "victim_names": ["a", "b"]}
    a, b = with_.plan(rows, rows, **kw), without.plan(rows, rows, **kw)
    assert torch.equal(a.victim, b.victim)
    assert torch.equal(a.params["one"]["step_size"], b.params["one"]["step_size"])


def test_an_evaluation_walks_each_setting_as_a_cell() -> None:
    mix = AttackMix({"one": Component(attack=FGSM(), settings=[{"eps": 0.1}, {"eps": 8 / 255}], victims=["b"])})
    cells = mix.cells(["a", "b"], adaptive=False)
    assert cells == [Cell(0, 0, 0, 0), Cell(0, 0, 1, 0), Cell(1, 0, 1, 0), Cell(1, 1, 1, 0)]
    for cell, eps in zip(cells[2:], (0.1, 8 / 255), strict=True):
        batch = craft(mix, 12, cell, stage="test")
        assert batch.setting.tolist() == [cell.setting] * 12
        torch.testing.assert_close((batch.adv - batch.clean).abs().amax((1, 2, 3)), torch.full((12,), eps))
    with pytest.raises(ValueError, match="is not a cell"):
        craft(mix, 12, Cell(1, 2, 1, 0))


def test_settings_have_names_to_print() -> None:
    settings: list[dict[str, Any]] = [
        {"eps": 8 / 255, "steps": 20, "norm": "linf"},
        {"eps": 1.5 / 255, "steps": 10, "norm": "linf"},
        {"eps": 0.03, "steps": 10, "norm": "l2"},
        {"eps": 0.1234567, "steps": 10, "norm": "l2"},
    ]
    mix = AttackMix({"one": Component(attack=PGD(), settings=settings), "two": Component(attack=FGSM())})
    assert mix.setting_names(1) == (
        "eps=8/255 steps=20 norm=linf",
        "eps=1.5/255 steps=10 norm=linf",
        "eps=0.03 steps=10 norm=l2",
        "eps=0.1234567 steps=10 norm=l2",
    )
    assert mix.setting_names(0) == mix.setting_names(2) == ()


@pytest.mark.parametrize(
    ("attack", "rest", "message"),
    [
        (PGD(), {"settings": [{"epss": 1}]}, "'one' sets the unknown parameter 'epss'; did you mean 'eps'?"),
        (PGD(), {"settings": [{"eps": 0.1}, {"steps": 3}]}, "groups of the same parameters each, got {'steps': 3}"),
        (PGD(), {"settings": [{}]}, "groups of the same parameters each, got {}"),
        (PGD(), {"settings": [3]}, "groups of the same parameters each, got 3"),
        (PGD(), {"settings": {"eps": 0.1}}, "one.settings must be a list"),
        (PGD(), {"settings": "eps"}, "one.settings must be a list"),
        (PGD(), {"settings": [{"eps": 0.1}, {"eps": 0.1}]}, "one.settings must differ from each other"),
        (PGD(), {"settings": [{"eps": 0.1}, {"eps": 8}]}, "one.settings[1].eps must be finite and in [0, 1], got 8"),
        (PGD(), {"settings": [{"norm": "l3"}]}, "one.settings[0].norm must be one of"),
        (PGD(), {"settings": [{"steps": "many"}]}, "one.settings[0].steps must be whole numbers"),
        (PGD(eps=0.2), {"settings": [{"eps": 0.1}]}, "one.attack.eps=0.2 has no effect, since one.settings set it"),
        (
            PGD(),
            {"settings": [{"eps": 0.1}], "params": {"eps": {"choice": [0.1, 0.2]}}},
            "one.params.eps has no effect, since one.settings set eps",
        ),
        (lambda *_: None, {"settings": [{"eps": 0.1}]}, "unknown parameter 'eps'"),
    ],
)
def test_settings_that_make_no_sense(attack: Any, rest: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        one(attack, **rest)
    if isinstance(rest["settings"], list):
        with pytest.raises(ValueError, match=r"'eps'|'epss'|'norm'|'steps'|settings"):
            AttackMix({"clean": Component(attack=None, settings=rest["settings"])})


# ---------------------------------------------------------------- labels


def test_an_attack_can_start_from_what_the_model_says() -> None:
    x, y = data(40)
    net = Net(0)
    said = net(x).argmax(1)
    assert 5 < int((said == y).sum()) < 35
    for attack, target in ((FGSM(eps=0.1), None), (DeepFool(), None), (PGD(steps=2), "random"), (PGD(steps=2), 1)):
        mix = AttackMix({"one": Component(attack=attack, label="predicted", target=target, victims=["a"])})
        batch = craft(mix, 40, want_fooled=True)
        aim = None if target is None else batch.target
        rng = SampleRng(0, "train", 1, torch.arange(40)).fork("one")
        torch.testing.assert_close(batch.adv, attack(net, x, said, target=aim, rng=rng), atol=1e-6, rtol=0)
        assert torch.equal(batch.label, y)
        if target is not None:
            assert not bool((batch.target == said).any())
        else:  # whoever was wrong before has not been fooled
            assert torch.equal(batch.fooled, (said == y) & (net(batch.adv).argmax(1) != y))


def test_rounding_keeps_what_an_attack_from_the_prediction_won() -> None:
    net, x = Net(0), data(60)[0]
    said = net(x).argmax(1)
    components = {"one": Component(attack=DeepFool(), label="predicted", victims=["a"])}
    left = {}
    for rounding in ("nearest", "fooling"):
        batch = craft(AttackMix(components, quantize=8, rounding=rounding), 60)  # type: ignore[arg-type]
        left[rounding] = int((net(batch.adv).argmax(1) != said).sum())
    assert left["fooling"] == 60 > left["nearest"]


# ---------------------------------------------------------------- attackers who know the defence


@pytest.mark.parametrize(
    ("components", "eps"),
    [
        ({"a": Component(attack=FGSM(eps=0.1)), "b": Component(attack=PGD(norm="l2", eps=3.0))}, 0.1),
        ({"a": Component(attack=FGSM(), params={"eps": {"uniform": [0.05, 0.2]}})}, 0.2),
        ({"a": Component(attack=FGSM(), params={"eps": {"integers": [1, 16], "over": 255}})}, 16 / 255),
        ({"a": Component(attack=PGD(), settings=[{"eps": 0.3, "norm": "linf"}, {"eps": 2.0, "norm": "l2"}])}, 0.3),
        ({"a": Component(attack=EOT(attack=PGD(eps=0.15)))}, 0.15),
        ({"a": Component(attack=SmoothedPGD(eps=20 / 255)), "b": Component(attack=FGSM())}, 20 / 255),
        ({"a": Component(attack=CarliniWagnerLinf(eps=None))}, 8 / 255),
        ({"a": Component(attack=Patch(eps=1.0))}, 8 / 255),
        ({"a": Component(attack=GaussianNoise(sigma=0.5))}, 8 / 255),
        ({}, 8 / 255),
    ],
)
def test_by_default_a_pgd_of_the_largest_budget_knows_the_defence(components: dict[str, Component], eps: float) -> None:
    mix = AttackMix(components)
    assert list(mix.adaptive) == ["aware_pgd"]
    assert mix.attack_names == (*mix.names, "aware_pgd")
    aware = mix.adaptive["aware_pgd"]
    assert aware == Component(
        attack=PGD(norm="linf", eps=aware.attack.eps, step_size=aware.attack.eps / 10, steps=40),
        knowledge="defence",
    )  # type: ignore[union-attr]
    assert aware.attack.eps == pytest.approx(eps)  # type: ignore[union-attr]
    assert mix.adaptive_eps == pytest.approx(eps)


def test_adaptive_cells_come_last_and_nobody_is_trained_on_them() -> None:
    mine = {
        "pgd": Component(attack=PGD(), knowledge="defence", settings=[{"eps": 0.1}, {"eps": 0.2}]),
        "eot": Component(attack=FGSM(), knowledge="defence", gradient={"eot": 4}, victims=["b"]),
    }
    mix = AttackMix({"clean": Component(attack=None), "fgsm": Component(attack=FGSM())}, adaptive=mine)
    plain = [Cell(0, 0, 0, 0), Cell(0, 0, 1, 0), Cell(1, 0, 0, 0), Cell(1, 0, 1, 0)]
    extra = [Cell(2, 0, 0, 1), Cell(2, 0, 1, 1), Cell(2, 1, 0, 1), Cell(2, 1, 1, 1), Cell(3, 0, 1, 1)]
    assert mix.cells(["a", "b"]) == [*plain, *extra]
    assert mix.cells(["a", "b"], adaptive=False) == plain
    assert mix.attack_names == ("clean", "fgsm", "pgd", "eot")
    assert mix.setting_names(2) == ("eps=0.1", "eps=0.2")
    assert mix.adaptive_eps == 0.2
    for deal in ("random", "stratified", "all"):
        dealt = AttackMix(dict(mix.components), adaptive=mine, deal=deal)  # type: ignore[arg-type]
        assert set(craft(dealt).attack.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("adaptive", "options", "message"),
    [
        ({}, {}, "adaptive={} leaves out every attacker who knows the defence"),
        (None, {"diagnosis": True}, "diagnosis=True has no effect with adaptive attackers, ['aware_pgd']"),
        ({"pgd": Component(attack=PGD())}, {}, "adaptive.pgd.knowledge must be 'defence', got 'victim'"),
        ({"fgsm": Component(attack=PGD(), knowledge="defence")}, {}, "adaptive.fgsm has the name of a component"),
        ({"pgd": Component(attack=PGD(), knowledge="defence", weight=2)}, {}, "adaptive.pgd.weight=2 has no effect"),
        ({"pgd": Component(attack=PGD(eps=8), knowledge="defence")}, {}, "pgd.attack.eps must be"),
        ({"pgd": PGD()}, {}, "'pgd' must be a Component"),
        ({"a/b": Component(attack=PGD(), knowledge="defence")}, {}, "'a/b'"),
    ],
)
def test_adaptive_attackers_that_make_no_sense(adaptive: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        AttackMix({"fgsm": Component(attack=FGSM())}, adaptive=adaptive, **options)


def test_a_diagnosis_may_have_no_adaptive_attacker() -> None:
    mix = AttackMix({"fgsm": Component(attack=FGSM())}, adaptive={}, diagnosis=True)
    assert mix.attack_names == mix.names
    assert mix.cells(["a"]) == mix.cells(["a"], adaptive=False)


class Dark(nn.Module):
    def restore(self, x: Tensor) -> Tensor:
        return 0.6 * x


def test_all_rows_of_an_adaptive_attacker_count() -> None:
    weak = {"weak": Component(attack=FGSM(eps=1 / 255), knowledge="defence")}
    mix = AttackMix({"fgsm": Component(attack=FGSM(eps=1 / 255))}, only_fooled=True, only_right=True, adaptive=weak)
    assert 0 < int(craft(mix, 40, Cell(1, 0, 0, 0)).valid.sum()) < 40
    batch = craft(mix, 40, Cell(2, 0, 0, 1), defence=Dark())
    assert batch.fooled is not None
    assert int(batch.fooled.sum()) < 20
    assert bool(batch.valid.all())
    assert bool((batch.knowledge == 1).all())


class Watches(nn.Module):
    """A detector of what moves the mean of the image's upper half."""

    verdict = "mean"

    def __init__(self, at: float = 0.53) -> None:
        super().__init__()
        self.at = at

    def adversarial_scores(self, x: Tensor) -> dict[str, Tensor]:
        return {"mean": 8 * (x[:, :, :3].mean((1, 2, 3)) - self.at)}


def test_a_detector_is_beaten_by_who_knows_it_where_the_others_are_caught() -> None:
    """Attackers in a mix: one who knows the victim, and one who knows both."""

    class Bright(nn.Module):
        """Says 1 of images that are bright anywhere."""

        def forward(self, x: Tensor) -> Tensor:
            score = 20 * (x.mean((1, 2, 3)) - 0.55)
            return torch.stack([-score, score, torch.full_like(score, -60.0)], 1)

    x = 0.5 + 0.02 * torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(0)) - 0.01
    y, rows, watches, victims = torch.zeros(20, dtype=torch.int64), torch.arange(20), Watches(), {"a": Bright()}
    attack = PGD(eps=0.12, step_size=0.004, steps=60)
    mix = AttackMix(
        {"naive": Component(attack=attack)},
        adaptive={
            "aware": Component(attack=attack, knowledge="defence"),
            "aimed": Component(attack=attack, knowledge="defence", target="random"),
            "least": Component(attack=attack, knowledge="defence", target="least_likely"),
            "black": Component(attack=Boundary(steps=30), knowledge="defence"),
        },
    )
    found = {}
    for cell in mix.cells(victims):
        plan = mix.plan(rows, rows, stage="test", epoch=0, victim_names=victims, cell=cell)
        found[mix.attack_names[cell.attack]] = mix.craft(victims, x, y, plan, defence=watches, want_fooled=True)
    with torch.no_grad():
        wrong = {name: Bright()(b.adv).argmax(1) != 0 for name, b in found.items()}
        caught = {name: watches.adversarial_scores(b.adv)["mean"] > 0 for name, b in found.items()}
    assert bool(wrong["naive"].all())
    assert bool(caught["naive"].all())
    assert bool(wrong["aware"].all())
    assert not bool(caught["aware"].any())
    for name in ("aware", "aimed", "least", "black"):  # an alarm is no success, and no target
        assert torch.equal(found[name].fooled, wrong[name] & ~caught[name]) or name in ("aimed", "least")
        assert found[name].adv.shape == x.shape
    assert set(found["aimed"].target.tolist()) == {1, 2}
    assert set(found["least"].target.tolist()) == {2}
    assert bool(found["aware"].fooled.all())
    assert bool(found["naive"].fooled.all())  # the victim is; what the detector says is the method's business


def test_a_labeler_is_attacked_once_for_all_victims() -> None:
    class Robust(Net):
        def class_logits(self, x: Tensor) -> Tensor:
            return self(x)

    own = Robust(5)
    batch = craft(one(FGSM(eps=0.1), knowledge="defence"), 24, defence=own, want_fooled=False)
    assert own.calls == [24]
    x, y = data(24)
    torch.testing.assert_close(batch.adv, FGSM(eps=0.1)(own, x, y), atol=1e-6, rtol=0)


# ---------------------------------------------------------------- controls, rounding, who counts


def test_a_control_changes_images_and_is_no_attack() -> None:
    for options in ({"only_fooled": True}, {"only_fooled": True, "quantize": 8}):
        mix = AttackMix(
            {
                "clean": Component(attack=None),
                "noise": Component(attack=GaussianNoise(sigma=0.02)),
                "fgsm": Component(attack=FGSM(eps=0.01)),
            },
            **options,  # type: ignore[arg-type]
        )
        batch = craft(mix, 90)
        kinds = [batch.attack == i for i in range(3)]
        assert [set(batch.attacked[rows].tolist()) for rows in kinds] == [{False}, {False}, {True}]
        assert bool((batch.adv != batch.clean).flatten(1).any(1)[kinds[1]].all())
        assert bool(batch.valid[kinds[0] | kinds[1]].all())
        assert not bool(batch.valid[kinds[2]].all())
    plain = craft(AttackMix(dict(mix.components)), 90)
    nearest = (plain.adv * 255).round() / 255
    torch.testing.assert_close(batch.adv[kinds[1]], nearest[kinds[1]], atol=1e-6, rtol=0)  # never more than it was


@pytest.mark.parametrize(
    "rest", [{"knowledge": "defence"}, {"label": "predicted"}, {"target": 1}, {"target": "random"}]
)
def test_a_control_attacks_nobody(rest: dict[str, Any]) -> None:
    key = next(iter(rest))
    with pytest.raises(ValueError, match=rf"one\.{key}=.* has no effect on GaussianNoise"):
        one(GaussianNoise(), **rest)


def test_floor_rounds_down_and_leaves_the_grid_as_it_is() -> None:
    mix, plain = (
        AttackMix({"fgsm": Component(attack=FGSM(eps=0.0301))}, **o) for o in ({"quantize": 8, "rounding": "floor"}, {})
    )  # type: ignore[arg-type]
    down, floats = craft(mix).adv, craft(plain).adv
    assert torch.equal(down, (floats * 255).floor() / 255)
    assert not torch.equal(down, (floats * 255).round() / 255)
    x = torch.arange(36).view(1, *SHAPE) * 7 / 255
    still = AttackMix({"fgsm": Component(attack=FGSM(eps=0.0))}, quantize=8, rounding="floor")
    row = torch.zeros(1, dtype=torch.int64)
    plan = still.plan(row, row, stage="test", epoch=0, victim_names=["a"])
    assert torch.equal(still.craft({"a": Net()}, x, row, plan).adv, x)
    with pytest.raises(ValueError, match="rounding='floor' has no effect without quantize"):
        AttackMix({"fgsm": Component(attack=FGSM())}, rounding="floor")


def test_only_rows_that_the_victim_gets_right_count() -> None:
    components = {"clean": Component(attack=None), "fgsm": Component(attack=FGSM(eps=0.1))}
    batch = craft(AttackMix(components, only_right=True), 60)
    nets = [Net(0), Net(1)]
    with torch.no_grad():
        said = torch.stack([net(batch.clean).argmax(1) for net in nets]).gather(0, batch.victim[None])[0]
    assert torch.equal(batch.valid, said == batch.label)
    assert {bool(k) for k in batch.valid[batch.attack == 0]} == {True, False}
    both = craft(AttackMix(components, only_right=True, only_fooled=True), 60)
    assert torch.equal(both.valid, (said == batch.label) & (both.fooled | (both.attack == 0)))


def test_who_is_attacked_by_the_name_of_the_attack():
    parts = {
        "pgd": Component(attack=PGD()),
        "noise": Component(attack=GaussianNoise()),
        "clean": Component(attack=None),
    }
    mix = AttackMix(parts)
    said = dict(zip(mix.attack_names, mix.attacked(torch.arange(4)).tolist(), strict=True))
    assert said == {"clean": False, "pgd": True, "noise": False, "aware_pgd": True}
