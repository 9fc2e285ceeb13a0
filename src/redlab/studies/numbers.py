"""Numbers over seeds, and what is claimed of them.

    Table[row, column] -> Number (one value per seed) -> a < b, a.near(b, by=5), increasing(row), ... -> Claim

Arithmetic is done seed by seed, so that what two runs of one seed have in common cancels in their difference. A
difference that is not larger than its spread over seeds is a tie. With one seed the spread is not known, and only equal
numbers are a tie.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["holds", "tie", "fails"]

HOLDS, TIE, FAILS = "holds", "tie", "fails"

ROUNDING = 1e-9
"""Numbers that differ by less than this share of their size are equal."""


class NoNumberError(LookupError):
    """A cell that a claim asks for has no number; a claim about it can neither hold nor fail."""


@dataclass(frozen=True)
class Number:
    """A measured number, one value per seed.

    ``+ - * /`` work seed by seed, with another number of the same seeds or with a plain one. ``<``, ``>``, ``<=`` and
    ``>=`` give a ``Claim``; ``==`` says whether the values are the same, and claims nothing.

    >>> do, cdd = Number((40.0, 50.0), "DO"), Number((61.0, 70.0), "CDD-RED")
    >>> (do + 15 < cdd).text
    'DO + 15 = 60 < CDD-RED = 65.5'

    Attributes:
        values: one per seed; NaN where there is none.
        name: what it is called in the text of a claim.
    """

    values: tuple[float, ...]
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a number needs the value of at least one seed, got none")
        object.__setattr__(self, "values", tuple(map(float, self.values)))

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN if a seed has no value."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Largest minus smallest value, 0 with one seed; NaN if a seed has no value."""
        return max(self.values) - min(self.values) if self.known else math.nan

    @property
    def known(self) -> bool:
        """Whether every seed has a finite value."""
        return all(map(math.isfinite, self.values))

    def __str__(self) -> str:
        shown = f"{self.mean:.4g}"
        return f"{self.name} = {shown}" if self.name and self.name != shown else shown

    def __add__(self, other: Number | float) -> Number:
        return _by_seed("+", lambda a, b: a + b, self, other)

    def __radd__(self, other: float) -> Number:
        return _number(other) + self

    def __sub__(self, other: Number | float) -> Number:
        return _by_seed("-", lambda a, b: a - b, self, other)

    def __rsub__(self, other: float) -> Number:
        return _number(other) - self

    def __mul__(self, other: Number | float) -> Number:
        return _by_seed("*", lambda a, b: a * b, self, other)

    def __rmul__(self, other: float) -> Number:
        return _number(other) * self

    def __truediv__(self, other: Number | float) -> Number:
        return _by_seed("/", lambda a, b: a / b if b else math.nan, self, other)

    def __rtruediv__(self, other: float) -> Number:
        return _number(other) / self

    def __abs__(self) -> Number:
        return Number(tuple(map(abs, self.values)), f"|{self.name}|")

    def __lt__(self, other: Number | float) -> Claim:
        return _order(self, "<", _number(other))

    def __gt__(self, other: Number | float) -> Claim:
        return _order(self, ">", _number(other))

    def __le__(self, other: Number | float) -> Claim:
        return _order(self, "<=", _number(other))

    def __ge__(self, other: Number | float) -> Claim:
        return _order(self, ">=", _number(other))

    def near(self, other: Number | float, *, by: float) -> Claim:
        """Claims that the two differ by at most ``by``, on average over seeds."""
        other = _number(other)
        difference = self - other
        return _claim(f"{self} ~ {other} (within {by:g})", by - abs(difference.mean), difference, (self, other), True)


@dataclass(frozen=True)
class Claim:
    """What is said of numbers, and whether it is so.

    Attributes:
        text: the numbers that it was judged by.
        verdict: "holds", "tie" (the difference is not larger than its spread over seeds) or "fails".
        margin: how far it is from not holding, in the numbers' unit; below 0 where it does not hold on average.
        spread: of the difference over seeds, in the same unit.
        parts: the claims that all must hold, where it was joined; margin and spread are those of the part that decides.
    """

    text: str
    verdict: Verdict
    margin: float
    spread: float
    parts: tuple[Claim, ...] = ()

    def __and__(self, other: Claim) -> Claim:
        return every((*(self.parts or (self,)), *(other.parts or (other,))))

    def __bool__(self) -> bool:
        raise TypeError(f"a claim is neither true nor false ({self.text}); a < b < c must be written (a < b) & (b < c)")


