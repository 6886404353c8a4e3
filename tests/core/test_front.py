"""The front of the line as lists show it: the same places that `why` tells, and what is promised."""

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.explain import explain
from scheduler.core.front import front
from scheduler.core.model import JobState
from scheduler.core.plan import Plan
from tests.builders import job, node, shape
from tests.harness import Centre


def crowded(sizes: list[tuple[int, str, str]]) -> Centre:
    centre = Centre(node("h1"), node("a1", gpu_class="A100"))
    for gpus, gpu_class, project in sizes:
        centre.submit(job(project=project, like=shape(gpus=gpus, gpu_class=gpu_class)))
    centre.tick()
    return centre


def planned(centre: Centre) -> Plan:
    assert centre.last is not None
    return centre.last


SIZES = st.lists(
    st.tuples(st.sampled_from([1, 4, 8]), st.sampled_from(["H100", "A100"]), st.sampled_from(["acme/nlp", "zeta/lab"])),
    max_size=14,
)


@settings(max_examples=60)
@given(SIZES)
def test_every_place_in_a_list_is_the_one_that_why_tells(sizes: list[tuple[int, str, str]]) -> None:
    centre = crowded(sizes)
    found = front(centre.state, planned(centre))
    waiting = [each.id for each in centre.state.jobs.values() if each.state is JobState.PENDING]
    assert set(found.positions) == set(waiting)
    for id_ in waiting:
        assert found.positions[id_] == explain(centre.state, planned(centre), id_).position


def test_no_more_places_are_counted_than_were_asked_for() -> None:
    centre = crowded([(8, "H100", "acme/nlp")] * 9)
    assert sorted(front(centre.state, planned(centre), 3).positions.values()) == [1, 2, 3]


def test_a_promised_start_is_told_and_is_that_of_the_plan() -> None:
    centre = crowded([(8, "H100", "acme/nlp")] * 2)
    found = front(centre.state, planned(centre))
    assert {each.job for each in planned(centre).reservations} == set(found.promised)
    for each in planned(centre).reservations:
        assert found.promised[each.job].late_ms == each.start_ms
        assert found.promised[each.job].is_promised
    assert found.promised
