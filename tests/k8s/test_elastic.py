"""Elastic gangs on Kubernetes: nodes beyond the least leave one gang of pods, and the rest of it runs on.

On the API server of ours and on a real control plane, as the contract is.
"""

from dataclasses import replace

from ulid import ULID

from k8s import names
from scheduler.core.model import AllocationId, EndReason
from scheduler.executor import Ended, Shrunk, StartOrder
from tests.k8s.grounds import Rig
from tests.k8s.test_contract import as_running


def elastic(rig: Rig, *, nodes: int = 3, least: int = 1, **spec: object) -> StartOrder:
    order = rig.order(nodes=nodes, **spec)  # type: ignore[arg-type] # passed through
    return replace(order, least_nodes=least, surplus=AllocationId(str(ULID())))


def without_surplus(order: StartOrder) -> StartOrder:
    grants = order.allocation.grants[: order.least_nodes]
    return replace(order, allocation=replace(order.allocation, grants=grants), surplus=None)


def until_shrunk(rig: Rig, order: StartOrder) -> Shrunk:
    def found() -> Shrunk | None:
        return next((n for n in rig.seen if isinstance(n, Shrunk) and n.allocation == order.allocation.id), None)

    return rig.until(found, "the loss of the surplus nodes")


def test_surplus_ranks_have_jobs_of_their_own_allocation_and_meet_the_others_under_one_service(rig: Rig) -> None:
    order = elastic(rig)
    rig.start(order)
    assert order.surplus is not None
    gang, surplus = names.gang_name(order.allocation), order.surplus.lower()
    found = {job["metadata"]["name"]: job["metadata"]["labels"].get(names.SURPLUS) for job in rig.jobs()}
    assert found == {f"{gang}-0": None, f"job-4711-{surplus}-1": order.surplus, f"job-4711-{surplus}-2": order.surplus}
    pods = rig.pods(order)
    assert [(pod.rank, pod.surplus) for pod in pods] == [(0, None), (1, order.surplus), (2, order.surplus)]
    specs = [rig.admin.get(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}")["spec"] for pod in pods]
    assert [(spec["hostname"], spec["subdomain"]) for spec in specs] == [(f"{gang}-{rank}", gang) for rank in range(3)]
    environments = [{each["name"]: each.get("value") for each in spec["containers"][0]["env"]} for spec in specs]
    for rank, environment in enumerate(environments):
        assert environment["PET_NODE_RANK"] == environment["TURNSTILE_NODE_RANK"] == str(rank)
        assert (environment["TURNSTILE_NODES"], environment["TURNSTILE_NODES_MIN"]) == ("3", "1")
        assert environment["MASTER_ADDR"] == f"{gang}-0.{gang}"


def test_a_gang_that_loses_its_surplus_runs_on_and_ends_as_if_it_had_never_had_it(rig: Rig) -> None:
    order = elastic(rig)
    rig.start(order)
    for _ in range(2):
        rig.executor.shrink(order.allocation.id, 1, 5.0, EndReason.PREEMPTED)
    shrunk = until_shrunk(rig, order)
    assert (shrunk.nodes, shrunk.reason, shrunk.at_ms <= rig.clock.now_ms()) == (1, EndReason.PREEMPTED, True)
    assert shrunk in rig.executor.observe(), "told until it is acknowledged"
    rig.executor.acknowledge_shrunk(order.allocation.id)
    assert not rig.executor.observe()
    rig.until(lambda: len(rig.jobs()) == len(rig.pods(order)) == 1, "removal of the Jobs of the surplus")
    rig.annotate(order, 0, fail="0")
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.reason) == (0, None)
    rig.executor.acknowledge(order.allocation.id)
    services = f"/api/v1/namespaces/{rig.namespace}/services"
    rig.until(lambda: not rig.admin.list_all(services)[0], "removal of its Service")


def test_a_gang_that_ends_while_its_surplus_leaves_tells_both_ends_apart(rig: Rig) -> None:
    order = elastic(rig)
    rig.start(order)
    rig.annotate(order, 2, term_seconds="2")
    rig.executor.shrink(order.allocation.id, 1, 30.0, EndReason.PREEMPTED)
    rig.annotate(order, 0, fail="0")
    ended = rig.until_ended(order)
    shrunk = until_shrunk(rig, order)
    assert (shrunk.nodes, shrunk.reason, ended.reason) == (1, EndReason.PREEMPTED, None)
    assert ended.at_ms <= shrunk.at_ms, "its own ranks had ended when the others still left"
    rig.executor.acknowledge_shrunk(order.allocation.id)
    assert rig.executor.observe() == [ended]
    rig.executor.acknowledge(order.allocation.id)
    assert not rig.executor.observe()


