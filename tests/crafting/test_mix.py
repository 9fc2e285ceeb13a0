"""Who gets what (plan) and what comes out (craft)."""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from redlab.attacks import (
    DDN,
    FAB,
    FGSM,
    PGD,
    RFGSM,
    Boundary,
    CarliniWagnerL2,
    CarliniWagnerLinf,
    DeepFool,
    LocalSearch,
    Patch,
    SampleRng,
)
from redlab.attacks.wrappers import Defended
from redlab.batch import AttackBatch
from redlab.crafting import AttackMix, Cell, Component, Plan
from redlab.crafting.defended import InStages, WithoutAlarm, surface

K, SHAPE = 5, (2, 6, 5)
CONF = Path(__file__).parents[2] / "conf"


class Net(nn.Module):
    """A small smooth classifier that counts its calls."""

    def __init__(self, seed: int, classes: int = K) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        size = SHAPE[0] * SHAPE[1] * SHAPE[2]
        self.hidden = nn.Parameter(torch.randn(size, 16, generator=g) / 2)
        self.out = nn.Parameter(torch.randn(16, classes, generator=g))
        self.drop = nn.Dropout(0.5)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.drop(torch.tanh((x - 0.5).flatten(1) @ self.hidden)) @ self.out


class Blur(nn.Module):
    """A restorer that cannot be mistaken for the identity."""

    def restore(self, x: Tensor) -> Tensor:
        return 0.8 * x.flip(3).square() + 0.1


