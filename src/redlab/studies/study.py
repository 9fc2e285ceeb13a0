"""What a study is: runs, measures, the paper's numbers, and its conclusions as named predicates.

    runs (column -> overrides) -> flat metrics per seed -> numbers (measure -> column -> mean and spread)
      -> predicates (holds / tie / fails) -> a card: one JSON file, and its tables, markdown and figure

A difference that is not larger than the spread over seeds counts as a tie. With one seed the spread is not known, and
only equal numbers are a tie; the card says so.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from redlab.provenance import commit, versions
from redlab.report import tables
from redlab.report.figures import comparison
from redlab.studies.paper_numbers import PaperTable

HOLDS, TIE, FAILS = "holds", "tie", "fails"


class Number(NamedTuple):
    """A measured number: mean over seeds, and the largest minus the smallest value (0 with one seed)."""

    mean: float
    spread: float = 0.0


Numbers = Mapping[str, Mapping[str, Number]]
"""measure -> column -> number."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One row of the table.

    Attributes:
        title: how the row is called; where the paper has the row, its name there.
        key: key of the number in a run's flat metrics.
        unit: unit in print, e.g. "%".
        scale: what the raw number is multiplied by.
        per_value: divide by the square root of the number of values of an image: an L2 norm becomes an rms.
        in_paper: the paper has this row.
    """

    title: str
    key: str
    unit: str = ""
    scale: float = 1.0
    per_value: bool = False
    in_paper: bool = True

    def value(self, raw: float, values_per_image: int) -> float:
        """The number as printed, from the raw metric."""
        return raw * self.scale / (math.sqrt(values_per_image) if self.per_value else 1.0)


@dataclass(frozen=True)
class Relation:
    """One relation between two columns of a measure.

    Attributes:
        measure: title of the measure.
        left: column on the left.
        sign: "<" (by more than ``by``), "<=" or "~" (they differ by at most ``by``).
        right: column on the right.
        by: in the measure's unit.
    """

    measure: str
    left: str
    sign: str
    right: str
    by: float = 0.0

    def __post_init__(self) -> None:
        if self.sign not in ("<", "<=", "~"):
            raise ValueError(f"the sign of a relation must be <, <= or ~, got {self.sign!r}")

    def judge(self, numbers: Numbers) -> dict[str, Any]:
        """Verdict, margin (negative where the relation fails) and the seed spread that it is compared with."""
        left, right = numbers[self.measure][self.left], numbers[self.measure][self.right]
        spread = max(left.spread, right.spread)
        difference = right.mean - left.mean
        margin = self.by - abs(difference) if self.sign == "~" else difference - self.by
        # Numbers that differ only by rounding are equal.
        slack = spread + 1e-9 * max(abs(left.mean), abs(right.mean))
        needed = {"<": slack, "<=": -slack, "~": spread - slack}[self.sign]
        satisfied = margin > needed if self.sign == "<" else margin >= needed
        verdict = HOLDS if satisfied else TIE if abs(margin) <= slack else FAILS
        middle = f"{self.sign} {self.right} {right.mean:.4g}"
        if self.by:
            middle += f" (within {self.by:g})" if self.sign == "~" else f" (by more than {self.by:g})"
        text = f"{self.left} {left.mean:.4g} {middle}"
        return {"text": text, "margin": margin, "spread": spread, "verdict": verdict}


@dataclass(frozen=True)
class Predicate:
    """A conclusion of the paper: all its relations hold.

    Attributes:
        name: short name, e.g. "pa_adv".
        text: the conclusion in words.
        relations: what it says about the numbers.
    """

    name: str
    text: str
    relations: tuple[Relation, ...]

    def judge(self, numbers: Numbers) -> dict[str, Any]:
        """Fails if one relation fails, else ties if one ties, else holds; with all relations spelled out."""
        relations = [relation.judge(numbers) for relation in self.relations]
        verdicts = {relation["verdict"] for relation in relations}
        verdict = FAILS if FAILS in verdicts else TIE if TIE in verdicts else HOLDS
        return {"verdict": verdict, "holds": verdict == HOLDS, "relations": relations}


@dataclass(frozen=True, kw_only=True)
class Card:
    """The result of a study, plain data throughout: what ``save`` writes is what ``load`` gives back.

    Attributes:
        study: id of the study, ``<paper>/<table>``.
        title: what the study shows.
        scale: name of the scale.
        data: data set of our numbers.
        paper_data: data set of the paper's numbers.
        device: what it ran on.
        seeds: seeds of the runs.
        commit: version of the source, None outside a checkout.
        versions: of redlab and torch.
        runs: column -> overrides of its run, without the seed.
        measures: title, unit and key of every measure, and whether the paper has it.
        numbers: measure -> column -> mean, spread and the value per seed.
        cells: column -> key -> mean over seeds, for the measures' numbers per attack and victim (raw, unscaled).
        paper: measure -> column -> printed number.
        paper_doubts: unreliable numbers of the paper: measure, column, reason.
        predicates: name, text, verdict, holds, paper_holds, relations with margin and spread, numbers used.
        notes: what a reader must know.
        seconds: wall-clock time; runs that were found, not trained, take next to none.
        date: UTC, ISO 8601.
    """

    study: str
    title: str
    scale: str
    data: str
    paper_data: str
    device: str
    seeds: list[int]
    commit: str | None
    versions: dict[str, str]
    runs: dict[str, list[str]]
    measures: list[dict[str, Any]]
    numbers: dict[str, dict[str, dict[str, Any]]]
    cells: dict[str, dict[str, float]]
    paper: dict[str, dict[str, float]]
    paper_doubts: list[dict[str, str]]
    predicates: list[dict[str, Any]]
    notes: list[str]
    seconds: float
    date: str

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


@dataclass(frozen=True, kw_only=True)
class Study:
    """The evaluation of one table or figure of a paper.

    Attributes:
        id: ``<paper>/<table>``, as on the command line.
        title: what it shows.
        runs: column -> overrides of its run.
        measures: rows of the table.
        predicates: conclusions of the paper.
        paper: the paper's table; its row of a measure is the one with ``metric`` equal to the measure's title.
        paper_data: data set of the paper's numbers.
        scales: name -> overrides shared by all runs.
        notes: what a reader of the card must know.
    """

    id: str
    title: str
    runs: Mapping[str, Sequence[str]]
    measures: Sequence[Measure]
    predicates: Sequence[Predicate]
    paper: PaperTable
    paper_data: str
    scales: Mapping[str, Sequence[str]]
    notes: Sequence[str] = field(default=())

    def overrides(self, column: str, scale: str, extra: Sequence[str] = ()) -> list[str]:
        """Overrides of a column's run: those of the scale, then of the column, then the user's; later ones win.

        Raises:
            ValueError: the study has no such scale.
        """
        if scale not in self.scales:
            raise ValueError(f"study {self.id} has no scale {scale!r}; it has {', '.join(self.scales)}")
        return merge_overrides(self.scales[scale], self.runs[column], extra)

    def run(
        self,
        train_or_find: Callable[[list[str]], Mapping[str, float]],
        overrides: Sequence[str] = (),
        scale: str = "small",
        seeds: Sequence[int] = (0,),
        *,
        data: str,
        device: str,
        values_per_image: int,
    ) -> Card:
        """Trains or finds every run, measures, judges.

        Args:
            train_or_find: overrides of a run -> flat metrics of its test.
            overrides: the user's, for every run.
            scale: name of the scale.
            seeds: every run is made once per seed.
            data: name of the data set.
            device: name of the device.
            values_per_image: C * H * W.

        Raises:
            ValueError: unknown scale, no seed, or a run without one of the numbers.
        """
        if not seeds:
            raise ValueError("a study needs at least one seed, got none")
        start = time.perf_counter()
        wanted = {column: self.overrides(column, scale, overrides) for column in self.runs}
        metrics = {c: [train_or_find([*wanted[c], f"seed={seed}"]) for seed in seeds] for c in self.runs}
        numbers = {
            m.title: {c: self._number(m, c, metrics[c], values_per_image) for c in self.runs} for m in self.measures
        }
        paper = {m.title: self.paper.row(metric=m.title) for m in self.measures if m.in_paper}
        return Card(
            study=self.id,
            title=self.title,
            scale=scale,
            data=data,
            paper_data=self.paper_data,
            device=device,
            seeds=list(seeds),
            commit=commit(),
            versions=versions(),
            runs=wanted,
            measures=[asdict(m) for m in self.measures],
            numbers=numbers,
            cells={c: _cells(metrics[c], {m.key for m in self.measures}) for c in self.runs},
            paper=paper,
            paper_doubts=[
                {"measure": title, "column": column, "reason": reason}
                for title, row in paper.items()
                for column in row
                if (reason := self.paper.doubt(column, metric=title)) is not None
            ],
            predicates=self.judge(
                {t: {c: Number(n["mean"], n["spread"]) for c, n in row.items()} for t, row in numbers.items()}
            ),
            notes=[*self.notes, _about_seeds(seeds)],
            seconds=round(time.perf_counter() - start, 1),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def judge(self, numbers: Numbers) -> list[dict[str, Any]]:
        """Every predicate on these numbers and on the paper's own."""
        printed = {
            m.title: {c: Number(v) for c, v in self.paper.row(metric=m.title).items()}
            for m in self.measures
            if m.in_paper
        }
        out = []
        for predicate in self.predicates:
            used = sorted({relation.measure for relation in predicate.relations})
            out.append(
                {"name": predicate.name, "text": predicate.text}
                | predicate.judge(numbers)
                | {"paper_holds": predicate.judge(printed)["holds"]}
                | {"ours": {measure: {c: n.mean for c, n in numbers[measure].items()} for measure in used}}
            )
        return out

    def _number(
        self, measure: Measure, column: str, runs: Sequence[Mapping[str, float]], values_per_image: int
    ) -> dict[str, Any]:
        values = []
        for metrics in runs:
            raw = metrics.get(measure.key)
            if raw is None or not math.isfinite(raw):
                raise ValueError(f"study {self.id}: the run of {column} gave {measure.key} = {raw}, a number is needed")
            values.append(measure.value(float(raw), values_per_image))
        return {"mean": statistics.fmean(values), "spread": max(values) - min(values), "values": values}


