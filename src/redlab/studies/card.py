"""The card of a study: our numbers beside the paper's, what holds of them, and which runs they come from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from redlab.provenance import commit, versions
from redlab.report import tables
from redlab.report.checks import CAUTION, KNOWN, VERDICTS, of_rows
from redlab.report.figures import comparison
from redlab.studies.numbers import FAILS, HOLDS, Claim
from redlab.studies.study import DIAGNOSIS, Seen, Study
from redlab.studies.table import Table

MISSING = "no number"
"""The verdict on a claim about a number that is not there."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run that a card's numbers come from.

    Attributes:
        seed: of the run.
        overrides: of its config, the seed left out.
        identity: hash of all that may change its numbers.
        commit: version of the source that trained it, None outside a checkout.
        versions: of the packages that trained it.
        device: that it was trained on, None where its checkpoint does not say.
    """

    seed: int
    overrides: Sequence[str]
    identity: str
    commit: str | None
    versions: Mapping[str, str]
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class Card:
    """The result of a study, plain data throughout: what ``save`` writes is what ``load`` gives back.

    Attributes:
        study: id of the study.
        title: what it shows.
        scale: name of the scale.
        data: data set of our numbers; of several, all their names with + between.
        paper_data: data set of the paper's.
        device: on which the rows were counted; that of each run stands there.
        seeds: of the runs.
        runs: name -> one entry per seed: seed, overrides, identity, and commit, versions and device that trained it.
        numbers: row -> column -> mean, spread and the value per seed; None for a number that is not there.
        paper: row -> column -> printed number.
        paper_doubts: row -> column -> why the printed number is unreliable.
        units: row -> unit.
        claims: text, verdict, margin and spread on our numbers, the numbers used, and the paper's verdict on its own.
        notes: what a reader must know.
        commit: version of the source that judged, None outside a checkout.
        versions: of the packages that judged.
        seconds: wall-clock time; runs that were found, not trained, take next to none.
        date: UTC, ISO 8601.
        checks: whether the rows of the first seed can be believed (``redlab.report.checks``): of each check the worst
            evaluation, what was found there, and the verdict.
    """

    study: str
    title: str
    scale: str
    data: str
    paper_data: str
    device: str
    seeds: list[int]
    runs: dict[str, list[dict[str, Any]]]
    numbers: dict[str, dict[str, dict[str, Any]]]
    paper: dict[str, dict[str, float]]
    paper_doubts: dict[str, dict[str, str]]
    units: dict[str, str]
    claims: list[dict[str, Any]]
    notes: list[str]
    commit: str | None
    versions: dict[str, str]
    seconds: float
    date: str
    checks: list[dict[str, str]] = field(default_factory=list)

    def save(self, path: Path) -> Path:
        """Writes the card as JSON and makes the folder where needed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
        return path

    @staticmethod
    def load(path: Path) -> Card:
        """Reads a card.

        Raises:
            ValueError: the file is not a card.
        """
        try:
            return Card(**json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} is not a card of a study: {error}") from error


def card(
    study: Study,
    table: Table,
    *,
    scale: str,
    runs: Mapping[str, Sequence[Trained]],
    data: str,
    device: str,
    seconds: float,
    seen: Mapping[str, Seen] | None = None,
) -> Card:
    """Judges the numbers of a study and puts them beside the paper's.

    Args:
        study: what was studied.
        table: our numbers, ``study.table(...)``.
        scale: name of the scale.
        runs: name -> the run of each seed, in the order of the table's seeds.
        data: name of the data set.
        device: name of the device.
        seconds: wall-clock time.
        seen: the evaluations of the first seed, whose rows are checked.

    Raises:
        ValueError: a run of the study is missing, or the runs are not of the same seeds.
    """
    seeds = [run.seed for run in next(iter(runs.values()), ())]
    if set(runs) != set(study.runs) or any([run.seed for run in of] != seeds for of in runs.values()):
        said = {name: [run.seed for run in of] for name, of in runs.items()}
        raise ValueError(f"study {study.id} needs the runs {', '.join(study.runs)}, all of the same seeds, got {said}")
    printed = study.printed
    doubts = {} if study.paper is None else study.paper.doubts()
    ours, theirs = study.judge(table), study.judge(printed)
    return Card(
        study=study.id,
        title=study.title,
        scale=scale,
        data=data,
        paper_data=study.paper_data,
        device=device,
        seeds=seeds,
        runs={name: [_plain(asdict(run)) for run in of] for name, of in runs.items()},
        numbers={
            row: {
                column: {"mean": _finite(n.mean), "spread": _finite(n.spread), "values": [_finite(v) for v in n.values]}
                for column, n in table.row(row).items()
            }
            for row in table.rows
        },
        paper={row: {column: n.mean for column, n in printed.row(row).items()} for row in printed.rows},
        paper_doubts={
            row: {column: text for (of, column), text in doubts.items() if of == row}
            for row in dict.fromkeys(row for row, _ in doubts)
        },
        units={row: study.units[row] for row in (*table.rows, *printed.rows) if row in study.units},
        claims=[
            {"text": text} | _judgement(ours[text]) | {"paper": _paper_verdict(theirs[text])} for text in study.claims
        ],
        notes=[*study.notes, *([_about_seeds(seeds)] if seeds else [])],
        commit=commit(),
        versions=versions(),
        seconds=round(seconds, 1),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        checks=_checked(study, seen or {}),
    )


