"""From a cluster's nodes and pods to the scheduler's inventory: classes, slots, health, what others hold. Pure.

The kubelet chooses devices, so what we count are slots: `node/nvidia.com/gpu/0`. Which of them is foreign, or broken,
is a matter of numbers too: pods of others and unhealthy GPUs take the highest slots that no allocation of ours holds.
A machine that offers several resources (MIG profiles, or GPUs beside them) is one node for each of their classes, as on
a single machine; its CPU and memory are shared out by capacity units, less what pods of others asked for.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from k8s import names
from k8s.api import Json
from k8s.options import GIB, NodeOptions
from k8s.pods import Usage, ms_of
from k8s.quantity import milli, whole
from scheduler.core.model import (
    GPU_UNITS,
    Device,
    DeviceHealth,
    DeviceId,
    GpuClass,
    Node,
    NodeAvailability,
    NodeName,
    PoolName,
)
from scheduler.executor import CutGpu, NodeInventory

MEMORY_LABEL = "gpu_memory_bytes"
"""By which a job that asks for GPU memory finds its classes; other executors write it too."""
MIB = 1 << 20
CORE = 1000
MIG_SLICES = 7
_MIG = re.compile(r"-MIG-(?P<profile>[0-9a-z.+]+)")
_SLICES = re.compile(r"(?:\d+c\.)?(\d+)g\.")


@dataclass(frozen=True, slots=True)
class Machine:
    """A Kubernetes node, reduced to what decides about inventory."""

    name: str
    uid: str
    labels: Mapping[str, str]
    capacity: Mapping[str, int]
    """Extended resources that we offer; empty for a node without GPUs, or whose device plugin is gone."""
    allocatable: Mapping[str, int]
    cpu_millicores: int
    memory_bytes: int
    availability: NodeAvailability
    reason: str | None
    given_up_ms: int | None = None
    """When the control plane gave it up for want of a sign of life; None while it has not."""
    heartbeat_ms: int | None = None
    """The kubelet's last report before that."""
    returned_ms: int | None = None
    """Since when it is ready without a break, as far as is known; None while it is not."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What pods that run for no live allocation of ours take of one machine."""

    devices: Mapping[str, int] = field(default_factory=dict)
    cpu_millicores: int = 0
    memory_bytes: int = 0


def reduce_node(item: Json, options: NodeOptions) -> Machine:
    """Returns what matters of a node. Raises ValueError for a quantity that is none."""
    metadata, status = item["metadata"], item.get("status") or {}
    capacity = _offered(status.get("capacity") or {}, options)
    allocatable = status.get("allocatable") or {}
    availability, reason = _availability(item, options)
    silent = _silent(status) if availability is NodeAvailability.DOWN else {}
    return Machine(
        name=metadata["name"],
        uid=metadata["uid"],
        labels=dict(metadata.get("labels") or {}),
        capacity=capacity,
        allocatable=_offered(allocatable, options),
        cpu_millicores=milli(allocatable.get("cpu", 0)),
        memory_bytes=whole(allocatable.get("memory", 0)),
        availability=availability,
        reason=reason,
        given_up_ms=ms_of(silent.get("lastTransitionTime")),
        heartbeat_ms=ms_of(silent.get("lastHeartbeatTime")),
        returned_ms=ms_of(_ready(status).get("lastTransitionTime")),
    )


def _offered(resources: Mapping[str, object], options: NodeOptions) -> dict[str, int]:
    return {
        name: whole(amount)
        for name, amount in resources.items()
        if name == options.resource or name.startswith(options.mig_prefix)
    }


def _silent(status: Json) -> Json:
    """Returns the condition in which the control plane says that it has not heard of the kubelet; empty if it has."""
    conditions = status.get("conditions") or ()
    return next((each for each in conditions if each["type"] == "Ready" and each["status"] == "Unknown"), {})


def _ready(status: Json) -> Json:
    """Returns the condition in which the kubelet says that it is ready; empty if it does not."""
    conditions = status.get("conditions") or ()
    return next((each for each in conditions if each["type"] == "Ready" and each["status"] == "True"), {})


