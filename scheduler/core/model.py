"""The nouns: accounts, nodes, GPUs, jobs, allocations, and the quantities they are measured in.

Values here are frozen; whatever changes is replaced by `state.ClusterState.apply` in answer to an event. Times are
integer UTC milliseconds (`*_ms`), GPUs are integer capacity units, CPU is millicores, memory is bytes. Nothing here
knows what a job runs: argv, environment and image belong to the executor (`scheduler.executor.LaunchSpec`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple, NewType

GPU_UNITS = 12_600
"""Capacity units of one GPU: divisible by 7, 8, 9 and 100, so MIG sevenths, halves and percent shares are exact."""

AccountId = NewType("AccountId", str)  # a path in the account tree: `acme`, `acme/vision`
UserName = NewType("UserName", str)
GpuClass = NewType("GpuClass", str)
PoolName = NewType("PoolName", str)
NodeName = NewType("NodeName", str)
DeviceId = NewType("DeviceId", str)  # the GPU's UUID, or a node's slot on Kubernetes
JobId = NewType("JobId", int)
AllocationId = NewType("AllocationId", str)  # a ULID

ROOT_ACCOUNT = AccountId("")
"""The centre itself, parent of every tenant."""


class BookingWanted(StrEnum):
    """What a job accepts to be booked as."""

    AUTO = "auto"
    GUARANTEED = "guaranteed"
    SPOT = "spot"


class Booking(StrEnum):
    """How a running gang is held."""

    GUARANTEED = "guaranteed"
    BURST = "burst"
    SPOT = "spot"


def accepts(wanted: BookingWanted, booking: Booking) -> bool:
    """Tells whether a job that asks for `wanted` may run under the booking."""
    if wanted is BookingWanted.AUTO:
        return booking is not Booking.SPOT
    return booking.value == wanted.value


class JobState(StrEnum):
    """The states users see. `lifecycle` holds which may follow which."""

    PENDING = "pending"
    HELD = "held"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"


class HoldKind(StrEnum):
    """Who put a hold on a job, and so who may release it."""

    USER = "user"
    ADMIN = "admin"


class EndReason(StrEnum):
    """Why an allocation ended, and with its last allocation the job. A completed job has no reason."""

    EXIT_NONZERO = "exit_nonzero"
    OOM = "oom"
    NODE_LOST = "node_lost"
    IMAGE_PULL = "image_pull"
    GPU_ERROR = "gpu_error"
    LAUNCH_FAILED = "launch_failed"
    WALLTIME = "walltime"
    DEADLINE = "deadline"
    IDLE_STOP = "idle_stop"
    BUDGET_STOP = "budget_stop"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    REQUEUED = "requeued"
    DEPENDENCY = "dependency"
    """It waited for something that can no longer happen; only a job that never ran again ends so."""


class DependencyKind(StrEnum):
    """What a job waits for, in Slurm's words (sbatch(1), --dependency)."""

    AFTEROK = "afterok"
    """All of them completed."""
    AFTERANY = "afterany"
    """All of them ended, however."""
    AFTERNOTOK = "afternotok"
    """All of them ended, and one at least did not complete."""
    AFTER = "after"
    """All of them have begun, or ended without."""
    SINGLETON = "singleton"
    """No earlier job of the same project, user and name lives."""


class Phase(StrEnum):
    """What an allocated device is doing between the decision and its release."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


class NodeAvailability(StrEnum):
    """Slurm's drain: running jobs finish and nothing new starts; a node that is down lost its jobs."""

    UP = "up"
    DRAINING = "draining"
    DOWN = "down"


class DeviceHealth(StrEnum):
    """`draining` finishes what runs; `failed` can hold nothing."""

    OK = "ok"
    DRAINING = "draining"
    FAILED = "failed"


class OrderWeights(NamedTuple):
    """How many milliseconds of a later submission a millisecond of a job's size counts for, by what its size is."""

    limit: int = 0
    service: int = 0
    slowdown: int = 0


