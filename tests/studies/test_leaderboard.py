"""The columns of the leaderboard, by hand."""

from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from redlab.attacks import PGD, Square
from redlab.metrics import Samples
from redlab.runs.config import compose, conf_dir, finalise
from redlab.studies import Scale, merge_overrides
from redlab.studies.leaderboard import (
    CLEAN,
    EVERY,
    HARDENED,
    KNOWING,
    METHODS,
    NO_DEFENCE,
    SEEN,
    UNBOUNDED,
    UNSEEN,
    by_attack,
    defences,
    numbers,
)
from redlab.studies.study import Seen
from redlab.studies.table import Table

ATTACKS = ("clean", "fgsm", "pgd", "deepfool", "square", "aware_pgd", "aware_square")


def rows(right):
    """Four images in each cell; ``right``: attack -> which of them are right."""
    cells = [(ATTACKS.index(name), i, float(value)) for name, values in right.items() for i, value in enumerate(values)]
    attack, image, good = (torch.tensor(part) for part in zip(*cells, strict=True))
    zeros, ones = torch.zeros(len(image), dtype=torch.int64), torch.ones(len(image), dtype=torch.float64)
    columns = {"attack": attack, "image": image, "victim": zeros, "judge": zeros, "setting": zeros}
    columns |= {"right": good.double(), "attacked": (attack > 0).double(), "knowledge": (attack >= 5).long()}
    columns |= {"right_clean": ones, "right_attacked": (attack == 0).double()}
    columns |= {"answer_s": 0.002 * ones, "parameters": 10 * ones}
    names = {"attack": ATTACKS, "setting": ("",), "victim": ("net",), "judge": ("net",)}
    return Samples(columns, names | {"knowledge": ("victim", "defence")})


def seen_of(methods, unbounded=(0, 0, 0, 0)):
    """The tests of some methods, and of each one by an attacker without bounds."""
    found = {name: Seen(rows=rows(right)) for name, right in methods.items()}
    return found | {f"{name}, {UNBOUNDED}": Seen(rows=rows({"aware_pgd": unbounded})) for name in methods}


GOOD = {
    "clean": [1, 1, 1, 0],
    "fgsm": [1, 1, 1, 1],
    "pgd": [1, 1, 0, 0],
    "deepfool": [1, 1, 1, 1],
    "square": [1, 0, 0, 0],
    "aware_pgd": [1, 1, 0, 0],
    "aware_square": [1, 0, 1, 0],
}
ALARM = {name: [int(name != "clean")] * 4 for name in GOOD}


def test_the_columns():
    found = numbers(seen_of({"CDD-RED": ALARM, "DO": GOOD}))
    assert found["DO", EVERY] == 25
    assert found["DO", KNOWING] == 25  # the second is wrong by one of them, the third by the other
    assert found["DO", SEEN] == pytest.approx(100 * 10 / 12)
    assert found["DO", UNSEEN] == 25
    assert found["DO", CLEAN] == 75
    assert found["DO", "ms per image"] == pytest.approx(2)
    assert found["DO", "parameters"] == 10
    # who always raises the alarm is right on no image that is not attacked, and so under no attacker
    assert (found["CDD-RED", EVERY], found["CDD-RED", KNOWING], found["CDD-RED", SEEN]) == (0, 0, 100)
    assert (found[NO_DEFENCE, CLEAN], found[NO_DEFENCE, SEEN]) == (100, 0)


def test_rows_without_the_number_come_last():
    cells = {
        ("none", "other"): 9.0,
        ("zero", "x"): 0.0,
        ("minus", "x"): -1.0,
        ("three", "x"): 3.0,
        ("three", "other"): 1.0,
    }
    table = Table.of_seeds([cells]).sorted_by("x")
    assert table.rows == ("three", "zero", "minus", "none")
    assert {address: number.mean for address, number in table.cells.items()} == cells


def test_an_attacker_without_bounds_who_leaves_something_says_that_the_gradient_is_hidden():
    """It is no attacker of the others' columns; a red line of the card follows from what it leaves."""
    for left, wrong, verdict in ((0, [0, 0, 0, 0], "holds"), (25, [1, 0, 0, 0], "fails")):
        found = numbers(seen_of(dict.fromkeys(METHODS, GOOD), wrong))
        assert {found[name, UNBOUNDED] for name in METHODS} == {left}
        assert (found["DO", EVERY], found["DO", KNOWING]) == (25, 25)
        claims = defences().judge(Table.of_seeds([found]))
        (claim,) = (claim for text, claim in claims.items() if "without bounds" in text)
        assert claim.verdict == verdict


