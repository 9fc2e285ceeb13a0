"""What was tested once is not tested again: rows are kept for each attack by all that they depend on."""

import json

import pytest
import torch

from redlab.metrics import Samples
from redlab.runs import evaluations
from redlab.runs.config import compose, finalise
from redlab.runs.train import evaluate, train
from redlab.victims import Victim

SMALL = ["data.limit_train=96", "data.limit_val=32", "data.limit_test=24", "data.batch_size=32", "method.width=4"]
SMALL += ["method.depth=3", "trainer.enable_progress_bar=false", "logger=none", "victim_training.max_epochs=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A trained run, in whose folder all is done."""
    here = tmp_path_factory.mktemp("evaluations")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr("redlab.runs.train.run_report", lambda out, **rest: out / "report.html")
        train(finalise(compose([*SMALL, "trainer.max_epochs=1"])), here / "run")
    return here


@pytest.fixture
def again(place, tmp_path, monkeypatch, no_report):
    """Evaluates the run once more: the numbers, and how many images the victim was asked about."""
    monkeypatch.chdir(place)
    count, plain = [0], Victim.forward

    def counted(self, x):
        count[0] += len(x)
        return plain(self, x)

    monkeypatch.setattr(Victim, "forward", counted)

    def go(*words, run="run"):
        count[0] = 0
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        found = evaluate(place / run, list(words), out)
        return found, count[0], Samples.load(out / "samples.npz")

    return go


def test_the_same_test_again_asks_nobody(again, place):
    own = json.loads((place / "run" / "metrics.json").read_text())
    found, asked, rows = again()
    assert found == own
    assert asked == 0
    kept = Samples.load(place / "run" / "samples.npz")
    assert all(torch.equal(rows[column], kept[column]) for column in kept.columns)


def test_one_more_attack_costs_that_attack_alone(again):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluations, "_read", lambda path: None)
        patch.setattr(evaluations, "_keep", lambda *_: None)
        whole, every, _ = again(*STEPS)
    found, asked, rows = again(*STEPS)
    assert found == whole
    # 24 images: three steps and their last look; did it work (two passes); four images of each row to judge
    assert asked == 24 * (3 + 1) + 24 * 2 + 24 * 4 < every / 4
    assert rows.values("attack") == ("clean", "fgsm", "pgd", "more", "aware_pgd")


STEPS = [
    "+mix.components.more={_target_:redlab.crafting.Component,attack:{_target_:redlab.attacks.PGD,eps:0.01,steps:3}}",
]


@pytest.mark.parametrize(
    "words",
    [
        ["data.limit_test=23"],
        ["mix.quantize=8"],
        ["seed=1"],
        ["judges=[small_cnn]"],
        ["mix.components.pgd.attack.steps=4"],
        ["trainer.precision=bf16-mixed"],
    ],
    ids=lambda words: words[0],
)
def test_what_may_change_a_number_is_tested_anew(again, words):
    assert again(*words)[1] > 0


def test_a_damaged_file_is_made_again(again, place):
    own, asked, _ = again()
    assert asked == 0
    for file in (place / "run" / "evaluations").iterdir():
        file.write_bytes(file.read_bytes()[:40])
    found, asked, _ = again()
    assert asked > 0
    assert found == own


def test_another_checkpoint_or_source_is_another_test(again, place, monkeypatch):
    monkeypatch.setattr(evaluations, "source", lambda: "changed")
    assert again()[1] > 0
