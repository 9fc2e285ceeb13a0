"""What a study is: runs, evaluations of them, the numbers to take from these, and what the paper concludes.

    runs (name -> overrides) -> evaluations (name -> Seen) -> numbers of each seed -> Table -> claims, figure, card

A study is data and three pure functions. Who trains the runs and makes the evaluations is ``redlab.runs.lab``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from redlab.crafting import Component
from redlab.metrics import Samples
from redlab.probes import Probe
from redlab.studies.numbers import Claim, NoNumberError
from redlab.studies.paper_numbers import PaperTable
from redlab.studies.table import Address, Table

DIAGNOSIS = ("mix.adaptive={}", "mix.diagnosis=true")
"""Overrides of an evaluation in which nothing is claimed of attackers who know the defence."""


@dataclass(frozen=True)
class Scale:
    """The words of a scale, of ``conf/study/<paper>.yaml``.

    Attributes:
        common: overrides of every run.
        named: lists of overrides by name, for studies on different data: ``@mnist`` in a run or an evaluation stands
            for the list of that name.
    """

    common: Sequence[str] = ()
    named: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @staticmethod
    def of(node: Sequence[str] | Mapping[str, Sequence[str]]) -> Scale:
        """As a YAML has it: a list for every run, or lists by name, with that for every run as ``all``."""
        if not isinstance(node, Mapping):
            return Scale(list(node))
        return Scale(list(node.get("all", ())), {name: list(words) for name, words in node.items() if name != "all"})

    def words(self, given: Sequence[str]) -> list[str]:
        """The words with each ``@name`` replaced by the list of that name.

        Raises:
            ValueError: there is no such list.
        """
        found: list[str] = []
        for word in given:
            if word.startswith("@") and word[1:] not in self.named:
                raise ValueError(f"the scale has no list {word[1:]!r}; it has {', '.join(self.named) or 'none'}")
            found += self.named[word[1:]] if word.startswith("@") else [word]
        return found


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is looked at in a trained run. With the run alone, its own test: nothing is computed anew.

    Attributes:
        run: a name in ``Study.runs``.
        attacks: the attacks of its mix, by name; None means those of the run.
        overrides: of the config of the evaluation, such as other victims, judges or data.
        probe: what is looked at besides.
        keep_images: of so many images in each cell the probe's pictures are kept.
    """

    run: str
    attacks: Mapping[str, Component] | None = None
    overrides: Sequence[str] = ()
    probe: Probe | None = None
    keep_images: int = 0

    def __post_init__(self) -> None:
        if self.keep_images < 0:
            raise ValueError(f"keep_images must be at least 0, got {self.keep_images}")
        if self.keep_images and self.probe is None:
            raise ValueError(f"keep_images={self.keep_images} keeps pictures of a probe, and there is no probe")

    @property
    def own_test(self) -> bool:
        """Whether the rows of the run's own test are all that it needs."""
        return self == Evaluation(run=self.run)


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What an evaluation found, of one seed.

    Attributes:
        rows: one per cell, judge and image.
        pictures: of the probe, name -> (K, C, H, W) in [0, 1].
        of: the K rows that the pictures belong to, in order.
    """

    rows: Samples
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    of: Samples = field(default_factory=lambda: Samples({}))

    def __post_init__(self) -> None:
        if wrong := {name: len(p) for name, p in self.pictures.items() if len(p) != len(self.of)}:
            raise ValueError(f"there must be a picture for each of {len(self.of)} rows, got {wrong}")


@dataclass(frozen=True, kw_only=True)
class Study:
    """One table or figure of a paper.

    Attributes:
        id: ``<paper>/<table>``, as on the command line.
        title: what it shows.
        runs: name -> overrides of its config. Runs that are the same in two studies are trained once. ``init=@name``,
            or ``victims.x.weights=@name``, stands for the weights of another run.
        evaluations: name -> what is looked at.
        numbers: the evaluations of one seed by name -> number by (row, column), at the addresses of the paper's table.
        claims: what the paper concludes, in words -> how a table shows it. The paper's own numbers are judged, too.
        figure: the evaluations of the first seed, and the table of all seeds -> figure; None means bars beside the
            paper's.
        paper: the paper's table, where it prints one.
        paper_data: data set of the paper's numbers.
        units: row -> its unit in print.
        sort_by: column by whose mean over the seeds the rows are sorted, the largest first; None: the order of
            ``numbers``.
        notes: what a reader must know before comparing ours with theirs.
    """

    id: str
    title: str
    runs: Mapping[str, Sequence[str]]
    evaluations: Mapping[str, Evaluation]
    numbers: Callable[[Mapping[str, Seen]], Mapping[Address, float]]
    claims: Mapping[str, Callable[[Table], Claim]]
    figure: Callable[[Mapping[str, Seen], Table], Figure] | None = None
    paper: PaperTable | None = None
    paper_data: str = ""
    units: Mapping[str, str] = field(default_factory=dict)
    sort_by: str | None = None
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+/\w+", self.id):
            raise ValueError(f"the id of a study must be <paper>/<table>, got {self.id!r}")
        for name, evaluation in self.evaluations.items():
            if evaluation.run not in self.runs:
                raise ValueError(
                    f"evaluation {name!r} of study {self.id} is of the run {evaluation.run!r}; there are "
                    f"{', '.join(self.runs)}"
                )

    def overrides(self, run: str, scale: Scale, extra: Sequence[str] = ()) -> list[str]:
        """Overrides of a run: those of the scale, then the run's own, then the user's; later ones win.

        Args:
            run: a name in ``runs``.
            scale: of the paper.
            extra: the user's.
        """
        return merge_overrides(scale.common, scale.words(self.runs[run]), extra)

    def table(self, seeds: Sequence[Mapping[str, Seen]]) -> Table:
        """The numbers of all seeds.

        Args:
            seeds: for each seed, the evaluations by name.

        Raises:
            ValueError: no seed, or seeds whose numbers have different addresses.
        """
        found = Table.of_seeds([self.numbers(seen) for seen in seeds])
        return found if self.sort_by is None else found.sorted_by(self.sort_by)

    def judge(self, table: Table) -> dict[str, Claim | str]:
        """Every claim by its words; a text instead where a number that it needs is missing.

        Raises:
            ValueError: what a study calls a claim is none.
        """
        judged: dict[str, Claim | str] = {}
        for text, claim in self.claims.items():
            try:
                judged[text] = claim(table)
            except NoNumberError as error:
                judged[text] = str(error)
                continue
            if not isinstance(judged[text], Claim):
                raise ValueError(f"claim {text!r} of study {self.id} must give a Claim, got {judged[text]!r}")
        return judged

    @property
    def printed(self) -> Table:
        """The paper's own numbers, empty where it prints none."""
        return Table({}, "the paper") if self.paper is None else Table.printed(self.paper)


def by_column(
    of: Callable[[Samples], Mapping[str, float]], **where: Any
) -> Callable[[Mapping[str, Seen]], dict[Address, float]]:
    """The numbers of a table with a column for each evaluation.

    Args:
        of: rows -> row of the table -> number.
        **where: the rows of an evaluation that count, see ``Samples.where``.
    """
    return lambda seen: {
        (row, name): n for name, each in seen.items() for row, n in of(each.rows.where(**where)).items()
    }


def by_eps(rows: Samples) -> dict[float, Samples]:
    """Rows by the eps of their setting, the least first; those without one are left out."""
    named = [(eps, name) for name in rows.settings if (eps := eps_of(name)) is not None]
    names = {eps: [name for other, name in named if other == eps] for eps, _ in sorted(named)}
    return {eps: rows.where(setting=of) for eps, of in names.items()}


def eps_of(setting: str) -> float | None:
    """The eps in the name of a setting, None where it has none.

    >>> eps_of("eps=4/255 size=8") == 4 / 255
    True
    """
    found = re.search(r"\beps=(\S+)", setting)
    return None if found is None else float(Fraction(found[1]))


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
