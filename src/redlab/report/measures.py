"""What is told of the rows of an evaluation, by capability: the headline and the tables.

A table has a line per attacker: an attack in one setting, by somebody who knows the victim alone, or the defence too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch

from redlab.metrics import (
    Samples,
    auroc,
    calibration_error,
    cell_mean,
    confusion,
    score_names,
    tpr_at_fpr,
    unknown_auroc,
    worst,
)
from redlab.metrics.reductions import CELL_MEANS
from redlab.report.tables import Table, number, percent

EVERY, ALL, NONE = "every attacker", "all attacks", "no attack"
"""Lines that are no attack of their own: the worst for each image, the mean over attacks, the clean images."""

NOTES = {
    "(adaptive)": "adaptive: the attacker knows the defence.",
    "(control)": "control: the image is changed, not attacked.",
}
"""What stands behind the names of some lines, and below a table that has such."""

SHARES = {"right_clean": "clean", "right_attacked": "attacked", "right_restored": "restored", "right": "defended"}
"""Columns of right answers, and how they are called in print: the victim's on the clean, the attacked and the restored
image, and that of the whole defence."""

DISTANCES = {"d": "d(x, restored)", "d_attack": "d(x, attacked)", "cosine": "cosine", "psnr": "PSNR (dB)"}
"""How far a restoration is from the clean image."""

ALIGNMENT = {
    "pa_benign": "PA benign",
    "pa_adv": "PA adv",
    "logit_d_benign": "logit d benign",
    "logit_d_adv": "logit d adv",
}
"""How the victim's predictions agree."""


Cell = Callable[[Samples], str]
"""What a table says of some rows."""


class Tile(NamedTuple):
    """A headline number.

    Attributes:
        text: what it is of.
        value: a share in 0..1; None where it was not measured.
        series: which of the bars it has the colour of, a value of ``SHARES``, or "" for none.
    """

    text: str
    value: float | None
    series: str = ""


def shares(rows: Samples) -> dict[str, str]:
    """Those of ``SHARES`` that the rows have; ``right`` only where it is not the same as ``right_restored``."""
    same = "right_restored" in rows and torch.equal(rows["right"], rows["right_restored"])
    return {name: title for name, title in SHARES.items() if name in rows and not (name == "right" and same)}


def defended(rows: Samples) -> str:
    """How the right answers of the whole defence are called: the last of its ``shares``."""
    return list(shares(rows).values())[-1]


def headline(rows: Samples) -> list[Tile]:
    """The worst case first and the mean beside it; then what knowing the defence costs it, and the victims alone."""
    if not len(rows) or "right" not in rows:
        return []
    clean, attacked = rows.clean, rows.where(attacked=1)
    told, title = attacked.where(knowledge="victim"), defended(rows)
    tiles = []
    if len(attacked):
        adaptive = attacked.where(knowledge="defence")
        under = "under every attacker" + ("" if len(adaptive) else ", none of whom knows the defence")
        tiles.append(Tile(f"{title}, {under}", worst(rows).mean("right"), title))
        tiles.append(Tile(f"{title}, mean over attacks", told.mean("right") if len(told) else None, title))
        tiles.append(
            Tile(f"{title}, attacker knows the defence", adaptive.mean("right") if len(adaptive) else None, title)
        )
        tiles.append(Tile("attacked, no defence", told.mean("right_attacked") if len(told) else None, "attacked"))
    if len(clean):
        tiles.append(Tile(f"no attack, {title}", clean.mean("right"), title))
    tiles.append(Tile("no attack, no defence", (clean if len(clean) else told).mean("right_clean"), "clean"))
    return tiles


def attackers(rows: Samples) -> Iterator[tuple[str, Samples]]:
    """Every line but ``EVERY``, and its rows: ``ALL``, each attack, each adaptive one, each control, ``NONE``."""
    told = rows.where(attacked=1, knowledge="victim")
    if len(told):
        yield ALL, told
    for some, tail in ((told, ""), (rows.where(attacked=1, knowledge="defence"), " (adaptive)")):
        for (attack, setting), group in some.groups("attack", "setting"):
            yield f"{attack} {setting}".strip() + tail, group
    for (attack, setting), group in rows.where(attacked=0).groups("attack", "setting"):
        if attack != "clean":
            yield f"{attack} {setting}".strip() + " (control)", group
    if len(clean := rows.clean):
        yield NONE, clean


def accuracies(rows: Samples) -> dict[str, dict[str, float]]:
    """Series (a value of ``SHARES``) -> line -> share of right answers; ``EVERY`` is there for the defence alone."""
    titles = shares(rows)
    found: dict[str, dict[str, float]] = {title: {} for title in titles.values()}
    if len(rows.where(attacked=1)) and "right" in rows:
        found[defended(rows)][EVERY] = worst(rows).mean("right")
    for line, group in attackers(rows):
        for column, title in titles.items():
            if line != NONE or column != "right_attacked":  # what is not attacked is right as it is clean
                found[title][line] = group.mean(column)
    return {title: values for title, values in found.items() if values}


