"""What goes wrong in a cluster becomes a state and a reason, and nothing is doubled or lost by it."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from k8s import names
from k8s.crew import WORKERS
from k8s.problems import KubernetesProblem, Unreachable
from scheduler.core.model import EndReason, NodeAvailability
from scheduler.executor import Ended, ExecutorError, StartOrder, StartRefused
from tests.k8s.apiserver import ApiServer, Asked, Fault
from tests.k8s.controllers import PREFIX
from tests.k8s.grounds import FAST_REQUESTS, Ground, Rig, until
from tests.k8s.store import Json
from tests.k8s.test_elastic import elastic, until_shrunk


@pytest.fixture
def rig_with(memory: Ground) -> Iterator[Callable[..., Rig]]:
    built: list[Rig] = []

    def make(**times: float) -> Rig:
        built.append(Rig(memory, **times))
        return built[-1]

    yield make
    for rig in built:
        server_of(rig).faults.clear()
        server_of(rig).denied.clear()
        rig.close()


@pytest.fixture
def rig(rig_with: Callable[..., Rig]) -> Rig:
    return rig_with()


def server_of(rig: Rig) -> ApiServer:
    assert rig.ground.server is not None
    return rig.ground.server


def change_pod(rig: Rig, order: StartOrder, change: Callable[[Json], None], rank: int = 0) -> None:
    pod = rig.pods(order)[rank]
    with server_of(rig).store.lock:
        server_of(rig).store.update(("pods", pod.namespace, pod.name), change)


def fail_with(rig: Rig, order: StartOrder, **status: object) -> Ended:
    change_pod(rig, order, lambda item: item["status"].update({"phase": "Failed", **status}))
    return rig.until_ended(order)


def change_node(rig: Rig, name: str, change: Callable[[Json], None]) -> None:
    with server_of(rig).store.lock:
        server_of(rig).store.update(("nodes", "", name), change)


# ---- how pods end --------------------------------------------------------------------------------------------------


def test_a_kernels_kill_for_memory_is_oom(rig: Rig) -> None:
    order = rig.order()
    rig.start(order)
    rig.annotate(order, why="OOMKilled", fail="137")
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.reason) == (137, EndReason.OOM)


@pytest.mark.parametrize(
    ("why", "message", "reason"),
    [
        ("Evicted", "The node was low on resource: memory.", EndReason.NODE_LOST),
        ("Evicted", 'Usage of EmptyDir volume "dshm" exceeds the limit "4Gi".', EndReason.OOM),
        ("Shutdown", "Node is shutting, evicting pods", EndReason.NODE_LOST),
        ("UnexpectedAdmissionError", "requested number of devices unavailable", EndReason.GPU_ERROR),
        ("OutOfnvidia.com/gpu", "Node didn't have enough resource", EndReason.GPU_ERROR),
        ("NodeAffinity", "Predicate NodeAffinity failed", EndReason.NODE_LOST),
        ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline", EndReason.WALLTIME),
    ],
)
def test_what_the_kubelet_does_to_a_pod_has_its_reason(rig: Rig, why: str, message: str, reason: EndReason) -> None:
    order = rig.order()
    rig.start(order)
    ended = fail_with(rig, order, reason=why, message=message)
    assert ended.reason is reason
    assert message in (ended.detail or "")


@pytest.mark.parametrize(
    ("waiting", "reason"),
    [
        ("InvalidImageName", EndReason.IMAGE_PULL),
        ("ImagePullBackOff", EndReason.IMAGE_PULL),
        ("CreateContainerConfigError", EndReason.LAUNCH_FAILED),
    ],
)
def test_a_container_that_cannot_be_made_ends_its_job_in_the_kubelets_words(
    rig_with: Callable[..., Rig], waiting: str, reason: EndReason
) -> None:
    rig = rig_with(image_seconds=0.5)
    order = rig.order()
    rig.options = replace(rig.options, pods=replace(rig.options.pods, annotations={PREFIX + "waiting": waiting}))
    rig.restart().recover([])
    rig.executor.start(order)
    ended = rig.until_ended(order)
    assert (ended.reason, ended.started_ms) == (reason, None)
    assert waiting in (ended.detail or "")


def test_a_sidecar_that_never_ends_does_not_keep_its_job(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k8s.runs.LINGER_MS", 300)
    order = rig.order()
    rig.start(order)

    def end_the_job_alone(item: Json) -> None:
        started = item["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]
        over = {"exitCode": 0, "reason": "Completed", "startedAt": started, "finishedAt": started}
        sidecar = {"name": "proxy", "state": {"running": {"startedAt": started}}}
        item["status"]["containerStatuses"] = [{"name": names.CONTAINER, "state": {"terminated": over}}, sidecar]

    change_pod(rig, order, end_the_job_alone)
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.reason) == (0, None)


def test_a_pod_that_a_drain_evicts_sends_its_job_back(rig: Rig) -> None:
    order = rig.order()
    rig.start(order)
    word = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "evicted"}
    change_pod(rig, order, lambda item: item["status"].update(conditions=[word]))
    pod = rig.pods(order)[0]
    rig.admin.delete(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}")
    ended = rig.until_ended(order)
    assert ended.reason is EndReason.NODE_LOST
    assert "EvictionByEvictionAPI" in (ended.detail or "")


# ---- nodes ---------------------------------------------------------------------------------------------------------


def silence(rig: Rig, name: str) -> None:
    """What the control plane writes of a node that it no longer hears."""
    word = {"type": "Ready", "status": "Unknown", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}
    rig.annotate_node(name, state="silent")
    stamp = server_of(rig).store.stamp()
    change_node(rig, name, lambda item: item["status"].update(conditions=[word | {"lastTransitionTime": stamp}]))


def test_a_silent_nodes_jobs_end_at_its_last_sign_of_life(rig_with: Callable[..., Rig]) -> None:
    rig = rig_with(node_lost_seconds=1.0)
    order = rig.order(nodes=2)
    started = rig.start(order)
    name = rig.ground.nodes[1]
    server_of(rig).store.create("namespaces", "", {"metadata": {"name": "kube-node-lease"}})
    lease = {"metadata": {"name": name}, "spec": {"renewTime": server_of(rig).store.stamp()}}
    server_of(rig).store.create("leases.coordination.k8s.io", "kube-node-lease", lease)
    silence(rig, name)
    rig.until(lambda: rig.offered(name).node.availability is NodeAvailability.DOWN, "a node that is down")
    ended = rig.until_ended(order)
    assert ended.reason is EndReason.NODE_LOST
    assert name in (ended.detail or "")
    assert started.at_ms <= ended.at_ms <= rig.clock.now_ms()
    rig.annotate_node(name, state=None)


@pytest.mark.parametrize("tells", ["lastHeartbeatTime", "lastTransitionTime"])
def test_a_pod_evicted_from_a_node_that_is_back_by_now_was_not_cancelled_by_anybody(rig: Rig, tells: str) -> None:
    """Servers before 1.26 don't say that it was their own eviction: the node's return does, seen or as it is told."""
    order = rig.order()
    rig.start(order)
    name, pod = rig.ground.nodes[0], rig.pods(order)[0]
    silence(rig, name)
    until(lambda: rig.offered(name).node.availability is NodeAvailability.DOWN, "a node that is down")
    rig.admin.delete(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}")
    back = {"type": "Ready", "status": "True", tells: server_of(rig).store.stamp()}
    change_node(rig, name, lambda item: item["status"].update(conditions=[back]))
    until(lambda: rig.offered(name).node.availability is NodeAvailability.UP, "a node that is up")
    rig.annotate_node(name, state=None)
    ended = rig.until_ended(order)
    assert (ended.reason, name in (ended.detail or "")) == (EndReason.NODE_LOST, True), ended


def test_a_pod_deleted_by_hand_on_a_node_that_was_away_long_ago_is_cancelled(rig: Rig) -> None:
    name = rig.ground.nodes[0]
    silence(rig, name)
    rig.until(lambda: rig.offered(name).node.availability is NodeAvailability.DOWN, "a node that is down")
    back = {"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}
    change_node(rig, name, lambda item: item["status"].update(conditions=[back]))
    rig.annotate_node(name, state=None)
    rig.until(lambda: rig.offered(name).node.availability is NodeAvailability.UP, "a node that is up")
    order = rig.order()
    rig.start(order)
    pod = rig.pods(order)[0]
    rig.admin.delete(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}")
    assert rig.until_ended(order).reason is EndReason.CANCELLED


def test_a_lost_nodes_slots_stay_taken_until_its_pods_are_gone(rig_with: Callable[..., Rig]) -> None:
    rig = rig_with(node_lost_seconds=0.0)
    order = rig.order(gpus=3)
    rig.start(order)
    name = rig.ground.nodes[0]
    silence(rig, name)
    rig.until_ended(order)
    rig.executor.acknowledge(order.allocation.id)
    rig.executor.observe()
    assert sum(device.is_foreign for device in rig.offered(name).devices) == 3
    rig.annotate_node(name, state=None)
    rig.until(lambda: not any(device.is_foreign for device in rig.offered(name).devices), "free slots")


def test_a_surplus_node_that_falls_silent_leaves_its_gang_at_its_last_sign_and_the_gang_runs_on(
    rig_with: Callable[..., Rig],
) -> None:
    rig = rig_with(node_lost_seconds=0.0)
    order = elastic(rig, nodes=3, gpus=3)
    rig.start(order)
    name = rig.ground.nodes[1]
    silence(rig, name)
    shrunk = until_shrunk(rig, order)
    assert (shrunk.nodes, shrunk.reason) == (1, EndReason.NODE_LOST)
    rig.executor.acknowledge_shrunk(order.allocation.id)
    rig.until(lambda: len(rig.jobs()) == 1, "removal of the Jobs of the surplus")
    assert sum(device.is_foreign for device in rig.offered(name).devices) == 3, "what may still run there holds them"
    assert not [news for news in rig.seen if isinstance(news, Ended)]
    rig.annotate(order, 0, fail="0")
    assert rig.until_ended(order).reason is None
    rig.annotate_node(name, state=None)


def test_a_surplus_node_that_was_removed_is_lost_to_its_gang_alone(rig: Rig) -> None:
    order = elastic(rig, nodes=2)
    rig.start(order)
    rig.admin.delete(f"/api/v1/nodes/{rig.ground.nodes[1]}")
    assert until_shrunk(rig, order).reason is EndReason.NODE_LOST
    assert not [news for news in rig.seen if isinstance(news, Ended)]


def test_surplus_that_does_not_start_in_time_is_given_back_and_the_rest_starts(rig_with: Callable[..., Rig]) -> None:
    rig = rig_with(start_seconds=1.0)
    order = elastic(rig, nodes=2, gpus=8)
    blocker = rig.order(gpus=8, on=1)
    rig.start(blocker)
    rig.executor.start(order)
    assert until_shrunk(rig, order).reason is EndReason.REQUEUED
    assert rig.until_started(order).allocation == order.allocation.id


def test_a_node_that_was_removed_loses_its_jobs(rig: Rig) -> None:
    order = rig.order()
    rig.start(order)
    rig.admin.delete(f"/api/v1/nodes/{rig.ground.nodes[0]}")
    assert rig.until_ended(order).reason is EndReason.NODE_LOST


def test_a_node_whose_device_plugin_is_gone_keeps_its_jobs(rig: Rig) -> None:
    order = rig.order()
    rig.start(order)
    name = rig.ground.nodes[0]
    change_node(rig, name, lambda item: (item["status"]["capacity"].pop("nvidia.com/gpu"), None)[1])
    rig.until(lambda: all(each.node.name != name for each in rig.executor.inventory()), "its leave of the inventory")
    rig.annotate(order, fail="0")
    assert rig.until_ended(order).reason is None


def test_a_cluster_without_gpus_is_told_so(rig: Rig) -> None:
    for name in rig.ground.nodes:
        change_node(rig, name, lambda item: item["status"].update(capacity={"cpu": "4"}, allocatable={"cpu": "4"}))
    rig.restart().recover([])
    with pytest.raises(ExecutorError, match=r"the cluster has 4 nodes and none offers nvidia\.com/gpu"):
        rig.executor.inventory()


# ---- the API server ------------------------------------------------------------------------------------------------


def test_a_create_whose_answer_was_lost_makes_one_job(rig: Rig) -> None:
    order = rig.order()
    server_of(rig).faults.append(Fault("POST", "/jobs", is_carried_out=True))
    rig.start(order)
    assert len(rig.jobs()) == 1


def test_a_start_that_failed_half_way_is_completed_by_the_next(rig: Rig) -> None:
    server_of(rig).dropped_fields.add("completionMode")
    order = rig.order(nodes=3)
    rig.executor.start(rig.order(nodes=2, first=4))  # so that the server is known to keep no Indexed Jobs
    server_of(rig).faults.append(Fault("POST", f"{rig.namespace}/services", times=0))
    server_of(rig).faults.append(Fault("POST", "/jobs", times=99, status=503))
    with pytest.raises(Unreachable):
        rig.executor.start(order)
    server_of(rig).faults.clear()
    rig.start(order)
    assert [pod.rank for pod in rig.pods(order)] == [0, 1, 2]
    assert len(rig.jobs()) == 2 + 3


def test_many_starts_are_one_call_and_each_has_its_own_outcome(rig: Rig) -> None:
    orders = [rig.order(gpus=1, first=index) for index in range(6)]
    wrong = replace(orders[2], spec=replace(orders[2].spec, image=None))
    failed = rig.executor.start_many([*orders[:2], wrong, *orders[3:]])
    assert list(failed) == [wrong.allocation.id]
    assert isinstance(failed[wrong.allocation.id], StartRefused)
    for order in (*orders[:2], *orders[3:]):
        rig.until_started(order)
    assert len(rig.jobs()) == 5


def test_while_the_server_is_away_a_queue_of_starts_costs_a_few_requests_and_all_are_made_afterwards(rig: Rig) -> None:
    rig.start(rig.order(gpus=1, first=7))  # so that the namespace is there
    server = server_of(rig)
    orders = [rig.order(gpus=1, nodes=1) for _ in range(40)]
    before = server.count("POST", "/jobs")
    server.faults.append(Fault("POST", "/jobs", times=10_000, status=503))
    failed = rig.executor.start_many(orders)
    assert {type(problem) for problem in failed.values()} == {Unreachable}
    assert len(failed) == len(orders)
    asked = server.count("POST", "/jobs") - before
    assert asked <= WORKERS * FAST_REQUESTS.tries, "not each order finds out by itself"
    server.faults.clear()
    assert not rig.executor.start_many(orders)
    assert len(rig.jobs()) == 1 + len(orders)


def test_after_a_restart_what_was_never_started_is_started_without_keeping_the_lead_waiting(rig: Rig) -> None:
    orders = [rig.order(gpus=1, first=index) for index in range(4)]
    server_of(rig).faults.append(Fault("POST", "/jobs", times=10_000, status=503))
    rig.restart().recover(orders)
    held = {device.id for device in rig.offered(rig.ground.nodes[0]).devices if not device.is_foreign}
    assert len(held) == 8, "what is to start holds its slots"
    rig.executor.observe()
    server_of(rig).faults.clear()
    for order in orders:
        rig.until_started(order)
    assert len(rig.jobs()) == 4


def test_a_gang_stopped_before_it_was_made_leaves_nothing(rig: Rig) -> None:
    order = rig.order()
    server_of(rig).faults.append(Fault("POST", "/jobs", times=99, status=503))
    with pytest.raises(Unreachable):
        rig.executor.start(order)
    server_of(rig).faults.clear()
    rig.executor.stop(order.allocation.id, 0.0, EndReason.CANCELLED)
    ended = rig.until_ended(order)
    assert (ended.reason, ended.started_ms, ended.exit_code) == (EndReason.CANCELLED, None, None)
    rig.executor.acknowledge(order.allocation.id)
    assert not rig.jobs()


def test_an_old_server_gets_one_job_a_rank_and_a_new_one_an_indexed_job(rig: Rig) -> None:
    rig.start(rig.order(nodes=2))
    assert [job["spec"]["completionMode"] for job in rig.jobs()] == ["Indexed"]
    server_of(rig).dropped_fields.add("completionMode")
    rig.restart().recover([])
    rig.until(lambda: not rig.jobs(), "an empty namespace")
    order = rig.order(nodes=2)
    rig.start(order)
    assert [job["spec"].get("completionMode") for job in rig.jobs()] == [None, None]
    assert [pod.rank for pod in rig.pods(order)] == [0, 1]


def test_a_job_of_that_name_that_is_not_ours_is_not_taken_over(rig: Rig) -> None:
    order = rig.order()
    rig.executor._launcher._namespaces.ensure(order.account)
    other = {"metadata": {"name": names.gang_name(order.allocation)}, "spec": {"completions": 0, "template": {}}}
    rig.admin.create(f"/apis/batch/v1/namespaces/{rig.namespace}/jobs", other)
    with pytest.raises(StartRefused, match="is not the one that was ordered"):
        rig.executor.start(order)


def test_a_namespace_that_belongs_to_somebody_else_is_left_alone(rig: Rig) -> None:
    rig.admin.create("/api/v1/namespaces", {"metadata": {"name": rig.namespace, "labels": {"team": "other"}}})
    with pytest.raises(KubernetesProblem, match="is not this Turnstile's"):
        rig.executor.start(rig.order())


def test_a_missing_right_names_itself_and_the_start_is_made_once_it_is_granted(rig: Rig) -> None:
    order = rig.order()
    server_of(rig).denied.add(("create", "jobs"))
    with pytest.raises(KubernetesProblem, match=r"create jobs\.batch in namespace"):
        rig.executor.start(order)
    server_of(rig).denied.clear()
    rig.start(order)


def test_while_the_api_server_is_away_nothing_is_placed_and_nothing_is_lost(rig_with: Callable[..., Rig]) -> None:
    rig = rig_with(outage_seconds=0.3)
    order = rig.order()
    started = rig.start(order)
    server = server_of(rig)
    pod = rig.pods(order)[0]
    server.faults.append(Fault("GET", "/", times=1_000_000, status=503))
    server.cut_watches()
    draining = NodeAvailability.DRAINING
    until(lambda: {each.node.availability for each in rig.executor.inventory()} == {draining}, "no placing")
    assert {each.node.reason for each in rig.executor.inventory()} == {"the Kubernetes API does not answer"}
    with server.store.lock:
        notes = {PREFIX + "fail": "4"}
        server.store.update(
            ("pods", pod.namespace, pod.name), lambda item: item["metadata"]["annotations"].update(notes)
        )
    server.faults.clear()
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.started_ms) == (4, started.at_ms)
    rig.until(lambda: rig.offered(rig.ground.nodes[0]).node.availability is NodeAvailability.UP, "placing again")


def test_a_daemon_that_no_longer_hears_the_cluster_says_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k8s.cluster.PATIENCE_SECONDS", 0.2)
    server_of(rig).denied.add(("watch", "pods"))
    server_of(rig).cut_watches()

    def says_so() -> str | None:
        try:
            rig.executor.observe()
        except KubernetesProblem as problem:
            return str(problem)
        return None

    assert "watch pods" in until(says_so, "complaint")


def test_an_end_that_nobody_watched_is_told_as_of_the_last_evidence(rig: Rig) -> None:
    order = rig.order()
    started = rig.start(order)
    server, pod = server_of(rig), rig.pods(order)[0]
    server.is_frozen = True
    with server.store.lock:
        settle, server.store.settle = server.store.settle, lambda: None
        server.store.remove(("pods", pod.namespace, pod.name))
        server.store.compact()
        server.store.settle = settle
    noted_ms = rig.clock.now_ms()
    server.is_frozen = False
    server.cut_watches()
    ended = rig.until_ended(order)
    assert ended.reason is EndReason.CANCELLED
    assert started.at_ms <= ended.at_ms <= noted_ms


# ---- logs ----------------------------------------------------------------------------------------------------------


def test_a_log_is_read_piece_by_piece_and_is_complete_after_the_end(rig: Rig) -> None:
    order = rig.order()
    rig.start(order)
    server_of(rig).logs[rig.pods(order)[0].name] = b"one\ntwo\n"
    first = rig.executor.logs(order.allocation.id, 0, 0, 4)
    rest = rig.executor.logs(order.allocation.id, 0, first.next_offset, 100)
    assert (first.data, rest.data, rest.is_complete) == (b"one\n", b"two\n", False)
    rig.annotate(order, fail="0")
    rig.until_ended(order)
    rig.executor.acknowledge(order.allocation.id)
    last = rig.executor.logs(order.allocation.id, 0, rest.next_offset, 100)
    assert (last.data, last.is_complete) == (b"", True)


def test_the_log_of_a_stopped_job_is_kept_to_its_last_word(rig: Rig) -> None:
    order = rig.order(nodes=2, log_limit_bytes=1 << 20)
    rig.start(order)
    first, second = (pod.name for pod in rig.pods(order))
    server_of(rig).logs |= {first: b"step 1\n", second: b"rank 1\n"}
    rig.annotate(order, term_seconds="1")
    rig.executor.stop(order.allocation.id, 5.0, EndReason.WALLTIME)
    server_of(rig).logs[first] += b"checkpoint written\n"
    rig.until_ended(order)
    rig.executor.acknowledge(order.allocation.id)
    rig.until(lambda: not rig.pods(order), "removal of the pods")
    rig.restart().recover([])
    found = [rig.executor.logs(order.allocation.id, rank, 0, 1000) for rank in (0, 1)]
    assert [chunk.data for chunk in found] == [b"step 1\ncheckpoint written\n", b"rank 1\n"]
    assert all(chunk.is_complete for chunk in found)


def test_the_log_of_an_ended_job_outlives_its_pod_for_as_long_as_is_set(rig: Rig) -> None:
    order = rig.order()
    rig.start(order)
    pod = rig.pods(order)[0]
    server_of(rig).logs[pod.name] = b"done\n"
    rig.annotate(order, fail="0")
    rig.until_ended(order)
    rig.executor.acknowledge(order.allocation.id)
    until(lambda: rig.executor._keeper.kept(order.allocation.id, 0, 0, 10), "kept log")
    rig.admin.delete(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}")
    rig.until(lambda: not rig.pods(order), "removal of the pod")
    assert rig.executor.logs(order.allocation.id, 0, 0, 100).data == b"done\n"
    assert rig.executor.forget_logs(rig.clock.now_ms() + 60_000) == 1
    with pytest.raises(KeyError):
        rig.executor.logs(order.allocation.id, 0, 0, 100)


def test_a_log_of_what_never_was_is_a_key_error(rig: Rig) -> None:
    order = rig.order(nodes=1)
    rig.start(order)
    with pytest.raises(KeyError):
        rig.executor.logs(order.allocation.id, 1, 0, 100)


def test_allocations_that_are_stopped_at_once_are_stopped_side_by_side(memory: Ground) -> None:
    assert memory.server is not None
    rig = Rig(memory)
    orders = [rig.order(first=first) for first in (0, 2, 4, 6)]
    for order in orders:
        rig.start(order)
    carry_out, all_here = memory.server.carry_out, threading.Barrier(len(orders))

    def together(asked: Asked) -> Json:
        if asked.method == "DELETE" and asked.collection == "jobs.batch" and not all_here.broken:
            all_here.wait(60)  # one after the other, nobody else would ever come
        return carry_out(asked)

    memory.server.carry_out = together  # type: ignore[method-assign] # the server's part, not ours
    for order in orders:
        rig.executor.stop(order.allocation.id, 5.0, EndReason.CANCELLED)
    assert {rig.until_ended(order).reason for order in orders} == {EndReason.CANCELLED}
    assert not all_here.broken
    memory.server.carry_out = carry_out  # type: ignore[method-assign] # as it was
    rig.close()