def _checked(study: Study, seen: Mapping[str, Seen]) -> list[dict[str, str]]:
    """Of each check the evaluation where it is worst; of who knows the defence, where something is claimed."""
    worst: dict[str, tuple[int, dict[str, str]]] = {}
    for name, each in seen.items():
        told = set(DIAGNOSIS) <= set(study.evaluations[name].overrides)
        for check in of_rows(each.rows):
            grade = VERDICTS.index(check.verdict)
            if not (told and check.name == KNOWN) and grade > worst.get(check.name, (-1, {}))[0]:
                entry = {"check": check.name, "at": name, "found": check.found, "verdict": check.verdict}
                worst[check.name] = grade, entry
    return [entry for _, entry in worst.values()]


def draw(study: Study, seen: Mapping[str, Seen], table: Table, card: Card) -> Figure | None:
    """The figure of a study: its own, else our numbers above the paper's; None where there is neither."""
    if study.figure is not None:
        return study.figure(seen, table)
    return card_figure(card)


def card_figure(card: Card) -> Figure | None:
    """Our numbers above the paper's for every row that both have in the same columns; None where there is no such."""
    rows = [row for row, printed in card.paper.items() if set(printed) <= set(card.numbers.get(row, {}))]
    known = {row: {c: card.numbers[row][c] for c in card.paper[row]} for row in rows}
    rows = [row for row in rows if all(n["mean"] is not None for n in known[row].values())]
    if not rows:
        return None
    return comparison(
        {row: {c: (n["mean"], n["spread"]) for c, n in known[row].items()} for row in rows},
        {row: card.paper[row] for row in rows},
        ours_title=f"ours, {card.data}",
        paper_title=f"paper, {card.paper_data.split(',')[0]}",
        title=card.title,
    )


def card_tables(card: Card) -> list[tables.Table]:
    """The card's tables: our numbers beside the paper's, and the verdict on every claim."""
    columns = list(dict.fromkeys(c for table in (card.numbers, card.paper) for row in table.values() for c in row))
    names = list(dict.fromkeys([*card.numbers, *card.paper]))
    heads = [head for c in columns for head in ([c, f"{c} (paper)"] if card.paper else [c])]
    rows = []
    for row in names:
        cells = [f"{row} [{card.units[row]}]" if row in card.units else row]
        for column in columns:
            cells.append(_ours(card.numbers.get(row, {}).get(column), len(card.seeds)))
            if card.paper:
                mark = "†" if column in card.paper_doubts.get(row, {}) else ""
                cells.append(_value(card.paper.get(row, {}).get(column)) + mark)
        rows.append(tuple(cells))
    sources = {"Ours": card.data, "(paper)": card.paper_data}
    notes = [" ".join(f"{whose}: {data}." for whose, data in sources.items() if data)] if any(sources.values()) else []
    notes += [f"† {row}, {column}: {text}" for row, of in card.paper_doubts.items() for column, text in of.items()]
    verdicts = tuple((c["text"], c["verdict"], c["paper"], c["numbers"]) for c in card.claims)
    found = [
        tables.Table(card.title, ("", *heads), tuple(rows), tuple(notes)),
        tables.Table("Conclusions", ("the paper's conclusion", "ours", "paper", "our numbers"), verdicts),
    ]
    if card.checks:
        lines = tuple((c["check"], f"{c['found']} ({c['at']})", c["verdict"]) for c in card.checks)
        found.append(tables.Table("Checks, each where it is worst", ("check", "found", "verdict"), lines, (CAUTION,)))
    return found


def card_markdown(card: Card) -> str:
    """The card as GitHub markdown."""
    where = f"data `{card.data}`, seeds {', '.join(map(str, card.seeds))}, " if card.runs else "nothing trained, "
    facts = [
        f"scale `{card.scale}`, {where}{card.device}",
        f"{_duration(card.seconds)} wall-clock, {card.date}, judged by {_source(card.commit, card.versions)}",
    ]
    head = [f"## {card.study}: {card.title}", "", *(f"- {fact}" for fact in facts), ""]
    runs = ["Runs:", ""] if card.runs else []
    for name, of in card.runs.items():
        runs.append(f"- {name}: `{' '.join(of[0]['overrides'])}`")
        for r in of:
            where = f", on {r['device']}" if r.get("device") else ""
            runs.append(f"  - seed {r['seed']}: {r['identity']}, by {_source(r['commit'], r['versions'])}{where}")
    notes = ["", "Notes:", "", *(f"- {note}" for note in card.notes)] if card.notes else []
    return "\n".join([*head, *(tables.markdown(table) for table in card_tables(card)), *runs, *notes]) + "\n"


def _judgement(claim: Claim | str) -> dict[str, Any]:
    if isinstance(claim, str):
        return {"verdict": MISSING, "numbers": claim, "margin": None, "spread": None}
    return {"verdict": claim.verdict, "numbers": claim.text, "margin": claim.margin, "spread": claim.spread}


def _paper_verdict(claim: Claim | str) -> str:
    """The paper has one number for each cell, so that a tie does not bear a conclusion out either."""
    if isinstance(claim, str):
        return "not in the paper"
    return HOLDS if claim.verdict == HOLDS else FAILS


def _about_seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return "One seed: the spread over seeds is unknown, so small differences may be ties that are not seen as such."
    return (
        f"{len(seeds)} seeds: ± is half the range over seeds; a difference not larger than its own range over seeds is "
        "a tie."
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Lists and dicts, as JSON gives them back."""
    return json.loads(json.dumps(value))


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def _ours(number: Mapping[str, Any] | None, seeds: int) -> str:
    if number is None or number["mean"] is None:
        return "–"
    return _value(number["mean"]) + (f"\u00a0±\u00a0{number['spread'] / 2:.2f}" if seeds > 1 else "")


def _source(source: str | None, packages: Mapping[str, str]) -> str:
    return ", ".join([f"commit {source or 'unknown'}", *(f"{name} {version}" for name, version in packages.items())])


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
