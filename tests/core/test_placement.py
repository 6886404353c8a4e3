"""Where gangs go: near each other where labels say what is near, and where they break up least."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.capacity import Capacity
from scheduler.core.fragmentation import Fragments, Mix, pressure
from scheduler.core.model import GpuClass, JobState, PoolName
from scheduler.core.placement import place, place_by
from scheduler.core.policy import Placement, Policy
from scheduler.core.reasons import ReasonCode
from scheduler.executor import NodeInventory
from tests.builders import HOUR_MS, START_MS, job, node, shape
from tests.harness import Centre

H100, MAIN = GpuClass("H100"), PoolName("main")
RACKS = Policy(topology_labels=("rack", "spine"))


def _rack(name: str, count: int, spine: str = "s1") -> list[NodeInventory]:
    return [node(f"{name}{index}", labels={"rack": name, "spine": spine}) for index in range(count)]


def test_a_gang_goes_into_the_fullest_rack_that_holds_it() -> None:
    centre = Centre(*_rack("a", 4), *_rack("b", 2), *_rack("c", 3), policy=RACKS)
    gang = centre.submit(job(gpus=8, nodes=2))
    centre.tick()
    assert centre.nodes_of(gang) == ["b0", "b1"]


def test_a_gang_too_large_for_any_rack_stays_under_one_spine() -> None:
    centre = Centre(*_rack("a", 1), *_rack("b", 2, "s2"), *_rack("c", 2, "s2"), *_rack("d", 3), policy=RACKS)
    gang = centre.submit(job(gpus=8, nodes=4))
    centre.tick()
    assert {centre.state.node(grant).labels["spine"] for grant in centre.nodes_of(gang)} in ({"s1"}, {"s2"})  # type: ignore[arg-type]
    assert len(centre.nodes_of(gang)) == 4


def test_a_gang_that_must_share_a_rack_waits_for_one_and_is_promised_one() -> None:
    centre = Centre(*_rack("a", 2), *_rack("b", 2))
    for _ in range(2):
        centre.submit(job(gpus=8, like=replace(shape(gpus=8), exclude_nodes=()), limit_ms=HOUR_MS))
    busy = centre.submit(job(like=replace(shape(gpus=8), only_nodes=("b0",)), limit_ms=3 * HOUR_MS))  # type: ignore[arg-type]
    centre.tick()
    assert len(centre.running()) == 3
    assert busy in centre.running()
    centre.end(next(each for each in sorted(centre.running()) if centre.nodes_of(each) == ["a1"]))
    gang = centre.submit(job(like=replace(shape(gpus=8, nodes=2), topology=("rack", True))))
    loose = centre.submit(job(like=replace(shape(gpus=8, nodes=2), topology=("rack", False)), limit_ms=60_000))
    centre.tick()
    assert gang not in centre.running()
    promised = centre.state.reservations[gang]
    assert [name for name, _ in promised.parts] == ["a0", "a1"]
    assert promised.start_ms == START_MS + HOUR_MS
    assert set(centre.nodes_of(loose)) == {"a1", "b1"}


def test_a_gang_that_no_rack_could_ever_hold_says_so() -> None:
    centre = Centre(*_rack("a", 2), *_rack("b", 2))
    gang = centre.submit(job(like=replace(shape(gpus=8, nodes=3), topology=("rack", True))))
    centre.tick()
    assert centre.why(gang) is ReasonCode.CONSTRAINT


def _capacity(*nodes: NodeInventory) -> Capacity:
    capacity = Capacity()
    for inventory in nodes:
        capacity.set_node(inventory.node, inventory.devices)
    return capacity


def test_a_share_goes_where_it_breaks_nothing_up() -> None:
    capacity, mix = _capacity(node("n1", gpus=2), node("n2", gpus=2)), Mix()
    for _ in range(64):
        mix.add(shape(share=40, cpus=1))
        mix.add(shape(gpus=2, cpus=1))
    fragments = Fragments(capacity, mix)
    for expected in ("n1", "n1", "n1", "n1"):
        grants = place_by(fragments.cheapest, capacity, shape(share=40, cpus=1), (H100, [MAIN]))
        assert grants is not None
        assert grants[0].node == expected
        capacity.take(grants[0])
    assert place_by(fragments.cheapest, capacity, shape(gpus=2, cpus=1), (H100, [MAIN])) is not None


def test_gpus_are_not_left_without_cpu() -> None:
    """The lean node's GPUs would have no CPU left after the hungry job; the rich node's would."""
    lean, rich = node("a-lean", gpus=4), node("b-rich", gpus=4)
    lean = replace(lean, node=replace(lean.node, cpu_millicores=24_000))
    rich = replace(rich, node=replace(rich.node, cpu_millicores=96_000))
    capacity, mix = _capacity(lean, rich), Mix()
    for _ in range(8):
        mix.add(shape(gpus=1, cpus=6))
    grants = place_by(Fragments(capacity, mix).cheapest, capacity, shape(gpus=1, cpus=20), (H100, [MAIN]))
    assert grants is not None
    assert grants[0].node == "b-rich"


def test_who_takes_any_class_leaves_alone_what_others_name() -> None:
    """Both nodes have room, and best fit would fill A100's: half the jobs name that class, nobody names H100."""
    a100 = GpuClass("A100")
    capacity, mix = _capacity(node("a", gpus=4, gpu_class="A100"), node("h", gpus=8)), Mix()
    named = shape(gpus=1, gpu_class="A100")
    either = replace(named, gpu_classes=(a100, H100))
    for _ in range(8):
        mix.add(named)
        mix.add(either)
    asked_for = pressure(capacity, mix)
    assert asked_for[H100] == 8 * 1_000_000 // 12
    assert asked_for[a100] == asked_for[H100] + 8 * 1_000_000 // 4
    fragments = Fragments(capacity, mix)
    costs = {each: next(fragments.cheapest((each, MAIN), either))[0] for each in either.gpu_classes}
    assert costs[H100] < costs[a100]


