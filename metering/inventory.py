"""What was read off a machine's GPUs as the scheduler's inventory: nodes and devices. Pure.

A GPU in MIG mode is no device; its instances are. A machine with GPUs of several classes (two models, or two MIG
profiles) becomes one node per class, because a node has one class; CPU and memory are shared out by capacity units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from metering.gpus import GpuIdentity
from metering.health import GpuHealth
from scheduler.core.model import GPU_UNITS, Device, DeviceHealth, DeviceId, GpuClass, Node, NodeName, PoolName
from scheduler.executor import CutGpu, NodeInventory


class SeveralGpuClassesError(ValueError):
    """A machine has GPUs of more than one class where one node was asked for."""


def inventory_of(
    node_name: NodeName,
    pool: PoolName,
    identities: Sequence[GpuIdentity],
    cpu_millicores: int,
    memory_bytes: int,
    health: Mapping[str, GpuHealth] | None = None,
) -> NodeInventory:
    """Returns a machine as one node, devices by PCI bus id. CPU and memory are what jobs may have.

    Raises SeveralGpuClassesError when the GPUs are of several classes (use `inventories_of`), ValueError when there is
    none that can be held.
    """
    held = _held(identities)
    classes = sorted({gpu.gpu_class for gpu in held})
    if not classes:
        raise ValueError(f"node {node_name} has no GPU that jobs could hold: nothing was read, or all are in MIG mode")
    if len(classes) > 1:
        raise SeveralGpuClassesError(
            f"node {node_name} has GPUs of several classes ({', '.join(classes)}); one is right"
        )
    return NodeInventory(
        node=Node(node_name, classes[0], pool, cpu_millicores, memory_bytes),
        devices=tuple(_device(gpu, node_name, (health or {}).get(gpu.uuid)) for gpu in held),
    )


def inventories_of(
    node_name: NodeName,
    pool: PoolName,
    identities: Sequence[GpuIdentity],
    cpu_millicores: int,
    memory_bytes: int,
    health: Mapping[str, GpuHealth] | None = None,
) -> tuple[NodeInventory, ...]:
    """Returns a machine as one node per GPU class, by class; none when no GPU can be held.

    With one class the node has the machine's name, with several `name.class` in lower case.
    """
    held = _held(identities)
    classes = sorted({gpu.gpu_class for gpu in held})
    all_units = sum(gpu.units for gpu in held)
    nodes = []
    for gpu_class in classes:
        part = [gpu for gpu in held if gpu.gpu_class == gpu_class]
        units = sum(gpu.units for gpu in part)
        name = node_name if len(classes) == 1 else NodeName(f"{node_name}.{gpu_class.lower()}")
        cpu, memory = cpu_millicores * units // all_units, memory_bytes * units // all_units
        nodes.append(inventory_of(name, pool, part, cpu, memory, health))
    if nodes:
        nodes[0] = replace(nodes[0], cut_gpus=_cut_gpus(identities))
    return tuple(nodes)


def _cut_gpus(identities: Sequence[GpuIdentity]) -> tuple[CutGpu, ...]:
    left = mig_remainder_units(identities)
    parents = (gpu for gpu in identities if gpu.is_mig_parent)
    return tuple(CutGpu(DeviceId(gpu.uuid), gpu.gpu_class, left[gpu.uuid]) for gpu in parents)


def mig_remainder_units(identities: Sequence[GpuIdentity]) -> dict[str, int]:
    """Returns, for each GPU in MIG mode by UUID, the capacity units that no instance holds; never negative."""
    remainder = {gpu.uuid: GPU_UNITS for gpu in identities if gpu.is_mig_parent}
    for gpu in identities:
        if gpu.is_mig and gpu.parent_uuid in remainder:
            remainder[gpu.parent_uuid] = max(0, remainder[gpu.parent_uuid] - gpu.units)
    return remainder


def gpu_classes_of(identities: Sequence[GpuIdentity]) -> tuple[GpuClass, ...]:
    """Returns the classes that jobs could hold, sorted."""
    return tuple(sorted({gpu.gpu_class for gpu in _held(identities)}))


def _held(identities: Sequence[GpuIdentity]) -> list[GpuIdentity]:
    held = [gpu for gpu in identities if not gpu.is_mig_parent]
    return sorted(held, key=lambda gpu: (gpu.pci_bus_id, -1 if gpu.mig_index is None else gpu.mig_index, gpu.uuid))


def _device(gpu: GpuIdentity, node: NodeName, verdict: GpuHealth | None) -> Device:
    return Device(
        id=DeviceId(gpu.uuid),
        node=node,
        gpu_class=gpu.gpu_class,
        units=gpu.units,
        health=verdict.health if verdict is not None else DeviceHealth.OK,
        reason=verdict.reason if verdict is not None else None,
    )
