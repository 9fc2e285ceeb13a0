"""The report of one run, from its numbers and a few example pairs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from redlab.batch import AttackBatch
from redlab.report.figures import accuracy_bars, log_figure, restoration_grid, training_curves
from redlab.report.html import write_report
from redlab.report.tables import ACCURACIES, DISTANCES, console, metrics_table

CAPTIONS = {
    "restoration": "Test images: the victim's answer stands below each image, green where it is right.",
    "accuracy": "Test accuracy per attack. The last bar is what an attacker who knows of the defence leaves.",
    "training": "The course of training.",
}


def run_report(
    out: Path,
    *,
    title: str,
    summary: str,
    config: str,
    metrics: Mapping[str, float],
    examples: Sequence[tuple[AttackBatch, Tensor]],
    attack_names: Sequence[str],
    victims: Mapping[str, nn.Module],
    class_names: Sequence[str],
    loggers: Iterable[Any],
    terminal: Console,
) -> Path:
    """Prints the tables, writes ``figures/*.png`` and ``report.html``, and hands the figures to the loggers.

    Args:
        out: folder of the run.
        title: heading of the report.
        summary: a few lines below it.
        config: resolved config as YAML.
        metrics: flat numbers with keys ``test/...``.
        examples: pairs and their restorations per test cell; empty for a method that does not restore.
        attack_names: names by attack id.
        victims: name -> victim, on the CPU or wherever; the order gives the ids.
        class_names: names of the classes.
        loggers: Lightning loggers.
        terminal: where the tables are printed.

    Returns:
        The path of ``report.html``.
    """
    figures: dict[str, Figure] = {}
    if examples:
        figures["restoration"] = _grid(examples, attack_names, victims, class_names)
    if "test/attacked_accuracy" in metrics:
        figures["accuracy"] = accuracy_bars(metrics)
    trained = ("train/", "val/")  # an evaluation has neither
    if rows := [r for r in _csv_rows(out) if any(value and key.startswith(trained) for key, value in r.items())]:
        figures["training"] = training_curves(rows)
    for name, figure in figures.items():
        log_figure(loggers, name, figure, folder=out / "figures")
    tables = [
        metrics_table(metrics, ACCURACIES, "Accuracy"),
        metrics_table(metrics, DISTANCES, "Restoration and prediction alignment"),
    ]
    tables = [table for table in tables if table.rows]
    for table in tables:
        terminal.print(console(table))
    return write_report(
        out / "report.html",
        title=title,
        summary=summary,
        metrics=metrics,
        figures={CAPTIONS[name]: figure for name, figure in figures.items()},
        config=config,
        tables=tables,
    )


def _grid(
    examples: Sequence[tuple[AttackBatch, Tensor]],
    attack_names: Sequence[str],
    victims: Mapping[str, nn.Module],
    class_names: Sequence[str],
    rows: int = 4,
) -> Figure:
    """A few rows of every cell in turn, those whose attack succeeded first."""
    picked: list[tuple[AttackBatch, Tensor]] = []
    for place in range(rows):
        for batch, restored in examples:
            if place < len(batch) and len(picked) < rows:
                order = (
                    torch.arange(len(batch)) if batch.fooled is None else (~batch.fooled).long().argsort(stable=True)
                )
                row = order[place : place + 1]
                picked.append((batch[row], restored[row]))
    batch, restored = AttackBatch.cat([b for b, _ in picked]), torch.cat([r for _, r in picked])
    answers = torch.full((3, len(batch)), -1)
    names = list(victims)
    for v, victim in enumerate(victims.values()):
        mine = (batch.victim == v).nonzero()[:, 0]
        device = next((t.device for t in victim.parameters()), torch.device("cpu"))
        if len(mine):
            with torch.no_grad():
                for column, images in enumerate((batch.clean, batch.adv, restored)):
                    answers[column, mine] = victim(images[mine].to(device)).argmax(1).cpu()
    return restoration_grid(
        batch.clean,
        batch.adv,
        restored,
        labels=batch.label,
        predictions=(answers[0], answers[1], answers[2]),
        attacks=[attack_names[a] for a in batch.attack.tolist()],
        victims=[names[v] for v in batch.victim.tolist()],
        class_names=class_names,
    )


def _csv_rows(out: Path) -> list[dict[str, str]]:
    """The rows of the CSV logger, of all sessions of a run that was stopped and resumed."""
    rows = []
    for path in sorted(out.glob("csv/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1])):
        with path.open() as file:
            rows += list(csv.DictReader(file))
    return rows
