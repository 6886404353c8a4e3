"""What is, for Prometheus: read off the state at a scrape.

In two steps, so that a scrape hardly delays a tick: a photograph is taken where the state lives, in parts between which
ticks may come, and copies references only; `families` makes the metrics of it anywhere else. `gpu` is a device's place
on its node, as its agent numbers it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from sortedcontainers import SortedList

from scheduler.core.debt import CREDIT
from scheduler.core.lifecycle import ACTIVE, WAITING
from scheduler.core.model import (
    GPU_UNITS,
    ROOT_ACCOUNT,
    Account,
    AccountId,
    Allocation,
    Booking,
    Device,
    DeviceHealth,
    DeviceId,
    GpuClass,
    Job,
    JobId,
    JobState,
    Node,
    NodeAvailability,
    NodeName,
    PoolName,
    lineage,
    tenant_of,
)
from scheduler.core.plan import Plan
from scheduler.core.reasons import Reason, ReasonCode
from scheduler.core.shares import Shares, Standing
from scheduler.core.state import ClusterState, Group
from scheduler.core.waiting import QueueKey
from scheduler.exposition import Written, escaped

GPU_STATES = ("allocated", "free", "reserved", "drained", "failed", "foreign", "unknown")
"""The values of `turnstile_gpus{state}`; all are always there, so that a board never misses a zero."""
_PRIORITIES = (1, 0, -1)
NO_POOL = PoolName("")
"""The pool of a job whose class has no node (any more)."""


@dataclass(frozen=True, slots=True)
class Line:
    """Pending jobs that wait in one line, and since when the oldest of them does."""

    group: Group
    jobs: int
    oldest_ms: int


@dataclass(frozen=True, slots=True)
class Centre:
    """What there is and who holds it, at one instant."""

    accounts: tuple[Account, ...]
    nodes: tuple[tuple[Node, tuple[Device, ...], frozenset[DeviceId]], ...]
    """Each node with its devices and the ids of those held."""
    allocations: tuple[tuple[Allocation, Job], ...]
    jobs_by: Mapping[tuple[AccountId, JobState], int]
    pending_units: Mapping[tuple[AccountId, GpuClass], int]
    held_units: Mapping[tuple[AccountId, GpuClass, Booking], int]
    closed_pools: frozenset[PoolName]
    reserved_nodes: frozenset[NodeName]
    """Those that an admin keeps free at this instant."""
    claimed: frozenset[DeviceId]
    """Devices kept for jobs that others are stopped for."""


@dataclass(frozen=True, slots=True)
class Queue:
    """Who waits, at one instant, and what the last plan says of it."""

    plan: Plan
    lines: tuple[Line, ...]
    timed: tuple[Job, ...]
    """Pending jobs that are in no line: they wait for a time, or for others to make room for them."""


@dataclass(frozen=True, slots=True)
class Photograph:
    """The state in values that do not change any more. Between its three parts a tick may have been."""

    centre: Centre
    queue: Queue
    standings: tuple[Standing, ...]
    """Of tenants, per class."""


def photograph(state: ClusterState, plan: Plan) -> Photograph:
    """Copies what the metrics need, all at once: for a state that nobody plans with meanwhile."""
    return Photograph(centre_of(state, plan), queue_of(state, plan), standings_of(state, plan))


def centre_of(state: ClusterState, plan: Plan) -> Centre:
    """Returns the first part. Cost: one step per node and allocation."""
    jobs, now_ms = state.jobs, plan.now_ms
    in_force = [each for each in state.advance.values() if each.start_ms <= now_ms < each.end_ms]
    return Centre(
        tuple(state.accounts.values()),
        tuple([(room.node, room.devices, frozenset(room.held_units)) for room in state.capacity.rooms.values()]),
        tuple([(each, jobs[each.job]) for each in state.allocations.values()]),
        dict(state.jobs_by),
        dict(state.pending_units),
        _held_units(state),
        frozenset(state.closed_pools),
        frozenset(name for each in in_force for name in each.nodes),
        state.claims.kept_devices(),
    )


def queue_of(state: ClusterState, plan: Plan) -> Queue:
    """Returns the second part. Cost: one step per group, none per pending job in line."""
    return Queue(
        plan,
        tuple([Line(group, len(line), _oldest_ms(line, state.jobs)) for group, line in state.pending_groups()]),
        (*(state.jobs[job] for _, job in state.timed), *_claiming(state)),
    )


def standings_of(state: ClusterState, plan: Plan) -> tuple[Standing, ...]:
    """Returns the third part. Cost: that of dividing each class once."""
    return tuple([each for each in Shares(state, plan.now_ms).standings() if "/" not in each.account])


def _typed(job: Job) -> str:
    return str(job.id) if job.array is None or job.array_index is None else f"{job.array}_{job.array_index}"


def _claiming(state: ClusterState) -> list[Job]:
    found = [state.jobs[job] for job in state.claims.by_job if job in state.jobs]
    return [job for job in found if job.state is JobState.PENDING]


def _held_units(state: ClusterState) -> dict[tuple[AccountId, GpuClass, Booking], int]:
    """Returns what allocations hold; what is only claimed is nobody's yet."""
    held = Counter(state.held_units)
    for claim in state.claims.by_job.values():
        for account in lineage(claim.account):
            held[account, claim.gpu_class, claim.booking] -= claim.total_units
    return +held


