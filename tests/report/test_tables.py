import io
import re
from collections.abc import Iterable
from html import escape

import pytest
import torch
from redlab.metrics.restoration import QUANTITIES
from rich.console import Console

from redlab.attacks import FGSM
from redlab.batch import AttackBatch
from redlab.crafting import AttackMix, Component
from redlab.metrics import RestorationMetrics
from redlab.report.run_report import tables_of
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
    batch = AttackBatch(x, x + 0.1, ids, ids + 1, ids, ids, ids, ids - 1, ids, ids == 0, ids == 0)
    right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    metric = RestorationMetrics(["clean", name], [name])
    metric.update(batch, x, right, wrong, right, wrong)
    table = metrics_table({f"test/{key}": value for key, value in metric.compute().items()}, ACCURACIES, "t")
    assert [row[0] for row in table.rows] == ["all attacks", name]
    assert "\n| " + name.replace("|", "\\|") + " |" in markdown(table)
    assert re.search(f"<td[^>]*>{re.escape(escape(name))}</td>", html(table))
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


def terminal(tables: Iterable[Table], width: int) -> list[str]:
    """The lines that a terminal of so many columns shows."""
    shown = Console(width=width)
    with shown.capture() as captured:
        for table in tables:
            shown.print(console(table))
    return captured.get().splitlines()


ATTACKS = (
    "fgsm",
    "pgd",
    "cw_t",
    "local_search_u",
    "boundary_u",
    "autoattack",
    "smoothed_pgd",
    "wasserstein_frank_wolfe",
)
VALUES = iter(range(1000, 10000))
MANY = {
    f"test/{measure}{suffix}": next(VALUES) / 1e4
    for measure in (*QUANTITIES, "adaptive_restored_accuracy")
    for attack in ATTACKS
    for suffix in ("", f"/{attack}", *(f"/{attack}/{victim}" for victim in ("small_cnn", "lenet", "resnet18")))
}


@pytest.mark.parametrize("width", [80, 60, 40])
def test_a_terminal_shows_every_number_whole(width: int) -> None:
    """Eight attacks on three victims, every measure."""
    tables = tables_of(MANY)
    lines = terminal(tables, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    assert sum(len(table.columns) - 1 for table in tables) == 12
    shown = " ".join(lines).split()
    for table in tables:
        for _, *cells in table.rows:
            assert all(cell.split()[0] in shown for cell in cells)  # each number is there once
    if width == 80:  # each table in one piece, a row per attack
        heads = [line for line in lines if line.startswith("  attack ")]
        assert len(heads) == len(tables) == 3
        assert all(sum(line.startswith(f"  {name} ") for line in lines) == 3 for name in ATTACKS)


def test_prose_and_long_names_are_folded_not_cut() -> None:
    words = "a conclusion of the paper that is longer than a line of the terminal could ever be"
    table = Table("t", ("measure", "ours", "numbers"), (("n" * 70, "12.34\u00a0±\u00a00.45", words),))
    lines = terminal([table], 80)
    assert max(map(len, lines)) <= 80
    assert sum(word.count("n") for line in lines for word in line.split() if set(word) == {"n"}) == 70
    assert "12.34\u00a0±\u00a00.45" in "".join(lines)
    assert set(words.split()) <= set(" ".join(lines).split())
