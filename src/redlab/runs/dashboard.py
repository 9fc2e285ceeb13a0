"""wandb: about thirty numbers that one looks at first, and the rest as tables, charts and pictures."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.loggers import WandbLogger

from redlab.metrics import Samples, confusion, roc, score_names
from redlab.report.measures import headline

FRONT = (
    *("clean_accuracy", "attacked_accuracy", "defended_accuracy", "worst_accuracy", "adaptive_defended_accuracy"),
    *("d", "pa_benign", "pa_adv", "auroc", "tpr_at_fpr1", "identified", "unknown_auroc"),
)
"""Measures of validation and test that are curves and numbers of their own; all others stand in a table."""

_ROWS = 10_000  # of a table; wandb shows no more
_POINTS = 200  # of a curve


class Dashboard(WandbLogger):
    """Lightning's logger for wandb, which is told what a person looks at.

    Of ``val/...`` and ``test/...`` it takes the measures in ``FRONT`` and what picks the best checkpoint; of everything
    else all. ``finish`` adds the rest once.

    Args:
        monitor: what picks the best checkpoint.
        offline: False uploads; without a key it stays offline all the same, rather than ask for one.
        kwargs: those of ``WandbLogger`` and ``wandb.init``.
    """

    def __init__(self, monitor: str = "", offline: bool = True, **kwargs: Any) -> None:
        import wandb

        self.unasked = not offline and not wandb.api.api_key
        super().__init__(offline=offline or self.unasked, **kwargs)
        self.monitor = monitor

    @property
    def experiment(self) -> Any:
        """The run of wandb; validation stands over epochs."""
        new, mode = self._experiment is None, os.environ.get("WANDB_MODE")
        run = super().experiment
        if new:
            if mode is None:  # Lightning leaves it set, and all later runs of the process would be offline
                os.environ.pop("WANDB_MODE", None)
            if callable(getattr(run, "define_metric", None)):
                run.define_metric("val/*", step_metric="epoch")
        return run

    def log_hyperparams(self, *params: Any, **more: Any) -> None:
        """Nothing: the resolved config is there already."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs the front row."""
        super().log_metrics({key: value for key, value in metrics.items() if self.in_front(key)}, step)

    def in_front(self, key: str) -> bool:
        """Whether a number stands in the front row."""
        stage, _, measure = key.partition("/")
        return stage not in ("val", "test") or measure in FRONT or key == self.monitor

    def finish(self, rows: Samples, numbers: Mapping[str, float], best: float | None) -> None:
        """Tables of all numbers and rows, charts of what was told apart, and the summary of the best checkpoint.

        Args:
            rows: of the test.
            numbers: of the test, by their names.
            best: what the best checkpoint scored in validation.
        """
        import wandb

        run = self.experiment
        every = wandb.Table(["number", "value"], [[name, value] for name, value in sorted(numbers.items())])
        told: dict[str, Any] = {"numbers": every}
        if len(rows):
            told["rows"] = wandb.Table(list(rows.columns), _cells(rows))
            if "said" in rows:
                counts, attacks, answers = confusion(rows)
                places = itertools.product(range(len(attacks)), range(len(answers)))
                cells = [[attacks[i], answers[j], int(counts[i, j])] for i, j in places]
                table = wandb.Table(["attack", "taken for", "images"], cells)
                told["confusion"] = wandb.plot_table(
                    "wandb/confusion_matrix/v1",
                    table,
                    {"Actual": "attack", "Predicted": "taken for", "nPredictions": "images"},
                    {"title": "which attack was taken for which"},
                )
            told |= {f"roc/{score}": chart for score in score_names(rows) if (chart := _roc_chart(rows, score))}
        run.log(told)
        for tile in headline(rows)[:1]:
            run.summary["headline"], run.summary["headline_is"] = tile.value, tile.text
        run.summary.update({key: value for key, value in numbers.items() if self.in_front(key)})
        if best is not None and self.monitor:
            run.summary[f"best/{self.monitor.partition('/')[2]}"] = best


def _cells(rows: Samples) -> list[list[Any]]:
    columns = [
        [rows.names[name][code] for code in values[:_ROWS].tolist()] if name in rows.names else values[:_ROWS].tolist()
        for name, values in rows.columns.items()
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def _roc_chart(rows: Samples, score: str) -> Any:
    import wandb

    told = rows.where(knowledge="victim")
    attacked = told["attacked"] > 0
    if not bool(attacked.any()) or bool(attacked.all()):
        return None
    false, true = roc(told, score)
    places = torch.linspace(0, len(false) - 1, min(_POINTS, len(false))).round().long()
    points = torch.stack([false[places], true[places]], 1).tolist()
    table = wandb.Table(["false alarms", "alarms on attacked images"], points)
    return wandb.plot.line(table, "false alarms", "alarms on attacked images", title=f"ROC of {score}")
