"""What would start a waiting job sooner, tried against the planner; and jobs that are only supposed to be there."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.cycle import plan
from scheduler.core.model import BookingWanted, GpuClass, Job, JobId
from scheduler.core.plan import Plan
from scheduler.core.sooner import MOST_TOLD, suggestions
from scheduler.core.supposing import ASKED_ID, supposed
from tests.builders import HOUR_MS, account, job, node, shape
from tests.harness import Centre

BOOKINGS = st.sampled_from(BookingWanted)
PROJECTS = st.sampled_from(("acme/nlp", "acme/vision", "beta/x"))


@st.composite
def centres(draw: st.DrawFn) -> tuple[Centre, list[JobId]]:
    """A centre of two classes with jobs that run and jobs that wait, some with a promise; the ids of all."""
    nodes = [node(f"n{number}", gpus=draw(st.integers(1, 4))) for number in range(draw(st.integers(1, 4)))]
    other = [node("a1", gpus=draw(st.integers(1, 4)), gpu_class="A100", pool="old")] if draw(st.booleans()) else []
    limits = (account("acme", limit=draw(st.integers(2, 9))),) if draw(st.booleans()) else ()
    centre = Centre(*nodes, *other, accounts=(*limits, account("beta", guarantee=draw(st.integers(0, 2)))))
    ids = []
    for _ in range(draw(st.integers(2, 9))):
        asked = job(
            project=draw(PROJECTS),
            gpus=draw(st.integers(1, 4)),
            nodes=draw(st.integers(1, 3)),
            wanted=draw(BOOKINGS),
            limit_ms=draw(st.integers(1, 30)) * HOUR_MS,
        )
        ids.append(centre.submit(asked))
        centre.advance(minutes=draw(st.integers(0, 90)))
        if draw(st.booleans()):
            centre.tick()
    centre.tick()
    return centre, ids


def plan_anew(centre: Centre) -> Plan:
    """Plans with every promise sought again, also those of which it is known that nothing is to be gained."""
    known, centre.state.promised_version = centre.state.promised_version, -1
    made = plan(centre.state, centre.policy, centre.now_ms, 7)
    centre.state.promised_version = known
    return made


@settings(max_examples=60, deadline=None)
@given(centres(), st.data())
def test_a_job_changed_as_it_is_told_starts_in_the_next_tick(
    made: tuple[Centre, list[JobId]], data: st.DataObject
) -> None:
    centre, _ = made
    waiting = sorted(each for each, found in centre.state.jobs.items() if found.state.value == "pending")
    if not waiting:
        return
    asked = data.draw(st.sampled_from(waiting))
    found = suggestions(centre.state, centre.policy, centre.now_ms, asked)
    assert len(found) <= MOST_TOLD
    if not found:
        return
    chosen = data.draw(st.sampled_from(found))
    centre.cancel(asked)
    new = centre.submit(chosen)
    centre.tick()
    assert new in centre.running()


@settings(max_examples=60, deadline=None)
@given(centres())
def test_asking_leaves_the_state_and_the_next_plan_as_they_were(made: tuple[Centre, list[JobId]]) -> None:
    centre, ids = made
    facts, promises = centre.state.facts(), dict(centre.state.reservations)
    shapes = list(centre.state.waiting.shapes)
    before = plan(centre.state, centre.policy, centre.now_ms, 7)
    assert plan_anew(centre) == before
    for each in ids:
        if each in centre.state.jobs:
            suggestions(centre.state, centre.policy, centre.now_ms, each)
    centre.state.check()
    assert centre.state.facts() == facts
    assert centre.state.reservations == promises
    assert centre.state.waiting.shapes == shapes
    assert plan(centre.state, centre.policy, centre.now_ms, 7) == before


def test_what_a_claim_that_lapsed_had_booked_serves_who_is_promised_a_start() -> None:
    centre = Centre(node("n0", gpus=2), node("n1", gpus=4))
    centre.submit(job(gpus=4, wanted=BookingWanted.SPOT, limit_ms=13 * HOUR_MS))
    centre.tick()
    centre.advance(minutes=250)
    gang = centre.submit(job(project="beta/x", gpus=2, nodes=2, wanted=BookingWanted.SPOT))
    claims = centre.submit(job(project="acme/vision", gpus=4, limit_ms=30 * HOUR_MS))
    assert [each.job for each in centre.tick().claims] == [claims]
    behind_ms = centre.state.reservations[gang].start_ms
    centre.cancel(claims)
    assert centre.tick().lapses
    assert plan(centre.state, centre.policy, centre.now_ms, 7) == plan_anew(centre)
    centre.tick()
    assert centre.state.reservations[gang].start_ms < behind_ms


def test_a_gang_is_told_the_nodes_that_are_free_and_the_longest_limit_that_fits_before_a_promise() -> None:
    centre = Centre(*(node(f"n{number}", gpus=1) for number in range(3)))
    centre.submit(job(limit_ms=3 * HOUR_MS))
    centre.tick()
    big = centre.submit(job(nodes=3, limit_ms=HOUR_MS))
    centre.tick()
    told = suggestions(centre.state, centre.policy, centre.now_ms, big)
    assert [each.shape.nodes for each in told] == [2]
    waits = centre.submit(job(nodes=2, limit_ms=24 * HOUR_MS))
    centre.tick()
    found = suggestions(centre.state, centre.policy, centre.now_ms, waits)
    assert [each.time_limit_ms for each in found if each.shape.nodes == 2][:1] == [2 * HOUR_MS]


def test_another_class_is_told_where_it_is_free() -> None:
    centre = Centre(node(gpus=1), node("a1", gpus=1, gpu_class="A100", pool="old"))
    centre.submit(job())
    waits = centre.submit(job())
    centre.tick()
    found = suggestions(centre.state, centre.policy, centre.now_ms, waits)
    assert [each.shape.gpu_classes for each in found] == [(GpuClass("A100"),)]


def test_nothing_is_told_of_a_job_that_nothing_would_start() -> None:
    centre = Centre(node(gpus=1))
    centre.submit(job())
    waits = centre.submit(job())
    centre.tick()
    assert suggestions(centre.state, centre.policy, centre.now_ms, waits) == ()


def test_a_job_that_is_supposed_stands_in_line_and_is_gone_afterwards_even_after_an_error() -> None:
    centre = Centre(node(gpus=2))
    asked: Job = replace(job(), shape=shape(gpus=2))
    with supposed(centre.state, asked, centre.now_ms) as stands:
        assert stands.id == ASKED_ID
        assert [start.job for start in plan(centre.state, centre.policy, centre.now_ms).starts] == [ASKED_ID]
    with pytest.raises(ZeroDivisionError), supposed(centre.state, asked, centre.now_ms):
        assert 1 // 0
    centre.state.check()
    assert centre.state.jobs == {}
    assert centre.state.waiting.shapes == []
