from html import escape

import pytest
import torch
from torch import nn

from redlab.batch import AttackBatch
from redlab.evaluation import Evaluator, gathered
from redlab.methods.examples import Examples
from redlab.metrics import Samples
from redlab.report import run_report as module
from redlab.report.checks import of_rows, table_of
from redlab.report.run_report import CAPTIONS, _shown, run_report


def cell(attack: int, victim: int, index: list[int]) -> AttackBatch:
    n = len(index)
    x, ids = torch.zeros(n, 1, 4, 4), torch.zeros(n, dtype=torch.int64)
    return AttackBatch(
        x, x, ids, ids + attack, ids, ids + victim, ids, ids - 1, torch.tensor(index), ids == 0, ids == 0
    )


def answers(text: str) -> torch.Tensor:
    """A letter per row: r(epaired), f(ailed), u(nsuccessful attack), m(isread when clean already)."""
    kinds = {"r": (1, 0, 1), "f": (1, 0, 0), "u": (1, 1, 1), "m": (0, 0, 0)}
    return torch.tensor([kinds[letter] for letter in text]).T.bool()


def test_each_attack_shows_a_success_and_a_failure_of_different_images_and_victims() -> None:
    batch = AttackBatch.cat([cell(a, v, [0, 1, 2, 3]) for a in (1, 2, 5) for v in (0, 1)])
    rows = _shown(batch, answers("rfrf" * 6))
    kinds = ["rfrf"[row % 4] for row in rows]
    assert kinds == ["r", "f"] * 3
    assert batch.attack[rows].tolist() == [1, 1, 2, 2, 5, 5]
    for a in (0, 2, 4):
        assert set(batch.victim[rows][a : a + 2].tolist()) == {0, 1}
    assert len(set(batch.index[rows].tolist())) == 4  # all that there are


def test_a_single_attack_shows_four_and_what_is_missing_is_filled_up() -> None:
    assert sorted(_shown(cell(1, 0, [5, 6, 7, 8, 9]), answers("mrurr"))) == [0, 1, 3, 4]
    assert _shown(cell(1, 0, [5, 6, 7, 8, 9]), answers("mufrr")) == [3, 2, 4, 0]
    assert _shown(cell(1, 0, [5]), answers("m")) == [0]


def test_many_attacks_show_two_each() -> None:
    batch = AttackBatch.cat([cell(a, 0, list(range(a, a + 3))) for a in range(1, 9)])
    rows = _shown(batch, answers("frr" * 8))
    assert batch.attack[rows].tolist() == [a for a in range(1, 9) for _ in range(2)]
    assert ["frr"[row % 3] for row in rows] == ["r", "f"] * 8


class Says:
    """A defence that looks at how bright an image is; what it restores is black."""

    verdict = "bright"
    attack_names = ("clean", "pgd")

    def __init__(self, *can):
        self.capabilities = frozenset(can)

    def restore(self, x):
        return torch.zeros_like(x)

    def adversarial_scores(self, x):
        return {"bright": x.mean((1, 2, 3)) - 0.5}

    def attack_logits(self, x):
        bright = x.mean((1, 2, 3)) - 0.5
        return torch.stack([-bright, bright], dim=1)

    def class_logits(self, x):
        return nn.functional.one_hot((x.mean((1, 2, 3)) > 0.5).long(), 2).float()


class Victim(nn.Module):
    """Right on clean images, which are black, and wrong on all others."""

    def forward(self, x):
        return torch.stack([-x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 0.1], dim=1)


def crafted(attack, n=4):
    """Every other attacked image is brighter than the defence allows; the label is 0."""
    ids, x = torch.zeros(n, dtype=torch.int64), torch.zeros(n, 1, 4, 4)
    light = torch.where(torch.arange(n) % 2 == 0, 0.75, 0.25).view(-1, 1, 1, 1)
    adv = x + light * (attack > 0)
    return AttackBatch(x, adv, ids, ids + attack, ids, ids, ids, ids - 1, torch.arange(n), ids == 0, ids + attack > 0)


