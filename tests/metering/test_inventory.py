import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.gpus import GpuIdentity
from metering.health import GpuHealth
from metering.inventory import (
    SeveralGpuClassesError,
    gpu_classes_of,
    inventories_of,
    inventory_of,
    mig_remainder_units,
)
from scheduler.core.model import GPU_UNITS, DeviceHealth, GpuClass, NodeName, PoolName

NODE, POOL = NodeName("node-1"), PoolName("main")


def gpu(uuid: str, gpu_class: str = "H100", bus: int = 0x1B, *, is_mig_parent: bool = False) -> GpuIdentity:
    pci = f"00000000:{bus:02X}:00.0"
    return GpuIdentity(uuid, gpu_class, GpuClass(gpu_class), 80, pci, is_mig_parent=is_mig_parent)


def instance(uuid: str, parent: str, slices: int, index: int, profile: str) -> GpuIdentity:
    return GpuIdentity(
        uuid, "H100 MIG", GpuClass(f"H100-{profile}"), 10, "00000000:1B:00.0",
        is_mig=True, parent_uuid=parent, mig_profile=profile, mig_index=index, units=GPU_UNITS * slices // 7,
    )  # fmt: skip


MIG = (
    gpu("A", is_mig_parent=True),
    instance("M2", "A", 1, 2, "1g.10gb"),
    instance("M0", "A", 3, 0, "3g.40gb"),
    instance("M1", "A", 1, 1, "1g.10gb"),
)


def test_a_machine_of_one_class_is_a_node_with_its_devices_by_pci_bus() -> None:
    inventory = inventory_of(NODE, POOL, [gpu("B", bus=0x9D), gpu("A", bus=0x1B)], 64_000, 512)
    assert (inventory.node.name, inventory.node.pool, inventory.node.gpu_class) == (NODE, POOL, "H100")
    assert (inventory.node.cpu_millicores, inventory.node.memory_bytes) == (64_000, 512)
    assert [(device.id, device.node, device.health) for device in inventory.devices] == [
        ("A", NODE, DeviceHealth.OK),
        ("B", NODE, DeviceHealth.OK),
    ]


def test_a_verdict_goes_into_the_device_with_its_reason() -> None:
    verdicts = {"A": GpuHealth("A", DeviceHealth.FAILED, "xid_79", "it has fallen off the bus")}
    first, second = inventory_of(NODE, POOL, [gpu("A"), gpu("B", bus=0x9D)], 1, 1, verdicts).devices
    assert (first.health, first.reason) == (DeviceHealth.FAILED, "it has fallen off the bus")
    assert (second.health, second.reason) == (DeviceHealth.OK, None)


def test_several_classes_are_refused_where_one_node_is_asked_for() -> None:
    with pytest.raises(SeveralGpuClassesError, match=r"node node-1 has GPUs of several classes \(H100, H200\)"):
        inventory_of(NODE, POOL, [gpu("A"), gpu("B", "H200")], 1, 1)


def test_a_machine_without_a_gpu_to_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="node node-1 has no GPU that jobs could hold"):
        inventory_of(NODE, POOL, MIG[:1], 1, 1)
    assert inventories_of(NODE, POOL, MIG[:1], 1, 1) == ()


def test_in_mig_mode_the_instances_are_devices_and_the_gpu_is_none() -> None:
    ones, threes = inventories_of(NODE, POOL, MIG, 50_000, 5_000)
    assert (ones.node.name, threes.node.name) == ("node-1.h100-1g.10gb", "node-1.h100-3g.40gb")
    assert [(device.id, device.units) for device in ones.devices] == [("M1", 1800), ("M2", 1800)]
    assert [(device.id, device.units) for device in threes.devices] == [("M0", 5400)]
    assert (ones.node.cpu_millicores, threes.node.cpu_millicores) == (20_000, 30_000)
    assert gpu_classes_of(MIG) == ("H100-1g.10gb", "H100-3g.40gb")


def test_instances_and_remainder_make_a_whole_gpu() -> None:
    assert mig_remainder_units(MIG) == {"A": GPU_UNITS - 5 * 1800}
    assert mig_remainder_units([gpu("B")]) == {}


@given(st.lists(st.sampled_from(["H100", "H200", "L4"]), min_size=1, max_size=9), st.integers(0, 10**6))
def test_sharing_a_machine_out_by_class_loses_no_device_and_sells_no_cpu_twice(classes: list[str], cpu: int) -> None:
    gpus = [gpu(f"G{index}", gpu_class, index) for index, gpu_class in enumerate(classes)]
    nodes = inventories_of(NODE, POOL, gpus, cpu, cpu)
    assert sorted(device.id for node in nodes for device in node.devices) == sorted(one.uuid for one in gpus)
    assert cpu - len(nodes) < sum(node.node.cpu_millicores for node in nodes) <= cpu
    assert all(device.gpu_class == node.node.gpu_class for node in nodes for device in node.devices)
