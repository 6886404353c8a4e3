"""The flight recorder's tape: what the planner was given, in order, so that a tick can be planned once more.

A tape begins with a state as the database had it; after it come, in the order in which the planner took them in, the
durable events and the ticks. A state at `version` n is the one after n events of its term. `replay` builds the state
of a tick and plans again: the same planner, policy and inputs must decide the same.

Entries are JSON, one a line: `["events", [[type, values], …]]` and `["tick", decision, now_ms, digest, promises]`.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, get_args

from pydantic import TypeAdapter

from scheduler.core import events
from scheduler.core.cycle import plan
from scheduler.core.decided import waits
from scheduler.core.events import Event, PreemptionWeighed, RatesChanged, ReservationsPlanned
from scheduler.core.model import Booking, GpuClass, Shape
from scheduler.core.plan import Plan
from scheduler.core.reasons import Reason
from scheduler.core.state import ClusterState, Group
from scheduler.core.stretch import Reservation
from scheduler.snapshot import Snapshot, decode, encode
from scheduler.store.codec import grants_json, shape_json

_TYPES: Mapping[str, type] = {each.__name__: each for each in get_args(events.Event)}
_PROMISES = TypeAdapter(tuple[Reservation, ...])
_SUBJECT_CHARACTERS = 20
_DIGEST_CHARACTERS = 16
_MOST_SUBJECTS = 50_000


@dataclass(frozen=True, slots=True)
class Ticked:
    """A tick as it was recorded. `promises` None: as after the tick before."""

    decision: int
    now_ms: int
    digest: str
    promises: tuple[Reservation, ...] | None
    is_whole: bool
    weighed: tuple[str, ...]


Entry = Ticked | tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Replayed:
    """A tick planned once more."""

    plan: Plan
    recorded: str
    found: str

    @property
    def is_same(self) -> bool:
        """True when it decided the same as it did then."""
        return self.recorded == self.found


class NotRecorded(Exception):
    """The tape does not hold the tick: it is too old, or was lost."""


@lru_cache(maxsize=_MOST_SUBJECTS)
def subject_of(waiting: Group | Shape) -> str:
    """Returns a short name for a group or a shape, the same in every process."""
    if isinstance(waiting, Shape):
        asked: object = shape_json(waiting)
    else:
        asked = [
            waiting.account, shape_json(waiting.shape), waiting.wanted.value, waiting.time_limit_ms, waiting.user,
        ]  # fmt: skip
    return _sha256(asked)[:_SUBJECT_CHARACTERS]


def digest_of(made: Plan) -> str:
    """Returns a fingerprint of all that a plan decided, its reasons and their numbers included."""
    decided = [
        [[each.job, each.gpu_class, each.booking.value, grants_json(each.grants)] for each in made.starts],
        [[each.allocation, each.reason.value, each.preemptor] for each in made.stops],
        [[each.job, each.booking.value, grants_json(each.grants), list(each.victims)] for each in made.claims],
        [[each.job, each.why] for each in made.lapses],
        [[each.allocation, each.booking.value] for each in made.promotions],
        sorted([subject_of(each), list(map(_numbers, reasons))] for each, reasons in waits(made).items()),
    ]
    return _sha256(decided)[:_DIGEST_CHARACTERS]


def _numbers(reason: Reason) -> list[str | int | None]:
    return [reason.code.value, reason.need, reason.free, reason.until_ms]


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def pack_state(snapshot: Snapshot, told: Sequence[Event]) -> bytes:
    """Returns a state to begin a tape with; `told` is what it is told besides, as a daemon's start tells it."""
    return zlib.compress(encode(snapshot) + b"\0" + _line(["events", _events(told)]), 1)


def unpack_state(body: bytes) -> tuple[Snapshot, tuple[Event, ...]]:
    """Returns what `pack_state` was given. Raises Refused for a state of another version."""
    state, _, told = zlib.decompress(body).partition(b"\0")
    (entry,) = _entries(told)
    assert isinstance(entry, tuple), "a state is followed by events"
    return decode(state, "the recorded state"), entry


def pack_entries(entries: Iterable[Entry]) -> bytes:
    """Returns entries as they are stored."""
    return zlib.compress(b"".join(map(_packed, entries)), 1)


def unpack_entries(body: bytes) -> list[Entry]:
    """Returns what `pack_entries` was given."""
    return _entries(zlib.decompress(body))


def replay(state: ClusterState, snapshot: Snapshot, entries: Iterable[Entry], decision: int) -> Replayed:
    """Brings the tape's state to a tick and plans it again. Raises NotRecorded when the tape has no such tick."""
    for entry in entries:
        if not isinstance(entry, Ticked):
            for event in entry:
                state.apply(event)
            continue
        if entry.decision == decision:
            made = plan(state, snapshot.policy, entry.now_ms, decision)
            return Replayed(made, entry.digest, digest_of(made))
        # What a tick leaves behind, without its work: jobs whose time came, promises, who was weighed.
        state.release_due(entry.now_ms)
        if entry.promises is not None:
            state.apply(ReservationsPlanned(entry.now_ms, entry.promises, entry.is_whole))
        state.apply(PreemptionWeighed(entry.now_ms, tuple(map(GpuClass, entry.weighed))))
    raise NotRecorded(f"decision {decision} is not on the tape")


def _packed(entry: Entry) -> bytes:
    if not isinstance(entry, Ticked):
        return _line(["events", _events(entry)])
    promises = None if entry.promises is None else _PROMISES.dump_python(entry.promises, mode="json")
    return _line(["tick", entry.decision, entry.now_ms, entry.digest, promises, entry.is_whole, list(entry.weighed)])


def _line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _entries(text: bytes) -> list[Entry]:
    found: list[Entry] = []
    for line in text.splitlines():
        kind, *rest = json.loads(line)
        if kind == "events":
            found.append(tuple(_event(*each) for each in rest[0]))
            continue
        decision, now_ms, digest, promises, is_whole, weighed = rest
        kept = None if promises is None else _PROMISES.validate_json(json.dumps(promises), strict=False)
        found.append(Ticked(decision, now_ms, digest, kept, is_whole, tuple(weighed)))
    return found


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(_TYPES[name])


def _events(happened: Sequence[Event]) -> list[list[Any]]:
    found: list[list[Any]] = []
    for event in happened:
        name = type(event).__name__
        if isinstance(event, RatesChanged):
            rates = [[*map(str, key), rate] for key, rate in sorted(event.rates.items())]
            found.append([name, {"at_ms": event.at_ms, "rates": rates}])
        else:
            found.append([name, _adapter(name).dump_python(event, mode="json")])
    return found


def _event(name: str, values: Mapping[str, Any]) -> Event:
    if name == RatesChanged.__name__:
        rates = {(GpuClass(model), Booking(booking)): int(rate) for model, booking, rate in values["rates"]}
        return RatesChanged(int(values["at_ms"]), rates)
    event: Event = _adapter(name).validate_json(json.dumps(values), strict=False)
    return event
