"""From a node's labels and numbers to slots: classes, MIG, sickness, what others hold."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8s.nodes import MEMORY_LABEL, inventory, reduce_node
from k8s.options import NodeOptions
from k8s.pods import Usage
from k8s.quantity import milli, whole
from metering.gpu_classes import gpu_class_of
from scheduler.core.model import GPU_UNITS, DeviceHealth, DeviceId, NodeAvailability
from scheduler.executor import NodeInventory

OPTIONS = NodeOptions(lambda product: gpu_class_of(product.replace("-", " ")), pool_label="pool")
GPU = "nvidia.com/gpu"


def item(
    *, sizes: dict[str, int] | None = None, allocatable: dict[str, int] | None = None, ready: str = "True",
    labels: dict[str, str] | None = None, **spec: Any,
) -> dict[str, Any]:  # fmt: skip
    capacity: dict[str, str] = {"cpu": "96", "memory": "800Gi"}
    capacity |= {name: str(count) for name, count in (sizes or {GPU: 8}).items()}
    usable = {**capacity, **{name: str(count) for name, count in (allocatable or {}).items()}}
    product = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    condition = {
        "type": "Ready",
        "status": ready,
        "lastHeartbeatTime": "2026-11-23T10:00:00Z",
        "message": "says the kubelet",
    }
    return {
        "metadata": {"name": "n1", "uid": "u", "labels": product | (labels or {})},
        "spec": spec,
        "status": {"capacity": capacity, "allocatable": usable, "conditions": [condition]},
    }


def offered(node: dict[str, Any], *usages: Usage, held: tuple[str, ...] = ()) -> list[NodeInventory]:
    return inventory([reduce_node(node, OPTIONS)], usages, {DeviceId(each) for each in held}, OPTIONS)


def only(node: dict[str, Any], *usages: Usage, held: tuple[str, ...] = ()) -> NodeInventory:
    (found,) = offered(node, *usages, held=held)
    return found


def slots(*indexes: int, resource: str = GPU) -> tuple[str, ...]:
    return tuple(f"n1/{resource}/{index}" for index in indexes)


@pytest.mark.parametrize(
    ("product", "gpu_class"),
    [
        ("NVIDIA-H100-80GB-HBM3", "H100"),
        ("NVIDIA-A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA-A100-PCIE-40GB", "A100-PCIe-40GB"),
        ("NVIDIA-H200", "H200"),
        ("Tesla-T4", "T4"),
        ("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", "H100-1g.10gb"),
    ],
)
def test_the_product_label_tells_the_class(product: str, gpu_class: str) -> None:
    assert only(item(labels={"nvidia.com/gpu.product": product})).node.gpu_class == gpu_class


def test_a_mig_slice_under_the_plain_resource_has_its_share_of_a_gpu() -> None:
    found = only(item(labels={"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3-MIG-3g.40gb"}))
    assert {device.units for device in found.devices} == {GPU_UNITS * 3 // 7}


def test_mig_resources_are_nodes_of_their_own_class_that_share_the_machine() -> None:
    sizes = {GPU: 4, "nvidia.com/mig-3g.40gb": 4, "nvidia.com/mig-1g.10gb": 7}
    found = {str(each.node.gpu_class): each for each in offered(item(sizes=sizes))}
    assert set(found) == {"H100", "H100-3g.40gb", "H100-1g.10gb"}
    assert found["H100-3g.40gb"].node.name == "n1.h100-3g.40gb"
    assert [device.id for device in found["H100-3g.40gb"].devices] == list(
        slots(0, 1, 2, 3, resource="nvidia.com/mig-3g.40gb")
    )
    whole_cpu = sum(each.node.cpu_millicores for each in found.values())
    assert 96_000 - len(found) <= whole_cpu <= 96_000


def test_time_slices_are_not_sold_as_gpus() -> None:
    labels = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3-SHARED", "nvidia.com/gpu.replicas": "4"}
    found = only(item(labels=labels))
    assert found.node.gpu_class == "H100-shared"
    assert {device.units for device in found.devices} == {GPU_UNITS // 4}


def test_the_class_map_of_the_centre_wins() -> None:
    options = NodeOptions(OPTIONS.class_of, classes={"NVIDIA-H100-80GB-HBM3": "gold"})
    assert inventory([reduce_node(item(), options)], [], (), options)[0].node.gpu_class == "gold"


def test_a_node_without_gpus_is_not_offered() -> None:
    assert offered(item(sizes={GPU: 0})) == []


def test_pool_memory_and_topology_come_from_labels() -> None:
    found = only(item(labels={"pool": "ib", "nvidia.com/gpu.memory": "81559", "rack": "r7"}))
    assert found.node.pool == "ib"
    assert found.node.labels[MEMORY_LABEL] == str(81559 * 1024 * 1024)
    assert found.node.labels["rack"] == "r7"


@pytest.mark.parametrize(
    ("change", "availability", "reason"),
    [
        ({}, NodeAvailability.UP, None),
        ({"unschedulable": True}, NodeAvailability.DRAINING, "cordoned in Kubernetes"),
        ({"ready": "False"}, NodeAvailability.DRAINING, "not ready: says the kubelet"),
        ({"ready": "Unknown"}, NodeAvailability.DOWN, "its kubelet is silent since 2026-11-23T10:00:00Z"),
        ({"taints": [{"key": "repair", "value": "fan", "effect": "NoSchedule"}]}, NodeAvailability.DRAINING,
         "tainted repair=fan:NoSchedule"),
        ({"taints": [{"key": GPU, "effect": "NoSchedule"}]}, NodeAvailability.UP, None),
        ({"taints": [{"key": "x", "effect": "PreferNoSchedule"}]}, NodeAvailability.UP, None),
    ],
)  # fmt: skip
def test_a_node_that_takes_no_pods_takes_no_jobs(
    change: dict[str, Any], availability: NodeAvailability, reason: str | None
) -> None:
    node = only(item(**change)).node
    assert (node.availability, node.reason) == (availability, reason)


def test_others_cpu_and_memory_are_taken_off_in_whole_cores_and_gibibytes() -> None:
    node = only(item(), Usage("n1", {}, 250, 100 << 20), Usage("n1", {}, 1000, 0), Usage("n2", {}, 9000, 0)).node
    assert (node.cpu_millicores, node.memory_bytes) == (94_000, 799 << 30)


@settings(max_examples=100, deadline=None)
@given(
    held=st.sets(st.integers(0, 7)), foreign=st.integers(0, 12), healthy=st.integers(0, 8)
)  # fmt: skip
def test_slots_add_up_and_what_we_hold_is_never_foreign(held: set[int], foreign: int, healthy: int) -> None:
    mine = slots(*sorted(held))
    node = item(allocatable={GPU: healthy})
    found = only(node, *([Usage("n1", {GPU: foreign}, 0, 0)] if foreign else []), held=mine).devices
    broken = [device for device in found if device.health is DeviceHealth.FAILED]
    suspected = [device for device in found if device.health is DeviceHealth.DRAINING]
    others = [device for device in found if device.is_foreign]
    assert len(found) == 8
    assert not {device.id for device in [*broken, *others]} & set(mine)
    assert {device.id for device in suspected} <= set(mine)
    assert len(broken) + len(suspected) == 8 - healthy
    assert len(others) == min(foreign, 8 - len(held) - len(broken))
    free = [
        device
        for device in found
        if device.id not in mine and device.health is DeviceHealth.OK and not device.is_foreign
    ]
    assert len(free) == max(0, 8 - len(held) - len(broken) - foreign)
    assert all(device.reason for device in [*broken, *suspected])


@pytest.mark.parametrize(
    ("text", "number"),
    [("8", 8), ("16Gi", 16 << 30), ("1500m", 1), ("1e3", 1000), ("5k", 5000), ("128974848", 128974848)],
)
def test_quantities_are_read_as_kubernetes_writes_them(text: str, number: int) -> None:
    assert whole(text) == number


def test_cpu_is_read_in_millicores() -> None:
    assert [milli(text) for text in ("500m", "2", "1.5", "100u")] == [500, 2000, 1500, 0]
    with pytest.raises(ValueError, match="no quantity"):
        milli("many")
