"""What is booked ahead: the nouns of the shadow schedule. Values only; `future` lays them into time.

A `Reservation` is the start promised to a waiting job. An `AdvanceReservation` is an admin's: nodes kept free for a
time, for maintenance or for one account's jobs.
"""

from dataclasses import dataclass
from typing import NamedTuple, NewType

from scheduler.core.model import AccountId, AllocationId, Booking, GpuClass, Grant, Job, JobId, NodeName, UserName

ReservationId = NewType("ReservationId", str)  # an admin's name for it

GIVES_WAY = 0
"""Strength of a promise to a job that would run as burst or spot: guaranteed starts may move it."""
GUARANTEED = 1
"""Strength of a promise to a job that fits its guarantee."""
FIXED = 2
"""Strength of an admin's reservation: no start moves it."""


class Need(NamedTuple):
    """What one node's part of a gang takes: whole GPUs (a share counts as one), CPU and memory."""

    gpus: int
    cpu_millicores: int
    memory_bytes: int

    def covers(self, other: "Need") -> bool:
        """Tells whether this is enough for the other."""
        return self[0] >= other[0] and self[1] >= other[1] and self[2] >= other[2]


class Rank(NamedTuple):
    """How much a stretch binds, and for whose jobs it is kept (None: for nobody's)."""

    strength: int
    account: AccountId | None = None


class Stretch(NamedTuple):
    """A part of a node that is booked from `start_ms` until `end_ms`."""

    start_ms: int
    end_ms: int
    need: Need
    rank: Rank
    kept_from_ms: int
    """From when on nothing new may be in its way: the start, or earlier where the node is emptied for it."""


ALL_OF_NODE = Need(1 << 20, 1 << 60, 1 << 60)
"""More than any node has: where this is booked, nothing else is left."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """The start promised to a waiting job, if everything that runs takes its whole time limit."""

    job: JobId
    account: AccountId
    gpu_class: GpuClass
    start_ms: int
    end_ms: int
    """Start plus the job's time limit."""
    strength: int
    kept_from_ms: int
    """From when on the nodes are emptied for it: the start itself, or when the job waited too long, the time at which
    what runs there is expected to have ended, going by what jobs used of their limits lately."""
    parts: tuple[tuple[NodeName, Need], ...]


@dataclass(frozen=True, slots=True)
class AdvanceReservation:
    """Nodes that an admin keeps free from `start_ms` until `end_ms`; only jobs of `account` may run there then."""

    id: ReservationId
    start_ms: int
    end_ms: int
    nodes: tuple[NodeName, ...]  # sorted
    account: AccountId | None = None
    reason: str | None = None

    def keeps_out(self, node: NodeName, job: Job, now_ms: int) -> bool:
        """Tells whether a job that started on the node now could reach into the reservation, and is not its guest."""
        if node not in self.nodes or self.end_ms <= now_ms or self.start_ms >= now_ms + job.time_limit_ms:
            return False
        return self.account is None or not is_within(job.account, self.account)


@dataclass(frozen=True, slots=True)
class Claim:
    """Devices that are kept for one pending job, and the allocations that are being stopped to free them."""

    job: JobId
    account: AccountId
    user: UserName
    gpu_class: GpuClass
    booking: Booking
    grants: tuple[Grant, ...]
    victims: tuple[AllocationId, ...]
    guarded: int
    """How many of the victims were taken by a rule that the rate limit binds."""
    made_ms: int
    free_ms: int
    """When the victims are taken to be gone: after the customary grace."""
    end_ms: int
    """When the job would reach its time limit, were they gone then."""
    until_ms: int
    """When the claim is given up if its job could not start by then."""

    @property
    def total_units(self) -> int:
        """Capacity units of the whole gang."""
        return sum(grant.units * len(grant.devices) for grant in self.grants)


def is_within(account: AccountId, above: AccountId) -> bool:
    """Tells whether an account is another one or lies below it."""
    return account == above or account.startswith(f"{above}/")