def _oldest_ms(line: SortedList[QueueKey], jobs: Mapping[JobId, Job]) -> int:
    """Returns the earliest submit time of a line: the first job of each priority has its priority's earliest.

    All jobs of a line ask for the same, so a project's own order ranks them as if each came as much later.
    """
    oldest = jobs[JobId(line[0][2])].submitted_ms
    if line[0][0] == line[-1][0]:
        return oldest  # of one priority, as nearly every line is
    for priority in _PRIORITIES:
        place = line.bisect_left((-priority, -1, -1))
        if place < len(line) and line[place][0] == -priority:
            oldest = min(oldest, jobs[JobId(line[place][2])].submitted_ms)
    return oldest


def families(photo: Photograph, now_ms: int) -> Iterator[Metric]:
    """Yields every family of what is, as of the photograph."""
    yield from _capacity(photo)
    yield from _queue(photo, now_ms)
    yield from _tenants(photo)
    yield from _devices(photo)


def known_names(photo: Photograph) -> tuple[list[AccountId], list[PoolName]]:
    """Returns the tenants and pools that there are, sorted."""
    return _tenants_of(photo), sorted({node.pool for node, _, _ in photo.centre.nodes})


def gpu_state(node: Node, device: Device, *, is_held: bool, is_reserved: bool = False) -> str:
    """Returns the one of GPU_STATES that a device is in; a device that a job holds is allocated, whatever else."""
    if is_held:
        return "allocated"
    if device.is_foreign:
        return "foreign"
    if device.health is DeviceHealth.FAILED or node.availability is NodeAvailability.DOWN:
        return "failed"
    if device.health is DeviceHealth.DRAINING or node.availability is NodeAvailability.DRAINING:
        return "drained"
    return "reserved" if is_reserved else "free"


def _capacity(photo: Photograph) -> Iterator[Metric]:
    gpus = GaugeMetricFamily("turnstile_gpus", "GPUs by model, pool and state.", labels=("model", "pool", "state"))
    blocks = GaugeMetricFamily(
        "turnstile_gpus_largest_free_block", "GPUs of the largest gang that would fit a pool now.", labels=("pool",)
    )
    nodes = GaugeMetricFamily("turnstile_nodes", "Nodes by pool and availability.", labels=("pool", "state"))
    by_state: Counter[tuple[GpuClass, PoolName, str]] = Counter()
    by_availability: Counter[tuple[PoolName, NodeAvailability]] = Counter()
    free: dict[tuple[PoolName, GpuClass], list[int]] = {}
    for node, devices, held in photo.centre.nodes:
        by_availability[node.pool, node.availability] += 1
        is_kept = node.name in photo.centre.reserved_nodes
        states = [
            gpu_state(
                node,
                device,
                is_held=device.id in held - photo.centre.claimed,
                is_reserved=is_kept or device.id in photo.centre.claimed,
            )
            for device in devices
        ]
        for state in states:
            by_state[node.gpu_class, node.pool, state] += 1
        free.setdefault((node.pool, node.gpu_class), []).append(states.count("free"))
    for pool, model in sorted(free):
        for state in GPU_STATES:
            gpus.add_metric((model, pool, state), by_state[model, pool, state])
    for pool in sorted({pool for pool, _ in free}):
        largest = max(_largest_block(counts) for (name, _), counts in free.items() if name == pool)
        blocks.add_metric((pool,), 0 if pool in photo.centre.closed_pools else largest)
        for availability in NodeAvailability:
            nodes.add_metric((pool, availability.value), by_availability[pool, availability])
    yield from (gpus, blocks, nodes)


