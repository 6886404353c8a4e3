import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.gpus import GpuReader, ProblemCode
from metering.simulated import SimulatedNode, SimulatedReader, format_sim, parse_sim
from scheduler.clock import ManualClock
from scheduler.core.model import GPU_UNITS, GpuClass, NodeName, PoolName

GIB = 1024**3
NODE = SimulatedNode(NodeName("h200-01"), GpuClass("H200"), 2)


def test_a_text_gives_nodes_with_gpus_cpu_and_memory() -> None:
    nodes = parse_sim("2x8xH200,1x4xA100-80GB")
    assert [(node.name, node.gpus, node.gpu_class) for node in nodes] == [
        ("h200-01", 8, "H200"),
        ("h200-02", 8, "H200"),
        ("a100-80gb-01", 4, "A100-80GB"),
    ]
    assert (nodes[0].cpu_millicores, nodes[0].memory_bytes) == (8 * 24_000, 8 * 240 * GIB)
    assert (nodes[2].cpu_millicores, nodes[2].memory_bytes) == (4 * 12_000, 4 * 135 * GIB)


shapes = st.tuples(
    st.integers(1, 5), st.integers(1, 16), st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
)


@given(st.lists(shapes, min_size=1, max_size=5))
def test_the_text_of_parsed_nodes_parses_to_the_same_nodes(parts: list[tuple[int, int, str]]) -> None:
    nodes = parse_sim(", ".join(f"{count}x{gpus}x{gpu_class}" for count, gpus, gpu_class in parts))
    assert parse_sim(format_sim(nodes)) == nodes
    assert len({node.name for node in nodes}) == len(nodes) == sum(count for count, _, _ in parts)
    uuids = [gpu.uuid for node in nodes for gpu in node.identities()]
    assert len(set(uuids)) == len(uuids) == sum(count * gpus for count, gpus, _ in parts)


@given(st.text(alphabet="0123456789xHA-,. 卡", max_size=15))
def test_any_text_is_nodes_or_a_sentence_with_an_example(text: str) -> None:
    complaint = None
    try:
        assert parse_sim(text)
    except ValueError as error:
        complaint = str(error)
    if complaint is not None:
        assert "2x8xH200" in complaint or "are the most" in complaint
        assert repr(text) in complaint


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "simulated inventory '' is not complete"),
        ("8xH200", "'8xH200' is not complete"),
        ("2x8xH200,", "'2x8xH200,': '' is not complete"),
        ("0x8xH200", "the number of nodes is '0', not a whole number from 1"),
        ("2x-8xH200", "the number of GPUs per node is '-8'"),
        ("²x8xH200", "the number of nodes is '²'"),
        ("8x2000xH200", "a node has at most 32 GPUs, not 2000"),
        ("2x8xH 200", "'H 200' is no GPU class"),
        ("99999x8xH200", "has more than 100,000 GPUs; 100,000 are the most"),
    ],
)
def test_a_malformed_text_is_refused_with_what_is_wrong(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        parse_sim(text)


def test_uuids_look_like_nvidias_and_are_the_same_everywhere() -> None:
    first = NODE.identities()[0].uuid
    assert re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", first)
    assert first == "GPU-5729662e-1147-59ba-a59b-97f99cb9894c"


def test_a_simulated_node_is_an_inventory_of_the_scheduler() -> None:
    inventory = NODE.inventory(PoolName("main"))
    assert (inventory.node.name, inventory.node.pool, inventory.node.gpu_class) == ("h200-01", "main", "H200")
    assert [device.units for device in inventory.devices] == [GPU_UNITS, GPU_UNITS]
    assert [device.id for device in inventory.devices] == [gpu.uuid for gpu in NODE.identities()]


class Held:
    """Which GPUs jobs hold; a callable for the reader."""

    def __init__(self) -> None:
        self.uuids: set[str] = set()

    def __call__(self, uuid: str) -> bool:
        return uuid in self.uuids


@given(st.lists(st.tuples(st.integers(0, 100_000), st.booleans()), min_size=1, max_size=20), st.integers(0, 5))
def test_the_energy_counter_is_the_exact_integral_of_power(steps: list[tuple[int, bool]], seed: int) -> None:
    clock, held = ManualClock(), Held()
    reader = SimulatedReader(NODE, clock, held, seed)
    gpu = NODE.identities()[0].uuid
    microjoules, power = 0, None
    for elapsed_ms, is_busy in steps:
        held.uuids = {gpu} if is_busy else set()
        clock.advance(milliseconds=elapsed_ms)
        before = reader._states[gpu].power_milliwatts if power is None else power
        microjoules += before * elapsed_ms
        sample = next(sample for sample in reader.sample()[0] if sample.uuid == gpu)
        power = sample.power_milliwatts
        assert sample.energy_millijoules == microjoules // 1000


def test_a_held_gpu_is_busy_hot_and_full_and_a_free_one_is_not() -> None:
    clock, held = ManualClock(), Held()
    reader = SimulatedReader(NODE, clock, held)
    busy, free = (gpu.uuid for gpu in NODE.identities())
    held.uuids = {busy}
    reader.sample()
    clock.advance(minutes=10)
    samples = {sample.uuid: sample for sample in reader.sample()[0]}
    assert (samples[busy].utilization_percent or 0) >= 88
    assert samples[free].utilization_percent == 0
    for low, high in (
        (samples[free].power_milliwatts, samples[busy].power_milliwatts),
        (samples[free].temperature_celsius, samples[busy].temperature_celsius),
        (samples[free].memory_used_bytes, samples[busy].memory_used_bytes),
    ):
        assert low is not None
        assert high is not None
        assert low < high / 1.5
    assert (samples[busy].power_milliwatts or 0) <= 701_000
    assert (samples[busy].temperature_celsius or 99) < 85


def test_the_same_seed_and_clock_give_the_same_samples_and_another_seed_others() -> None:
    def run(seed: int) -> list[object]:
        clock = ManualClock()
        reader = SimulatedReader(NODE, clock, lambda _uuid: True, seed)
        taken: list[object] = []
        for _ in range(5):
            clock.advance(seconds=15)
            taken.append(reader.sample()[0])
        return taken

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_lost_gpu_is_a_problem_and_comes_back_with_a_counter_from_zero() -> None:
    clock = ManualClock()
    reader = SimulatedReader(NODE, clock, lambda _uuid: True)
    checked: GpuReader = reader
    gone, stays = (gpu.uuid for gpu in NODE.identities())
    clock.advance(hours=1)
    reader.lose(gone)
    samples, problems = checked.sample()
    assert [sample.uuid for sample in samples] == [stays]
    assert [(problem.code, problem.uuid) for problem in problems] == [(ProblemCode.GPU_LOST, gone)]
    assert [gpu.uuid for gpu in checked.identities()[0]] == [stays]
    reader.restore(gone)
    assert {sample.uuid: sample.energy_millijoules for sample in checked.sample()[0]}[gone] == 0


def test_injected_xids_are_told_once() -> None:
    clock = ManualClock()
    reader = SimulatedReader(NODE, clock, lambda _uuid: False)
    gpu = NODE.identities()[1].uuid
    reader.inject_xid(gpu, 79)
    assert [(event.uuid, event.xid, event.at_ms) for event in reader.xids(1000)] == [(gpu, 79, clock.now_ms())]
    assert reader.xids(0) == []
    with pytest.raises(KeyError, match="simulated node h200-01 has no GPU GPU-x"):
        reader.inject_xid("GPU-x", 79)
