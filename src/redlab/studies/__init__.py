"""The papers' tables and figures as evaluations: one file per paper, our numbers beside the printed ones."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

from redlab.spelling import nearest
from redlab.studies import add_defense, attunet_gan, cdd_red, gred, leaderboard, redrl
from redlab.studies.card import Card, Trained, card_figure, card_markdown, card_tables, draw
from redlab.studies.numbers import Claim, Number
from redlab.studies.paper_numbers import PaperTable, paper_table
from redlab.studies.study import Evaluation, Scale, Seen, Study, merge_overrides
from redlab.studies.table import Table

__all__ = [
    "STUDIES",
    "Card",
    "Claim",
    "Evaluation",
    "Number",
    "PaperTable",
    "Scale",
    "Seen",
    "Study",
    "Table",
    "Trained",
    "card_figure",
    "card_markdown",
    "card_tables",
    "draw",
    "find",
    "merge_overrides",
    "paper_table",
]

STUDIES: dict[str, Callable[[], Study]] = {
    f"{paper.__name__.rpartition('.')[2]}/{name}": study
    for paper in (cdd_red, redrl, add_defense, attunet_gan, gred, leaderboard)
    for name, study in paper.STUDIES.items()
}
"""``<paper>/<table>`` -> the study."""


def find(pattern: str) -> list[Study]:
    """The studies whose names match a pattern, such as ``cdd_red/table1``, or ``cdd_red`` for all of a paper.

    >>> find("cdd_red/table[1]")[0].id
    'cdd_red/table1'

    Raises:
        ValueError: none does; the message names the nearest one.
    """
    whole = pattern if "/" in pattern else f"{pattern}/*"
    found = [make() for name, make in STUDIES.items() if fnmatchcase(name, whole)]
    if not found:
        near = nearest(pattern, STUDIES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"studies: {', '.join(STUDIES)}"
        raise ValueError(f"there is no study {pattern!r}; {hint}")
    return found
