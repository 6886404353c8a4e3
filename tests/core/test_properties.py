"""Properties of the planner over random centres and histories, with a naive model beside it."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.cycle import plan
from scheduler.core.model import GPU_UNITS, EndReason, Job, JobState
from scheduler.core.policy import Policy
from scheduler.core.state import ClusterState, lineage
from scheduler.executor import NodeInventory
from tests.builders import account, job, node, shape
from tests.harness import Centre

nodes = st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["a", "b"])), min_size=1, max_size=5)
sizes = st.tuples(st.integers(1, 4), st.integers(1, 3))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), sizes, st.sampled_from(["x/p", "x/q", "y/p"]), st.integers(-1, 1)),
        st.tuples(st.just("end"), st.integers(0, 9), st.sampled_from([None, EndReason.NODE_LOST]), st.none()),
        st.tuples(st.just("cancel"), st.integers(0, 99), st.none(), st.none()),
        st.tuples(st.just("lose"), st.integers(0, 9), st.none(), st.none()),
        st.tuples(st.just("mend"), st.integers(0, 9), st.none(), st.none()),
        st.tuples(st.just("share"), st.integers(1, 99), st.none(), st.none()),
    ),
    max_size=30,
)


def _naive_fit(state: ClusterState, waiting: Job) -> bool:
    """Whether a gang of whole GPUs fits the free devices, by counting each node by hand."""
    wanted, gpus = waiting.shape, waiting.shape.gpus_per_node
    found = 0
    for room in state.capacity.rooms.values():
        held = {
            device
            for allocation in state.allocations.values()
            for grant in allocation.grants
            if grant.node == room.node.name
            for device in grant.devices
        }
        free = [device for device in room.devices if device.id not in held and device.health == "ok"]
        found += room.node.availability == "up" and len(free) >= gpus
    return found >= wanted.nodes


def _run(
    sizes_of_nodes: list[tuple[int, str]],
    history: list[tuple[str, object, object, object]],
    policy: Policy | None = None,
) -> Centre:
    inventory = [node(f"n{index}", gpus=gpus, pool=pool) for index, (gpus, pool) in enumerate(sizes_of_nodes)]
    centre = Centre(
        *inventory, accounts=(account("x", limit=6, guarantee=2), account("x/p", limit=5), account("y")), policy=policy
    )
    for step in history:
        _step(centre, inventory, step)
        centre.advance(seconds=45)
        centre.tick()
    return centre


def _step(centre: Centre, inventory: list[NodeInventory], step: tuple[str, object, object, object]) -> None:
    kind, what, detail, more = step
    if kind == "submit":
        assert isinstance(what, tuple)
        centre.submit(job(gpus=what[0], nodes=what[1], project=str(detail), priority=int(str(more))))
        return
    assert isinstance(what, int)
    live = sorted(centre.state.jobs)
    running = sorted(centre.running())
    if kind == "share":
        centre.submit(job(like=shape(share=what), project="y/p"))
    elif kind == "end" and running:
        reason = detail if isinstance(detail, EndReason) else None
        centre.end(running[what % len(running)], reason)
    elif kind == "cancel" and live:
        centre.cancel(live[what % len(live)])
    elif kind == "lose":
        centre.down(inventory[what % len(inventory)])
    elif kind == "mend":
        centre.node(inventory[what % len(inventory)])


@settings(max_examples=120, deadline=None)
@given(nodes, steps)
def test_what_fits_is_permitted_and_delays_no_promise_starts_in_this_tick(
    sizes_of_nodes: list[tuple[int, str]], history: list[tuple[str, object, object, object]]
) -> None:
    centre = _run(sizes_of_nodes, history, Policy(promised_jobs=0, promise_after_ms=None))  # with some: test_promises
    state = centre.state
    for waiting in state.jobs.values():
        if waiting.state is not JobState.PENDING or (waiting.begin_ms or 0) > centre.now_ms or waiting.shape.is_share:
            continue
        over = any(
            waiting.shape.total_units
            + sum(a.total_units for a in state.allocations.values() if name in lineage(a.account))
            > limit * GPU_UNITS
            for name in lineage(waiting.account)
            for limit in (state.accounts[name].limit.values() if name in state.accounts else ())
        )
        assert over or not _naive_fit(state, waiting), f"{waiting} fits and does not start"


@settings(max_examples=60, deadline=None)
@given(nodes, steps)
def test_a_state_built_from_the_same_events_makes_the_same_plan(
    sizes_of_nodes: list[tuple[int, str]], history: list[tuple[str, object, object, object]]
) -> None:
    centre = _run(sizes_of_nodes, history)
    again = ClusterState()
    for event in centre.log:
        again.apply(event)
    again.release_due(centre.now_ms)
    again.check()
    assert again.facts() == centre.state.facts()
    bare = plan(again, Policy(), centre.now_ms, is_bare=True)
    made = plan(centre.state, Policy(), centre.now_ms)
    assert repr(plan(again, Policy(), centre.now_ms)) == repr(made)
    assert bare == replace(made, verdicts={}, blocks={}, terms={}), "a replay decides as the daemon does"


@settings(max_examples=60, deadline=None)
@given(nodes, steps)
def test_every_waiting_job_has_one_dominating_reason(
    sizes_of_nodes: list[tuple[int, str]], history: list[tuple[str, object, object, object]]
) -> None:
    centre = _run(sizes_of_nodes, history)
    centre.tick()
    for waiting in centre.state.jobs.values():
        if waiting.state is JobState.PENDING:
            assert centre.why(waiting.id) is not None


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(1, 100), min_size=1, max_size=20))
def test_shares_never_add_up_to_more_than_a_gpu(gpus: int, percents: list[int]) -> None:
    centre = Centre(node(gpus=gpus))
    for percent in percents:
        centre.submit(job(like=shape(share=percent)) if percent < 100 else job())
    centre.tick()  # the harness checks every device's sum after the tick
    for waiting in list(centre.state.jobs.values()):
        if waiting.state is JobState.RUNNING:
            centre.end(waiting.id)
        else:
            assert replace(waiting).state is JobState.PENDING
    centre.tick()
