"""The replay against what can be worked out by hand, and against itself."""

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.model import Account, AccountId, BookingWanted, GpuClass, UserName
from scheduler.core.policy import Policy
from scheduler.figures import summary
from scheduler.replay import Replay
from scheduler.scenario import TraceJob
from tests.builders import node, shape


def _job(
    label: str,
    at: int,
    seconds: int,
    gpus: int = 1,
    nodes: int = 1,
    limit: int = 10**6,
    tenant: str = "a",
    most: int | None = None,
) -> TraceJob:
    return TraceJob(
        label,
        at * 1000,
        seconds * 1000,
        limit * 1000,
        AccountId(f"{tenant}/main"),
        UserName(tenant),
        shape(gpus=gpus, nodes=nodes, most_nodes=most),
        BookingWanted.AUTO,
        0,
        {},
    )


def test_two_jobs_on_one_gpu_run_one_after_the_other() -> None:
    replay = Replay([node(gpus=1)], [_job("x", 0, 60), _job("y", 10, 60)], Policy()).run()
    assert [(run.label, run.start_ms, run.end_ms) for run in replay.schedule] == [
        ("x", 0, 60_000),
        ("y", 60_000, 120_000),
    ]
    report = replay.report()
    assert report["makespan_seconds"] == 120
    assert report["wait_seconds"] == {"mean": 25.0, "p50": 0.0, "p95": 50.0, "p99": 50.0, "max": 50.0}
    assert report["utilization_ratio"] == 1.0
    assert report["bounded_slowdown"]["max"] == 110 / 60  # type: ignore[index] # a table of figures


def test_a_job_past_its_limit_ends_there() -> None:
    replay = Replay([node(gpus=1)], [_job("x", 0, 100, limit=30)], Policy()).run()
    assert [(run.end_ms, run.end_reason) for run in replay.schedule] == [(30_000, "walltime")]


def test_a_job_that_no_node_could_hold_is_counted_and_left_out() -> None:
    replay = Replay(
        [node(gpus=4)], [_job("big", 0, 10, gpus=8), _job("wide", 0, 10, nodes=2), _job("ok", 0, 10)], Policy()
    ).run()
    report = replay.report()
    assert (report["jobs"], report["completed_jobs"], report["unplaced_jobs"]) == (3, 1, 2)


traces = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 40), st.integers(1, 4), st.integers(1, 2), st.sampled_from("ab")),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(traces)
def test_no_gpu_is_held_twice_and_every_job_that_fits_ends(rows: list[tuple[int, int, int, int, str]]) -> None:
    trace = [
        _job(str(i), at, seconds, gpus, nodes, tenant=who)
        for i, (at, seconds, gpus, nodes, who) in enumerate(sorted(rows))
    ]
    cluster = [node("n1", gpus=4), node("n2", gpus=4)]
    replay = Replay(cluster, trace, Policy()).run()
    assert all(run.end_ms is not None for run in replay.runs)
    sizes = {job.label: job.shape.gpus_per_node for job in trace}
    for moment in {run.start_ms for run in replay.schedule}:
        for name in ("n1", "n2"):
            held = sum(
                sizes[run.label] for run in replay.schedule if run.start_ms <= moment < run.end_ms and name in run.nodes
            )
            assert held <= 4
    assert Replay(cluster, trace, Policy()).run().schedule == replay.schedule


def test_percentiles_are_by_nearest_rank_and_nothing_has_none() -> None:
    assert summary([]) == {"mean": None, "p50": None, "p95": None, "p99": None, "max": None}
    assert summary([4.0, 1.0, 3.0, 2.0]) == {"mean": 2.5, "p50": 2.0, "p95": 4.0, "p99": 4.0, "max": 4.0}


def test_an_elastic_gang_works_faster_on_more_nodes_and_slower_when_it_loses_them() -> None:
    cluster = [node(f"n{number}", gpus=1) for number in range(4)]
    alone = Replay(cluster, [_job("x", 0, 400, nodes=1, most=4)], Policy()).run()
    assert [(run.start_ms, run.end_ms, len(run.nodes)) for run in alone.schedule] == [(0, 100_000, 3), (0, 100_000, 1)]
    assert alone.report()["per_tenant"][0]["gpu_seconds"] == 400  # type: ignore[index] # a table of figures
    vip = Account(AccountId("vip"), guarantee={GpuClass("H100"): 3})
    trace = [_job("x", 0, 400, nodes=1, most=4), _job("y", 40, 100, nodes=3, tenant="vip")]
    shrunk = Replay(cluster, trace, Policy(), accounts=[vip]).run()
    # 160 of 400 are done when three nodes go; the rest takes 240 s on one.
    assert [(run.label, run.start_ms, run.end_ms, run.end_reason) for run in shrunk.schedule] == [
        ("x", 0, 40_000, "preempted"),
        ("y", 40_000, 140_000, "completed"),
        ("x", 0, 280_000, "completed"),
    ]
    assert shrunk.report()["preemptions"] == 0, "no job was stopped"
    limited = Replay(cluster[:2], [_job("x", 0, 400, nodes=1, most=4, limit=150)], Policy()).run()
    assert {(run.end_ms, run.end_reason) for run in limited.schedule} == {(150_000, "walltime"), (150_000, "completed")}
