"""What `scheduler.executor.Executor` promises, on Kubernetes: on the API server of ours and on a real control plane.

Times in pods are whole seconds, and graces are the kubelet's business; all else is as in tests/executor.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest

from k8s import names
from k8s.quantity import whole
from scheduler.core.model import AllocationId, EndReason
from scheduler.executor import Ended, Started, StartOrder, StartRefused
from tests.k8s.grounds import Rig, until

RigWith = Callable[..., Rig]


def test_a_job_that_exits_with_zero_starts_and_then_ends_without_a_reason(rig: Rig) -> None:
    order = rig.order(seconds=0.5)
    started = rig.start(order)
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.reason) == (0, None)
    assert ended.started_ms == started.at_ms
    assert order.allocation.decided_ms <= started.at_ms <= ended.at_ms <= rig.clock.now_ms()


def test_a_job_that_exits_with_a_code_ends_as_exit_nonzero_with_that_code(rig: Rig) -> None:
    order = rig.order(seconds=0.3, exit_code=3)
    rig.executor.start(order)
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.reason) == (3, EndReason.EXIT_NONZERO)


def test_a_second_start_of_the_same_allocation_makes_nothing_new(rig: Rig) -> None:
    order = rig.order()
    rig.start(order)
    rig.executor.start(order)
    rig.restart().recover([as_running(order, rig.until_started(order).at_ms)])
    rig.executor.start(order)
    assert len(rig.jobs()) == 1
    assert len(rig.pods(order)) == 1


def test_an_end_is_repeated_until_it_is_acknowledged(rig: Rig) -> None:
    order = rig.order(seconds=0.1)
    rig.executor.start(order)
    ended = rig.until_ended(order)
    assert ended in rig.executor.observe()
    rig.executor.acknowledge(order.allocation.id)
    rig.executor.acknowledge(order.allocation.id)
    assert not [news for news in rig.executor.observe() if isinstance(news, Ended)]


def test_the_ranks_of_a_gang_run_on_their_own_nodes_and_end_as_one(rig: Rig) -> None:
    order = rig.order(nodes=3)
    rig.start(order)
    pods = rig.pods(order)
    assert [pod.rank for pod in pods] == [0, 1, 2]
    assert {pod.usage.node for pod in pods if pod.usage} == set(rig.ground.nodes[:3])
    for rank in range(3):
        rig.annotate(order, rank, fail="0")
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.reason) == (0, None)


def test_a_rank_that_fails_ends_the_gang_with_its_own_code(rig: Rig) -> None:
    order = rig.order(nodes=2)
    rig.start(order)
    rig.annotate(order, 1, fail="7")
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.reason) == (7, EndReason.EXIT_NONZERO)
    until(lambda: all(pod.usage is None or pod.is_deleting for pod in rig.pods(order)), "end of the other rank")


def test_a_stopped_job_ends_with_the_reason_of_the_stop_and_leaves_nothing(rig: Rig) -> None:
    order = rig.order()
    rig.start(order)
    rig.executor.stop(order.allocation.id, 5.0, EndReason.PREEMPTED)
    ended = rig.until_ended(order)
    assert ended.reason is EndReason.PREEMPTED
    rig.executor.acknowledge(order.allocation.id)
    rig.until(lambda: not rig.jobs(), "removal of the Job, finalizer and all")


def test_a_job_that_is_slow_to_stop_holds_its_devices_until_it_is_gone(rig: Rig) -> None:
    order = rig.order()
    rig.start(order)
    rig.annotate(order, term_seconds="2")
    asked_ms = rig.clock.now_ms()
    rig.executor.stop(order.allocation.id, 30.0, EndReason.CANCELLED)
    ended = rig.until_ended(order)
    assert ended.reason is EndReason.CANCELLED
    assert ended.at_ms >= asked_ms + 2000 - 1000  # whole seconds


def test_a_second_stop_shortens_the_grace_and_keeps_the_first_reason(rig: Rig) -> None:
    order = rig.order(grace_seconds=300.0)
    rig.start(order)
    rig.annotate(order, term_seconds="300")
    rig.executor.stop(order.allocation.id, 300.0, EndReason.PREEMPTED)
    rig.until(lambda: all(pod.is_deleting for pod in rig.pods(order)), "deletion of the pod")
    rig.executor.stop(order.allocation.id, 1.0, EndReason.CANCELLED)
    if rig.ground.server is None:
        # The driver of the fake nodes reads a pod's grace once; that the server took the shorter one is what we owe.
        pod = rig.pods(order)[0]
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
        rig.until(lambda: rig.admin.get(path)["metadata"]["deletionGracePeriodSeconds"] == 1, "the shorter grace")
        rig.admin.delete(path, {"gracePeriodSeconds": 0})
    assert rig.until_ended(order).reason is EndReason.PREEMPTED


def test_the_time_limit_ends_a_job_as_walltime(rig: Rig) -> None:
    order = rig.order(limit_ms=2000)
    started = rig.start(order)
    ended = rig.until_ended(order)
    assert ended.reason is EndReason.WALLTIME
    assert ended.at_ms - started.at_ms >= 1000


def test_a_limit_that_is_given_later_counts_from_the_start_and_moves_the_backstop(rig: Rig) -> None:
    order = rig.order(limit_ms=3_600_000)
    rig.start(order)
    path = f"/apis/batch/v1/namespaces/{rig.pods(order)[0].namespace}/jobs/{names.gang_name(order.allocation)}"
    before = rig.admin.get(path)["spec"]["activeDeadlineSeconds"]
    rig.executor.extend(order.allocation.id, 7_200_000)
    assert rig.admin.get(path)["spec"]["activeDeadlineSeconds"] == before + 3600
    rig.executor.extend(order.allocation.id, 1000)
    rig.executor.extend(AllocationId("01UNKNOWN"), 1)
    assert rig.until_ended(order).reason is EndReason.WALLTIME


def test_stopping_or_acknowledging_what_is_unknown_does_nothing(rig: Rig) -> None:
    rig.executor.stop(AllocationId("01UNKNOWN"), 1.0, EndReason.CANCELLED)
    rig.executor.acknowledge(AllocationId("01UNKNOWN"))
    assert not rig.executor.observe()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"argv": ()}, "no command"),
        ({"image": None}, "names no image"),
        ({"volumes": ("datasets",)}, "no volume 'datasets'"),
        ({"output": "/x/%j"}, "--output"),
    ],
)
def test_what_could_never_run_here_is_refused_in_words(rig: Rig, change: dict[str, object], words: str) -> None:
    order = rig.order()
    order = replace(order, spec=replace(order.spec, **change))  # type: ignore[arg-type] # fields by name
    with pytest.raises(StartRefused, match=words):
        rig.executor.start(order)
    assert not rig.executor.observe()


def test_what_the_server_does_not_take_is_refused_with_its_own_words(rig: Rig) -> None:
    order = rig.order(environment={"not a name": "x"}) if rig.ground.server is None else rig.order()
    if rig.ground.server is not None:
        rig.executor._launcher.namespace(order)
        from tests.k8s.apiserver import Fault

        rig.ground.server.faults.append(Fault("POST", "/jobs", status=422))
    with pytest.raises(StartRefused, match="does not take this job"):
        rig.executor.start(order)


def test_after_a_restart_a_running_job_is_found_and_its_end_observed(rig: Rig) -> None:
    order = rig.order()
    started = rig.start(order)
    rig.restart().recover([as_running(order, started.at_ms)])
    assert not [news for news in rig.executor.observe() if isinstance(news, Started)]
    rig.annotate(order, fail="9")
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.started_ms) == (9, started.at_ms)


def test_an_end_while_the_daemon_was_away_is_told_with_its_own_times(rig: Rig) -> None:
    order = rig.order()
    started = rig.start(order)
    rig.annotate(order, fail="5")
    watched = rig.ground.api()
    pod = rig.pods(order)[0]
    rig.executor.close()
    path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
    until(lambda: watched.get(path)["status"]["phase"] == "Failed", "end of the pod")
    rig.executor = rig.build()
    rig.executor.recover([as_running(order, started.at_ms)])
    assert rig.until_ended(order).exit_code == 5


def test_what_was_decided_and_never_started_is_started_by_recovery(rig: Rig) -> None:
    order = rig.order(seconds=0.2, exit_code=5)
    rig.executor.recover([order])
    assert rig.until_ended(order).exit_code == 5


def test_a_refused_start_in_recovery_ends_as_launch_failed(rig: Rig) -> None:
    order = rig.order(image=None)
    rig.executor.recover([order])
    ended = rig.until_ended(order)
    assert (ended.exit_code, ended.reason, ended.started_ms) == (None, EndReason.LAUNCH_FAILED, None)


def test_what_ran_and_left_no_trace_is_lost_and_never_started_again(rig: Rig) -> None:
    order = rig.order()
    rig.executor.recover([as_running(order, order.allocation.decided_ms)])
    assert rig.until_ended(order).reason is EndReason.NODE_LOST
    assert not rig.admin.list_all("/apis/batch/v1/jobs", {"labelSelector": names.selector(rig.options.installation)})[0]


def test_a_job_whose_allocation_is_not_live_is_deleted_on_sight(rig: Rig) -> None:
    order = rig.order()
    rig.start(order)
    rig.restart().recover([])
    rig.until(lambda: not rig.jobs() and not rig.pods(order), "removal of what nobody holds as live")


def test_a_pod_deleted_by_hand_ends_its_job_as_cancelled_and_nothing_runs_again(rig: Rig) -> None:
    order = rig.order()
    rig.start(order)
    pod = rig.pods(order)[0]
    rig.admin.delete(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}")
    ended = rig.until_ended(order)
    assert ended.reason is EndReason.CANCELLED
    assert "deleted in Kubernetes" in (ended.detail or "")
    rig.executor.acknowledge(order.allocation.id)
    rig.until(lambda: not rig.jobs() and not rig.pods(order), "removal of the replacement")


def test_a_second_pod_of_a_rank_is_ended_at_once_and_the_first_goes_on(rig: Rig) -> None:
    """What a Job's controller does whose own first pod an outage hid from it."""
    order = rig.order(seconds=4.0)
    rig.start(order)
    first = rig.pods(order)[0]
    path = f"/api/v1/namespaces/{first.namespace}/pods"
    made = rig.admin.get(f"{path}/{first.name}")
    ours = {key: value for key, value in made["metadata"]["labels"].items() if key.startswith(names.PREFIX)}
    spec = {key: value for key, value in made["spec"].items() if key != "nodeName"}
    second = {"metadata": {"name": f"{first.name}-again", "labels": ours}, "spec": spec}
    rig.admin.create(path, {"apiVersion": "v1", "kind": "Pod", **second})

    def left() -> set[str]:
        return {pod["metadata"]["name"] for pod in rig.admin.list_all(path)[0]}

    rig.until(lambda: left() == {first.name}, "removal of the second")
    assert not rig.admin.get(f"{path}/{first.name}")["metadata"].get("deletionTimestamp")
    assert rig.until_ended(order).exit_code == 0


