"""A live state in a file: all that the scheduler decides from at an instant, to be replayed elsewhere under any policy.

The file is JSON and holds what the planner knows, in its own words: accounts with their terms, nodes, live jobs and
allocations, list rates, burst use, reservations, claims. It holds no command, environment, secret, token or label of a
job. Files of a later version are refused, not guessed at.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy.engine import Connection

from scheduler.core.debt import RateKey
from scheduler.core.events import RatesChanged
from scheduler.core.model import Booking, GpuClass
from scheduler.core.policy import Policy
from scheduler.core.state import ClusterState
from scheduler.knobs import policy_from
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.store.read import StateParts, build_state, load_state_parts

FORMAT = "turnstile/state/v1"
LARGEST_BYTES = 1 << 30
"""Of a file that is read: a million jobs take half of it."""
_PARTS = TypeAdapter(StateParts)
_MOST_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state at an instant, with the policy that decided then."""

    at_ms: int
    policy: Policy
    parts: StateParts

    def state(self, half_life_ms: int | None = None) -> ClusterState:
        """Returns the state that the parts make, as a daemon that starts from them has it."""
        return build_state(self.parts, half_life_ms or self.policy.debt_half_life_ms)


def take(connection: Connection, policy: Policy, now_ms: int) -> Snapshot:
    """Returns the state as the database has it."""
    return Snapshot(now_ms, policy, load_state_parts(connection, policy.debt_half_life_ms))


def encode(snapshot: Snapshot) -> bytes:
    """Returns a snapshot as a file: the same state gives the same bytes."""
    return json.dumps(document_of(snapshot), ensure_ascii=False, sort_keys=True, indent=1).encode() + b"\n"


def document_of(snapshot: Snapshot) -> dict[str, Any]:
    """Returns a snapshot as JSON values."""
    parts = _PARTS.dump_python(replace(snapshot.parts, rates=()), mode="json")
    parts["rates"] = [
        {"at_ms": change.at_ms, "rates": [[*map(str, key), rate] for key, rate in sorted(change.rates.items())]}
        for change in snapshot.parts.rates
    ]
    policy = {name: value for name, value in asdict(snapshot.policy).items() if value is not None}
    switched_off = {name: False for name, value in asdict(snapshot.policy).items() if value is None}
    return {"format": FORMAT, "at_ms": snapshot.at_ms, "policy": policy | switched_off, "parts": parts}


def decode(content: bytes, name: str) -> Snapshot:
    """Returns the snapshot of a file called `name`. Raises Refused with what is wrong with it."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise Refused(RefusalCode.INVALID, f"{name} is not JSON", ("turnstile admin state dump FILE",)) from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else None
        raise Refused(RefusalCode.INVALID, f"{name} is no state of this version: its format is {found!r}, not {FORMAT}")
    policy, problems = policy_from(_mapping(document, "policy", name))
    if problems:
        raise Refused(RefusalCode.INVALID, f"{name}: policy has {len(problems)} problems", problems=problems)
    parts = dict(_mapping(document, "parts", name))
    try:
        rates = tuple(_rates_changed(each) for each in parts.pop("rates", []))
        read = replace(_PARTS.validate_json(json.dumps(parts), strict=False), rates=rates)
        at_ms = int(document["at_ms"])
        snapshot = Snapshot(at_ms, policy, read)
        # What contradicts itself must not be planned on; build_state and check say so by assertions and look-ups.
        snapshot.state().check()
    except ValidationError as error:
        found_wrong = tuple(
            Problem(each["msg"], ".".join(map(str, each["loc"]))) for each in error.errors()[:_MOST_PROBLEMS]
        )
        raise Refused(RefusalCode.INVALID, f"{name} was changed: {found_wrong[0]}", problems=found_wrong) from None
    except (AssertionError, LookupError, TypeError, ValueError) as error:
        raise Refused(RefusalCode.INVALID, f"{name} contradicts itself: {error}") from None
    return snapshot


def _mapping(document: Mapping[str, Any], key: str, name: str) -> Mapping[str, Any]:
    found = document.get(key)
    if not isinstance(found, dict):
        raise Refused(RefusalCode.INVALID, f"{name} has no {key}")
    return found


def _rates_changed(each: Mapping[str, Any]) -> RatesChanged:
    rates: dict[RateKey, int] = {
        (GpuClass(str(gpu_class)), Booking(booking)): int(rate) for gpu_class, booking, rate in each["rates"]
    }
    return RatesChanged(int(each["at_ms"]), rates)