def test_a_daemon_killed_while_nodes_leave_lets_them_go_after_its_restart(rig: Rig) -> None:
    order = elastic(rig)
    started = rig.start(order)
    rig.annotate(order, 2, term_seconds="1")
    rig.executor.shrink(order.allocation.id, 1, 30.0, EndReason.PREEMPTED)
    rig.until(lambda: any(pod.is_deleting for pod in rig.pods(order)), "the request")
    rig.restart().recover([as_running(replace(order, is_shrinking=True), started.at_ms)])
    rig.executor.shrink(order.allocation.id, 1, 30.0, EndReason.PREEMPTED)
    shrunk = until_shrunk(rig, order)
    assert shrunk.nodes == 1
    # Killed again, between the commit of the loss and its acknowledgement.
    rig.restart().recover([as_running(without_surplus(order), started.at_ms)])
    rig.until(lambda: len(rig.jobs()) == 1, "removal of the Jobs of the surplus")
    assert [pod.rank for pod in rig.pods(order) if pod.usage is not None] == [0]
    assert not [news for news in rig.seen if isinstance(news, Ended)]


def test_a_restart_finds_a_gang_with_its_surplus_and_makes_nothing_new(rig: Rig) -> None:
    order = elastic(rig)
    started = rig.start(order)
    before = {pod.uid for pod in rig.pods(order)}
    rig.restart().recover([as_running(order, started.at_ms)])
    assert not rig.executor.observe()
    assert {pod.uid for pod in rig.pods(order)} == before
    assert len(rig.jobs()) == 3


def test_a_surplus_pod_that_somebody_takes_away_shrinks_the_gang_and_one_of_its_least_ends_it(rig: Rig) -> None:
    order = elastic(rig, least=2)
    rig.start(order)
    pods = rig.pods(order)
    rig.admin.delete(f"/api/v1/namespaces/{pods[2].namespace}/pods/{pods[2].name}")
    shrunk = until_shrunk(rig, order)
    assert (shrunk.nodes, shrunk.reason) == (2, EndReason.CANCELLED)
    assert not [news for news in rig.seen if isinstance(news, Ended)]
    rig.executor.acknowledge_shrunk(order.allocation.id)
    rig.admin.delete(f"/api/v1/namespaces/{pods[1].namespace}/pods/{pods[1].name}")
    assert rig.until_ended(order).reason is EndReason.CANCELLED


def test_a_surplus_rank_that_fails_by_itself_ends_the_gang(rig: Rig) -> None:
    order = elastic(rig, nodes=2)
    rig.start(order)
    rig.annotate(order, 1, fail="7")
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.reason) == (7, EndReason.EXIT_NONZERO)


def test_the_output_of_ranks_that_left_is_kept(rig: Rig) -> None:
    if rig.ground.server is None:
        return  # nobody writes logs for the fake nodes of the real control plane
    order = elastic(rig, nodes=2)
    rig.start(order)
    rig.executor.shrink(order.allocation.id, 1, 5.0, EndReason.PREEMPTED)
    until_shrunk(rig, order)
    rig.executor.acknowledge_shrunk(order.allocation.id)
    rig.until(lambda: len(rig.pods(order)) == 1, "removal of the pod")

    def kept() -> bool:
        return rig.executor._keeper.kept(order.allocation.id, 1, 0, 100) is not None

    rig.until(kept, "its log")


def test_surplus_that_is_taken_before_the_gang_was_made_goes_at_once_and_the_rest_starts(rig: Rig) -> None:
    order = replace(elastic(rig), is_shrinking=True)
    rig.executor.recover([order])
    rig.executor.shrink(order.allocation.id, 1, 5.0, EndReason.PREEMPTED)
    assert until_shrunk(rig, order).nodes == 1
    assert rig.until_started(order).allocation == order.allocation.id
    rig.executor.acknowledge_shrunk(order.allocation.id)
    rig.until(lambda: len(rig.jobs()) == 1, "removal of the Jobs of the surplus")
    assert not [news for news in rig.seen if isinstance(news, Ended)]


def test_a_stop_while_nodes_leave_ends_all_of_the_gang_for_its_own_reason(rig: Rig) -> None:
    order = elastic(rig)
    rig.start(order)
    rig.annotate(order, 1, term_seconds="1")
    rig.executor.shrink(order.allocation.id, 1, 30.0, EndReason.PREEMPTED)
    rig.executor.stop(order.allocation.id, 5.0, EndReason.CANCELLED)
    assert rig.until_ended(order).reason is EndReason.CANCELLED
    rig.executor.acknowledge(order.allocation.id)
    rig.until(lambda: not rig.jobs() and not rig.pods(order), "removal of all of it")
