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
from redlab.report.tables import ACCURACY_COLUMNS, ADAPTIVE_NOTE, ALIGNMENT, DISTANCES, Table, console, metrics_table

CAPTIONS = {
    "restoration": "Test images: of each attack some that were put right and some that were not, where there are such. "
    "The victim's answer stands below each, with a tick where it is right.",
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
    examples: Sequence[tuple[AttackBatch, Mapping[str, Tensor]]],
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
        examples: pairs of the attacked test cells and what was said of them.
        attack_names: names by attack id.
        victims: name -> victim, on the CPU or wherever; the order gives the ids.
        class_names: names of the classes.
        loggers: Lightning loggers.
        terminal: where the tables are printed.

    Returns:
        The path of ``report.html``.
    """
    figures: dict[str, Figure] = {}
    if restorations := [(batch, said["restored"]) for batch, said in examples if "restored" in said]:
        figures["restoration"] = _grid(restorations, attack_names, victims, class_names)
    if "test/attacked_accuracy" in metrics:
        figures["accuracy"] = accuracy_bars(metrics)
    trained = ("train/", "val/")  # an evaluation has neither
    if rows := [r for r in _csv_rows(out) if any(value and key.startswith(trained) for key, value in r.items())]:
        figures["training"] = training_curves(rows)
    for name, figure in figures.items():
        log_figure(loggers, name, figure, folder=out / "figures")
    tables = tables_of(metrics)
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


def tables_of(metrics: Mapping[str, float]) -> list[Table]:
    """What a run measured, per attack."""
    adaptive = "test/adaptive_restored_accuracy" in metrics
    tables = [
        metrics_table(metrics, ACCURACY_COLUMNS, "Accuracy", (ADAPTIVE_NOTE,) if adaptive else ()),
        metrics_table(metrics, DISTANCES, "Restoration"),
        metrics_table(metrics, ALIGNMENT, "Prediction alignment"),
    ]
    return [table for table in tables if table.rows]


def _grid(
    examples: Sequence[tuple[AttackBatch, Tensor]],
    attack_names: Sequence[str],
    victims: Mapping[str, nn.Module],
    class_names: Sequence[str],
) -> Figure:
    batch, restored = AttackBatch.cat([b for b, _ in examples]), torch.cat([r for _, r in examples])
    answers = torch.full((3, len(batch)), -1)
    names = list(victims)
    for v, victim in enumerate(victims.values()):
        mine = (batch.victim == v).nonzero()[:, 0]
        device = next((t.device for t in victim.parameters()), torch.device("cpu"))
        if len(mine):
            with torch.no_grad():
                for column, images in enumerate((batch.clean, batch.adv, restored)):
                    answers[column, mine] = victim(images[mine].to(device)).argmax(1).cpu()
    rows = torch.tensor(_shown(batch, answers == batch.label))
    batch, restored, answers = batch[rows], restored[rows], answers[:, rows]
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


def _shown(batch: AttackBatch, right: Tensor) -> list[int]:
    """Rows for the figure: of each attack as many that were put right as not, on different images and victims.

    Args:
        batch: B pairs.
        right: (3, B) bool, whether the victim is right on the clean, the attacked and the restored image.
    """
    fooled = right[0] & ~right[1]
    repaired, failed = (fooled & right[2]).tolist(), (fooled & ~right[2]).tolist()
    index, victim = batch.index.tolist(), batch.victim.tolist()
    attacks = sorted(set(batch.attack.tolist()))
    rows: list[int] = []
    for attack in attacks:
        left = (batch.attack == attack).nonzero()[:, 0].tolist()
        for place in range(max(2, 4 // len(attacks))):
            first, second = (repaired, failed) if place % 2 == 0 else (failed, repaired)

            def rank(row: int, first: list[bool] = first, second: list[bool] = second) -> tuple[int, bool, int]:
                kind = 0 if first[row] else 1 if second[row] else 2
                return kind, index[row] in {index[r] for r in rows}, sum(victim[r] == victim[row] for r in rows)

            if left:
                rows.append(min(left, key=rank))
                left.remove(rows[-1])
    return rows


def _csv_rows(out: Path) -> list[dict[str, str]]:
    """The rows of the CSV logger, of all sessions of a run that was stopped and resumed."""
    rows = []
    for path in sorted(out.glob("csv/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1])):
        with path.open() as file:
            rows += list(csv.DictReader(file))
    return rows