def returned_ms(item: Json) -> int | None:
    """Returns when a node that was silent a moment ago reported again; None while it is not ready."""
    return ms_of(_ready(item.get("status") or {}).get("lastHeartbeatTime"))


def _availability(item: Json, options: NodeOptions) -> tuple[NodeAvailability, str | None]:
    spec, status = item.get("spec") or {}, item.get("status") or {}
    ready = next((each for each in status.get("conditions") or () if each["type"] == "Ready"), None)
    if item["metadata"].get("deletionTimestamp"):
        return NodeAvailability.DRAINING, "the node is being removed from the cluster"
    if ready is None:
        return NodeAvailability.DOWN, "its kubelet has not reported yet"
    if ready["status"] == "Unknown":
        return NodeAvailability.DOWN, f"its kubelet is silent since {ready.get('lastHeartbeatTime')}"
    why = None
    if ready["status"] != "True":
        # Its containers may well go on running: nothing new starts, and nothing is ended for it.
        why = f"not ready: {ready.get('message') or ready.get('reason') or 'no reason given'}"
    elif spec.get("unschedulable"):
        why = "cordoned in Kubernetes"
    else:
        why = next(_repelling(spec.get("taints") or (), options), None)
    return (NodeAvailability.UP, None) if why is None else (NodeAvailability.DRAINING, why)


def _repelling(taints: Iterable[Json], options: NodeOptions) -> Iterator[str]:
    for taint in taints:
        if taint.get("effect") in {"NoSchedule", "NoExecute"} and taint["key"] not in options.tolerations:
            mark = taint["key"] + (f"={taint['value']}" if taint.get("value") else "")
            yield f"tainted {mark}:{taint['effect']}"


def inventory(
    machines: Iterable[Machine],
    usages: Iterable[Usage],
    held: Collection[DeviceId],
    options: NodeOptions,
) -> list[NodeInventory]:
    """Returns the nodes to offer, by name. `usages` are of pods for no live allocation, `held` the live ones' slots."""
    taken = _taken(usages)
    offered: list[NodeInventory] = []
    for machine in sorted(machines, key=lambda machine: machine.name):
        offered += _nodes_of(machine, taken.get(machine.name, Taken()), held, options)
    return offered


def _taken(usages: Iterable[Usage]) -> dict[str, Taken]:
    found: dict[str, Taken] = {}
    for usage in usages:
        before = found.get(usage.node, Taken())
        devices = dict(before.devices)
        for resource, count in usage.devices.items():
            devices[resource] = devices.get(resource, 0) + count
        found[usage.node] = Taken(
            devices, before.cpu_millicores + usage.cpu_millicores, before.memory_bytes + usage.memory_bytes
        )
    return found


@dataclass(frozen=True, slots=True)
class _Part:
    """One resource of a machine."""

    resource: str
    gpu_class: GpuClass
    units: int