def merge_overrides(*groups: Sequence[str]) -> list[str]:
    """Joins lists of ``key=value``; a later value replaces an earlier one, since some keys may be given once only.

    >>> merge_overrides(["data=digits", "trainer.max_epochs=2"], ["method=do"], ["data=mnist"])
    ['trainer.max_epochs=2', 'method=do', 'data=mnist']
    """
    merged: dict[str, str] = {}
    for override in (str(o) for group in groups for o in group):
        key = override.split("=", 1)[0].lstrip("+")
        merged.pop(key, None)
        merged[key] = override
    return list(merged.values())


def card_tables(card: Card) -> list[tables.Table]:
    """The card's tables: our numbers beside the paper's, and the verdict of every predicate."""
    doubted = {(doubt["measure"], doubt["column"]) for doubt in card.paper_doubts}
    columns: list[str] = []
    for column in card.runs:
        columns += [column, f"{column} (paper)"]
    rows = []
    for measure in card.measures:
        title = measure["title"]
        cells = [f"{title} [{measure['unit']}]" if measure["unit"] else title]
        for column in card.runs:
            ours = card.numbers[title][column]
            cells.append(
                _value(ours["mean"]) + (f"\u00a0±\u00a0{ours['spread'] / 2:.2f}" if len(card.seeds) > 1 else "")
            )
            printed = card.paper.get(title, {}).get(column)
            cells.append("–" if printed is None else _value(printed) + ("†" if (title, column) in doubted else ""))
        rows.append(tuple(cells))
    notes = [f"Ours: {card.data}. (paper): {card.paper_data}."]
    notes += [f"† {doubt['measure']}, {doubt['column']}: {doubt['reason']}" for doubt in card.paper_doubts]
    verdicts = tuple(
        (
            predicate["text"],
            predicate["verdict"],
            HOLDS if predicate["paper_holds"] else FAILS,
            "; ".join(
                f"{r['text']}" + ("" if r["verdict"] == HOLDS else f" [{r['verdict']}]") for r in predicate["relations"]
            ),
        )
        for predicate in card.predicates
    )
    return [
        tables.Table(card.title, ("measure", *columns), tuple(rows), tuple(notes)),
        tables.Table("Conclusions", ("the paper's conclusion", "ours", "paper", "our numbers"), verdicts),
    ]


