"""Expected refusals: what was wrong, the nearest thing that works, and a stable code that people and scripts share.

`Refused` is raised where a request is checked and becomes an RFC 9457 problem at the API's edge, an `error:` with the
tabled exit status at the CLI's. It is not a fault: nothing was stored.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class RefusalCode(StrEnum):
    """The closed list of codes."""

    INVALID = "invalid"  # the request is malformed
    NEVER_FITS = "never_fits"  # no node could ever hold it
    OVER_QUOTA = "over_quota"
    OVER_BUDGET = "over_budget"
    POLICY = "policy"  # the centre does not allow it
    NOT_FOUND = "not_found"
    NOT_LOGGED_IN = "not_logged_in"
    NOT_ALLOWED = "not_allowed"
    WRONG_STATE = "wrong_state"
    CONFLICT = "conflict"  # the idempotency key was used for another request
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many"  # rate or queue limit: try later
    UNAVAILABLE = "unavailable"  # the database is away, or this daemon does not lead


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a request; `field` names the place, as in `shape.nodes`."""

    message: str
    field: str | None = None


@dataclass(eq=False)
class Refused(Exception):
    """A request that is not carried out. `tries` are requests that would work, best first."""

    code: RefusalCode
    message: str
    tries: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = field(default=())

    def __str__(self) -> str:
        return self.message
