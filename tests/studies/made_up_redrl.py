"""Rows of REDRL as an evaluation leaves them, with numbers that a test chooses."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from redlab.metrics import Samples
from redlab.studies import Claim, Seen, Study, find
from redlab.studies.redrl.recognition import CLASSES

EPS = ("eps=4/255", "eps=8/255", "eps=16/255")


def one(name: str) -> Study:
    (found,) = find(f"redrl/{name}")
    return found


def verdicts(of: Study, *seeds: Mapping[str, Seen]) -> dict[str, str]:
    judged = of.judge(of.table(seeds))
    return {text: claim.verdict if isinstance(claim, Claim) else claim for text, claim in judged.items()}


def failing(of: Study, seen: Mapping[str, Seen]) -> set[str]:
    """The claims that do not hold."""
    return {text for text, verdict in verdicts(of, seen).items() if verdict != "holds"}


def is_only(found: set[str], start: str) -> bool:
    return len(found) == 1 and next(iter(found)).startswith(start)


Cell = tuple[str, str, str]
"""Attack, setting and victim."""


def rows(
    of: Callable[[str, str, str], Mapping[str, float]],
    *,
    attacks: Iterable[str] = tuple(CLASSES),
    victims: tuple[str, ...] = ("a", "b"),
    settings: Callable[[str], tuple[str, ...]] = lambda attack: ("",),
    aware: float = 0.25,
) -> Samples:
    """Two images in each cell, whose measures are those given on average; an attacker who knows the defence finds
    nonsense in all but ``right``."""
    every = list(dict.fromkeys(name for attack in attacks for name in settings(attack)))
    cells = [(attack, setting, victim) for attack in attacks for setting in settings(attack) for victim in victims]
    measured = [of(*cell) for cell in cells]
    measures = list(dict.fromkeys(name for found in measured for name in found))
    names = {"attack": (*attacks, "aware_pgd"), "setting": tuple(every), "victim": victims, "judge": victims}
    columns: dict[str, list[float]] = {name: [] for name in (*names, "knowledge", "image", "attacked", *measures)}
    columns["right"] = []
    for cell, found in [*zip(cells, measured, strict=True), *((("aware_pgd", every[0], v), {}) for v in victims)]:
        attack, setting, victim = cell
        for image in (0, 1):
            step = 1 + 0.1 * (image - 0.5)  # so that a mean is needed
            codes = {"attack": names["attack"].index(attack), "setting": every.index(setting), "image": image}
            codes |= dict.fromkeys(("victim", "judge"), victims.index(victim))
            codes |= {"knowledge": int(attack == "aware_pgd"), "attacked": int(attack != "clean")}
            flags = {k: v if k.startswith("right_") and v in (0, 1) else v * step for k, v in found.items()}
            for name, values in columns.items():
                values.append((codes | {"right": aware} | flags).get(name, 1e6))
    return Samples(columns, names | {"knowledge": ("victim", "defence")})


def answered(
    said: Mapping[str, Mapping[str, float]], *, victims: tuple[str, ...] = ("a",), known=tuple(CLASSES)
) -> Seen:
    """A thousand images of each attack, of which those shares (in per cent) are said to be of each class.

    The rest is said to be of the class after the last one.
    """
    attacks = tuple(said)
    columns: dict[str, list[Tensor]] = {name: [] for name in ("attack", "victim", "said", "identified", "p")}
    for place, (attack, shares) in enumerate(said.items()):
        counts = [round(10 * shares.get(name, 0)) for name in known]
        left = 1000 - sum(counts)
        assert left >= 0
        spare = next(i for i, name in reversed(list(enumerate(known))) if name != attack and not counts[i])
        counts[spare] += left
        answers = torch.repeat_interleave(torch.arange(len(known)), torch.tensor(counts))
        truth = known.index(attack) if attack in known else -1
        for victim in range(len(victims)):
            columns["attack"].append(torch.full((1000,), place))
            columns["victim"].append(torch.full((1000,), victim))
            columns["said"].append(answers)
            right = (answers == truth).double()
            columns["identified"].append(right if truth >= 0 else right * torch.nan)
            columns["p"].append(torch.full((1000,), 0.9 if truth >= 0 else 0.6).double())
    joined = {name: torch.cat(values) for name, values in columns.items()}
    sure = joined.pop("p")
    probabilities = {
        f"p_{name}": torch.where(joined["said"] == i, sure, (1 - sure) / (len(known) - 1))
        for i, name in enumerate(known)
    }
    count = len(sure)
    attacked = joined["attack"] != (attacks.index("clean") if "clean" in attacks else -1)
    more = {"image": torch.arange(count) % 1000, "setting": torch.zeros(count), "knowledge": torch.zeros(count)}
    more |= {"attacked": attacked.double(), "alarm": (joined["said"] > 0).double()}
    names = {"attack": attacks, "victim": victims, "said": known, "setting": ("",), "knowledge": ("victim", "defence")}
    return Seen(rows=Samples({**joined, **more, **probabilities}, names))


def with_eps(attack: str) -> tuple[str, ...]:
    if attack == "patch":
        return tuple(f"{eps} size={size}" for eps in EPS for size in (4, 8))
    return EPS if attack in ("pgd", "cw_linf") else ("",)