def _nodes_of(machine: Machine, taken: Taken, held: Collection[DeviceId], options: NodeOptions) -> list[NodeInventory]:
    parts = [part_of(machine, resource, options) for resource, count in sorted(machine.capacity.items()) if count]
    classes = sorted({part.gpu_class for part in parts})
    whole_units = sum(part.units * machine.capacity[part.resource] for part in parts)
    # By whole cores and GiB, so that a small pod that comes and goes is not a change of the node each time.
    cpu = machine.cpu_millicores - -(-taken.cpu_millicores // CORE) * CORE
    memory = machine.memory_bytes - -(-taken.memory_bytes // GIB) * GIB
    nodes = []
    for gpu_class in classes:
        mine = [part for part in parts if part.gpu_class == gpu_class]
        units = sum(part.units * machine.capacity[part.resource] for part in mine)
        name = NodeName(machine.name if len(classes) == 1 else f"{machine.name}.{gpu_class.lower()}")
        devices = [device for part in mine for device in _slots(machine, part, name, taken, held)]
        node = Node(
            name,
            gpu_class,
            PoolName(machine.labels.get(options.pool_label or "", options.pool)),
            max(0, cpu) * units // whole_units,
            max(0, memory) * units // whole_units,
            _labels(machine, mine),
            machine.availability,
            machine.reason,
        )
        nodes.append(NodeInventory(node, tuple(devices)))
    if nodes:
        nodes[0] = replace(nodes[0], cut_gpus=tuple(_cut_gpus(machine, parts, options)))
    return nodes


def _cut_gpus(machine: Machine, parts: Sequence[_Part], options: NodeOptions) -> Iterator[CutGpu]:
    """Yields the slots of the GPUs that must be cut to give the instances: those after the whole ones.

    How the instances lie on the GPUs is not known here, only that they take so many at least.
    """
    mig = [part for part in parts if part.resource.startswith(options.mig_prefix)]
    units = sum(part.units * machine.capacity[part.resource] for part in mig)
    count = -(-units // GPU_UNITS)
    first = machine.capacity.get(options.resource, 0)
    gpu_class = part_of(machine, options.resource, options).gpu_class
    for place in range(count):
        left = count * GPU_UNITS - units if place == count - 1 else 0
        yield CutGpu(names.slot(machine.name, options.resource, first + place), gpu_class, left)


def part_of(machine: Machine, resource: str, options: NodeOptions) -> _Part:
    """Returns the class and the size of a machine's devices of one resource."""
    label = machine.labels.get(options.class_label, "")
    mig = _MIG.search(label)
    product = label[: mig.start()] if mig else label
    shared = product.endswith("-SHARED") or label.endswith("-SHARED")
    product = product.removesuffix("-SHARED")
    profile = None
    if resource.startswith(options.mig_prefix):
        profile = resource.removeprefix(options.mig_prefix)
    elif mig:
        profile = mig["profile"]
    if label in options.classes and not resource.startswith(options.mig_prefix):
        gpu_class = GpuClass(options.classes[label])
    else:
        base = GpuClass(options.classes[product]) if product in options.classes else options.class_of(product or "GPU")
        gpu_class = GpuClass(f"{base}-{profile}") if profile else base
    units = GPU_UNITS
    if profile is not None and (slices := _SLICES.match(profile)):
        units = GPU_UNITS * min(MIG_SLICES, int(slices[1])) // MIG_SLICES
    replicas = machine.labels.get("nvidia.com/gpu.replicas", "1")
    if shared and profile is None and replicas.isdigit() and int(replicas) > 1:
        # Time slices of one GPU are not GPUs: they must not be sold as such under the same name.
        gpu_class, units = GpuClass(f"{gpu_class}-shared"), max(1, GPU_UNITS // int(replicas))
    return _Part(resource, gpu_class, units)


def _slots(machine: Machine, part: _Part, node: NodeName, taken: Taken, held: Collection[DeviceId]) -> Sequence[Device]:
    count = machine.capacity[part.resource]
    ids = [names.slot(machine.name, part.resource, index) for index in range(count)]
    free = [id_ for id_ in ids if id_ not in held]
    unhealthy = max(0, count - machine.allocatable.get(part.resource, 0))
    broken = _highest(free, unhealthy)
    foreign = _highest([id_ for id_ in free if id_ not in broken], taken.devices.get(part.resource, 0))
    # More GPUs are unhealthy than are free: some job's is. Which one, only the agent on the node can tell.
    suspected = _highest([id_ for id_ in ids if id_ in held], unhealthy - len(broken))
    words = f"{unhealthy} of {count} {part.resource} unhealthy, says the node's device plugin"
    return [
        Device(
            id_,
            node,
            part.gpu_class,
            part.units,
            DeviceHealth.FAILED if id_ in broken else DeviceHealth.DRAINING if id_ in suspected else DeviceHealth.OK,
            words if id_ in broken or id_ in suspected else None,
            is_foreign=id_ in foreign,
        )
        for id_ in ids
    ]


def _highest(ids: Sequence[DeviceId], count: int) -> frozenset[DeviceId]:
    return frozenset(ids[len(ids) - min(len(ids), max(0, count)) :])


def _labels(machine: Machine, parts: Sequence[_Part]) -> dict[str, str]:
    labels = dict(machine.labels)
    memory = machine.labels.get(f"{parts[0].resource}.memory") or machine.labels.get("nvidia.com/gpu.memory", "")
    if memory.isdigit():
        labels[MEMORY_LABEL] = str(int(memory) * MIB)
    return labels
