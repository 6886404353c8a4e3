"""Tables of counts that forget what comes to 0, so that equal histories have equal tables."""

from collections import Counter
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def add(counts: Counter[K], key: K, change: int) -> None:
    """Adds to a count in a table."""
    count = counts.get(key, 0) + change
    if count:
        counts[key] = count
    else:
        counts.pop(key, None)  # not del, which a Counter makes a call of its own


def add_nested(counts: dict[K, Counter[V]], key: K, what: V, change: int) -> None:
    """Adds to a count in a table of counts."""
    found = counts.get(key)
    if found is None:
        found = counts[key] = Counter()
    add(found, what, change)
    if not found:
        del counts[key]
