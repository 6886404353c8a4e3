"""What happened: the only way that `state.ClusterState` changes. Each event is durable before the state sees it.

Events of the centre: AccountChanged, AccountRemoved, RatesChanged, NodeChanged, NodeRemoved, PoolChanged.
Events of a waiting job: JobSubmitted, JobChanged, JobHeld, JobReleased, JobEnded.
Events of an allocation, in this order: AllocationMade, AllocationStarted, AllocationStopping, AllocationEnded;
AllocationPromoted and AllocationExtended between the first and the last but one.
Events of money: HeadroomChanged, HoldPriced.
Events of what is booked ahead: ReservationMade, ReservationRemoved (an admin's), ReservationsPlanned (waiting jobs').
"""

from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.core.model import (
    Account,
    AccountId,
    Allocation,
    AllocationId,
    Booking,
    Device,
    EndReason,
    GpuClass,
    HoldKind,
    Job,
    JobId,
    JobState,
    Node,
    NodeName,
    PoolName,
)
from scheduler.core.stretch import AdvanceReservation, Claim, Reservation, ReservationId


@dataclass(frozen=True, slots=True)
class AccountChanged:
    """An account was made or has new terms."""

    at_ms: int
    account: Account


@dataclass(frozen=True, slots=True)
class AccountRemoved:
    """An account without jobs and children is gone."""

    at_ms: int
    account: AccountId


@dataclass(frozen=True, slots=True)
class RatesChanged:
    """Other list prices are in force from now on: micro-credits per GPU-second. What is left out costs one credit."""

    at_ms: int
    rates: Mapping[tuple[GpuClass, Booking], int]


@dataclass(frozen=True, slots=True)
class NodeChanged:
    """A node appeared, or anything about it or its devices changed. `devices` are all that it has now."""

    at_ms: int
    node: Node
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class NodeRemoved:
    """A node is gone from the inventory; no allocation holds it any more."""

    at_ms: int
    node: NodeName


@dataclass(frozen=True, slots=True)
class PoolChanged:
    """An admin closed a pool to new starts, or opened it again."""

    at_ms: int
    pool: PoolName
    is_closed: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class JobSubmitted:
    """A job waits, pending or held."""

    at_ms: int
    job: Job


@dataclass(frozen=True, slots=True)
class JobChanged:
    """A waiting job has other terms (time limit, priority, begin time); its state and id are as they were."""

    at_ms: int
    job: Job


@dataclass(frozen=True, slots=True)
class JobHeld:
    """A pending job waits for a release."""

    at_ms: int
    job: JobId
    kind: HoldKind


@dataclass(frozen=True, slots=True)
class JobReleased:
    """A held job is pending again."""

    at_ms: int
    job: JobId


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A job ended without running (again): cancelled while it waited, or past its deadline."""

    at_ms: int
    job: JobId
    state: JobState
    reason: EndReason | None


@dataclass(frozen=True, slots=True)
class AllocationMade:
    """A gang holds its devices from now on; the job is starting. Its surplus nodes follow in an event of their own."""

    at_ms: int
    allocation: Allocation


@dataclass(frozen=True, slots=True)
class AllocationStarted:
    """The gang runs; `at_ms` is when its processes began."""

    at_ms: int
    allocation: AllocationId


@dataclass(frozen=True, slots=True)
class AllocationPromoted:
    """A burst gang is held as `booking` (guaranteed) from now on, in a new segment of the ledger."""

    at_ms: int
    allocation: AllocationId
    booking: Booking
    segment: int


@dataclass(frozen=True, slots=True)
class AllocationExtended:
    """The gang may run so long from its start, more or less than before; so may its job, if it is started again."""

    at_ms: int
    allocation: AllocationId
    time_limit_ms: int
    surplus_of: AllocationId | None = None
    """Set of surplus nodes: their gang has an event of its own."""


@dataclass(frozen=True, slots=True)
class AllocationStopping:
    """The gang was asked to end, or its surplus nodes were."""

    at_ms: int
    allocation: AllocationId
    reason: EndReason
    gang: AllocationId | None = None
    """Of surplus nodes: the gang that goes on without them. None for a gang, and for surplus that ends with it."""
    is_with_gang: bool = False
    """Of surplus nodes: they end because their gang does, which an event of its own says."""


@dataclass(frozen=True, slots=True)
class AllocationEnded:
    """The gang is gone and its devices are free. `job` is the job afterwards: ended, or pending again.

    Of surplus nodes it is the job as it goes on, or as it was while its gang, which ends next, still held devices.
    """

    at_ms: int
    allocation: AllocationId
    reason: EndReason | None
    job: Job


@dataclass(frozen=True, slots=True)
class AllocationCheckpointed:
    """The gang's job says that its work until `at_ms` is saved."""

    at_ms: int
    allocation: AllocationId


@dataclass(frozen=True, slots=True)
class ClaimMade:
    """Devices are kept for a pending job from now on; those who hold them were asked to end."""

    at_ms: int
    claim: Claim


@dataclass(frozen=True, slots=True)
class ClaimEnded:
    """What was kept for a job is free again; a claim that its job starts from ends with the start."""

    at_ms: int
    job: JobId


@dataclass(frozen=True, slots=True)
class PreemptionWeighed:
    """A plan considered in these classes who may take whose place; nothing durable, for it bounds the cost only."""

    at_ms: int
    gpu_classes: tuple[GpuClass, ...]


@dataclass(frozen=True, slots=True)
class ReservationMade:
    """An admin keeps nodes free for a time, or changed what was kept under the same id."""

    at_ms: int
    reservation: AdvanceReservation


@dataclass(frozen=True, slots=True)
class ReservationRemoved:
    """An admin's reservation is over or was taken back."""

    at_ms: int
    reservation: ReservationId


@dataclass(frozen=True, slots=True)
class ReservationsPlanned:
    """These are the starts promised to waiting jobs from now on: all of them, in order of start.

    The planner's own outcome, taken in with the plan that made it; nothing durable, for after a restart the promises
    are made anew from the same jobs.
    """

    at_ms: int
    reservations: tuple[Reservation, ...]
    is_whole: bool = True
    """False when the tick ended before it had gone through all promises."""


@dataclass(frozen=True, slots=True)
class HeadroomChanged:
    """So much may still be set aside below an account with a hard budget, in 10**-6; None: it has none any more."""

    at_ms: int
    account: AccountId
    left_micros: int | None
    is_prepaid: bool = False
    """It pays for what lies below it, from money paid ahead: such money further up is not touched."""


@dataclass(frozen=True, slots=True)
class HoldPriced:
    """What is set aside for a start of this job, or would have been, in 10**-6. A fact of the prices of now."""

    at_ms: int
    job: JobId
    gpu_class: GpuClass
    booking: Booking
    micros: int


Event = (
    AccountChanged
    | AccountRemoved
    | RatesChanged
    | NodeChanged
    | NodeRemoved
    | PoolChanged
    | JobSubmitted
    | JobChanged
    | JobHeld
    | JobReleased
    | JobEnded
    | AllocationMade
    | AllocationStarted
    | AllocationPromoted
    | AllocationExtended
    | AllocationStopping
    | AllocationEnded
    | AllocationCheckpointed
    | ClaimMade
    | ClaimEnded
    | PreemptionWeighed
    | ReservationMade
    | ReservationRemoved
    | ReservationsPlanned
    | HeadroomChanged
    | HoldPriced
)