@dataclass(frozen=True, slots=True)
class Account:
    """A node of the account tree. Terms per class are whole GPUs; a class left out has none.

    Every limit counts the account with all below it, and what is starting and stopping.
    """

    id: AccountId
    weight: int = 1
    guarantee: Mapping[GpuClass, int] = field(default_factory=dict)
    limit: Mapping[GpuClass, int] = field(default_factory=dict)
    is_suspended: bool = False
    limit_weight: int = 0
    """A project's own order: each millisecond of a job's time limit counts as so many of a later submission, so that
    short jobs go first and long ones still come up in the end. 0: by submit time alone."""
    service_weight: int = 0
    """Likewise of a job's time limit times its GPUs: the least GPU time goes first."""
    slowdown_weight: int = 0
    """Likewise of a job's time limit times the square root of its GPUs: the order that keeps small what waiting makes
    jobs take beside what they run (Smith's rule where a job's wait counts by its limit). Weights add up."""
    user_limit: Mapping[GpuClass, int] = field(default_factory=dict)
    """The most GPUs of a class that each one of its users may hold."""
    running_limit: int | None = None
    """The most jobs that may hold GPUs at once."""
    pending_limit: int | None = None
    """The most jobs that may wait, held ones included: a submission beyond it is refused."""
    high_limit: int | None = None
    """The most jobs of priority `high` that may be there at once, for users without the permission; None: any."""

    takes_turns: bool = False
    """A project's own order: among jobs of one priority, those of the user go first who holds the least of it now."""

    is_locked: bool = False
    """Suspended by the centre: nobody below the centre may let it start jobs again."""

    guaranteed_yields: bool = False
    """Guaranteed gangs of its projects give way to what has strictly higher priority in the same project."""

    @property
    def order_weights(self) -> OrderWeights:
        """What besides submit time its own order goes by."""
        return OrderWeights(self.limit_weight, self.service_weight, self.slowdown_weight)

    @property
    def is_by_user(self) -> bool:
        """True when its waiting jobs are told apart by their users."""
        return bool(self.user_limit) or self.takes_turns

    @property
    def is_limited(self) -> bool:
        """True when one of its limits can keep a job from starting."""
        return bool(self.limit or self.user_limit) or self.running_limit is not None

    @property
    def parent(self) -> AccountId | None:
        """The account above; None for the centre."""
        if self.id == ROOT_ACCOUNT:
            return None
        head, _, _ = self.id.rpartition("/")
        return AccountId(head)


@lru_cache(maxsize=65_536)
def tenant_of(account: AccountId) -> AccountId:
    """Returns the tenant that an account belongs to: the first step of its path."""
    return AccountId(account.partition("/")[0])


