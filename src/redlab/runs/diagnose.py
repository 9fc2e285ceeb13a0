"""``redlab diagnose``: what trained runs say of image files that nobody has labelled."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from redlab.data.folder import image_files
from redlab.data.images import network_input
from redlab.diagnosis import FALSE_ALARMS, Diagnosis
from redlab.report.diagnosis import draw, write_diagnosis
from redlab.report.tables import percent
from redlab.runs.check import ConfigError
from redlab.runs.console import console, filter_known_warnings
from redlab.runs.examiners import Asked, asked
from redlab.runs.folders import taken

DEMO = Path(__file__).parents[1] / "demo"
"""A trained method that comes with the package, and images to ask it about."""
_TOGETHER = 32  # images that are examined and drawn at once, so that memory does not grow with their number
_LISTED = 20  # files that are named on the terminal
_COLUMNS = (
    *("file", "attacked", "score", "threshold", "scored_by", "attack", "share"),
    *("victim", "before", "p_before", "after", "p_after", "linf", "l2", "note", "fault"),
)


def diagnose_files(
    paths: Sequence[str | Path],
    asked: Asked,
    out: Path,
    *,
    floats: bool = False,
) -> list[dict[str, Any]]:
    """Examines image files, and writes ``diagnosis.html``, ``.csv`` and ``.json``, and the pictures.

    A file that cannot be read, or is refused, is named with its fault and stops nothing.

    Args:
        paths: files, and folders that are looked through.
        asked: who is asked.
        out: folder to write into.
        floats: also write each estimate of a clean image as float32 (``restored.npy``).

    Returns:
        Of each file what is in ``diagnosis.json``.

    Raises:
        ConfigError: there are no such files.
    """
    files = list(_files(paths))
    records: list[dict[str, Any]] = []
    with taken(out):
        with (out / "diagnosis.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, _COLUMNS)
            table.writeheader()
            work = [files[first : first + _TOGETHER] for first in range(0, len(files), _TOGETHER)]
            done = 0
            bar = track(work, "Examining", transient=True, console=console) if console.is_interactive else work
            for some in bar:
                found = list(_examined(some, asked, out, done, floats))
                records += found
                done += len(some)
                for record in found:  # as they come, so that what is done is not lost
                    table.writerow(_row(record))
                file.flush()
        (out / "diagnosis.json").write_text(json.dumps({"runs": list(asked.said), "images": records}, indent=1) + "\n")
        write_diagnosis(out / "diagnosis.html", records, runs=asked.said, aside=_aside(records, asked))
    return records


def report(
    paths: Sequence[Path] | None,
    runs: Sequence[Path],
    out: Path,
    *,
    allow: Sequence[str] = (),
    false_alarms: float = FALSE_ALARMS,
    floats: bool = False,
) -> None:
    """The command: examines files, writes the page, and says in a few lines what was found.

    Args:
        paths: files and folders; None for the images and the run of the demo.
        runs: folders or checkpoints.
        out: folder to write into.
        allow: see ``redlab.load``.
        false_alarms: share of clean images that may count as attacked.
        floats: also write estimates as float32.
    """
    filter_known_warnings()
    if paths is None:
        paths, runs = [DEMO / "images"], [DEMO]
    all_asked = asked(runs, allow=allow, false_alarms=false_alarms)
    for line in all_asked.said:
        console.print(line, highlight=False, markup=False)
    records = diagnose_files(paths, all_asked, out, floats=floats)
    table = Table("file", "verdict", "before", "after", box=None, pad_edge=False)
    for record in records[:_LISTED]:
        table.add_row(*map(escape, _summary(record)))
    console.print(table)
    if len(records) > _LISTED:
        console.print(f"... and {len(records) - _LISTED} more")
    console.print(_count(records), highlight=False)
    console.print(f"Page: [bold]{out / 'diagnosis.html'}[/]")


def _summary(record: Mapping[str, Any]) -> tuple[str, str, str, str]:
    if "fault" in record:
        return record["file"], f"not examined: {record['fault']}", "", ""
    verdict = "no sign of an attack" if not record["attacked"] else f"attacked{_by(record)}"
    said = [next(iter(record[when].values()), None) for when in ("before", "after")]
    before, after = ("" if answer is None else f"{answer[0]} ({percent(answer[1])})" for answer in said)
    return record["file"], verdict, before, after


def _by(record: Mapping[str, Any]) -> str:
    return f": {record['attack']}" if record["attack"] else ""


def _count(records: Sequence[Mapping[str, Any]]) -> str:
    attacked = sum(record.get("attacked", False) for record in records)
    refused = sum("fault" in record for record in records)
    told = f"{len(records)} images: {attacked} attacked, {len(records) - attacked - refused} without a sign of it"
    return told + (f", {refused} not examined." if refused else ".")


def _files(paths: Sequence[str | Path]) -> Iterator[tuple[Path, str]]:
    """Files and how they are called."""
    several = len(paths) > 1
    for path in map(Path, paths):
        if path.is_dir():
            found = [Path(name) for name in image_files(path)]
            if not found:
                raise ConfigError(f"{path} holds no file that is named like an image.")
            yield from ((each, str(each if several else each.relative_to(path))) for each in found)
        elif path.is_file():
            yield path, path.name if not several else str(path)
        else:
            raise ConfigError(f"{path}: no such file or folder of images.")


def _aside(records: Sequence[Mapping[str, Any]], asked: Asked) -> list[str]:
    resized = sum("resized" in record.get("note", "") for record in records)
    lines = []
    if resized:
        lines.append(
            f"{resized} of the images were resized to {asked.size}x{asked.size}, which weakens what an attack did to "
            "single pixels: no sign of an attack says less of them."
        )
    if any(record.get("lossy") for record in records):
        lines.append("JPEG changes pixels as well, and weakens an attack or looks like one.")
    return lines


def _examined(
    files: Sequence[tuple[Path, str]], asked: Asked, out: Path, first: int, floats: bool
) -> Iterator[dict[str, Any]]:
    """The records of some files, in their order."""
    images, notes, faults = {}, {}, {}
    for place, (path, _) in enumerate(files):
        try:
            images[place], notes[place] = network_input(path, channels=asked.channels, size=asked.size)
        except ValueError as error:
            faults[place] = str(error).removeprefix(f"{path}: ")
    found = asked(torch.stack(list(images.values())), looks=True) if images else None
    rows = {place: row for row, place in enumerate(images)}
    for place, (path, called) in enumerate(files):
        if place in faults or found is None:
            yield {"file": called, "fault": faults[place]}
            continue
        folder = f"{first + place + 1:04d}_{re.sub(r'[^A-Za-z0-9.-]', '_', path.stem)[:40]}"
        record = _record(found, rows[place], asked)
        record |= {"file": called, "note": notes[place], "lossy": path.suffix.lower() in _LOSSY}
        yield _drawn(record, found, rows[place], out, folder, floats)


_LOSSY = {".jpg", ".jpeg", ".jpe", ".jfif"}


def _record(found: Diagnosis, row: int, asked: Asked) -> dict[str, Any]:
    """What is told of one image, as plain values."""
    score, repairing, identifying = found.detecting, found.repairing, found.identifying
    attacked = bool(score.attacked[row])
    attack, share = identifying.attack(row) if identifying is not None and attacked else (None, None)
    threshold = next(e.threshold for e in asked.examiners if found.findings[e.name] is score)
    record: dict[str, Any] = {
        "attacked": attacked,
        "score": float(score.score[row]),
        "threshold": threshold,
        "scored_by": score.scored_by,
        "attack": attack,
        "share": share,
        "before": _answers((repairing or score).before, row, asked.classes),
        "after": _answers(repairing.after, row, asked.classes) if repairing is not None else {},
        "linf": None,
        "l2": None,
    }
    if found.perturbation is not None:
        delta = found.perturbation[row].double()
        record |= {"linf": float(delta.abs().max()), "l2": float(delta.norm())}
    record["runs"] = {
        name: {
            "score": float(each.score[row]),
            "attacked": bool(each.attacked[row]),
            "probabilities": None
            if each.probabilities is None
            else {attack: float(p) for attack, p in zip(each.attacks, each.probabilities[row], strict=True)},
            "before": _answers(each.before, row, asked.classes),
            "after": _answers(each.after, row, asked.classes),
        }
        for name, each in found.findings.items()
    }
    return record


def _answers(said: Mapping[str, Tensor], row: int, classes: Sequence[str]) -> dict[str, list[Any]]:
    best = {who: probabilities[row].max(0) for who, probabilities in said.items()}
    return {who: [classes[int(place)], float(share)] for who, (share, place) in best.items()}


def _drawn(record: dict[str, Any], found: Diagnosis, row: int, out: Path, folder: str, floats: bool) -> dict[str, Any]:
    repairing = found.repairing
    shown = repairing or found.detecting
    looks = {name: getattr(shown, name) for name in ("looks_before", "looks_after")}
    looks = {name: None if maps is None else maps[row] for name, maps in looks.items()}
    restored = None if found.restored is None else found.restored[row]
    place = out / "pictures" / folder
    pictures, limit = draw(place, found.images[row], restored, looks)
    record |= {"pictures": {name: f"pictures/{folder}/{file}" for name, file in pictures.items()}, "limit": limit}
    if floats and restored is not None:
        np.save(place / "restored.npy", restored.numpy())
        record["restored"] = f"pictures/{folder}/restored.npy"
    return record


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    row = {key: record.get(key) for key in _COLUMNS if key not in ("before", "after")}
    for when in ("before", "after"):
        who, (label, share) = next(iter((record.get(when) or {}).items()), (None, (None, None)))
        row |= {when: label, f"p_{when}": share} | ({"victim": who} if when == "before" else {})
    return row
