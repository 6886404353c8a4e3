"""Smallest valid objects: a test says only what it is about, `job(gpus=8, project="red/a")`."""

from collections.abc import Mapping

from scheduler.core.model import (
    GPU_UNITS,
    Account,
    AccountId,
    BookingWanted,
    Device,
    DeviceHealth,
    DeviceId,
    GpuClass,
    Job,
    JobId,
    Node,
    NodeAvailability,
    NodeName,
    PoolName,
    Shape,
    UserName,
)
from scheduler.executor import LaunchSpec, NodeInventory

START_MS = 1_790_000_000_000
GIB = 1 << 30
HOUR_MS = 3_600_000


def account(
    name: str,
    *,
    weight: int = 1,
    guarantee: int = 0,
    limit: int | None = None,
    gpu_class: str = "H100",
    user_limit: int | None = None,
    running_limit: int | None = None,
) -> Account:
    return Account(
        AccountId(name),
        weight,
        {GpuClass(gpu_class): guarantee} if guarantee else {},
        {} if limit is None else {GpuClass(gpu_class): limit},
        user_limit={} if user_limit is None else {GpuClass(gpu_class): user_limit},
        running_limit=running_limit,
    )


def node(
    name: str = "n1",
    *,
    gpus: int = 8,
    gpu_class: str = "H100",
    pool: str = "main",
    up: bool = True,
    labels: Mapping[str, str] | None = None,
    failed: tuple[int, ...] = (),
) -> NodeInventory:
    devices = tuple(
        Device(
            DeviceId(f"GPU-{name}-{index}"),
            NodeName(name),
            GpuClass(gpu_class),
            health=DeviceHealth.FAILED if index in failed else DeviceHealth.OK,
            reason="XID 79" if index in failed else None,
        )
        for index in range(gpus)
    )
    return NodeInventory(
        Node(
            NodeName(name),
            GpuClass(gpu_class),
            PoolName(pool),
            cpu_millicores=gpus * 12_000,
            memory_bytes=gpus * 120 * GIB,
            labels=labels or {},
            availability=NodeAvailability.UP if up else NodeAvailability.DOWN,
            reason=None if up else "no heartbeat",
        ),
        devices,
    )


def shape(
    *,
    gpus: int = 1,
    nodes: int = 1,
    gpu_class: str = "H100",
    pool: str | None = None,
    share: int | None = None,
    cpus: int | None = None,
    most_nodes: int | None = None,
) -> Shape:
    """`share` is a percentage of one GPU, instead of `gpus`."""
    return Shape(
        (GpuClass(gpu_class),),
        nodes,
        gpus * GPU_UNITS if share is None else GPU_UNITS * share // 100,
        cpu_millicores=None if cpus is None else cpus * 1000,
        pool=None if pool is None else PoolName(pool),
        most_nodes=most_nodes,
    )


def job(
    number: int = 1,
    *,
    project: str = "acme/nlp",
    user: str = "mei",
    gpus: int = 1,
    nodes: int = 1,
    most_nodes: int | None = None,
    submitted_ms: int = START_MS,
    like: Shape | None = None,
    wanted: BookingWanted = BookingWanted.AUTO,
    priority: int = 0,
    begin_ms: int | None = None,
    limit_ms: int = HOUR_MS,
    retries: int = 0,
) -> Job:
    return Job(
        JobId(number),
        AccountId(project),
        UserName(user),
        like or shape(gpus=gpus, nodes=nodes, most_nodes=most_nodes),
        time_limit_ms=limit_ms,
        submitted_ms=submitted_ms,
        wanted=wanted,
        priority=priority,
        begin_ms=begin_ms,
        retries_left=retries,
    )


def launch(*argv: str, seconds: float | None = None, exit_code: int = 0) -> LaunchSpec:
    return LaunchSpec(argv or ("true",), "job", simulated_seconds=seconds, simulated_exit_code=exit_code)