@lru_cache(maxsize=65_536)
def lineage(account: AccountId) -> tuple[AccountId, ...]:
    """Returns the account and those above it up to its tenant, nearest first; the centre itself is left out."""
    steps = account.split("/")
    return tuple(AccountId("/".join(steps[:count])) for count in range(len(steps), 0, -1))


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, a MIG instance, or a slot that the kubelet fills. `units` is its whole size in capacity units."""

    id: DeviceId
    node: NodeName
    gpu_class: GpuClass
    units: int = GPU_UNITS
    health: DeviceHealth = DeviceHealth.OK
    reason: str | None = None
    is_foreign: bool = False
    """Held by something that is not ours: counts as used, never as free."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of one GPU class. CPU and memory are what jobs may have, after the system's share."""

    name: NodeName
    gpu_class: GpuClass
    pool: PoolName
    cpu_millicores: int
    memory_bytes: int
    labels: Mapping[str, str] = field(default_factory=dict)
    availability: NodeAvailability = NodeAvailability.UP
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """All that placement asks about a job. Jobs of one shape fit or fail together, so a tick tries each shape once.

    `gpu_units` is per node: a multiple of GPU_UNITS for whole GPUs, less than one GPU_UNITS for a share of one.
    `cpu_millicores` and `memory_bytes` are per node; None means the node's share per GPU, which always fits.
    """

    gpu_classes: tuple[GpuClass, ...]  # in order of preference, never empty
    nodes: int
    gpu_units: int
    cpu_millicores: int | None = None
    memory_bytes: int | None = None
    pool: PoolName | None = None
    only_nodes: tuple[NodeName, ...] = ()  # sorted; empty means any
    exclude_nodes: tuple[NodeName, ...] = ()  # sorted
    constraints: tuple[tuple[str, str], ...] = ()  # sorted (label, value) pairs that a node must carry
    topology: tuple[str, bool] | None = None
    """A node label, and whether all nodes of the gang must share its value (else they do where that is possible)."""
    most_nodes: int | None = None
    """Of an elastic gang: `nodes` is the least that it runs on, and what is over is its surplus. None: it has none."""
    _hash: int = field(init=False, repr=False, compare=False)
    """A tick asks for a shape's hash for each thing that it remembers of it; made once, it costs a tenth."""

    def __post_init__(self) -> None:
        """Makes the hash."""
        asked = (self.gpu_classes, self.nodes, self.gpu_units, self.cpu_millicores, self.memory_bytes)
        where = (self.pool, self.only_nodes, self.exclude_nodes, self.constraints, self.topology, self.most_nodes)
        object.__setattr__(self, "_hash", hash((asked, where)))

    def __hash__(self) -> int:
        """Returns the hash of all that placement asks."""
        return self._hash

    @property
    def total_units(self) -> int:
        """Capacity units of the whole gang; of an elastic one, on the fewest nodes that it runs on."""
        return self.nodes * self.gpu_units

    @property
    def is_elastic(self) -> bool:
        """True when the gang may run on more nodes than it must have."""
        return self.most_nodes is not None and self.most_nodes > self.nodes

    @property
    def largest_units(self) -> int:
        """Capacity units of the gang on the most nodes that it may have."""
        return max(self.nodes, self.most_nodes or 0) * self.gpu_units

    @property
    def gpus_per_node(self) -> int:
        """Whole devices that the gang touches on each node; a share touches one."""
        return max(1, self.gpu_units // GPU_UNITS)

    @property
    def required_level(self) -> str | None:
        """The label whose value all nodes of the gang must share; None if they need not."""
        if self.topology is None or self.nodes == 1:
            return None
        level, is_required = self.topology
        return level if is_required else None

    @property
    def is_share(self) -> bool:
        """True when the job asks for part of one GPU."""
        return self.gpu_units < GPU_UNITS


@dataclass(frozen=True, slots=True)
class Dependency:
    """One thing that must happen before a job may start.

    Of an element `array` and `index` are as people write them and `job` is its own id; of a whole array `job` is the
    array's id and `index` is None. A singleton names no job.
    """

    kind: DependencyKind
    job: JobId | None = None
    array: JobId | None = None
    index: int | None = None

    @property
    def is_on_array(self) -> bool:
        """True when it is on all elements of an array."""
        return self.array is not None and self.index is None

    def __str__(self) -> str:
        """Returns it as it is written: `afterok:17`, `afterany:17_3`, `singleton`."""
        if self.job is None:
            return self.kind.value
        return f"{self.kind}:{self.job}" if self.index is None else f"{self.kind}:{self.array}_{self.index}"


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the scheduler sees it. Finished jobs live in the store only."""

    id: JobId
    account: AccountId  # a project
    user: UserName
    shape: Shape
    time_limit_ms: int
    submitted_ms: int
    wanted: BookingWanted = BookingWanted.AUTO
    priority: int = 0  # inside its project: low -1, normal 0, high 1
    begin_ms: int | None = None
    """Not before this: the user's --begin, or the back-off after a failed start."""
    is_backing_off: bool = False
    deadline_ms: int | None = None
    state: JobState = JobState.PENDING
    hold: HoldKind | None = None
    attempt: int = 0
    """Starts so far; 0 before the first."""
    retries_left: int = 0
    allocation: AllocationId | None = None
    array: JobId | None = None
    array_index: int | None = None
    waits_for: tuple[Dependency, ...] = ()
    """What has not happened yet of all that must before it may start."""
    array_cap: int | None = None
    """The most elements of its array that may hold GPUs at once; the same for all of them."""
    retry_on: tuple[EndReason, ...] = ()
    """The failures after which it starts again while it has retries left; empty for all of them."""

    def started_as(self, allocation: AllocationId, attempt: int) -> "Job":
        """Returns the job as it is from the decision to start it."""
        return _changed(
            self,
            {
                "state": JobState.STARTING,
                "allocation": allocation,
                "attempt": attempt,
                "begin_ms": None,
                "is_backing_off": False,
            },
        )

    def ended_as(self, state: JobState) -> "Job":
        """Returns the job as it is after its last allocation."""
        return _changed(self, {"state": state, "allocation": None})


_JOB_PLACES = {each.name: place for place, each in enumerate(fields(Job))}
_JOB_VALUES = attrgetter(*_JOB_PLACES)


def _changed(job: Job, changes: Mapping[str, object]) -> Job:
    """Does what dataclasses.replace does in a third of the time: every start and end of a replay comes here."""
    values = list(_JOB_VALUES(job))
    for name, value in changes.items():
        values[_JOB_PLACES[name]] = value
    return Job(*values)


@dataclass(frozen=True, slots=True)
class Grant:
    """What an allocation holds on one node: these devices, `units` of each, and CPU and memory."""

    node: NodeName
    devices: tuple[DeviceId, ...]
    units: int
    cpu_millicores: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Allocation:
    """One start of a job. `grants` are in order of node rank."""

    id: AllocationId
    job: JobId
    account: AccountId
    user: UserName
    gpu_class: GpuClass
    booking: Booking
    grants: tuple[Grant, ...]
    decided_ms: int
    attempt: int
    time_limit_ms: int
    phase: Phase = Phase.STARTING
    started_ms: int | None = None
    segment: int = 1
    stop_reason: EndReason | None = None
    """Why it is being stopped, once it is."""
    checkpointed_ms: int | None = None
    """Until when its job last said that its work is saved."""
    charged_units: int | None = None
    """What the gang is charged for (`occupancy.charged_units`, over its nodes), as the ledger has it. None: what its
    grants are worth on the nodes as they are known."""
    surplus_of: AllocationId | None = None
    """The gang of the same job whose surplus nodes these are: held beside it, as burst or spot, and the first to go.
    Surplus starts and ends with its gang, unless it is taken before. None for a gang itself."""

    @property
    def total_units(self) -> int:
        """Capacity units held over all nodes."""
        total = 0
        for grant in self.grants:
            total += grant.units * len(grant.devices)
        return total
