"""Queries of the API alone, on both databases: whose jobs these are, which have ended, what is free where."""

from scheduler.core.model import JobId, JobState, NodeName
from scheduler.store import lookups
from scheduler.store.inventory import SetDrain
from tests.store.harness import ACME, H200, Centre, draft


def test_an_arrays_own_id_means_its_elements_and_an_index_one_of_them(centre: Centre) -> None:
    [single] = centre.submit(draft())
    array = centre.submit(draft(array_indexes=(3, 5)))
    with centre.database.read() as connection:
        refs = [(single, None), (array[0], None), (array[0], 5), (array[1], None), (array[0], 4), (JobId(99), None)]
        found = lookups.owners(connection, refs)
    assert {ref: tuple(owner.id for owner in owners) for ref, owners in found.items()} == {
        (single, None): (single,),
        (array[0], None): array,
        (array[0], 5): (array[1],),
        (array[1], None): (array[1],),
    }


def test_jobs_that_ended_or_are_unknown_are_told_from_live_ones(centre: Centre) -> None:
    allocation = centre.run("n0/0")
    [waiting] = centre.submit(draft())
    ended = centre.run("n0/1")
    centre.ended(ended)
    with centre.database.read() as connection:
        found = lookups.ended_among(connection, {allocation.job, waiting, ended.job, JobId(99)})
    assert found == {ended.job, JobId(99)}
    assert centre.job_state(waiting) is JobState.PENDING


def test_nodes_tell_what_is_free_who_holds_the_rest_and_who_drained_them(centre: Centre) -> None:
    allocation = centre.run("n0/0", "n0/1")
    share = centre.run("n1/0", units=6300)
    centre.do(SetDrain(NodeName("n1"), "fan", "olga"))
    with centre.database.read() as connection:
        first, second = lookups.node_counts(connection)
        held = lookups.held_units(connection, ACME)
        pending = lookups.pending_by_class(connection)
    assert (first.gpus, first.gpus_free, first.drained_by, first.jobs) == (4, 2, None, (allocation.job,))
    assert (second.gpus, second.gpus_free, second.drained_by, second.jobs) == (4, 0, "operator", (share.job,))
    assert held == {H200: 2 * 12_600 + 6300}
    assert pending == {}


def test_a_nodes_history_has_its_closed_intervals_newest_first(centre: Centre) -> None:
    allocation = centre.run("n0/0")
    centre.clock.advance(minutes=1)
    centre.ended(allocation)
    with centre.database.read() as connection:
        devices, intervals = lookups.node_history(connection, NodeName("n0"), 10)
        nobody = lookups.node_history(connection, NodeName("n9"), 10)
    assert devices == ["n0/0", "n0/1", "n0/2", "n0/3"]
    assert {each.device for each in intervals} == {"n0/0"}
    assert [each.from_ms for each in intervals] == sorted((each.from_ms for each in intervals), reverse=True)
    assert nobody == ([], [])
