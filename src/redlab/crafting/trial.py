"""An attack called up to where it asks the model, so that it looks at its own numbers before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from redlab.attacks.feature import FeatureAttack
from redlab.attacks.guard import guard
from redlab.attacks.wrappers import Defended
from redlab.crafting.component import Component, Distribution, differentiable, draws
from redlab.rng import SampleRng


def check_attack(
    name: str,
    component: Component,
    distributions: Mapping[str, Distribution],
    shape: tuple[int, int, int] | None = None,
) -> None:
    """Calls the attack up to where it asks the model for the first time, in each setting, with the ends of all draws.

    By then it has looked at its own numbers. What data or a network must tell (guides, a layer) is left out.

    Args:
        name: of the component.
        component: as ``check_component`` wants it.
        distributions: what is drawn.
        shape: (C, H, W) of the images; None where it is not known, and then nothing is too large for them.

    Raises:
        ValueError: a setting of the attack is wrong, or the attack cannot be aimed at a target; the message names it.
    """
    if component.attack is None:
        return
    for place, setting in enumerate(component.settings or ({},)):
        _try(name, component, setting, f"settings[{place}].", distributions, shape)


def _try(
    name: str,
    component: Component,
    setting: Mapping[str, Any],
    place: str,
    distributions: Mapping[str, Distribution],
    shape: tuple[int, int, int] | None,
) -> None:
    """One setting of ``check_attack``, by the name of its place."""
    rows = list(product(*(distribution.ends() for distribution in distributions.values()))) or [()]
    drawn = {key: torch.tensor(values) for key, values in zip(distributions, zip(*rows, strict=True), strict=True)}
    for key, distribution in distributions.items():
        drawn[key] = drawn[key].long() if distribution.is_whole() else drawn[key].float()
    model: nn.Module = _Unasked()
    if component.knowledge == "defence" and component.gradient != "joint":  # which a detector has, unlike this one
        model = differentiable(Defended(_Untouched(), model), draws(name, component.gradient))
    try:
        changed = {**setting, **drawn}
        attack = _alone(replace(component.attack, **changed) if changed else component.attack)  # type: ignore[type-var]
        x = torch.full((len(rows), *(shape or _roomy(attack))), 0.5)
        y = torch.zeros(len(rows), dtype=torch.int64)
        rng, target = SampleRng.for_batch(x), None if component.target is None else y + 1
        with guard(model):
            attack(model, x, y, target=target, rng=rng)
    except _Asked:
        pass
    except ValueError as error:
        key = str(error).split(" ", 1)[0]
        own = "attack." if hasattr(component.attack, key) else "attack: "
        group = "params." if key in drawn else place if key in setting else own
        raise ValueError(f"{name}.{group}{error}") from error
    except (TypeError, RuntimeError) as error:
        if drawn:
            raise ValueError(f"{name}.params: {', '.join(drawn)} cannot be drawn for each row: {error}") from error
        if setting:
            raise ValueError(f"{name}.{place}{', '.join(setting)} cannot be set so: {error}") from error


class _Asked(Exception):
    """An attack asked the model."""


class _Unasked(nn.Module):
    """Ends the attack that asks it."""

    def forward(self, x: Tensor) -> Tensor:
        raise _Asked


class _Untouched(nn.Module):
    """A restorer that does nothing."""

    def restore(self, x: Tensor) -> Tensor:
        return x


def _alone(attack: Any) -> Any:
    """The attack without what only data or a network can tell."""
    if isinstance(attack, FeatureAttack):
        return replace(attack, guides=lambda x, *_: x, layer=None)
    if is_dataclass(attack) and callable(inner := getattr(attack, "attack", None)):
        return replace(attack, attack=_alone(inner))  # type: ignore[type-var]
    return attack


def _roomy(attack: Any) -> tuple[int, int, int]:
    """The shape of an image that no window, mask or l2 budget is too large for."""
    sizes = [getattr(attack, key, 0) for key in ("size", "canvas")]
    sizes += [*getattr(getattr(attack, "masks", None), "shape", ())]
    side = max(64, *(int(size.max()) if isinstance(size, Tensor) else size for size in sizes if size is not None))
    return (1, side, side)