class Straight:
    """An attack that follows no schedule, and not even a dataclass: brightens the image."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, target: Tensor | None = None, rng: Any = None
    ) -> Tensor:
        return (x + 0.25 + 0.1 * rng.uniform("shift")[:, None, None, None]).clamp(0, 1)


def data(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, *SHAPE, generator=g), torch.randint(K, (n,), generator=g)


def nets(*names: str) -> dict[str, Net]:
    return {name: Net(i).eval() for i, name in enumerate(names or ("a", "b", "c"))}


def make(mix: AttackMix, index: Tensor, position: Tensor | None = None, **kw: Any) -> Plan:
    kw = {"stage": "train", "epoch": 2, "victim_names": ["a", "b", "c"], **kw}
    return mix.plan(index, index if position is None else position, **kw)


def craft(mix: AttackMix, victims: dict[str, Net], n: int = 24, **kw: Any) -> tuple[AttackBatch, Plan, Tensor, Tensor]:
    x, y = data(n)
    plan = make(mix, torch.arange(n), victim_names=victims)
    return mix.craft(victims, x, y, plan, **kw), plan, x, y


def rich(deal: str, **kw: Any) -> AttackMix:
    """Everything that is drawn, in one mix."""
    return AttackMix(
        {
            "clean": Component(attack=None, weight=1 if deal == "all" else 0.5),
            "fgsm": Component(attack=FGSM(), params={"eps": {"integers": [1, 16], "over": 255}}),
            "rfgsm": Component(attack=RFGSM(), params={"eps": {"uniform": [0.02, 0.1]}}, target="random"),
            "pgd": Component(
                attack=PGD(),
                params={"eps": {"choice": [0.03, 0.1]}, "steps": {"integers": [1, 4]}},
                victims=["c", "a"],
                weight=1 if deal == "all" else 1.5,
            ),
            "l2": Component(attack=PGD(norm="l2", eps=1.0, steps=2), target="least_likely"),
            "straight": Component(attack=Straight()),
        },
        deal=deal,  # type: ignore[arg-type]
        **kw,
    )


# ---------------------------------------------------------------- dealing


def test_names_and_cells() -> None:
    mix = rich("stratified")
    assert mix.names == ("clean", "fgsm", "rfgsm", "pgd", "l2", "straight")
    cells = mix.cells(["a", "b", "c"], adaptive=False)
    assert cells[:3] == [Cell(0, 0, 0, 0), Cell(0, 0, 1, 0), Cell(0, 0, 2, 0)]
    assert [c for c in cells if c.attack == 3] == [Cell(3, 0, 0, 0), Cell(3, 0, 2, 0)]
    assert len(cells) == len(set(cells)) == 17
    late = AttackMix({"fgsm": Component(attack=FGSM()), "clean": Component(attack=None)})
    none = AttackMix({"fgsm": Component(attack=FGSM())})
    assert late.names == none.names == ("clean", "fgsm")
    assert none.cells(["a"], adaptive=False) == [Cell(0, 0, 0, 0), Cell(1, 0, 0, 0)]
    assert 0 not in make(none, torch.arange(50)).attack


def test_empty_mix_is_clean() -> None:
    mix = AttackMix({})
    assert mix.names == ("clean",)
    batch, *_ = craft(mix, nets(), n=6)
    assert batch.attack.tolist() == [0] * 6
    assert batch.victim.tolist() == [0, 1, 2] * 2
    assert bool((batch.adv == batch.clean).all())


def test_stratified_windows_have_exact_shares() -> None:
    # 36 rows: clean 6 over 3 victims, fgsm 12 over 3, pgd 18 over 2
    mix = AttackMix(
        {
            "clean": Component(attack=None, weight=0.5),
            "fgsm": Component(attack=FGSM(), weight=1),
            "pgd": Component(attack=PGD(), weight=1.5, victims=["a", "c"]),
        }
    )
    expected = {(0, v): 2 for v in range(3)} | {(1, v): 4 for v in range(3)} | {(2, v): 9 for v in (0, 2)}
    for start in (0, 1, 17, 35, 1000):
        plan = make(mix, torch.arange(36), torch.arange(start, start + 36))
        assert Counter(zip(plan.attack.tolist(), plan.victim.tolist(), strict=True)) == expected
    halves = make(mix, torch.arange(36)).attack.view(2, 18)
    assert [(half == 2).sum() for half in halves] == [9, 9]  # interleaved, not in blocks


def test_stratified_table_is_the_smallest() -> None:
    for weights, length in [((1, 1), 2), ((2, 4), 3), ((1 / 3, 2 / 3), 3), ((0.25, 0.75), 4)]:
        mix = AttackMix({n: Component(attack=FGSM(), weight=w) for n, w in zip("pq", weights, strict=True)})
        attack = make(mix, torch.arange(60), victim_names=["a"]).attack
        assert next(n for n in range(1, 9) if bool((attack[n:] == attack[:-n]).all())) == length


def test_random_deals_by_weight_and_changes_with_epoch() -> None:
    mix = rich("random")
    n = 20_000
    plan = make(mix, torch.arange(n))
    share = torch.bincount(plan.attack) / n
    torch.testing.assert_close(share, torch.tensor([0.5, 1, 1, 1.5, 1, 1]) / 6, atol=0.012, rtol=0)
    on = torch.bincount(plan.victim[plan.attack == 3], minlength=3) / (plan.attack == 3).sum()
    torch.testing.assert_close(on, torch.tensor([0.5, 0.0, 0.5]), atol=0.03, rtol=0)
    other = make(mix, torch.arange(n), epoch=3)
    assert 0.1 < (other.attack == plan.attack).float().mean() < 0.3
    assert bool((make(mix, torch.arange(n), torch.zeros(n).long()).attack == plan.attack).all())  # position is not used


def test_all_deals_every_component_once() -> None:
    mix = rich("all")
    plan = make(mix, torch.arange(300))
    assert len(plan) == 1800
    assert bool((plan.source == torch.arange(300).repeat_interleave(6)).all())
    assert bool((plan.attack.view(300, 6) == torch.arange(6)).all())
    assert bool((plan.index == plan.source).all())
    fgsm = torch.bincount(plan.victim[plan.attack == 1]).tolist()
    assert min(fgsm) > 70
    assert set(plan.victim[plan.attack == 3].tolist()) == {0, 2}
    assert bool((plan.victim.view(300, 6)[:, 1] != plan.victim.view(300, 6)[:, 2]).any())  # drawn apart per component
    assert len(make(mix, torch.arange(7), cell=Cell(2, 0, 1, 0))) == 7


@pytest.mark.parametrize("deal", ["random", "stratified", "all"])
def test_cell_is_forced(deal: str) -> None:
    plan = make(rich(deal), torch.arange(9), cell=Cell(3, 0, 2, 0))
    assert plan.attack.tolist() == [3] * 9
    assert plan.victim.tolist() == [2] * 9
    assert plan.source.tolist() == list(range(9))
    with pytest.raises(ValueError, match=r"Cell\(attack=3, setting=0, victim=1, knowledge=0\) is not a cell"):
        make(rich(deal), torch.arange(9), cell=Cell(3, 0, 1, 0))


def test_epoch_counts_in_training_only() -> None:
    mix = rich("random")
    index = torch.arange(200)

    def eps(**kw: Any) -> Tensor:
        return make(mix, index, **kw).params["fgsm"]["eps"]

    assert bool((eps(stage="val", epoch=1) == eps(stage="val", epoch=8)).all())
    assert not bool((eps(epoch=1) == eps(epoch=8)).all())
    assert not bool((eps(stage="val") == eps(stage="test")).all())


def test_distributions() -> None:
    params = {
        "eps": {"uniform": [1 / 255, 20 / 255]},
        "step_size": {"choice": [0.01, 0.02]},
        "steps": {"integers": [3, 5]},
    }
    mix = AttackMix(
        {
            "p": Component(attack=PGD(), params=params),
            "q": Component(attack=PGD(), params={"eps": {"integers": [1, 128], "over": 255}}),
        }
    )
    drawn = make(mix, torch.arange(20_000)).params
    eps = drawn["p"]["eps"]
    assert eps.dtype == torch.float32
    assert 1 / 255 <= eps.min() < 1.1 / 255
    assert 19.9 / 255 < eps.max() < 20 / 255
    assert abs(eps.mean().item() * 255 - 10.5) < 0.15
    assert {round(v, 6) for v in drawn["p"]["step_size"].unique().tolist()} == {0.01, 0.02}
    assert drawn["p"]["steps"].dtype == torch.int64
    assert drawn["p"]["steps"].unique().tolist() == [3, 4, 5]
    whole = drawn["q"]["eps"]
    assert bool((whole.unique() == torch.arange(1, 129) / 255).all())
    same_key = torch.corrcoef(torch.stack([eps, whole]))[0, 1].abs()
    assert same_key < 0.03  # components draw from streams of their own


def test_uniform_never_reaches_its_upper_end() -> None:
    class Top(SampleRng):
        def uniform(self, name: str, *shape: int) -> Tensor:
            return torch.full((len(self),), 1 - 2.0**-24)

    from redlab.crafting import Distribution

    for lo, hi in [(0.0, 1.0), (0.5, 0.50001), (1 / 255, 20 / 255), (0.3, 0.3)]:
        top, zero = Top(0, "train", 0, torch.arange(2)), torch.zeros(2, dtype=torch.int64)
        drawn = Distribution.parse("eps", {"uniform": [lo, hi]}).draw(top, "eps", zero, zero)
        assert drawn.max() < torch.tensor(hi) or lo == hi


# ---------------------------------------------------------------- identity


@pytest.mark.parametrize("deal", ["random", "stratified", "all"])
def test_same_rows_for_any_batch_size_and_order(deal: str) -> None:
    mix, victims, n = rich(deal, quantize=8), nets(), 70
    x, y = data(n)
    index = torch.randperm(1000, generator=torch.Generator().manual_seed(3))[:n]
    position = torch.arange(n) + 11

    def run(order: Tensor, size: int) -> tuple[dict[tuple[int, int], list[Any]], dict[tuple[int, int], Tensor]]:
        facts, images = {}, {}
        for rows in order.split(size):
            plan = make(mix, index[rows], position[rows])
            batch = mix.craft(victims, x[rows], y[rows], plan, want_fooled=True)
            for i in range(len(batch)):
                key = (int(batch.index[i]), int(batch.attack[i]))
                drawn = {c: {k: v[i].item() for k, v in p.items()} for c, p in plan.params.items()}
                facts[key] = [
                    int(batch.victim[i]),
                    int(batch.label[i]),
                    int(batch.target[i]),
                    bool(batch.fooled[i]),
                    drawn,
                ]  # type: ignore[index]
                images[key] = batch.adv[i]
        return facts, images

    facts, images = run(torch.arange(n), n)
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    for order, size in [(torch.arange(n), 1), (torch.arange(n), 7), (shuffled, 64), (shuffled, n // 2)]:
        again, again_images = run(order, size)
        assert again == facts  # bit for bit
        for key, image in images.items():
            torch.testing.assert_close(again_images[key], image, atol=1e-6, rtol=0)


def test_two_processes_make_the_rows_of_one() -> None:
    mix, victims = rich("stratified"), nets()
    x, y = data(64)
    index = torch.arange(64).flip(0)
    whole = mix.craft(victims, x, y, make(mix, index, torch.arange(64)))
    parts = torch.arange(64).chunk(2)
    ranks = [mix.craft(victims, x[part], y[part], make(mix, index[part], part)) for part in parts]
    both = AttackBatch.cat(ranks)
    assert bool((both.attack == whole.attack).all())
    assert bool((both.victim == whole.victim).all())
    assert bool((both.target == whole.target).all())
    torch.testing.assert_close(both.adv, whole.adv, atol=1e-6, rtol=0)


# ---------------------------------------------------------------- crafting


def test_attunet_batch_costs_three_victim_calls() -> None:
    eps = {"eps": {"integers": [1, 16], "over": 255}}
    mix = AttackMix(
        {"fgsm": Component(attack=FGSM(), params=eps), "rfgsm": Component(attack=RFGSM(), params=eps)},
        deal="stratified",
    )
    victims = nets()
    batch, *_ = craft(mix, victims, n=96)
    assert Counter(zip(batch.attack.tolist(), batch.victim.tolist(), strict=True)) == {
        (a, v): 16 for a in (1, 2) for v in range(3)
    }
    assert [net.calls for net in victims.values()] == [[32]] * 3
    assert batch.fooled is None


def test_fgsm_and_pgd_on_one_victim_are_one_loop() -> None:
    mix = AttackMix({"fgsm": Component(attack=FGSM()), "pgd": Component(attack=PGD(steps=4))})
    victims = nets("a")
    craft(mix, victims, n=20)
    # four steps, the first with every row, and one forward to judge the last PGD iterates
    assert victims["a"].calls == [20, 10, 10, 10, 10]


def test_rows_equal_separate_calls_of_the_attack() -> None:
    mix, victims = rich("stratified"), nets()
    batch, plan, x, y = craft(mix, victims, n=72)
    attacks = {
        "fgsm": lambda p: FGSM(eps=p["eps"].item()),
        "rfgsm": lambda p: RFGSM(eps=p["eps"].item()),
        "pgd": lambda p: PGD(eps=p["eps"].item(), steps=p["steps"].item()),
        "l2": lambda p: PGD(norm="l2", eps=1.0, steps=2),
        "straight": lambda p: Straight(),
    }
    seen = set()
    for i in range(len(batch)):
        name = mix.names[batch.attack[i]]
        seen.add(name)
        if name == "clean":
            assert bool((batch.adv[i] == x[i]).all())
            continue
        row = torch.tensor([i])
        attack = attacks[name]({k: v[i] for k, v in plan.params.get(name, {}).items()})
        victim = victims["abc"[batch.victim[i]]]
        target = batch.target[row] if batch.target[i] >= 0 else None
        alone = attack(victim, x[row], y[row], target=target, rng=SampleRng(0, "train", 2, row).fork(name))
        torch.testing.assert_close(batch.adv[row], alone, atol=1e-6, rtol=0)
        assert not bool((alone == x[row]).all())
    assert seen == set(mix.names)


def test_target_rules() -> None:
    victims = nets("a")
    _, y = data(600)
    rules: dict[str, Any] = {"random": "random", "fixed": 3, "least": "least_likely", "none": None}
    mix = AttackMix({n: Component(attack=FGSM(), target=t) for n, t in rules.items()}, deal="all")
    batch, *_ = craft(mix, victims, n=600)
    target = {name: batch.target[batch.attack == i] for i, name in enumerate(mix.names) if i}
    assert bool((target["none"] == -1).all())
    assert bool((target["fixed"] == torch.where(y == 3, 4, 3)).all())
    shift = torch.bincount((target["random"] - y) % K, minlength=K)
    assert shift[0] == 0
    assert shift[1:].min() > 115  # 150 expected
    logits = victims["a"](data(600)[0])
    others = logits.masked_fill(nn.functional.one_hot(y, K).bool(), torch.inf)
    assert bool((target["least"] == others.argmin(1)).all())
    wraps = AttackMix({"last": Component(attack=FGSM(), target=K - 1)})
    batch, _, _, y = craft(wraps, victims, n=40)
    assert bool((batch.target == torch.where(y == K - 1, 0, K - 1)).all())


def test_number_of_classes_comes_from_the_model_where_it_says() -> None:
    victims = nets("a")
    mix = AttackMix({"fgsm": Component(attack=FGSM(), target="random")})
    craft(mix, victims, n=8)
    assert victims["a"].calls == [1, 8]
    victims = nets("a")
    victims["a"].num_classes = K  # type: ignore[assignment]
    craft(mix, victims, n=8)
    assert victims["a"].calls == [8]


@pytest.mark.parametrize("rounding", ["fooling", "nearest"])
def test_quantised_rows_are_exact_and_clean_rows_untouched(rounding: str) -> None:
    batch, plan, x, _ = craft(rich("stratified", quantize=8, rounding=rounding), nets(), n=72)
    levels = torch.arange(256) / 255
    attacked = batch.attack > 0
    assert bool(torch.isin(batch.adv[attacked], levels).all())
    assert bool((batch.adv[~attacked] == x[~attacked]).all())
    floats, *_ = craft(rich("stratified"), nets(), n=72)
    assert not bool(torch.isin(floats.adv[attacked], levels).all())
    if rounding == "nearest":
        assert bool((batch.adv[attacked] == (floats.adv[attacked] * 255).round() / 255).all())
    within = []
    for i, name in enumerate(batch_names := rich("stratified").names):
        rows = batch.attack == i
        delta = (batch.adv - batch.clean)[rows].flatten(1)
        if "eps" in plan.params.get(name, {}):
            within.append(bool((delta.abs().amax(1) <= plan.params[name]["eps"][rows] + 1e-6).all()))
        elif name == "l2":
            within.append(bool((delta.norm(dim=1) <= 1.0 + 1e-6).all()))
    assert len(batch_names) == 6
    assert within == [True] * 4 if rounding == "fooling" else not all(within)


def test_what_fools_still_does_when_it_is_stored() -> None:
    """Judged on the stored image; plain rounding undoes the smallest perturbations."""
    victims, n = nets("a"), 96
    x, _ = data(n)
    x = (x * 255).round() / 255
    with torch.no_grad():
        y = victims["a"](x).argmax(1)
    smallest = {
        "deepfool": Component(attack=DeepFool()),
        "fab": Component(attack=FAB(norm="l2", steps=5), target="random"),
        "cw": Component(attack=CarliniWagnerL2(c=1.0, steps=60, binary_search_steps=2)),
        "weak": Component(attack=FGSM(eps=1 / 255)),
    }
    counts = {}
    for quantize, rounding in ((None, "fooling"), (8, "nearest"), (8, "fooling")):
        mix = AttackMix(smallest, quantize=quantize, rounding=rounding)  # type: ignore[arg-type]
        batch = mix.craft(victims, x, y, make(mix, torch.arange(n), victim_names=["a"]), want_fooled=True)
        with torch.no_grad():
            said = victims["a"](batch.adv).argmax(1)
        assert batch.fooled is not None
        assert torch.equal(batch.fooled, torch.where(batch.target >= 0, said == batch.target, said != y))
        counts[quantize, rounding] = [int(batch.fooled[batch.attack == i].sum()) for i in range(1, 5)]
    floats, nearest, stored = counts.values()
    assert min(floats[:3]) >= 20
    assert all(k < f for k, f in zip(nearest[:3], floats[:3], strict=True))
    assert all(k >= f for k, f in zip(stored[:3], floats[:3], strict=True))
    assert stored[3] < 24


def test_storing_costs_one_call_and_no_more_where_nothing_is_lost() -> None:
    """And with `fooled` asked for none at all, since it says what the stored images do."""
    x = torch.full((8, *SHAPE), 0.4)

    class Bright(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.calls.append(len(x))
            score = x.mean((1, 2, 3)) - 0.5
            return torch.stack([-score, score], 1)

    y = torch.zeros(8, dtype=torch.int64)
    for want, plain, stored in ((False, [], [8]), (True, [8, 8], [8, 8])):
        for quantize, calls in ((None, plain), (8, stored)):
            victims = {"a": Bright(0)}
            mix = AttackMix({"straight": Component(attack=Straight())}, quantize=quantize)
            mix.craft(victims, x, y, make(mix, torch.arange(8), victim_names=["a"]), want_fooled=want)
            assert victims["a"].calls == calls


def test_fooled_and_only_fooled() -> None:
    eps = {"eps": {"uniform": [0.0, 0.1]}}
    components = {
        "clean": Component(attack=None),
        "free": Component(attack=FGSM(), params=eps),
        "aimed": Component(attack=PGD(steps=3), params=eps, target="random"),
    }
    victims, n = nets("a"), 120
    with torch.no_grad():
        right = victims["a"](data(n)[0]).argmax(1)
    x, y = data(n)
    y = torch.where(torch.arange(n) % 4 == 0, y, right)  # mostly right, some wrong from the start
    for only in (False, True):
        mix = AttackMix(components, only_fooled=only)
        valid = torch.arange(n) % 10 != 3
        plan = make(mix, torch.arange(n), victim_names=["a"])
        batch = mix.craft(victims, x, y, plan, valid=valid, want_fooled=not only)
        with torch.no_grad():
            before, after = victims["a"](batch.clean).argmax(1), victims["a"](batch.adv).argmax(1)
        expected = []
        for i in range(n):
            if batch.attack[i] == 1:
                expected.append(bool(before[i] == y[i] and after[i] != y[i]))
            else:
                expected.append(bool(batch.attack[i] == 2 and after[i] == batch.target[i]))
        assert batch.fooled is not None
        assert batch.fooled.tolist() == expected
        for a in (1, 2):
            assert 0 < batch.fooled[batch.attack == a].sum() < (batch.attack == a).sum()
        assert bool(((before != y) & (after != y) & (batch.attack == 1)).any())
        counts = valid & (batch.fooled | (batch.attack == 0)) if only else valid
        assert bool((batch.valid == counts).all())


def test_defended_differentiates_through_the_restorer() -> None:
    mix = AttackMix({"pgd": Component(attack=PGD(steps=3, eps=0.1), knowledge="defence")})
    victims, defender = nets("a"), Blur()
    batch, plan, x, y = craft(mix, victims, n=16, defence=defender, want_fooled=True)

    class Whole(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return victims["a"](defender.restore(z))  # type: ignore[no-any-return]

    attack, rng = PGD(steps=3, eps=0.1), plan.rng.fork("pgd")
    torch.testing.assert_close(batch.adv, attack(Whole(), x, y, rng=rng), atol=1e-6, rtol=0)
    on_victim = attack(victims["a"], x, y, rng=rng)
    assert (batch.adv - on_victim).abs().flatten(1).amax(1).min() > 0.05
    whole = Defended(defender, victims["a"])
    with torch.no_grad():
        expected = (whole(x).argmax(1) == y) & (whole(batch.adv).argmax(1) != y)
    assert batch.fooled is not None
    assert bool((batch.fooled == expected).all())
    assert bool((batch.knowledge == 1).all())
    plain = AttackMix({"pgd": Component(attack=PGD(steps=3, eps=0.1))})
    batch, *_ = craft(plain, victims, n=16, defence=defender)
    torch.testing.assert_close(batch.adv, on_victim, atol=1e-6, rtol=0)
    assert not bool(batch.knowledge.any())


def test_bpda_takes_the_restorer_for_the_identity() -> None:
    """The restorer turns images upside down in grey, so that its own gradient points the other way."""

    class Negative(nn.Module):
        def restore(self, x: Tensor) -> Tensor:
            return 1 - x

    victims, (x, y) = nets("a"), data(16)
    found = {}
    for gradient in ("exact", "bpda"):
        mix = AttackMix({"fgsm": Component(attack=FGSM(eps=0.1), knowledge="defence", gradient=gradient)})
        found[gradient] = craft(mix, victims, n=16, defence=Negative())[0].adv
    u = (1 - x).requires_grad_()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(victims["a"](u), y, reduction="sum"), u)
    torch.testing.assert_close(found["bpda"], (x + 0.1 * grad.sign()).clamp(0, 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(found["exact"], (x - 0.1 * grad.sign()).clamp(0, 1), atol=1e-6, rtol=0)


def test_eot_asks_a_restorer_that_draws_several_times() -> None:
    class Draws(nn.Module):
        calls = 0

        def restore(self, x: Tensor) -> Tensor:
            Draws.calls += len(x)
            return x + 0.3 * torch.randn_like(x)

    attack = Component(attack=FGSM(eps=0.1), knowledge="defence", gradient={"eot": 5})
    victims, state = nets("a"), torch.get_rng_state()
    first, second = (craft(AttackMix({"fgsm": attack}), victims, n=8, defence=Draws())[0].adv for _ in range(2))
    assert Draws.calls == 2 * 8 * 5
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("gradient", ["EOT", {"eot": 0}, {"eot": 2.0}, {"bpda": 1}, None])
def test_bad_gradient_is_named(gradient: Any) -> None:
    with pytest.raises(ValueError, match="gradient must be exact, bpda, joint or"):
        AttackMix({"fgsm": Component(attack=FGSM(), knowledge="defence", gradient=gradient)})


def test_who_leaves_a_class_before_a_detector_goes_in_stages_unless_told_otherwise() -> None:
    class Restores(nn.Module):
        def restore(self, x: Tensor) -> Tensor:
            return x

    class Detects(nn.Module):
        verdict = "bright"

        def adversarial_scores(self, x: Tensor) -> dict[str, Tensor]:
            return {"bright": x.flatten(1).mean(1) - 0.6}

    attack = PGD(eps=0.1, random_start=False)
    leaves = Component(attack=attack, knowledge="defence")
    joint = replace(leaves, gradient="joint")
    with pytest.raises(ValueError, match="has no effect on targeted attacks, got target='random'"):
        AttackMix({"pgd": replace(joint, target="random")})
    with pytest.raises(ValueError, match="for a detector and a victim, got Defended"):
        craft(AttackMix({"pgd": joint}), nets("a"), n=8, defence=Restores())
    victims = nets("a")
    whole = surface(Detects(), victims["a"])
    mix = AttackMix({"leaves": leaves, "joint": joint, "aims": replace(leaves, target=1)}, deal="all")
    batch, _, x, y = craft(mix, victims, n=24, defence=Detects())
    aims = torch.where(y == 1, 2, 1)
    for name, scheme, target in (
        ("leaves", InStages, None),
        ("joint", WithoutAlarm, None),
        ("aims", WithoutAlarm, aims),
    ):
        expected = x.clone()
        for label in y.unique().tolist():
            mine = y == label
            goal = None if target is None else target[mine]
            expected[mine] = attack(scheme(whole, label), x[mine], y[mine], target=goal)
        found = batch.adv[batch.attack == mix.names.index(name)]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert not torch.equal(*(batch.adv[batch.attack == attack] for attack in (1, 2)))


@pytest.mark.parametrize("deal", ["stratified", "all"])
def test_shuffled_deals_without_replacement(deal: Any) -> None:
    """Each group of 16 rows of a cell has each of 16 budgets once, in an order of its own, in batches of any size."""
    spec = {"eps": {"shuffled": [1, 16], "over": 255}}
    parts = {name: Component(attack=FGSM(), params=spec, victims=["a"]) for name in ("one", "two")}
    mix = AttackMix({**parts, "three": Component(attack=FGSM(), params=spec)}, deal=deal)
    position = torch.arange(192)
    index = torch.randperm(192, generator=torch.Generator().manual_seed(0))
    plan = make(mix, index, position, victim_names=["a", "b"])
    seen = []
    for attack, name in ((1, "one"), (2, "two")):
        budgets = (plan.params[name]["eps"][plan.attack == attack] * 255).round().long().tolist()
        groups = [budgets[k : k + 16] for k in range(0, len(budgets), 16)]
        assert all(sorted(group) == list(range(1, 17)) for group in groups)
        seen += groups
    assert len({tuple(group) for group in seen}) == len(seen) >= 8
    parts_of = [
        make(mix, i, p, victim_names=["a", "b"]) for i, p in zip(index.split(7), position.split(7), strict=True)
    ]
    assert torch.equal(torch.cat([p.params["one"]["eps"] for p in parts_of]), plan.params["one"]["eps"])


def test_shuffled_needs_a_deal_by_position() -> None:
    part = Component(attack=FGSM(), params={"eps": {"shuffled": [1, 16], "over": 255}})
    with pytest.raises(ValueError, match="random"):
        AttackMix({"fgsm": part}, deal="random")


def test_self_attacks_the_module_under_training_once() -> None:
    mix = AttackMix({"clean": Component(attack=None), "fgsm": Component(attack=FGSM(eps=0.1), knowledge="defence")})
    victims, own = nets(), Net(9).train()
    batch, _, x, y = craft(mix, victims, n=24, defence=own)
    assert own.calls == [12]  # the rows of every victim id together
    assert not any(net.calls for net in victims.values())
    assert own.training
    assert own.drop.training
    attacked = batch.attack == 1
    expected = FGSM(eps=0.1)(own, x, y)
    torch.testing.assert_close(batch.adv[attacked], expected[attacked], atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_any_grad_context_and_nothing_left_behind(mode: Any) -> None:
    mix, victims, (x, y) = rich("stratified", only_fooled=True), nets(), data(36)
    for net in victims.values():
        net.train()
    plain = mix.craft(victims, x, y, make(mix, torch.arange(36)))
    state = torch.get_rng_state()
    with mode():
        x_in, y_in, index = x.clone(), y.clone(), torch.arange(36)
        valid = torch.ones(36, dtype=torch.bool)
        batch = mix.craft(victims, x_in, y_in, make(mix, index), valid=valid)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert bool((torch.get_rng_state() == state).all())
    assert bool((x_in == x).all())
    for name in AttackBatch.__dataclass_fields__:
        value = getattr(batch, name)
        assert not value.requires_grad
        assert not value.is_inference()
        torch.testing.assert_close(value, getattr(plain, name), atol=1e-6, rtol=0)
    for net in victims.values():
        assert all(p.grad is None and p.requires_grad for p in net.parameters())
        assert net.training
        assert net.drop.training


def test_victims_that_the_plan_does_not_use_may_be_missing() -> None:
    mix = AttackMix({"fgsm": Component(attack=FGSM())})
    plan = make(mix, torch.arange(4), cell=Cell(1, 0, 1, 0))
    x, y = data(4)
    assert mix.craft({"b": Net(1)}, x, y, plan).victim.tolist() == [1] * 4
    with pytest.raises(ValueError, match="unknown victim 'b'"):
        mix.craft({"a": Net(0)}, x, y, plan)


# ---------------------------------------------------------------- errors


def component(**kw: Any) -> dict[str, Component]:
    return {"fgsm": Component(**{"attack": FGSM(), **kw})}


@pytest.mark.parametrize(
    ("components", "message"),
    [
        (
            component(params={"epss": {"uniform": [0, 1]}}),
            "'fgsm' draws the unknown parameter 'epss'; did you mean 'eps'?",
        ),
        (component(params={"eps": {"uniform": [0.2, 0.1]}}), "fgsm.params.eps.uniform must be [lowest, highest]"),
        (component(params={"eps": {"unifrom": [0, 1]}}), "unifrom"),
        (component(params={"eps": 0.1}), "fgsm.params.eps must be one of"),
        (component(params={"eps": {"uniform": ["1/255", 0.1]}}), "'1/255'"),
        (component(params={"eps": {"uniform": "ab"}}), "'ab'"),
        (component(params={"eps": {"choice": []}}), "fgsm.params.eps.choice"),
        (component(params={"eps": {"choice": [True]}}), "True"),
        (component(params={"eps": {"uniform": [0, float("nan")]}}), "nan"),
        (component(params={"eps": {"integers": [1, 2.5]}}), "2.5"),
        (component(params={"eps": {"integers": [1, 2], "over": 0}}), "over"),
        (component(params={"eps": {"uniform": [0, 1], "over": 255}}), "over"),
        (component(weight=-1), "fgsm.weight must be 0 or at least 0.001, got -1"),
        (component(weight=0.0001), "0.0001"),
        (component(weight=0), "weight 0"),
        (component(victims="resnet18"), "'resnet18'"),
        (component(victims=[]), "fgsm.victims"),
        (component(target="rnadom"), "'rnadom'"),
        (component(target=-2), "-2"),
        (component(target=True), "True"),
        (component(knowledge="everything"), "fgsm.knowledge must be one of ('victim', 'defence'), got 'everything'"),
        (component(label="clean"), "fgsm.label must be one of ('true', 'predicted'), got 'clean'"),
        ({"fgsm": Component(attack=None)}, "'fgsm'"),
        ({"clean": Component(attack=FGSM())}, "'clean'"),
        ({"clean": Component(attack=None, params={"eps": {"uniform": [0, 1]}})}, "'eps'"),
        ({"fgsm": FGSM()}, "must be a Component"),
    ],
)
def test_bad_components(components: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        AttackMix(components)


@pytest.mark.parametrize("kw", [{"deal": "stratifed"}, {"quantize": 0}, {"quantize": 8.0}, {"rounding": "up"}])
def test_bad_options(kw: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(kw.values())))):
        AttackMix(component(), **kw)


def test_bad_use() -> None:
    victims, (x, y) = nets("a"), data(4)
    with pytest.raises(ValueError, match="'fgsm' attacks the unknown victim 'resnet'; did you mean 'resnet18'"):
        AttackMix(component(victims=["resnet"])).cells(["resnet18", "vgg11"])
    with pytest.raises(ValueError, match="fgsm attacks the defence, and there is none"):
        craft(AttackMix(component(knowledge="defence")), victims)
    with pytest.raises(ValueError, match="gradient=bpda is for a restorer before a victim, got Net: set exact"):
        craft(AttackMix(component(knowledge="defence", gradient="bpda")), victims, defence=Net(0))
    mix = AttackMix(component())
    with pytest.raises(ValueError, match="target class 5 does not exist"):
        craft(AttackMix(component(target=5)), victims)
    plan = make(mix, torch.arange(4), victim_names=["a"])
    with pytest.raises(ValueError, match="got values from"):
        mix.craft(victims, x * 255, y, plan)


def test_weights_without_a_simple_ratio_are_refused() -> None:
    weights = (0.991, 0.983, 1 / 997, 1 / 991)
    mix = AttackMix({f"f{i}": Component(attack=FGSM(), weight=w) for i, w in enumerate(weights)})
    with pytest.raises(ValueError, match="no simple ratio"):
        make(mix, torch.arange(4))


# ---------------------------------------------------------------- YAML


def fractions(node: Any) -> Any:
    """Turns "8/255" into a number, as the program does before it instantiates."""
    if isinstance(node, dict):
        return {k: fractions(v) for k, v in node.items()}
    if isinstance(node, list):
        return [fractions(v) for v in node]
    if isinstance(node, str) and re.fullmatch(r"\d+/\d+", node):
        return operator.truediv(*map(ast.literal_eval, node.split("/")))
    return node


def load(name: str, *overrides: str) -> AttackMix:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(overrides=[f"+mix={name}", *overrides])
    mix = instantiate(OmegaConf.create(fractions(OmegaConf.to_container(cfg.mix, resolve=True))))
    assert isinstance(mix, AttackMix)
    return mix


@pytest.mark.parametrize(
    ("name", "names", "deals_clean"),
    [
        ("clean", ("clean",), True),
        ("digits", ("clean", "fgsm", "pgd"), False),
        ("cdd_red_known", ("clean", "fgsm", "pgd", "cw"), False),
        ("attunet", ("clean", "fgsm", "rfgsm"), False),
        ("adversarial_training", ("clean", "pgd"), True),
    ],
)
def test_shipped_mixes(name: str, names: tuple[str, ...], deals_clean: bool) -> None:
    mix = load(name)
    assert mix.names == names
    own = Net(7)
    batch, *_ = craft(mix, nets(), n=12, defence=own)
    assert bool((batch.attack == 0).any()) == deals_clean
    assert bool(own.calls) == (name == "adversarial_training")
    assert set(batch.attack.tolist()) == {i for i in range(len(names)) if i or deals_clean}


def test_shipped_ranges() -> None:
    known = load("cdd_red_known")
    drawn = make(known, torch.arange(5000)).params
    for name, top in [("fgsm", 20), ("pgd", 40)]:
        eps = drawn[name]["eps"] * 255
        assert 0.999 < eps.min() < 1.1
        assert top - 0.1 < eps.max() < top
    assert (known.quantize, known.only_fooled) == (8, True)
    assert known.components["pgd"].attack == PGD(steps=10, step_size=None, random_start=True)
    confidence = drawn["cw"]["confidence"]
    assert 1 <= confidence.min() < 1.1
    assert 19.9 < confidence.max() < 20
    assert known.components["cw"].attack == CarliniWagnerL2(c=1.0, steps=100, binary_search_steps=1)
    eps = make(load("attunet"), torch.arange(500)).params["rfgsm"]["eps"]
    assert bool((eps.unique() == torch.arange(1, 17) / 255).all())
    names = ("clean", "fgsm_u", "pgd_u", "pgd_t", "deepfool_u", "cw_u", "cw_t", "ddn_u", "ddn_t")
    gred = load("gred")
    assert gred.names == names
    assert {n for n, c in gred.components.items() if c.target == "random"} == {"pgd_t", "cw_t", "ddn_t"}
    assert gred.components["pgd_t"].attack == PGD(eps=8 / 255, step_size=2 / 255, steps=20)
    pair = load("add_defense_known")
    assert pair.deal == "all"
    assert [(n, c.target) for n, c in pair.components.items()] == [("clean", None), ("pgd_u", None), ("pgd_t", 3)]
    assert all(c.attack == PGD(eps=0.15, step_size=0.01, steps=40) for c in pair.components.values() if c.attack)
    eight = load("add_defense_test").components
    targets = {"pgd_t": 3, "cw_t": 3, "ddn_t": 3}
    names = ("clean", "pgd_u", "pgd_t", "cw_u", "cw_t", "boundary_u", "local_search_u", "ddn_u", "ddn_t")
    assert {n: c.target for n, c in eight.items()} == dict.fromkeys(names) | targets
    assert eight["pgd_u"].attack == pair.components["pgd_u"].attack
    assert eight["cw_u"].attack == CarliniWagnerL2(confidence=0.0, c=1e-3, lr=0.01, steps=200, binary_search_steps=9)
    assert eight["boundary_u"].attack == Boundary(steps=5000, spherical_step=0.01, source_step=0.01)
    assert eight["local_search_u"].attack == LocalSearch(steps=10, pixels=300, probe=10.0, stretch=1.5, reach=5)
    assert eight["ddn_t"].attack == DDN(steps=100, gamma=0.05)
    options = ["weight=3", "victims=[b]", "target=random", "knowledge=defence"]
    changed = load("attunet", *(f"mix.components.rfgsm.{option}" for option in options)).components["rfgsm"]
    assert (changed.weight, changed.victims, changed.target, changed.knowledge) == (3, ["b"], "random", "defence")


def test_settings_and_adaptive_attackers_from_words() -> None:
    words = ["mix.components.fgsm.settings=[{eps: 4/255}, {eps: 0.1}]", "~mix.components.fgsm.params"]
    words += ["+component@mix.adaptive.eot=base", "+attack@mix.adaptive.eot.attack=pgd"]
    words += ["mix.adaptive.eot.knowledge=defence", "mix.adaptive.eot.gradient={eot: 4}"]
    mix = load("attunet", *words)
    assert mix.attack_names == ("clean", "fgsm", "rfgsm", "eot")
    assert mix.setting_names(1) == ("eps=4/255", "eps=0.1")
    assert mix.adaptive == {"eot": Component(attack=PGD(), knowledge="defence", gradient={"eot": 4}, settings=[])}
    budgets = {
        "cdd_red_known": 40,
        "attunet": 16,
        "redrl": 16,
        "digits": 64,
        "add_defense_test": 0.15 * 255,
        "clean": 8,
    }
    for name, budget in budgets.items():
        assert load(name).adaptive["aware_pgd"].attack.eps == pytest.approx(budget / 255)  # type: ignore[union-attr]


def test_the_mix_of_redrl_is_its_table_2() -> None:
    """The settings of Tables 2 and 6; each of six classes and, within one, each setting is dealt equally often."""
    mix, eps = load("redrl"), [{"eps": e / 255} for e in (4, 8, 16)]
    assert (mix.deal, mix.quantize, mix.rounding, mix.only_fooled) == ("stratified", 8, "fooling", False)
    assert {name: component.attack for name, component in mix.components.items()} == {
        "clean": None,
        "pgd": PGD(step_size=0.01, steps=100),
        "deepfool": DeepFool(norm="l2", steps=50, overshoot=0.02, top_k=None),
        "cw_l2": CarliniWagnerL2(lr=0.01, steps=1000, binary_search_steps=1, confidence=0.0),
        "cw_linf": CarliniWagnerLinf(lr=0.005, steps=100, c=5, confidence=0.0),
        "patch": Patch(step_size=0.01, steps=100),
    }
    pairs = [{**e, "size": size} for e in eps for size in (4, 8, 16)]
    wanted = {"pgd": eps, "cw_linf": eps, "cw_l2": [{"c": 100}, {"c": 1000}], "patch": pairs}
    assert {name: list(c.settings) for name, c in mix.components.items() if c.settings} == wanted
    halved = [{**pair, "size": pair["size"] // 2} for pair in pairs]
    assert list(load("redrl_32").components["patch"].settings) == halved
    plan = make(mix, torch.arange(9000))
    assert all(abs(n - 1500) < 15 for n in torch.bincount(plan.attack).tolist())
    for name, settings in wanted.items():
        dealt = torch.bincount(plan.setting[plan.attack == mix.names.index(name)], minlength=len(settings))
        assert all(abs(n * len(settings) / 1500 - 1) < 0.3 for n in dealt.tolist()), name
