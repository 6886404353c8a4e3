"""GPUs by class, as the cluster's answer has them."""

from dataclasses import dataclass

from sqlalchemy.engine import Connection

from scheduler.core.model import AccountId, GpuClass, NodeAvailability
from scheduler.store.lookups import NodeCount, held_units, node_counts, pending_by_class
from scheduler.wire.fitting import MEMORY_LABEL


@dataclass(frozen=True, slots=True)
class ClassCount:
    """A GPU class: what there is of it and what is free. `held_units` are the asking tenant's."""

    gpu_class: GpuClass
    memory_bytes: int | None
    free: int
    total: int
    whole_nodes_free: int
    whole_nodes: int
    gpus_per_node: int
    pending_jobs: int
    held_units: int


def class_counts(connection: Connection, tenant: AccountId | None) -> list[ClassCount]:
    """Returns every class that nodes have, by name. Linear in nodes, devices and pending jobs."""
    pending = pending_by_class(connection)
    held = held_units(connection, tenant)
    by_class: dict[GpuClass, list[NodeCount]] = {}
    for each in node_counts(connection):
        by_class.setdefault(each.node.gpu_class, []).append(each)
    return [
        ClassCount(
            gpu_class=gpu_class,
            memory_bytes=_memory(nodes),
            free=sum(each.gpus_free for each in nodes),
            total=sum(each.gpus for each in nodes),
            whole_nodes_free=sum(1 for each in nodes if each.gpus and each.gpus_free == each.gpus),
            whole_nodes=sum(1 for each in nodes if each.node.availability is not NodeAvailability.DOWN),
            gpus_per_node=max(each.gpus for each in nodes),
            pending_jobs=pending.get(gpu_class, 0),
            held_units=held.get(gpu_class, 0),
        )
        for gpu_class, nodes in sorted(by_class.items())
    ]


def _memory(nodes: list[NodeCount]) -> int | None:
    """Returns the memory of one GPU, the smallest that any node of the class states; None when none does."""
    texts = [each.node.labels.get(MEMORY_LABEL, "") for each in nodes]
    stated = [int(text) for text in texts if text.isascii() and text.isdigit() and len(text) <= 18]
    return min(stated, default=None)
