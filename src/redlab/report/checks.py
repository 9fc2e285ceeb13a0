"""Whether the numbers of a test can be believed, as far as its rows tell; for the rest see ``redlab.soundness``.

Each check has a number and is green, amber or red. Red means that the numbers must not be believed as they are; green
does not mean that they may.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from redlab.metrics import Samples, identified_per_attack
from redlab.report.tables import Table, percent

POINTS = 0.02
"""What an accuracy may differ by without a word."""
VERDICTS = ("green", "amber", "red")
KNOWN = "an attacker who knows the defence does better"
CAUTION = "Red: do not believe the numbers as they are. Green does not say that you may."


class Check(NamedTuple):
    """One check.

    Attributes:
        name: what should be so.
        found: the numbers.
        verdict: "green", "amber" or "red".
    """

    name: str
    found: str
    verdict: str


def graded(value: float, amber: float, red: float) -> str:
    """Green up to ``amber``, red above ``red``.

    >>> graded(0.01, 0.02, 0.1), graded(0.05, 0.02, 0.1), graded(0.2, 0.02, 0.1)
    ('green', 'amber', 'red')
    """
    return "green" if value <= amber else "amber" if value <= red else "red"


def of_rows(rows: Samples) -> list[Check]:
    """What can be checked of the rows of any test.

    Args:
        rows: of ``redlab.evaluation``.
    """
    if not len(rows) or "right" not in rows:
        return []
    found = []
    told, knowing = (rows.where(attacked=1, knowledge=who) for who in ("victim", "defence"))
    if len(told):
        left = min(group.mean("right_attacked") for _, group in told.groups("attack"))
        text = f"the strongest leaves the victim {percent(left)} right"
        found.append(Check("attacks work on the victim", text, graded(left, 0.2, 0.5)))
    if len(told) or len(knowing):
        found.append(_known(told, knowing))
    if len(clean := rows.clean):
        lost = clean.mean("right_clean") - clean.mean("right")
        found.append(Check("clean images stay right", f"{points(-lost)}", graded(lost, POINTS, 0.1)))
        if "alarm" in rows:
            alarms = clean.mean("alarm")
            found.append(Check("few false alarms", percent(alarms), graded(alarms, POINTS, 0.1)))
    found += [check for attack in told.attacks if (check := _by_budget(told.where(attack=attack), attack))]
    images = len(torch.unique(rows["image"]))
    low, high = _wilson(rows.where(attacked=1).mean("right") if len(told) else rows.mean("right"), images)
    text = f"± {50 * (high - low):.1f} points (95 %, {images} images)"
    found.append(Check("enough images", text, graded((high - low) / 2, 0.05, 0.15)))
    return found


def by_chance(rows: Samples) -> list[Check]:
    """Of an identifier that was trained with attacks by lot (``data.shuffle_attacks``): it must know nothing.

    Args:
        rows: of a test, where attacks are what they are.
    """
    name = "attacks told by lot are not learnt"
    if "identified" not in rows:
        return [Check(name, "it names no attack: nothing can be said", "amber")] if len(rows) else []
    told = Samples.cat([rows.where(knowledge="victim", attacked=1), rows.clean])  # controls are clean once more
    shares = identified_per_attack(told).values()
    # of each attack alike, so that who always names the most frequent one gains nothing
    share, chance = (sum(shares) / len(shares), 1 / len(shares)) if shares else (0.0, 0.0)
    text = f"{percent(share)} of each attack, by chance {percent(chance)}"
    return [Check(name, text, graded(share - chance, 0.05, 0.15))]


def _known(told: Samples, knowing: Samples) -> Check:
    name = KNOWN
    if not len(knowing):
        return Check(name, "nobody who knows it attacked", "red")
    aware = min(group.mean("right") for _, group in knowing.groups("attack"))
    if not len(told):
        return Check(name, f"{percent(aware)} are right", "green")
    blind = min(group.mean("right") for _, group in told.groups("attack", "setting"))
    # whoever knows less and does better shows that the other was hindered
    return Check(name, f"{percent(aware)} right, {percent(blind)} without", graded(aware - blind, POINTS, 0.05))


def _by_budget(rows: Samples, attack: str) -> Check | None:
    """Of the victim's accuracy over the settings of an attack that differ in eps alone."""
    budgets = {}
    for (setting,), group in rows.groups("setting"):
        key, _, text = setting.partition("=")
        if key != "eps" or " " in text:
            return None
        above, _, below = text.partition("/")
        budgets[float(above) / float(below or 1)] = group.mean("right_attacked")
    if len(budgets) < 2:
        return None
    accuracies = [budgets[eps] for eps in sorted(budgets)]
    rise = max(max(b - a for a, b in pairwise(accuracies)), 0)
    text = " > ".join(percent(a) for a in accuracies)
    return Check(f"{attack} grows with its budget", text, graded(rise, POINTS, 0.05))


def _wilson(share: float, many: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share of ``many`` images (Wilson 1927)."""
    middle = (share + z * z / (2 * many)) / (1 + z * z / many)
    half = z * math.sqrt(share * (1 - share) / many + z * z / (4 * many * many)) / (1 + z * z / many)
    return middle - half, middle + half


def points(value: float) -> str:
    """A difference of shares, with its sign.

    >>> points(-0.012), points(-0.0001)
    ('-1.2 points', '+0.0 points')
    """
    return f"{round(100 * value, 1) + 0.0:+.1f} points"


def table_of(checks: Sequence[Check], *, full: bool = False) -> Table:
    """The strip: a line for each check."""
    more = () if full else ("These are of the test alone; evaluate.py run=... trust=full attacks anew for more.",)
    return Table("Checks", ("check", "found", "verdict"), tuple(checks), (CAUTION, *more))
