import io
import re
from html import escape

import pytest
import torch
from rich.console import Console

from redlab.attacks import FGSM
from redlab.attacks.mix import AttackMix, Component
from redlab.batch import AttackBatch
from redlab.metrics import RestorationMetrics
from redlab.report.tables import ACCURACIES, Table, console, html, markdown, metrics_table, per_attack

METRICS = {
    "test/clean_accuracy": 0.9,
    "test/restored_accuracy": 0.75,
    "test/restored_accuracy/pgd": 0.5,
    "test/restored_accuracy/pgd/lenet": 0.1,
    "test/restored_accuracy/clean": 0.88,
    "val/restored_accuracy": 0.2,
}


def test_rows_are_attacks_and_cells_stay_where_they_belong() -> None:
    table = metrics_table(METRICS, ACCURACIES, "accuracy")
    assert table.columns == ("attack", "clean", "restored")  # what was not measured has no column
    assert table.rows == (
        ("all attacks", "90.0 %", "75.0 %"),
        ("pgd", "–", "50.0 %"),
        ("no attack", "–", "88.0 %"),
    )


def test_a_longer_name_is_another_measure() -> None:
    assert per_attack({"test/d": 1.0, "test/d_attack": 2.0, "test/d_attack/pgd": 3.0}, "d") == {"": 1.0}


ODD = ["pgd|20", "<pgd> & co", "[red]pgd[red]", "pgd, 20 steps", '"pgd"', "_pgd", "a.b", "{pgd}", "50 %", "adaptive_d"]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_is_in_every_table(name: str) -> None:
    """Of an attack and of a victim, from the metric to the screen."""
    AttackMix({name: Component(attack=FGSM())}).check([name])
    x, ids = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, dtype=torch.int64)
    batch = AttackBatch(x, x + 0.1, ids, ids + 1, ids, ids - 1, ids, ids == 0)
    right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    metric = RestorationMetrics(["clean", name], [name])
    metric.update(batch, x, right, wrong, right, wrong)
    table = metrics_table({f"test/{key}": value for key, value in metric.compute().items()}, ACCURACIES, "t")
    assert [row[0] for row in table.rows] == ["all attacks", name]
    assert "\n| " + name.replace("|", "\\|") + " |" in markdown(table)
    assert f"<td>{escape(name)}</td>" in html(table)
    terminal = Console(width=200, record=True, file=io.StringIO())
    terminal.print(console(table))
    assert name in terminal.export_text()


@pytest.mark.parametrize("name", ["pgd 8/255", "$pgd$", "pgd\n", " pgd", "", "all attacks", "no attack"])
def test_a_name_that_would_not_be_is_refused(name: str) -> None:
    for attacks, victims in ((["clean", name], ["lenet"]), (["clean", "pgd"], [name])):
        with pytest.raises(ValueError, match=re.escape(repr(name))):
            RestorationMetrics(attacks, victims)


def test_ragged_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="2 columns"):
        Table("t", ("a", "b"), (("1",),))


def test_renderings_keep_special_characters_harmless() -> None:
    table = Table("a <b>", ("x|y", "[red]v[/red]"), (("<script>alert(1)</script>", "holds"),), ("n & m",))
    page = html(table)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert '<td class="holds">holds</td>' in page
    assert "n &amp; m" in page
    assert "| x\\|y |" in markdown(table)
    terminal = Console(width=100, record=True, file=None)
    with terminal.capture() as captured:
        terminal.print(console(table))
    assert "[red]v[/red]" in captured.get()


def test_markdown_is_a_rectangle() -> None:
    lines = [line for line in markdown(metrics_table(METRICS, ACCURACIES, "t")).splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert {line.count("|") for line in lines} == {4}
