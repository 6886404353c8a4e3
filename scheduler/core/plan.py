"""What a tick decides. A Plan is a value: the store checks each gang again and commits it whole or not at all."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from scheduler.core.model import Account, AccountId, AllocationId, Booking, EndReason, GpuClass, Grant, JobId, Shape
from scheduler.core.reasons import Reason
from scheduler.core.state import Group
from scheduler.core.stretch import Claim, Reservation
from scheduler.core.throttle import Crowd


@dataclass(frozen=True, slots=True)
class Surplus:
    """Nodes that an elastic gang gets beyond those that it must have, and how they are held: burst or spot."""

    booking: Booking
    grants: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """Start this job on these devices. `grants` are in order of node rank; those of a surplus come after them.

    Where only the surplus does not hold any more, the gang starts without it. Limits and promises were weighed for
    `account` and `time_limit_ms`: a job that has another account, or may run longer by now, does not start so.
    """

    job: JobId
    gpu_class: GpuClass
    booking: Booking
    grants: tuple[Grant, ...]
    account: AccountId
    time_limit_ms: int
    surplus: Surplus | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask this allocation to end, for this reason."""

    allocation: AllocationId
    reason: EndReason
    preemptor: JobId | None = None


@dataclass(frozen=True, slots=True)
class Lapse:
    """Give this job's claim up, for this reason: a short sentence for its owner."""

    job: JobId
    why: str


@dataclass(frozen=True, slots=True)
class Promotion:
    """Hold this running burst gang as `booking` (guaranteed) from now on; its devices stay as they are."""

    allocation: AllocationId
    booking: Booking


@dataclass(frozen=True, slots=True)
class ShapeVerdict:
    """Why no job of this shape can start now, found once a tick for all of them. The first reason dominates."""

    shape: Shape
    reasons: tuple[Reason, ...]
    nodes_considered: int
    """Nodes of the shape's classes and pool."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome of one tick over one version of the state.

    `is_partial` when the cap on starts was reached; the caller ticks again at once. `wake_at_ms` is the next instant at
    which something would change by time alone (a begin time or back-off passes); None if nothing waits for time.
    """

    decision: int
    now_ms: int
    starts: tuple[Start, ...] = ()
    stops: tuple[Stop, ...] = ()
    """What is to be stopped; the victims of a claim only together with it."""
    claims: tuple[Claim, ...] = ()
    lapses: tuple[Lapse, ...] = ()
    weighed: tuple[GpuClass, ...] = ()
    """Classes in which it was considered who may take whose place."""
    preempting: Mapping[JobId, Reason] = field(default_factory=dict)
    """For every job with a claim, new ones included: others are being stopped for it."""
    promotions: tuple[Promotion, ...] = ()
    verdicts: Mapping[Shape, ShapeVerdict] = field(default_factory=dict)
    """For every shape that some pending job has and that did not fit."""
    blocks: Mapping[Group, Reason] = field(default_factory=dict)
    """For every group that a limit, a guarantee or a suspension keeps from starting, whatever is free."""
    kept: Mapping[tuple[AccountId, GpuClass], Group] = field(default_factory=dict)
    """By tenant and class, the group whose first job a part of the guarantee is kept for."""
    terms: Mapping[AccountId, Account] = field(default_factory=dict)
    """The terms of all accounts on the paths of starts and claims, as the plan knew them: limits were its to hold."""
    crowds: Mapping[JobId, Crowd] = field(default_factory=dict)
    """For every array of which elements stand behind the line because of its cap."""
    by_user: Set[AccountId] = frozenset()
    """Accounts with a limit per user: what tells the group of a job."""
    reservations: tuple[Reservation, ...] = ()
    """Every start that is promised to a waiting job, in order of start; those of the last plan that are not here are
    over."""
    is_partial: bool = False
    wake_at_ms: int | None = None

    @property
    def is_idle(self) -> bool:
        """True when there is nothing to commit."""
        return not (self.starts or self.stops or self.claims or self.lapses or self.promotions)
