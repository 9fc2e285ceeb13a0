"""What a run shows: figures, tables and one HTML page. Knows tensors and numbers, not methods, attacks or Hydra."""

from redlab.report.figures import (
    accuracy_bars,
    comparison,
    log_figure,
    restoration_grid,
    save_figure,
    training_curves,
)
from redlab.report.html import write_report
from redlab.report.tables import ACCURACIES, Table, console, markdown, metrics_table

__all__ = [
    "ACCURACIES",
    "Table",
    "accuracy_bars",
    "comparison",
    "console",
    "log_figure",
    "markdown",
    "metrics_table",
    "restoration_grid",
    "save_figure",
    "training_curves",
    "write_report",
]