asked = st.lists(
    st.one_of(
        st.builds(lambda gpus, cpus: shape(gpus=gpus, cpus=cpus), st.integers(1, 4), st.integers(1, 30)),
        st.builds(lambda share, cpus: shape(share=share, cpus=cpus), st.integers(1, 99), st.integers(1, 30)),
        st.builds(lambda gpus, nodes: shape(gpus=gpus, nodes=nodes), st.integers(1, 3), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), asked)
def test_every_rule_places_what_best_fit_would_and_nothing_else(sizes: list[int], shapes: list) -> None:  # type: ignore[type-arg]
    capacity, mix = _capacity(*(node(f"n{index}", gpus=gpus) for index, gpus in enumerate(sizes))), Mix()
    fragments = Fragments(capacity, mix)
    taken = []
    for number, each in enumerate(shapes):
        mix.add(each)
        by_rule = place_by(fragments.cheapest, capacity, each, (H100, [MAIN]))
        assert (by_rule is None) == (place(capacity, each, H100, {}) is None)
        if by_rule is not None:
            for grant in by_rule:
                capacity.take(grant)
            taken.append(by_rule)
            assert len({grant.node for grant in by_rule}) == each.nodes
            assert sum(grant.units * len(grant.devices) for grant in by_rule) == each.total_units
        if number % 3 == 2 and taken:
            for grant in taken.pop(0):
                capacity.give_back(grant)
        capacity.check()


def test_placement_at_random_is_the_same_for_the_same_seed_and_differs_for_another() -> None:
    def nodes_under(seed: int) -> list[list[str]]:
        policy = Policy(placement=Placement.RANDOM, seed=seed)
        centre = Centre(*(node(f"n{index}") for index in range(8)), policy=policy)
        jobs = [centre.submit(job(gpus=1)) for _ in range(12)]
        centre.tick()
        assert all(centre.state.jobs[each].state is JobState.RUNNING for each in jobs)
        return [centre.nodes_of(each) for each in jobs]

    assert nodes_under(1) == nodes_under(1)
    assert nodes_under(1) != nodes_under(2)


def test_the_whole_planner_runs_by_expected_fragmentation() -> None:
    centre = Centre(node("n1", gpus=2), node("n2", gpus=2), policy=Policy(placement=Placement.FGD))
    shares = [centre.submit(job(like=shape(share=50))) for _ in range(2)]
    centre.tick()
    pair = centre.submit(job(gpus=2))
    centre.tick()
    assert centre.running() == {*shares, pair}
