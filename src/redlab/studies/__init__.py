"""The papers' tables and figures as evaluations: one file per paper, our numbers beside the printed ones."""

from redlab.studies.paper_numbers import PaperTable, paper_table
from redlab.studies.study import (
    Card,
    Measure,
    Predicate,
    Relation,
    Study,
    card_figure,
    card_markdown,
    card_tables,
)

__all__ = [
    "Card",
    "Measure",
    "PaperTable",
    "Predicate",
    "Relation",
    "Study",
    "card_figure",
    "card_markdown",
    "card_tables",
    "paper_table",
]
