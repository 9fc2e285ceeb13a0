"""What a run shows: figures, tables and one HTML page. Knows tensors and rows, not methods, attacks or Hydra."""

from redlab.report.canvas import log_figure, save_figure
from redlab.report.figures import accuracy_bars, comparison, confusion_map, roc_curves, training_curves
from redlab.report.html import write_report
from redlab.report.measures import Tile, headline
from redlab.report.pictures import restoration_grid, verdict_grid
from redlab.report.tables import Table, console, markdown

__all__ = [
    "Table",
    "Tile",
    "accuracy_bars",
    "comparison",
    "confusion_map",
    "console",
    "headline",
    "log_figure",
    "markdown",
    "restoration_grid",
    "roc_curves",
    "save_figure",
    "training_curves",
    "verdict_grid",
    "write_report",
]
