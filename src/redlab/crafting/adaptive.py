"""The attackers that know the defence, which every evaluation adds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from redlab.attacks.patch import Patch
from redlab.attacks.pgd import PGD
from redlab.crafting.component import Component, Distribution, innermost

DEFAULT_EPS = 8 / 255


def default_adaptive(
    components: Mapping[str, Component], distributions: Mapping[str, Mapping[str, Distribution]]
) -> dict[str, Component]:
    """``aware_pgd``: PGD in linf, 40 steps of eps / 10, on the whole defence, with the largest linf budget of a mix.

    Args:
        components: of the mix.
        distributions: name -> parameter -> what is drawn for it.

    Returns:
        One component; its budget is 8/255 where the mix has none. A patch's is of its window only, and does not count.
    """
    eps = largest_linf(components, distributions)
    attack = PGD(norm="linf", eps=eps, step_size=eps / 10, steps=40)
    return {"aware_pgd": Component(attack=attack, knowledge="defence")}


def largest_linf(components: Mapping[str, Component], distributions: Mapping[str, Mapping[str, Distribution]]) -> float:
    """The largest linf budget of some components, 8/255 where there is none; arguments as for `default_adaptive`."""
    budgets = [eps for name, component in components.items() for eps in _linf(component, distributions[name])]
    return float(max(budgets, default=DEFAULT_EPS))


def _linf(component: Component, drawn: Mapping[str, Distribution]) -> Iterator[float]:
    for setting in component.settings or ({},):
        whole: Any = replace(component.attack, **setting) if setting else component.attack  # type: ignore[type-var]
        attack = innermost(whole)
        if getattr(attack, "norm", None) != "linf" or isinstance(attack, Patch):
            continue
        if "eps" in drawn:
            yield max(drawn["eps"].ends())
        elif getattr(attack, "eps", None) is not None:
            yield max(attack.eps.tolist() if hasattr(attack.eps, "tolist") else [attack.eps])


def check_adaptive(adaptive: Mapping[str, Component], components: Mapping[str, Component], *, diagnosis: bool) -> None:
    """Checks the attackers of every evaluation, beyond what each component must be.

    Args:
        adaptive: name -> component.
        components: of the mix.
        diagnosis: whether the evaluation says that it only looks at something and is no claim of robustness.

    Raises:
        ValueError: there are none, or one of them is not what it must be.
    """
    if not adaptive and not diagnosis:
        raise ValueError(
            "adaptive={} leaves out every attacker who knows the defence: a defence is not evaluated without one; "
            "leave it out for the default, or set diagnosis=true where nothing is claimed"
        )
    if adaptive and diagnosis:
        raise ValueError(f"diagnosis=True has no effect with adaptive attackers, {list(adaptive)}: set adaptive={{}}")
    for name, component in adaptive.items():
        if name in components or name == "clean":
            raise ValueError(f"adaptive.{name} has the name of a component of the mix: give it another")
        if component.knowledge != "defence":
            raise ValueError(f"adaptive.{name}.knowledge must be 'defence', got {component.knowledge!r}")
        if component.weight != 1:
            raise ValueError(f"adaptive.{name}.weight={component.weight!r} has no effect: every image meets it")