def test_a_job_deleted_by_hand_waits_for_its_end_to_be_recorded(rig: Rig) -> None:
    order = rig.order()
    rig.start(order)
    job = rig.jobs()[0]["metadata"]
    rig.admin.delete(
        f"/apis/batch/v1/namespaces/{job['namespace']}/jobs/{job['name']}", {"propagationPolicy": "Background"}
    )
    ended = rig.until_ended(order)
    assert ended.reason is EndReason.CANCELLED
    assert len(rig.jobs()) == 1
    rig.executor.acknowledge(order.allocation.id)
    rig.until(lambda: not rig.jobs(), "removal of the Job")


def test_a_gang_that_cannot_all_start_in_time_is_released_whole(rig_with: RigWith) -> None:
    rig = rig_with(start_seconds=3.0)
    blocker = rig.order(gpus=8, nodes=1)
    rig.start(blocker)
    gang = rig.order(nodes=2, gpus=8)
    rig.executor.start(gang)
    ended = rig.until_ended(gang)
    assert ended.reason is EndReason.REQUEUED
    assert "not all pods ran within 3 s" in (ended.detail or "")
    rig.executor.acknowledge(gang.allocation.id)
    rig.until(lambda: not rig.pods(gang), "removal of the gang")


def test_pods_of_others_take_the_highest_free_slots(rig: Rig) -> None:
    order = rig.order(gpus=2)
    rig.start(order)
    name = rig.ground.nodes[0]
    rig.admin.create("/api/v1/namespaces", {"metadata": {"name": f"{rig.namespace}-other"}})
    container = {"name": "c", "image": "x", "resources": {"limits": {"nvidia.com/gpu": "3"}}}
    pod = {
        "metadata": {"name": "notebook", "annotations": {"fake.turnstile/run-seconds": "forever"}},
        "spec": {"nodeName": name, "automountServiceAccountToken": False, "containers": [container]},
    }
    path = f"/api/v1/namespaces/{rig.namespace}-other/pods"
    until(lambda: _created(rig, path, pod), "a pod")
    wanted = [False] * 5 + [True] * 3
    rig.until(lambda: [device.is_foreign for device in rig.offered(name).devices] == wanted, "foreign slots")
    rig.admin.delete(f"{path}/notebook")
    rig.until(lambda: not any(device.is_foreign for device in rig.offered(name).devices), "their return")
    rig.admin.delete(f"/api/v1/namespaces/{rig.namespace}-other")


