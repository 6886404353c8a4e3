"""What agents send, as it stands on the wire: heartbeats and batches of evidence. Strict, bounded.

A heartbeat is about now and is not kept; a batch is about the past, is kept on the node's disk until it was taken in,
and carries an idempotency key.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field, StringConstraints, model_validator

from metering.ledger import MOST_WINDOW_MS
from metering.windows import SampleWindow
from metering.witness import Holding
from scheduler.core.model import DeviceHealth
from scheduler.wire.requests import Strict
from scheduler.wire.text import MOST_INTEGER, Name, Words

MOST_ROWS = 1000
"""Windows, XIDs or holdings in one batch: a node of 16 GPUs fills it in an hour of minutes; 400 KB as JSON."""
MOST_DEVICES = 256
"""GPUs and MIG instances of one node: 32 GPUs of 7 instances and themselves."""
MOST_PROBLEMS = 32

Uuid = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/\-]{0,127}$")]
Word = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Count = Annotated[int, Field(ge=0, le=MOST_INTEGER)]
Percent = Annotated[int, Field(ge=0, le=100)]


@dataclass(frozen=True, slots=True)
class XidSeen:
    """An XID came `count` times, last at `at_ms` by the node's clock; `uuid` None where the driver does not say."""

    uuid: str | None
    xid: int
    count: int
    at_ms: int


class WindowBody(Strict):
    """A SampleWindow."""

    uuid: Uuid
    from_ms: Count
    to_ms: Count
    samples: Count
    measured_ms: Count
    utilization_percent_ms: Count
    memory_utilization_percent_ms: Count
    utilization_max_percent: Percent | None
    memory_used_max_bytes: Count | None
    energy_millijoules: Count | None
    counter_resets: Count
    idle_ms: Count
    idle_since_ms: Count | None

    @model_validator(mode="after")
    def _adds_up(self) -> "WindowBody":
        length_ms = self.to_ms - self.from_ms
        if not 0 < length_ms <= MOST_WINDOW_MS:
            raise ValueError(f"a window lasts 1 to {MOST_WINDOW_MS} ms")
        if self.measured_ms > length_ms or self.idle_ms > self.measured_ms:
            raise ValueError("what was measured is a part of the window, and what was idle a part of that")
        if self.utilization_percent_ms > 100 * self.measured_ms:
            raise ValueError("utilisation is at most 100 % of what was measured")
        return self

    def window(self) -> SampleWindow:
        """Returns the value."""
        return SampleWindow(**self.model_dump())


class XidBody(Strict):
    """An XidSeen."""

    uuid: Uuid | None
    xid: Annotated[int, Field(ge=0, le=10_000)]
    count: Annotated[int, Field(ge=1, le=MOST_INTEGER)]
    at_ms: Count


class HoldingBody(Strict):
    """A Holding."""

    device: Uuid
    allocation: Uuid
    from_ms: Count
    to_ms: Count
    witness: Word

    @model_validator(mode="after")
    def _runs_forward(self) -> "HoldingBody":
        if self.to_ms < self.from_ms:
            raise ValueError("a holding does not end before it begins")
        return self


class EvidenceBody(Strict):
    """A batch of what a node's agent saw."""

    windows: tuple[WindowBody, ...] = Field((), max_length=MOST_ROWS)
    xids: tuple[XidBody, ...] = Field((), max_length=MOST_ROWS)
    holdings: tuple[HoldingBody, ...] = Field((), max_length=MOST_ROWS)


class DeviceBody(Strict):
    """An AgentDevice."""

    uuid: Uuid
    gpu_class: Name
    position: Uuid
    memory_bytes: Count
    health: DeviceHealth
    code: Word | None
    reason: Words | None


class HeartbeatBody(Strict):
    """That an agent lives, and what it sees now. `now_ms` is its own clock, UTC milliseconds."""

    instance: Uuid
    version: Name
    collector: Word
    driver_version: Name | None
    now_ms: Count
    problems: tuple[Words, ...] = Field((), max_length=MOST_PROBLEMS)
    devices: tuple[DeviceBody, ...] = Field((), max_length=MOST_DEVICES)


def evidence_document(
    windows: Iterable[SampleWindow] = (), xids: Iterable[XidSeen] = (), holdings: Iterable[Holding] = ()
) -> dict[str, Any]:
    """Returns a batch as the JSON that EvidenceBody reads."""
    return {
        "windows": [asdict(window) for window in windows],
        "xids": [asdict(xid) for xid in xids],
        "holdings": [asdict(holding) for holding in holdings],
    }


def rows_in(document: Mapping[str, Any]) -> int:
    """Returns how many facts a batch holds."""
    return sum(len(document[key]) for key in ("windows", "xids", "holdings"))
