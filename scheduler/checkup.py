"""What `doctor` asks a daemon: one finding a check, in words, with what to do about it.

Whoever puts the daemon together says what is checked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at and found. `is_ok` None: it could not be told, for the reason in `detail`."""

    name: str
    is_ok: bool | None
    detail: str
    advice: str | None = None


Checkup = Callable[[], Sequence[Check]]
"""Looks at one thing; may block, and never raises what an operator could mend."""