def _number(value: Number | float) -> Number:
    return value if isinstance(value, Number) else Number((value,), f"{value:.4g}")


def _by_seed(sign: str, do: Callable[[float, float], float], a: Number, other: Number | float) -> Number:
    b = _number(other)
    many = max(len(a.values), len(b.values))
    if {len(a.values), len(b.values)} - {1, many}:
        raise ValueError(f"{a.name!r} has {len(a.values)} seeds and {b.name!r} has {len(b.values)}")
    pairs = zip(*(n.values * (many // len(n.values)) for n in (a, b)), strict=True)
    left, right = a.name, b.name
    if sign in "*/":
        left = _bracketed(left)
    if sign != "+":
        right = _bracketed(right)
    return Number(tuple(do(x, y) for x, y in pairs), f"{left} {sign} {right}")


def _bracketed(name: str) -> str:
    return f"({name})" if any(sign in name for sign in (" + ", " - ")) else name


def _claim(text: str, margin: float, difference: Number, of: Iterable[Number], equal_holds: bool) -> Claim:
    """Judges a margin by the spread of the difference that it comes from."""
    of = tuple(of)
    for number in (*of, difference):
        if not number.known:
            raise NoNumberError(f"{number.name or 'a number'} = {number.mean}")
    rounding = ROUNDING * max(abs(number.mean) for number in of)
    slack = difference.spread + rounding
    holds = margin >= -rounding if equal_holds else margin > slack
    verdict: Verdict = "holds" if holds else "tie" if abs(margin) <= slack else "fails"
    return Claim(text, verdict, margin, difference.spread)


def _order(left: Number, sign: str, right: Number) -> Claim:
    difference = right - left if sign[0] == "<" else left - right
    claim = _claim(f"{left} {sign} {right}", difference.mean, difference, (left, right), False)
    if "=" in sign and claim.verdict == TIE:  # no larger than, as far as can be seen
        return Claim(claim.text, "holds", claim.margin, claim.spread)
    return claim


def every(claims: Iterable[Claim]) -> Claim:
    """Joins claims: fails if one fails, else ties if one ties, else holds.

    Raises:
        ValueError: there is none.
    """
    parts = tuple(claims)
    if not parts:
        raise ValueError("there is no claim to join")
    worst = min(parts, key=lambda part: ((FAILS, TIE, HOLDS).index(part.verdict), part.margin))
    text = "; ".join(part.text + ("" if part.verdict == HOLDS else f" [{part.verdict}]") for part in parts)
    return Claim(text, worst.verdict, worst.margin, worst.spread, parts)


def most(claims: Iterable[Claim], *, at_least: int | None = None) -> Claim:
    """Claims that most of some claims hold; the margin counts claims.

    Args:
        claims: what they are.
        at_least: how many must hold; None means more than half.

    Raises:
        ValueError: ``at_least`` is not between 1 and the number of claims.
    """
    parts = tuple(claims)
    needed = len(parts) // 2 + 1 if at_least is None else at_least
    if not 1 <= needed <= len(parts):
        raise ValueError(f"at_least must be in 1..{len(parts)}, the number of claims, got {needed}")
    hold, tie = (sum(part.verdict == verdict for part in parts) for verdict in (HOLDS, TIE))
    verdict: Verdict = "holds" if hold >= needed else "tie" if hold + tie >= needed else "fails"
    shown = "; ".join(f"{part.text} [{part.verdict}]" for part in parts)
    return Claim(f"{hold} of {len(parts)} hold, {needed} needed: {shown}", verdict, hold - needed, tie)


Numbers = Mapping[str, Number] | Iterable[Number]
"""A row or a column of a table, or numbers in their order."""


def in_order(numbers: Numbers) -> tuple[Number, ...]:
    """The numbers of a row, a column or anything else that holds some."""
    return tuple(numbers.values() if isinstance(numbers, Mapping) else numbers)


def increasing(numbers: Numbers, *, slack: float = 0) -> Claim:
    """Claims that each number is above the one before it; with ``slack``, that none falls by more than that."""
    found = in_order(numbers)
    return every(before <= after + slack if slack else before < after for before, after in itertools.pairwise(found))


def falling(numbers: Numbers, *, slack: float = 0) -> Claim:
    """Claims that each number is below the one before it; with ``slack``, that none grows by more than that."""
    found = in_order(numbers)
    return every(before + slack >= after if slack else before > after for before, after in itertools.pairwise(found))


def inner_maximum(numbers: Numbers) -> Claim:
    """Claims that the largest number is above both the first and the last.

    Raises:
        ValueError: fewer than three numbers.
    """
    found = in_order(numbers)
    top = found[_place_of_peak(found)]
    return (found[0] < top) & (found[-1] < top)


def inverted_u(numbers: Numbers, *, slack: float = 0) -> Claim:
    """Claims that the numbers grow up to one in their midst, and fall after it; see ``increasing`` for ``slack``.

    Raises:
        ValueError: fewer than three numbers.
    """
    found = in_order(numbers)
    peak = _place_of_peak(found)
    return inner_maximum(found) & increasing(found[: peak + 1], slack=slack) & falling(found[peak:], slack=slack)


def _place_of_peak(found: Sequence[Number]) -> int:
    if len(found) < 3:
        raise ValueError(f"a maximum in the midst of numbers needs three of them, got {len(found)}")
    return max(range(1, len(found) - 1), key=lambda place: found[place].mean)


def reduced(name: str, numbers: Numbers, do: Callable[[Sequence[float]], float]) -> Number:
    """A number from several, seed by seed.

    Args:
        name: what it is, before the names of the first and the last of the numbers.
        numbers: all of the same seeds.
        do: the values of one seed, in order -> its value.

    Raises:
        ValueError: none, or of different seeds.
    """
    found = in_order(numbers)
    if len({len(n.values) for n in found}) != 1:
        raise ValueError(f"{name} needs numbers of the same seeds, got {[len(n.values) for n in found]}")
    if found[0].name:
        name = f"{name} of {found[0].name} … {found[-1].name}"
    return Number(tuple(do(values) for values in zip(*(n.values for n in found), strict=True)), name)


def largest(numbers: Numbers) -> Number:
    """The largest of some numbers, seed by seed."""
    return reduced("the largest", numbers, max)


def smallest(numbers: Numbers) -> Number:
    """The smallest of some numbers, seed by seed."""
    return reduced("the smallest", numbers, min)


def average(numbers: Numbers) -> Number:
    """The mean of some numbers, seed by seed."""
    return reduced("the mean", numbers, statistics.fmean)


def span(numbers: Numbers) -> Number:
    """The largest minus the smallest, seed by seed: the range over attacks, victims or settings."""
    return reduced("the range", numbers, lambda values: max(values) - min(values))


def slope(at: Sequence[float], numbers: Numbers) -> Number:
    """The slope of the least-squares line through numbers at these places, seed by seed.

    Raises:
        ValueError: not one place for each number, or all at one place.
    """
    found = in_order(numbers)
    if len(at) != len(found) or len(set(at)) < 2:
        raise ValueError(f"a slope needs a place for each of {len(found)} numbers, two of them different, got {at}")
    return reduced("slope", found, lambda values: statistics.linear_regression(at, values).slope)


def rank_correlation(a: Numbers, b: Numbers) -> Number:
    """Spearman's rank correlation in [-1, 1], seed by seed; ties share their mean rank, NaN where all are equal.

    Raises:
        ValueError: not as many in ``a`` as in ``b``, or fewer than two.
    """
    first, second = in_order(a), in_order(b)
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"a rank correlation needs two rows of one length, got {len(first)} and {len(second)}")

    def correlate(values: Sequence[float]) -> float:
        one, two = _ranks(values[: len(first)]), _ranks(values[len(first) :])
        known = all(map(math.isfinite, values)) and len(set(one)) > 1 and len(set(two)) > 1
        return statistics.correlation(one, two) if known else math.nan

    return reduced("rank correlation", (*first, *second), correlate)


def _ranks(values: Sequence[float]) -> list[float]:
    """Equal values share their mean rank."""
    return [sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values]
