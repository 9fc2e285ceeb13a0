"""Did you mean ...?"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: object, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """Known names like a name that is not among them, the most alike first.

    Args:
        name: what was asked for.
        known: what there is.
        n: how many at most.
        cutoff: how alike they must be, 0 to 1.

    >>> nearest("tabel1", ["table1", "fig5"])
    ['table1']
    """
    return get_close_matches(str(name), list(known), n=n, cutoff=cutoff)


def listed(names: Iterable[str], at_most: int = 20) -> str:
    """Names for a sentence: all of them, or the first and how many more.

    >>> listed(["a", "b", "c"], at_most=2)
    'a, b and 1 more'
    """
    names = list(names)
    more = len(names) - at_most
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:at_most])} and {more} more"


def suggest(name: object, known: Iterable[str]) -> str:
    """The nearest known name as a question to end a sentence with, or nothing.

    >>> suggest("smal", ["smoke", "small"]), suggest("x", ["small"])
    (" Did you mean 'small'?", '')
    """
    near = nearest(name, known)
    return f" Did you mean {near[0]!r}?" if near else ""