def _largest_block(free: list[int]) -> int:
    """Returns the most GPUs that one gang with equal parts per node could take, of nodes with so many free each."""
    in_order = sorted(free, reverse=True)
    return max(count * nodes for nodes, count in enumerate(in_order, start=1))


def _queue(photo: Photograph, now_ms: int) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("turnstile_jobs", "Live jobs by tenant and state.", labels=("tenant", "state"))
    for tenant in _tenants_of(photo):
        for state in sorted(WAITING | ACTIVE):
            jobs.add_metric((tenant, state.value), photo.centre.jobs_by.get((tenant, state), 0))
    yield jobs

    pools = _pools_of(photo)
    by_reason: Counter[tuple[PoolName, ReasonCode]] = Counter()
    oldest: dict[PoolName, int] = {}
    for line in photo.queue.lines:
        pool = _pool_of(line.group.shape.pool, line.group.shape.gpu_classes[0], pools)
        by_reason[pool, _dominating(photo.queue.plan, line.group).code] += line.jobs
        oldest[pool] = min(oldest.get(pool, now_ms), line.oldest_ms)
    for job in photo.queue.timed:
        pool = _pool_of(job.shape.pool, job.shape.gpu_classes[0], pools)
        by_reason[pool, ReasonCode.BACKOFF if job.is_backing_off else ReasonCode.BEGIN_TIME] += 1
    pending = GaugeMetricFamily(
        "turnstile_jobs_pending",
        "Pending jobs by pool and dominating reason; a job that names no pool counts in its class's first.",
        labels=("pool", "reason"),
    )
    for (pool, code), count in sorted(by_reason.items()):
        pending.add_metric((pool, code.value), count)
    ages = GaugeMetricFamily(
        "turnstile_job_oldest_pending_seconds",
        "How long the oldest job has waited that waits for nothing but its turn, by pool; 0 when none does.",
        labels=("pool",),
    )
    for pool in sorted({*oldest, *(pool for names in pools.values() for pool in names)}):
        ages.add_metric((pool,), max(0, now_ms - oldest.get(pool, now_ms)) / 1000)
    asked = GaugeMetricFamily(
        "turnstile_pending_gpus", "GPUs that pending jobs ask for, by tenant and model.", labels=("tenant", "model")
    )
    for (tenant, model), units in sorted(photo.centre.pending_units.items()):
        asked.add_metric((tenant, model), units / GPU_UNITS)
    yield from (pending, ages, asked)


def _dominating(plan: Plan, group: Group) -> Reason:
    block = plan.blocks.get(group)
    if block is not None:
        return block
    verdict = plan.verdicts.get(group.shape)
    return Reason(ReasonCode.ORDER) if verdict is None else verdict.reasons[0]


def _pools_of(photo: Photograph) -> dict[GpuClass, list[PoolName]]:
    pools: dict[GpuClass, set[PoolName]] = {}
    for node, _, _ in photo.centre.nodes:
        pools.setdefault(node.gpu_class, set()).add(node.pool)
    return {gpu_class: sorted(names) for gpu_class, names in pools.items()}


def _pool_of(named: PoolName | None, gpu_class: GpuClass, pools: Mapping[GpuClass, list[PoolName]]) -> PoolName:
    known = pools.get(gpu_class, ())
    if named is not None and named in known:
        return named
    return known[0] if known else NO_POOL


def _tenants_of(photo: Photograph) -> list[AccountId]:
    return sorted(account.id for account in photo.centre.accounts if account.parent == ROOT_ACCOUNT)