@pytest.fixture
def report(monkeypatch, tmp_path):
    """What the report of a defence with some capabilities shows: figures by name, and the page."""

    def make(*can, names=("clean", "fgsm", "pgd")):
        victims = {"net": Victim()}
        evaluator = Evaluator(victims=victims, attack_names=names, setting_names={2: ("eps 4",)})
        parts, examples = [], []
        for attack in range(3):
            batch, kept = crafted(attack), Examples(attack)
            rows, said = evaluator(Says(*can), batch)
            more = {"restored": said.restored} if said.restored is not None else {}
            more |= {"answer": said.class_logits.argmax(1)} if said.class_logits is not None else {}
            kept.add(batch, {**rows.columns, **more})
            parts.append(rows)
            examples += kept.pairs()
        return told(gathered(parts), examples, victims)

    def told(rows, examples, victims):
        figures = {}
        monkeypatch.setattr(module, "log_figure", lambda loggers, name, figure, folder: figures.update({name: figure}))
        path = run_report(
            tmp_path, title="t", summary="", config="", rows=rows, examples=examples, victims=victims,
            class_names=["zero", "one"], loggers=[], checks=table_of(of_rows(rows)),
        )  # fmt: skip
        return figures, path.read_text()

    make.told = told
    return make


def below(figure, column, columns):
    """What stands below the pictures of a column."""
    return [axes.texts[0].get_text() for axes in figure.axes[column::columns] if axes.texts]


def test_what_a_detector_said_stands_below_the_perturbation(report):
    figures, page = report("detector")
    assert figures.keys() == {"verdicts", "accuracy", "roc"}
    grid = figures["verdicts"]
    assert below(grid, 0, 3) == ["zero ✓"] * 4
    assert below(grid, 1, 3) == ["one ✗"] * 4
    assert below(grid, 2, 3) == ["alarm, 0.25 ✓", "no alarm, -0.25 ✗"] * 2  # a success and a failure of each attack
    beside = [text.get_text() for text in grid.texts]
    assert [text for text in beside if text in ("fgsm", "pgd", "eps 4")] == ["fgsm"] * 2 + ["pgd", "eps 4"] * 2
    for title in ("Restoration", "Prediction alignment", "Identification"):
        assert f"<h3>{title}" not in page
    assert page.count("<figure") == 3


def test_an_identifier_is_right_by_the_name_that_it_gives(report):
    figures, page = report("identifier")
    assert figures.keys() == {"verdicts", "accuracy", "roc", "confusion"}
    said = below(figures["verdicts"], 2, 3)
    assert set(said[:2]) == {"pgd", "no attack"}  # fgsm, which it does not know: neither right nor wrong
    assert said[2:] == ["pgd ✓", "no attack ✗"]
    assert "unseen" in page


def test_a_labeler_is_right_by_its_class(report):
    figures, _ = report("labeler")
    assert figures.keys() == {"verdicts", "accuracy"}
    assert below(figures["verdicts"], 2, 3) == ["zero ✓", "one ✗"] * 2


def test_a_restorer_has_no_verdicts_unless_it_is_more(report):
    figures, page = report("restorer")
    assert figures.keys() == {"restoration", "accuracy"}
    assert below(figures["restoration"], 2, 4) == ["zero ✓"] * 4
    assert "<h3>Detection" not in page
    figures, page = report("restorer", "detector")
    assert figures.keys() == {"restoration", "verdicts", "accuracy", "roc"}
    assert all(escape(CAPTIONS[name]) in page for name in figures)


def test_without_rows_there_are_only_curves(report):
    figures, page = report.told(Samples({}), [], {})
    assert figures == {}
    assert "<h2>Accuracy" not in page
    assert "<h2>Numbers" not in page