def test_unhealthy_gpus_are_failed_and_a_cordon_drains(rig: Rig) -> None:
    name = rig.ground.nodes[3]
    rig.annotate_node(name, gpus="6")
    rig.until(lambda: [d.health.value for d in rig.offered(name).devices] == ["ok"] * 6 + ["failed"] * 2, "sick GPUs")
    rig.annotate_node(name, gpus="8")
    rig.admin.merge(f"/api/v1/nodes/{name}", {"spec": {"unschedulable": True}})
    rig.until(lambda: rig.offered(name).node.reason == "cordoned in Kubernetes", "cordon")
    rig.admin.merge(f"/api/v1/nodes/{name}", {"spec": {"unschedulable": None}})
    rig.until(lambda: rig.offered(name).node.reason is None, "return")


def test_a_tenants_namespace_has_its_limits_and_its_wall(rig: Rig) -> None:
    order = rig.order(seconds=0.1)
    rig.executor.start(order)
    core = f"/api/v1/namespaces/{rig.namespace}"
    labels = rig.admin.get(core)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "baseline"
    assert whole(rig.admin.get(f"{core}/resourcequotas/turnstile")["spec"]["hard"]["pods"]) == 5000
    assert rig.admin.get(f"{core}/limitranges/turnstile")["spec"]["limits"]
    policies = f"/apis/networking.k8s.io/v1/namespaces/{rig.namespace}/networkpolicies/turnstile"
    assert rig.admin.get(policies)["spec"]["policyTypes"] == ["Ingress"]
    rig.until_ended(order)


def test_pods_are_hardened_as_stored(rig: Rig) -> None:
    order = rig.order(environment={"TEXT": "$(HOME) costs 5$"})
    rig.start(order)
    pod = rig.pods(order)[0]
    spec = rig.admin.get(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}")["spec"]
    container = spec["containers"][0]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert environment["TEXT"] == "$$(HOME) costs 5$$"
    assert environment["TURNSTILE_ALLOCATION_ID"] == order.allocation.id


def test_waiting_for_news_ends_when_woken(rig: Rig) -> None:
    rig.until(lambda: not rig.executor.wait_for_news(0.2), "quiet")
    rig.executor.wake()
    assert rig.executor.wait_for_news(3600.0)


def as_running(order: StartOrder, started_ms: int) -> StartOrder:
    return replace(order, allocation=replace(order.allocation, started_ms=started_ms))


def _created(rig: Rig, path: str, body: dict[str, object]) -> bool:
    """A real namespace takes pods only once its service account is there."""
    from k8s.problems import Rejected

    try:
        rig.admin.create(path, body)
    except Rejected as refusal:
        if "serviceaccount" in str(refusal) or "service account" in str(refusal):
            return False
        raise
    return True
