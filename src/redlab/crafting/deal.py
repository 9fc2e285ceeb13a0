"""Who gets what: a pure function of (seed, stage, epoch, index, position)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from redlab.batch import KNOWLEDGE, check_name
from redlab.crafting.component import MIN_WEIGHT, Component, Distribution, unknown
from redlab.rng import SampleRng

Deal = Literal["random", "stratified", "all"]

DEALS = ("random", "stratified", "all")
MAX_TABLE = 100_000


class Cell(NamedTuple):
    """One attack in one setting on one victim, by their ids.

    Attributes:
        attack: place in ``AttackMix.attack_names``; 0 is clean.
        setting: place in the settings of the attack; 0 where it has none.
        victim: place in the names of the victims.
        knowledge: what the attacker knows, a place in ``redlab.batch.KNOWLEDGE``.
    """

    attack: int
    setting: int
    victim: int
    knowledge: int


@dataclass(frozen=True)
class Plan:
    """What is to be crafted, row by row. N is B, or B x components when a mix deals ``all``.

    Attributes:
        source: (N,) int64, row of the batch that the image comes from.
        attack: (N,) int64, id of the component.
        setting: (N,) int64, which of its settings; 0 where it has none.
        victim: (N,) int64, place in ``victim_names``.
        index: (N,) int64, place in the data set.
        victim_names: the victims' names.
        params: component -> parameter -> (N,) drawn values; they hold for the component's own rows.
        rng: the rows' random stream; a component draws from ``rng.fork(name)``.
    """

    source: Tensor
    attack: Tensor
    setting: Tensor
    victim: Tensor
    index: Tensor
    victim_names: tuple[str, ...]
    params: Mapping[str, Mapping[str, Tensor]]
    rng: SampleRng

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class Dealer:
    """Deals the components of a mix, as ``AttackMix`` says.

    Attributes:
        components: name -> component.
        names: by their ids; the first is "clean".
        adaptive: names of the components that are dealt to nobody and are cells of an evaluation; they come last.
        distributions: name -> parameter -> what is drawn for it.
        deal: "random", "stratified" or "all".
        seed: of every draw.
    """

    components: Mapping[str, Component]
    names: tuple[str, ...]
    adaptive: frozenset[str]
    distributions: Mapping[str, Mapping[str, Distribution]]
    deal: Deal
    seed: int

    def cells(self, victim_names: Iterable[str], *, adaptive: bool) -> list[Cell]:
        """See ``AttackMix.cells``."""
        names = list(victim_names)
        for victim in names:
            check_name("victim", victim)
        return [
            Cell(attack, setting, victim, KNOWLEDGE.index(self._knowledge(name)))
            for attack, name in enumerate(self.names)
            if adaptive or name not in self.adaptive
            for setting in range(max(self._settings(name), 1))
            for victim in self._victim_ids(name, names)
        ]

    def plan(
        self,
        index: Tensor,
        position: Tensor,
        *,
        stage: str,
        epoch: int,
        victim_names: Iterable[str],
        cell: Cell | None = None,
    ) -> Plan:
        """See ``AttackMix.plan``."""
        names = tuple(victim_names)
        cells = self.cells(names, adaptive=True)
        if cell is not None and cell not in cells:
            raise ValueError(f"{cell} is not a cell of the mix {self.names} on victims {list(names)}")
        epoch = epoch if stage == "train" else 0
        with torch.inference_mode(False), torch.no_grad():
            source = torch.arange(len(index), device=index.device)
            rng, turn = SampleRng(self.seed, stage, epoch, index), position
            if cell is not None:
                attack, setting, victim, _ = (torch.full_like(source, number) for number in cell)
            elif self.deal == "all":
                dealt = [(i, name) for i, name in enumerate(self.names) if self._weight(name)]
                columns = []
                for _, name in dealt:
                    ids = torch.tensor(self._victim_ids(name, names), device=index.device)
                    columns.append(ids[rng.fork(name).integers("victim", len(ids))])
                source = source.repeat_interleave(len(dealt))
                attack = torch.tensor([i for i, _ in dealt], device=index.device).repeat(len(index))
                victim = torch.stack(columns, dim=1).flatten()
            else:
                table = torch.tensor(self.table(names), device=index.device)
                row = position % len(table) if self.deal == "stratified" else rng.integers("cell", len(table))
                attack, victim, nth, per_round = table[row].unbind(1)
                turn = position // len(table) * per_round + nth
            rng, turn, numbered = rng[source], turn[source], attack * len(names) + victim
            if cell is None:
                setting = torch.zeros_like(attack)
                for number, name in enumerate(self.names):
                    if count := self._settings(name):
                        drawn = rng.fork(name).integers("setting", count)
                        setting = torch.where(attack == number, drawn, setting)
            params = {
                name: {key: d.draw(rng.fork(name), f"param.{key}", turn, numbered) for key, d in distributions.items()}
                for name, distributions in self.distributions.items()
            }
            return Plan(source, attack.clone(), setting, victim.clone(), index[source], names, params, rng)

    def _weight(self, name: str) -> Fraction:
        # a mix need not name a clean component, but `clean` is a name all the same
        dealt = name in self.components and name not in self.adaptive
        weight = self.components[name].weight if dealt else 0
        return Fraction(weight).limit_denominator(round(1 / MIN_WEIGHT))  # 0.3333333 means a third

    def _settings(self, name: str) -> int:
        return len(self.components[name].settings) if name in self.components else 0

    def _knowledge(self, name: str) -> str:
        return self.components[name].knowledge if name in self.components else "victim"

    def _victim_ids(self, name: str, victim_names: Sequence[str]) -> list[int]:
        wanted = self.components[name].victims if name in self.components else None
        for victim in wanted or ():
            if victim not in victim_names:
                raise ValueError(f"component {name!r} attacks {unknown('victim', victim, victim_names)}")
        return [i for i, victim in enumerate(victim_names) if wanted is None or victim in wanted]

    def table(self, victim_names: Sequence[str]) -> list[tuple[int, int, int, int]]:
        """The smallest table with whole shares, each cell spread evenly over it: attack, victim, i-th of n such."""
        shares: dict[tuple[int, int], Fraction] = {}
        for attack, name in enumerate(self.names):
            victim_ids = self._victim_ids(name, victim_names)
            if self._weight(name):
                shares |= {(attack, v): self._weight(name) / len(victim_ids) for v in victim_ids}
        unit = Fraction(
            math.gcd(*(s.numerator for s in shares.values())), math.lcm(*(s.denominator for s in shares.values()))
        )
        counts = {cell: int(share / unit) for cell, share in shares.items()}
        if sum(counts.values()) > MAX_TABLE:
            raise ValueError(f"the weights {[c.weight for c in self.components.values()]} have no simple ratio")
        places = [(Fraction(2 * i + 1, 2 * n), (*cell, i, n)) for cell, n in counts.items() for i in range(n)]
        return [entry for _, entry in sorted(places)]