def card_markdown(card: Card) -> str:
    """The card as GitHub markdown."""
    facts = [
        f"scale `{card.scale}`, data `{card.data}`, seeds {', '.join(map(str, card.seeds))}, {card.device}",
        f"{_duration(card.seconds)} wall-clock, {card.date}, commit {card.commit or 'unknown'}, "
        + ", ".join(f"{name} {version}" for name, version in card.versions.items()),
    ]
    head = [f"## {card.study}: {card.title}", "", *(f"- {fact}" for fact in facts), ""]
    numbers, verdicts = card_tables(card)
    runs = ["Runs:", "", *(f"- {column}: `{' '.join(words)}`" for column, words in card.runs.items()), ""]
    notes = ["Notes:", "", *(f"- {note}" for note in card.notes)] if card.notes else []
    return "\n".join([*head, tables.markdown(numbers), tables.markdown(verdicts), *runs, *notes]) + "\n"


def card_figure(card: Card) -> Figure:
    """Our numbers above the paper's for every measure that the paper has."""
    ours = {t: {c: (n["mean"], n["spread"]) for c, n in card.numbers[t].items()} for t in card.paper}
    paper = {t: {c: row[c] for c in card.runs} for t, row in card.paper.items()}
    return comparison(
        ours,
        paper,
        ours_title=f"ours, {card.data}",
        paper_title=f"paper, {card.paper_data.split(',')[0]}",
        title=card.title,
    )


def _about_seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return "One seed: the spread over seeds is unknown, so small differences may be ties that are not seen as such."
    return (
        f"{len(seeds)} seeds: ± is half the range over seeds; a difference not larger than the larger of the two "
        "ranges is a tie."
    )


def _cells(runs: Sequence[Mapping[str, float]], keys: set[str]) -> dict[str, float]:
    """Means over seeds of the numbers per attack and victim; those that are not finite are left out."""
    found = [k for k in runs[0] if any(k.startswith(key + "/") for key in keys) and all(k in run for run in runs)]
    means = {k: statistics.fmean(float(run[k]) for run in runs) for k in found}
    return {k: mean for k, mean in means.items() if math.isfinite(mean)}


def _value(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