def tables(rows: Samples) -> list[Table]:
    """All tables of the capabilities that the rows show; none without rows."""
    if not len(rows):
        return []
    found = [_accuracy(rows), _judges(rows), _measured(rows, DISTANCES, "Restoration")]
    found += [_measured(rows, ALIGNMENT, "Prediction alignment"), _detection(rows), _identification(rows)]
    return [table for table in found if table is not None]


def _notes(lines: list[str], *more: str) -> tuple[str, ...]:
    return (*(note for mark, note in NOTES.items() if any(line.endswith(mark) for line in lines)), *more)


def _accuracy(rows: Samples) -> Table | None:
    found = accuracies(rows)
    lines = list(dict.fromkeys(line for values in found.values() for line in values))
    lines.sort(key=lambda line: line != EVERY)
    cells = [(line, *(percent(values.get(line)) for values in found.values())) for line in lines]
    every = (f"{EVERY}: images that are right whatever is done to them.",) if EVERY in lines else ()
    return Table("Accuracy", ("attack", *found), tuple(cells), _notes(lines, *every)) if found else None


def _judges(rows: Samples) -> Table | None:
    """The whole defence before each network, where there are several."""
    if "right" not in rows or len(rows.judges) < 2:
        return None

    def cell(judge: str) -> Cell:
        return lambda group: percent(group.where(judge=judge).mean("right"))

    return _by_line(rows, f"Accuracy per network, {defended(rows)}", {judge: cell(judge) for judge in rows.judges})


def _measured(rows: Samples, columns: Mapping[str, str], title: str) -> Table | None:
    """Means of columns; those of ``CELL_MEANS`` are means over cells."""

    def cell(column: str) -> Cell:
        if column in CELL_MEANS:
            return lambda group: percent(cell_mean(group, column))
        return lambda group: number(group.mean(column))

    if not any(column in rows for column in columns if column != "d_attack"):
        return None
    return _by_line(rows, title, {head: cell(column) for column, head in columns.items() if column in rows})


def _by_line(rows: Samples, title: str, cells: Mapping[str, Cell], notes: tuple[str, ...] = ()) -> Table:
    """A table of what each cell says of the rows of each line."""
    lines = [(line, *(cell(group) for cell in cells.values())) for line, group in attackers(rows)]
    return Table(title, ("attack", *cells), tuple(lines), _notes([line for line, *_ in lines], *notes))


def against_clean(group: Samples, rows: Samples) -> Samples:
    """The attacked rows of a group, and beside them the clean rows of the same victims."""
    attacked, clean = group.where(attacked=1), rows.clean
    victims = [victim for victim in attacked.victims if victim in clean.victims]
    return Samples.cat([attacked, clean.where(victim=victims)])


def _detection(rows: Samples) -> Table | None:
    if not (scores := score_names(rows)):
        return None

    def area(score: str) -> Cell:
        return lambda group: number(auroc(against_clean(group, rows), score))

    def true_rate(score: str) -> Cell:
        return lambda group: percent(tpr_at_fpr(against_clean(group, rows), score))

    cells: dict[str, Cell] = {}
    for place, score in enumerate(scores):
        tail = f" {score}" if place else ""
        cells |= {f"AUROC{tail}": area(score), f"TPR at 1 % FPR{tail}": true_rate(score)}
    cells["alarms"] = lambda group: percent(group.mean("alarm"))
    return _by_line(rows, "Detection", cells, ("Alarms on images that are not attacked are false ones.",))


def _identification(rows: Samples) -> Table | None:
    if "said" not in rows:
        return None

    def identified(group: Samples) -> str:
        return "unseen" if bool(group["identified"].isnan().all()) else percent(group.mean("identified"))

    def taken_for(group: Samples) -> str:
        counts, _, answers = confusion(group)
        share, place = (counts.sum(0) / counts.sum()).max(0)
        return f"{NONE if answers[place] == 'clean' else answers[place]} ({percent(float(share))})"

    notes = [f"Expected calibration error {number(calibration_error(rows))}."]
    if bool(rows["identified"].isnan().any()):
        notes.append("unseen: the identifier was not trained on this attack; means leave it out.")
        if (found := unknown_auroc(rows.where(knowledge="victim"))) == found:
            notes.append(f"Its own doubt finds images of unseen attacks with an AUROC of {number(found)}.")
    return _by_line(rows, "Identification", {"identified": identified, "most often taken for": taken_for}, tuple(notes))
