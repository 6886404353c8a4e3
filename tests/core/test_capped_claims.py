"""Elements of arrays with a cap take the place of others like any job, and never more of them than the cap lets."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.lifecycle import ACTIVE
from scheduler.core.model import BookingWanted, EndReason, JobId, Phase
from scheduler.core.policy import Policy
from scheduler.core.reasons import ReasonCode
from scheduler.executor import NodeInventory
from tests.builders import account, job, node
from tests.harness import Centre

ARRAYS = (JobId(900), JobId(901))


def _submit(centre: Centre, array: JobId, count: int, cap: int, gpus: int = 2, project: str = "vip/p") -> list[JobId]:
    element = job(gpus=gpus, project=project)
    return [centre.submit(replace(element, array=array, array_index=index, array_cap=cap)) for index in range(count)]


def _check_caps(centre: Centre) -> None:
    """What holds GPUs and what others were stopped for is together within each array's cap."""
    state = centre.state
    for array in ARRAYS:
        mine = [each for each in state.jobs.values() if each.array == array]
        holding = [each for each in mine if each.state in ACTIVE or each.id in state.claims.by_job]
        assert all(len(holding) <= (each.array_cap or 0) for each in mine), f"array {array} has {len(holding)} places"


@pytest.mark.parametrize("cap", [1, 2, 4])
def test_a_capped_array_gets_its_guarantee_up_to_its_cap_and_the_next_element_follows(cap: int) -> None:
    nodes = [node(f"n{index}", gpus=2) for index in range(4)]
    centre = Centre(*nodes, accounts=(account("vip", guarantee=8),), policy=Policy(preemption_attempts=9))
    for _ in nodes:
        centre.submit(job(gpus=2, project="red/a"))
    centre.tick()
    elements = _submit(centre, ARRAYS[0], 6, cap)
    made = centre.tick()
    assert [claim.job for claim in made.claims] == elements[:cap]
    assert centre.why(elements[0]) is ReasonCode.PREEMPTING
    assert centre.why(elements[cap]) is ReasonCode.ARRAY_LIMIT
    assert not centre.tick().claims, "the claims hold the places under the cap"
    centre.settle()
    assert centre.running() & set(elements) == set(elements[:cap])
    centre.end(elements[0])
    centre.settle()
    assert elements[cap] in centre.running()


def test_the_place_of_an_element_that_is_held_or_cancelled_before_its_start_is_anothers() -> None:
    for is_held in (True, False):
        centre = Centre(node("n1"), accounts=(account("vip", guarantee=8),))
        centre.submit(job(gpus=8, project="red/a"))
        centre.tick()
        first, second, _ = _submit(centre, ARRAYS[0], 3, 1, gpus=8)
        assert [claim.job for claim in centre.tick().claims] == [first]
        if is_held:
            centre.hold(first)
        else:
            centre.cancel(first)
        centre.settle()
        assert second in centre.running()
        if is_held:
            centre.release(first)
            centre.settle()
            assert first not in centre.running(), "its array is at its cap"


steps = st.lists(
    st.one_of(
        st.tuples(st.just("array"), st.integers(0, 1), st.integers(1, 4)),
        st.tuples(st.just("burst"), st.integers(1, 4), st.integers(1, 2)),
        st.tuples(st.just("gone"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("end"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("hold"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("lose"), st.just(0), st.just(0)),
    ),
    min_size=4,
    max_size=24,
)


@settings(max_examples=80, deadline=None)
@given(st.tuples(st.integers(1, 2), st.integers(1, 2)), steps)
def test_no_array_ever_has_more_places_than_its_cap_lets(
    caps: tuple[int, int], history: list[tuple[str, int, int]]
) -> None:
    inventory = [node(f"n{index}", gpus=4) for index in range(2)]
    centre = Centre(*inventory, accounts=(account("vip", guarantee=6),))
    for _ in range(2):
        centre.submit(job(gpus=4, project="red/a"))
    centre.tick()
    for kind, what, count in history:
        _step(centre, inventory, caps, (kind, what, count))
        _check_caps(centre)
        centre.advance(minutes=3)
        centre.tick()
        _check_caps(centre)
    centre.settle()
    _check_caps(centre)
    assert not centre.state.claims.by_job


def _step(centre: Centre, inventory: list[NodeInventory], caps: tuple[int, int], step: tuple[str, int, int]) -> None:
    kind, what, count = step
    state = centre.state
    leaving = sorted(each.job for each in state.allocations.values() if each.phase is Phase.STOPPING)
    waiting = sorted(each.id for each in state.jobs.values() if each.state == "pending")
    running = sorted(centre.running())
    if kind == "array":
        _submit(centre, ARRAYS[what], count, caps[what], gpus=1 + what)
    elif kind == "burst":
        centre.submit(job(gpus=what, project="red/a", wanted=list(BookingWanted)[2 * (count - 1)]))
    elif kind == "gone" and leaving:
        centre.end(leaving[what % len(leaving)], EndReason.PREEMPTED)
    elif kind == "end" and running:
        centre.end(running[what % len(running)])
    elif kind == "cancel" and waiting:
        centre.cancel(waiting[what % len(waiting)])
    elif kind == "hold" and waiting:
        centre.hold(waiting[what % len(waiting)])
    elif kind == "lose":
        centre.down(inventory[0])
        centre.node(inventory[0])
