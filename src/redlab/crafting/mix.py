"""The face of crafting: components and how they are dealt, rounded and counted.

``AttackMix.plan`` decides, as a pure function of (seed, stage, epoch, index, position); ``AttackMix.craft`` carries
the plan out with as few victim calls as possible. No result depends on batch size, order or world size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from redlab.batch import AttackBatch
from redlab.crafting.adaptive import check_adaptive, default_adaptive, largest_linf
from redlab.crafting.component import Component, check_component, setting_names
from redlab.crafting.craft import ROUNDINGS, Crafter, Rounding
from redlab.crafting.deal import DEALS, Cell, Deal, Dealer, Plan
from redlab.crafting.describe import described
from redlab.crafting.trial import check_attack

__all__ = ["AttackMix"]


class AttackMix:
    """Deals attacks, victims and attack parameters to samples, and crafts the batch.

    Three ways to deal:

    * ``random``: an attack and a victim per sample by weight, from (seed, stage, epoch, index).
    * ``stratified``: position in the epoch's order modulo a table of whole shares, so that every window as long as the
      table has the exact shares: each rank's contiguous slice of a batch costs the same.
    * ``all``: every sample under every component, each time on one of the component's victims, drawn per sample.

    Outside the stage "train" the epoch counts as 0, so that a test set is one fixed set.

    Args:
        components: name -> component. The order gives the ids 1, 2, ...; id 0 is always ``clean``, and the component
            without an attack, if there is one, carries that name. An empty mapping means clean images alone.
        deal: see above.
        quantize: round attacked images to this many bits (8: multiples of 1/255); None keeps floats.
        rounding: how. "fooling": so that an image that fools still does, and a budget is kept
            (``redlab.attacks.Stored``); "nearest": to the nearest, which undoes some attacks and can leave the ball
            of a budget by up to 1/510; "floor": to the next lower, as when images are cast to whole numbers, which
            darkens by half a grey value on average and can leave the ball by up to 1/255.
        only_fooled: rows whose attack failed are marked as not valid.
        only_right: rows whose clean image the attacked victim gets wrong are marked as not valid, clean rows included.
        adaptive: name -> component with ``knowledge="defence"``: the attackers whom every evaluation of a defence adds
            to those of the mix. Nobody is trained on them, and all their rows count. None: one PGD in linf of 40 steps
            named ``aware_pgd``, of the largest linf budget in the mix, or 8/255; its gradient is exact, so a defence
            that draws wants a component with ``gradient={"eot": n}`` here, and one that masks its gradient "bpda".
        diagnosis: the evaluation is no claim of robustness, and may have no such attacker, ``adaptive={}``.
        seed: seed of every draw.

    Raises:
        ValueError: a component, weight, distribution or option that makes no sense.

    Example:
        >>> import torch
        >>> from redlab.attacks import FGSM
        >>> eps = {"eps": {"integers": [1, 16], "over": 255}}
        >>> mix = AttackMix({"clean": Component(attack=None), "fgsm": Component(attack=FGSM(), params=eps)})
        >>> mix.names
        ('clean', 'fgsm')
        >>> rows = torch.arange(4)
        >>> plan = mix.plan(rows, rows, stage="train", epoch=0, victim_names=["net"])
        >>> plan.attack.tolist()
        [0, 1, 0, 1]
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> batch = mix.craft({"net": net}, torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0]), plan)
        >>> (batch.adv != batch.clean).flatten(1).any(1).tolist()
        [False, True, False, True]
    """

    def __init__(
        self,
        components: Mapping[str, Component],
        *,
        deal: Deal = "stratified",
        quantize: int | None = None,
        rounding: Rounding = "fooling",
        only_fooled: bool = False,
        only_right: bool = False,
        adaptive: Mapping[str, Component] | None = None,
        diagnosis: bool = False,
        seed: int = 0,
    ) -> None:
        if deal not in DEALS:
            raise ValueError(f"deal must be one of {DEALS}, got {deal!r}")
        if quantize is not None and (type(quantize) is not int or not 1 <= quantize <= 16):
            raise ValueError(f"quantize must be a number of bits from 1 to 16 or None, got {quantize!r}")
        if rounding not in ROUNDINGS:
            raise ValueError(f"rounding must be one of {ROUNDINGS}, got {rounding!r}")
        if quantize is None and rounding != "fooling":
            raise ValueError(f"rounding={rounding!r} has no effect without quantize: set quantize=8 or leave it out")
        given = components or {"clean": Component(attack=None)}
        self.components = {str(name): component for name, component in given.items()}
        if len(self.components) < len(given):
            raise ValueError(f"components must have different names, got {list(given)}")
        self.deal, self.quantize, self.rounding = deal, quantize, rounding
        self.only_fooled, self.only_right, self.seed = only_fooled, only_right, seed
        self._distributions = {name: check_component(name, part) for name, part in self.components.items()}
        for name, component in self.components.items():
            if deal == "all" and component.weight not in (0, 1):
                raise ValueError(
                    f"{name}.weight={component.weight!r} has no effect where deal=all: set 1, "
                    f"or 0 to leave it out of training"
                )
            for key, distribution in self._distributions[name].items():
                if distribution.kind == "shuffled" and deal == "random":
                    raise ValueError(f"{name}.params.{key} is shuffled, which needs a deal by position, not 'random'")
            check_attack(name, component, self._distributions[name])
        if not any(component.weight for component in self.components.values()):
            raise ValueError(f"every component of the mix has weight 0: {list(self.components)}")
        if list(self.components) == ["clean"] and (quantize is not None or only_fooled):
            option = "only_fooled" if quantize is None else f"quantize={quantize}"
            raise ValueError(f"{option} has no effect in a mix without an attack: leave it out")
        self.names: tuple[str, ...] = ("clean", *(name for name in self.components if name != "clean"))
        self.adaptive = self._attackers(adaptive, diagnosis)
        self.attack_names: tuple[str, ...] = (*self.names, *self.adaptive)
        parts, extra = self.components | self.adaptive, frozenset(self.adaptive)
        self._dealer = Dealer(parts, self.attack_names, extra, self._distributions, deal, seed)
        self._crafter = Crafter(parts, self.attack_names, extra, quantize, rounding, only_fooled, only_right)

    def _attackers(self, adaptive: Mapping[str, Component] | None, diagnosis: bool) -> dict[str, Component]:
        """The checked adaptive components, whose distributions are added to the mix's."""
        given = default_adaptive(self.components, self._distributions) if adaptive is None else adaptive
        attackers = {str(name): component for name, component in given.items()}
        drawn = {name: check_component(name, component) for name, component in attackers.items()}
        check_adaptive(attackers, self.components, diagnosis=diagnosis)
        for name, component in attackers.items():
            check_attack(name, component, drawn[name])
        self._distributions |= drawn
        return attackers

    @property
    def adaptive_eps(self) -> float:
        """The largest linf budget of attackers who know the defence, 8/255 where they have none."""
        return largest_linf(self.adaptive, self._distributions)

    def check(
        self,
        victim_names: Iterable[str],
        *,
        channels: int | None = None,
        image_size: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        """Looks at what only the victims' names and the data can tell, before any victim is there.

        Args:
            victim_names: names of the victims.
            channels: of the images; None where it is not known, like the next two.
            image_size: side of the images in pixels.
            num_classes: number of classes.

        Raises:
            ValueError: a component does not fit the victims, the images or the classes.
        """
        names = list(victim_names)
        self.cells(names)
        if self.deal != "all":
            self._dealer.table(names)
        for name, component in (self.components | self.adaptive).items():
            if num_classes is not None and isinstance(component.target, int) and component.target >= num_classes:
                raise ValueError(f"{name}.target={component.target} does not exist: there are {num_classes} classes")
            if channels is not None and image_size is not None:
                check_attack(name, component, self._distributions[name], (channels, image_size, image_size))

    def describe(self) -> dict[str, Any]:
        """All that decides who meets which attack and what comes of it, attackers who know the defence aside.

        Raises:
            ValueError: an attack has a part that cannot be told in plain values.
        """
        options = ("deal", "quantize", "rounding", "only_fooled", "only_right", "seed")
        return {"components": described(self.components)} | {name: getattr(self, name) for name in options}

    def attacked(self, attack: Tensor) -> Tensor:
        """(N,) places in ``attack_names`` -> (N,) bool, False for clean images and for controls."""
        return self._crafter.attacked(attack)

    def setting_names(self, attack: int) -> tuple[str, ...]:
        """What the settings of an attack are called in a table, such as ``eps=8/255``.

        Args:
            attack: place in ``attack_names``.

        Returns:
            Their names in the order of their ids; empty where the component has no settings.
        """
        component = (self.components | self.adaptive).get(self.attack_names[attack])
        return () if component is None else setting_names(component)

    def cells(self, victim_names: Iterable[str], *, adaptive: bool = True) -> list[Cell]:
        """Every cell of an evaluation.

        Args:
            victim_names: names of the victims; a victim's id is its place in it.
            adaptive: with those of the attackers in ``adaptive``, for whom there must be a defence to attack.

        Returns:
            Clean on each victim first, then each attack in each of its settings on its victims, also of components
            with weight 0, then the adaptive ones.

        Raises:
            ValueError: a component names a victim that is not there, or a victim's name cannot be told in a table.
        """
        return self._dealer.cells(victim_names, adaptive=adaptive)

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
        """Decides who gets which attack, victim and parameters.

        Args:
            index: (B,) int64, place of each sample in the data set.
            position: (B,) int64, place of each sample in the order of the epoch.
            stage: "train", "val", "test", ...
            epoch: number of the epoch, which counts in the stage "train" only.
            victim_names: names of the victims, in the order of their ids.
            cell: gives this cell to every row.

        Returns:
            The plan of B rows, or of B x components rows, a sample's rows side by side, if the mix deals ``all``.

        Raises:
            ValueError: an unknown victim or cell.
        """
        return self._dealer.plan(index, position, stage=stage, epoch=epoch, victim_names=victim_names, cell=cell)

    def craft(
        self,
        victims: Mapping[str, nn.Module],
        x: Tensor,
        y: Tensor,
        plan: Plan,
        *,
        valid: Tensor | None = None,
        defence: Any = None,
        want_fooled: bool = False,
    ) -> AttackBatch:
        """Carries out a plan. Rows that attack one model by gradient steps of one norm go through one loop.

        Args:
            victims: name -> victim, with every name that the plan uses.
            x: (B, C, H, W) float32 in [0, 1].
            y: (B,) int64, true classes.
            plan: from ``plan``.
            valid: (B,) bool, rows that count; None means all.
            defence: the method under training or test, for components with ``knowledge="defence"``.
            want_fooled: also say where the attacked model was fooled; with ``only_fooled`` it is said anyway.

        Returns:
            The batch of N rows, detached, as ordinary tensors even under inference mode.

        Raises:
            ValueError: inputs out of range, a missing victim or defence, a target class that the model does not have.
        """
        return self._crafter(victims, x, y, plan, valid=valid, defence=defence, want_fooled=want_fooled)
