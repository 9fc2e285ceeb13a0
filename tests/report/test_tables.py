import io
import re
from collections.abc import Iterable
from html import escape

import pytest
from report_rows import made_up
from rich.console import Console

from redlab.attacks import FGSM
from redlab.crafting.mix import AttackMix, Component
from redlab.report.measures import tables
from redlab.report.tables import Table, console, html, markdown

ODD = ["pgd|20", "<pgd> & co", "[red]pgd[red]", "pgd, 20 steps", '"pgd"', "_pgd", "a.b", "{pgd}", "50 %", "adaptive_d"]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_is_in_every_table(name: str) -> None:
    """Of an attack and of a victim, from the rows to the screen."""
    AttackMix({name: Component(attack=FGSM())}).check([name])
    table = tables(made_up("restorer", attacks=(name,), victims=(name,), adaptive=()))[0]
    assert [row[0] for row in table.rows] == ["every attacker", "all attacks", name, "no attack"]
    assert "\n| " + name.replace("|", "\\|") + " |" in markdown(table)
    assert re.search(f"<td[^>]*>{re.escape(escape(name))}</td>", html(table))
    terminal = Console(width=200, record=True, file=io.StringIO())
    terminal.print(console(table))
    assert name in terminal.export_text()


@pytest.mark.parametrize(
    "name", ["pgd 8/255", "$pgd$", "pgd\n", " pgd", "", "all attacks", "no attack", "every attacker"]
)
def test_a_name_that_would_not_be_is_refused(name: str) -> None:
    for attack, victim in ((name, "lenet"), ("pgd", name)):
        with pytest.raises(ValueError, match=re.escape(repr(name))):
            AttackMix({attack: Component(attack=FGSM())}).check([victim])


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
    table = tables(made_up("restorer"))[0]
    lines = [line for line in markdown(table).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(table.rows) == 8
    assert {line.count("|") for line in lines} == {5}


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


@pytest.mark.parametrize("width", [80, 60, 40])
def test_a_terminal_shows_every_number_whole(width: int) -> None:
    """Eight attacks on three victims, every measure."""
    victims = ("small_cnn", "lenet", "resnet18")
    found = tables(made_up("restorer", "detector", attacks=ATTACKS, victims=victims, n=97))
    lines = terminal(found, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    assert sum(len(table.columns) - 1 for table in found) == 17
    shown = " ".join(lines).split()
    for table in found:
        for _, *cells in table.rows:
            assert all(cell.split()[0] in shown for cell in cells)
    if width == 80:  # each table in one piece, a row per attack
        heads = [line for line in lines if line.startswith("  attack ")]
        assert len(heads) == len(found) == 5
        assert all(sum(line.startswith(f"  {name} ") for line in lines) >= 5 for name in ATTACKS)


def test_prose_and_long_names_are_folded_not_cut() -> None:
    words = "a conclusion of the paper that is longer than a line of the terminal could ever be"
    table = Table("t", ("measure", "ours", "numbers"), (("n" * 70, "12.34\u00a0±\u00a00.45", words),))
    lines = terminal([table], 80)
    assert max(map(len, lines)) <= 80
    assert sum(word.count("n") for line in lines for word in line.split() if set(word) == {"n"}) == 70
    assert "12.34\u00a0±\u00a00.45" in "".join(lines)
    assert set(words.split()) <= set(" ".join(lines).split())