BAD = GOOD | {"aware_square": [0, 0, 0, 0]}


def test_the_best_over_all_seeds_comes_first():
    """By the first seed that is CDD-RED, by the mean DO; the victim alone has no such number, and comes last."""
    better = GOOD | {"aware_square": [1, 1, 1, 0], "square": [1, 1, 0, 0], "aware_pgd": [1, 1, 1, 1]}
    board = replace(defences(), runs={"CDD-RED": [], "DO": []}, evaluations={})
    seeds = [seen_of({"CDD-RED": GOOD, "DO": BAD}), seen_of({"CDD-RED": BAD, "DO": better})]
    assert [numbers(seed)["DO", EVERY] for seed in seeds] == [0, 50]
    assert [numbers(seed)["CDD-RED", EVERY] for seed in seeds] == [25, 0]
    table = board.table(seeds)
    assert table.rows == ("DO", "CDD-RED", NO_DEFENCE)
    (axes, _) = by_attack(seeds[0], table).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["DO", "CDD-RED", NO_DEFENCE]
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown == [*ATTACKS, EVERY]
    values = axes.images[0].get_array()
    assert values[1].tolist() == [75, 100, 50, 100, 25, 50, 50, 25]  # of CDD-RED in the first seed
    assert values[2].tolist()[:5] == [100, 0, 0, 0, 0]
    assert len(axes.texts) == 8 + 8 + 5  # nobody knows the victim's defence, since it has none


def test_every_method_is_trained_and_tested_in_one_way():
    made = defences()
    assert set(made.runs) == set(METHODS)
    told = [(of.run, of.overrides[0], of.attacks is None) for of in made.evaluations.values()]
    assert sorted(told) == sorted([(n, "@tested", True) for n in METHODS] + [(n, "@unbounded", False) for n in METHODS])
    defences_ = {name: words for name, words in made.runs.items() if name != HARDENED}
    assert all(words[0] == "@attacked" and words[2].startswith("@") for words in defences_.values())
    assert made.runs[HARDENED] == ["method=hardened", "@hardened"]


SCALES = {name: Scale.of(node) for name, node in OmegaConf.load(conf_dir() / "study/leaderboard.yaml").scales.items()}


@pytest.mark.parametrize("scale", SCALES)
def test_who_knows_the_defence_may_do_all_that_who_does_not_may(scale):
    """In every norm with a budget its gradient is followed with at least that budget, in as many steps."""
    words = SCALES[scale]
    mix = instantiate(
        finalise(compose(merge_overrides(words.common, words.words(["@tested"]), ["method=do", "bank=null"]))).mix
    )
    blind = [of.attack for name, of in mix.components.items() if name in ("fgsm", "pgd", "square", "pgd_l2")]
    knows = {of.attack.norm: of.attack for of in mix.adaptive.values() if isinstance(of.attack, PGD)}
    assert {attack.norm for attack in blind} == set(knows) == {"linf", "l2"}
    for attack in blind:
        assert knows[attack.norm].eps >= attack.eps
        assert knows[attack.norm].steps >= getattr(attack, "steps", 1)
    (square,) = (of.attack for of in mix.adaptive.values() if isinstance(of.attack, Square))
    assert (square.eps, square.queries) == (
        mix.components["square"].attack.eps,
        mix.components["square"].attack.queries,
    )


@pytest.mark.parametrize("scale", SCALES)
def test_adversarial_training_attacks_itself_with_the_budget_of_the_others(scale):
    words = SCALES[scale]
    made = defences()
    own = instantiate(finalise(compose(made.overrides(HARDENED, words))).mix)
    assert own.components["pgd"].knowledge == "defence"
    others = instantiate(finalise(compose(made.overrides("DO", words))).mix)
    assert all(component.knowledge == "victim" for component in others.components.values())
    assert own.components["pgd"].attack.eps == pytest.approx(others.components["pgd"].attack.eps)