def _tenants(photo: Photograph) -> Iterator[Metric]:
    allocated = GaugeMetricFamily(
        "turnstile_tenant_gpus_allocated",
        "GPUs that a tenant holds, by model and booking.",
        labels=("tenant", "model", "booking"),
    )
    tenants = set(_tenants_of(photo))
    for (account, model, booking), units in sorted(photo.centre.held_units.items()):
        if account in tenants:
            allocated.add_metric((account, model, booking.value), units / GPU_UNITS)
    guarantee = GaugeMetricFamily(
        "turnstile_tenant_gpus_guarantee", "GPUs that a tenant has bought, by model.", labels=("tenant", "model")
    )
    quota = GaugeMetricFamily(
        "turnstile_tenant_gpus_quota", "The most GPUs that a tenant may hold, by model.", labels=("tenant", "model")
    )
    for terms in sorted(photo.centre.accounts, key=lambda each: each.id):
        if terms.id in tenants:
            for model, count in sorted(terms.guarantee.items()):
                guarantee.add_metric((terms.id, model), count)
            for model, count in sorted(terms.limit.items()):
                quota.add_metric((terms.id, model), count)
    yield from (allocated, guarantee, quota, _shortfall(photo))
    yield from _fairness(photo)


def _shortfall(photo: Photograph) -> Metric:
    """Returns by how much guarantees are cut for new starts, of each model that somebody has bought."""
    found = GaugeMetricFamily(
        "turnstile_guarantee_shortfall_gpus",
        "GPUs that were guaranteed and are not there, by model: guarantees are cut pro rata for new starts.",
        labels=("model",),
    )
    for model, (bought, in_force) in sorted(guarantees_cut(photo).items()):
        found.add_metric((model,), (bought - in_force) / GPU_UNITS)
    return found


def guarantees_cut(photo: Photograph) -> dict[GpuClass, tuple[int, int]]:
    """Returns the capacity units of each model that tenants have bought, and those of them that are in force."""
    sums: dict[GpuClass, tuple[int, int]] = {}
    for terms in photo.centre.accounts:
        if terms.parent == ROOT_ACCOUNT:
            for model, count in terms.guarantee.items():
                sums[model] = (sums.get(model, (0, 0))[0] + count * GPU_UNITS, 0)
    for each in photo.standings:
        if each.gpu_class in sums:
            bought, in_force = sums[each.gpu_class]
            sums[each.gpu_class] = (bought, in_force + each.guarantee)
    return sums


def _fairness(photo: Photograph) -> Iterator[Metric]:
    labels = ("tenant", "model")
    target = GaugeMetricFamily(
        "turnstile_tenant_gpus_target", "GPUs that a tenant should hold now, by model: fair share.", labels=labels
    )
    ratio = GaugeMetricFamily(
        "turnstile_tenant_fair_share_ratio",
        "GPUs held, without spot, over the target; left out for a tenant whose target is 0.",
        labels=labels,
    )
    debt = GaugeMetricFamily(
        "turnstile_tenant_debt_credits", "Decayed credits of a tenant's burst use, over all models.", labels=("tenant",)
    )
    debts: dict[AccountId, int] = {}
    for each in photo.standings:
        target.add_metric((each.account, each.gpu_class), each.target / GPU_UNITS)
        if each.target:
            ratio.add_metric((each.account, each.gpu_class), each.held / each.target)
        debts[each.account] = each.debt_microcredits
    for tenant, microcredits in sorted(debts.items()):
        debt.add_metric((tenant,), microcredits / CREDIT)
    yield from (target, ratio, debt)


def _devices(photo: Photograph) -> Iterator[Metric]:
    allocated = Written(
        "turnstile_gpu_allocated", "1 while a job of ours holds the GPU or a share of it.", ("node", "gpu")
    )
    place: dict[DeviceId, tuple[str, str]] = {}
    for node, devices, held in photo.centre.nodes:
        name = f'node="{escaped(node.name)}"'
        for position, device in enumerate(devices):
            gpu = f'gpu="{position}"'
            place[device.id] = (gpu, name)
            allocated.add(f"{{{gpu},{name}}} ", device.id in held)
    yield allocated
    holders = Written(
        "turnstile_gpu_allocation_info",
        "Which job holds the GPU; always 1. Join other series on (node, gpu).",
        ("node", "gpu", "tenant", "job_id"),
    )
    for allocation, job in photo.centre.allocations:
        holder = f'job_id="{_typed(job)}"', f'tenant="{escaped(tenant_of(allocation.account))}"'
        for grant in allocation.grants:
            for device_id in grant.devices:
                if device_id in place:
                    gpu, name = place[device_id]
                    holders.add(f"{{{gpu},{holder[0]},{name},{holder[1]}}} ", 1)
    yield holders
