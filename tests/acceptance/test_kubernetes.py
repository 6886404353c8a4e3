"""Daemons over a cluster: whoever leads, each job has one Job, one run, one bill; and what a first start needs.

The cluster is the API server of `tests/k8s`, so that anyone can run this; the daemons and the database are real.
"""

import contextlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest

from k8s import names
from k8s.api import Json
from k8s.mirror import Mirror
from tests.acceptance.conftest import MakeDaemon
from tests.acceptance.daemons import Daemon, job, until
from tests.acceptance.submitter import Submitter
from tests.k8s.apiserver import Fault
from tests.k8s.controllers import GPU, PREFIX
from tests.k8s.grounds import Ground, memory_ground

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

TAKEOVER_SECONDS = 15.0
"""The promise."""
IMAGE = "registry.example/train:1"
SHORT_SECONDS = 1.5
WHOLE_NODE = 8


class Pods:
    """Remembers every pod that ever was, watched from outside the daemons."""

    def __init__(self, ground: Ground) -> None:
        self.uids: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._mirror: Mirror[str] = Mirror(ground.api(), "/api/v1/pods", self._take, lambda: None)
        self._mirror.start()
        assert self._mirror.wait_until_synced(20)

    def _take(self, item: Json) -> str:
        metadata = item["metadata"]
        rank = metadata["annotations"].get(names.COMPLETION_INDEX, "0")
        self.uids[metadata["labels"][names.ALLOCATION], rank].add(metadata["uid"])
        return str(metadata["uid"])

    def doubled(self) -> list[tuple[str, str]]:
        return [key for key, uids in self.uids.items() if len(uids) > 1]

    def stop(self) -> None:
        self._mirror.stop()


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with memory_ground(tmp_path) as built:
        yield built


@pytest.fixture
def pods(ground: Ground) -> Iterator[Pods]:
    built = Pods(ground)
    yield built
    built.stop()


@pytest.fixture
def pair(make_daemon: MakeDaemon, postgres: Any, ground: Ground) -> tuple[Daemon, Daemon]:
    """A leader with a tenant, and one that follows it."""
    config = ground.folder / "turnstile.toml"
    config.write_text(
        '[executor]\nkind = "kubernetes"\n'
        f'[kubernetes]\nkubeconfig = "{ground.kubeconfig}"\n'
        f'pod_annotations = {{ "{PREFIX}run-seconds" = "{SHORT_SECONDS}" }}\n',
        encoding="utf-8",
    )
    flags = ("--config", str(config), "--database", postgres.get_uri())
    leader = make_daemon("leader", *flags).start().set_up()
    follower = make_daemon("follower", *flags).start(wait=False)
    follower.wait_until_it_answers()
    follower.share_tokens_of(leader)
    return leader, follower


def short() -> dict[str, object]:
    return job("train", image=IMAGE)


def gang(leader: Daemon) -> Any:  # Any: JSON
    """Starts a gang on two nodes that goes on until it is stopped, and returns it."""
    held = leader.submit("train", image=IMAGE, nodes=2, gpus_per_node=WHOLE_NODE, time_limit_seconds=3600)
    running = leader.wait_for(held["id"], "running", "completed")
    assert running["state"] == "running", running
    return running


def whole_nodes_go_on(ground: Ground) -> None:
    """Has pods that take a whole node run until they are stopped, as their kubelets see it."""
    assert ground.server is not None
    create = ground.server.store.create

    def forever(collection: str, namespace: str, body: Json, **how: bool) -> Json:
        if collection == "pods" and body["spec"]["containers"][0]["resources"]["limits"][GPU] == str(WHOLE_NODE):
            body["metadata"]["annotations"][PREFIX + "run-seconds"] = "forever"
        return create(collection, namespace, body, **how)

    ground.server.store.create = forever  # type: ignore[method-assign] # the cluster's part, not ours


def assert_continuous(url: str, job_id: int) -> None:
    """The ledger has every slot of a job's run without a gap, to its end."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT o.device, o.from_ms, o.to_ms, a.decided_ms, a.ended_ms FROM occupancy o JOIN allocation a"
            " ON a.id = o.allocation_id WHERE a.job_id = %s AND o.state = 'allocated' ORDER BY o.device, o.from_ms",
            [job_id],
        ).fetchall()
    by_device: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for device, from_ms, to_ms, _, _ in rows:
        by_device[device].append((from_ms, to_ms))
    assert len(by_device) == 16, "two nodes of eight"
    for spans in by_device.values():
        assert spans[0][0] == rows[0][3], "from the decision"
        assert spans[-1][1] == rows[0][4], "to the end"
        assert all(before[1] == after[0] for before, after in pairwise(spans))


def assert_follows(follower: Daemon, leader: Daemon, known_job: int) -> None:
    """Alive and not ready; answers reads, and points writes at the leader."""
    assert (follower.probe("/healthz"), follower.probe("/readyz")) == (200, 503)
    assert follower.job(known_job)["id"] == known_job
    refused = follower.request("POST", "/v1/jobs", short(), token="mei")
    assert (refused.status, refused.headers["location"]) == (307, f"{leader.url}/v1/jobs")


def assert_all_ran_once(asked: Daemon, submitter: Submitter, pods: Pods) -> None:
    assert submitter.refusals <= {503}
    assert len(set(submitter.taken.values())) == len(submitter.taken), "a job each"
    for identity in submitter.taken.values():
        ended = asked.wait_for(identity, "completed")
        assert ended["attempt"] == 1, ended
    assert pods.doubled() == []


@contextlib.contextmanager
def submitting(through: Daemon, others: list[Daemon]) -> Iterator[Submitter]:
    submitter = Submitter(through, others, short(), pause_seconds=0.1)
    submitter.start()
    try:
        yield submitter
    finally:
        submitter.must_end.set()
        submitter.join(timeout=60)


@pytest.mark.postgres
def test_when_the_leader_is_killed_under_load_the_other_leads_and_every_job_runs_once(
    pair: tuple[Daemon, Daemon], ground: Ground, pods: Pods, postgres: Any
) -> None:
    leader, follower = pair
    whole_nodes_go_on(ground)
    train = gang(leader)
    assert_follows(follower, leader, train["id"])
    with submitting(follower, [leader, follower]) as submitter:
        until(lambda: len(submitter.taken) >= 15, "submissions are taken")
        leader.kill()
        killed = time.monotonic()
        before = len(submitter.taken)
        follower.wait_until_ready(TAKEOVER_SECONDS)
        assert time.monotonic() - killed <= TAKEOVER_SECONDS
        until(lambda: len(submitter.taken) >= before + 10, "submissions are taken by the new leader")
    assert_all_ran_once(follower, submitter, pods)

    leader.start(wait=False)
    leader.wait_until_it_answers()
    assert_follows(leader, follower, train["id"])
    stopped = time.monotonic()
    follower.terminate()
    leader.wait_until_ready(TAKEOVER_SECONDS)
    assert time.monotonic() - stopped < 10, "a leader that stops in order gives the lead away at once"
    still = leader.job(train["id"])
    assert (still["state"], still["started_at"], still["attempt"]) == ("running", train["started_at"], 1)
    leader.turnstile("cancel", str(train["id"]), who="mei")
    leader.wait_for(train["id"], "cancelled")
    assert_continuous(postgres.get_uri(), train["id"])
    leader.turnstile("admin", "ledger", "verify")
    for each in pair:
        each.assert_no_trace_in_log()


@pytest.mark.postgres
def test_a_leader_that_was_frozen_and_wakes_up_fenced_doubles_and_ends_nothing(
    pair: tuple[Daemon, Daemon], ground: Ground, pods: Pods
) -> None:
    leader, follower = pair
    whole_nodes_go_on(ground)
    train = gang(leader)
    assert leader.process is not None
    with submitting(follower, [leader, follower]) as submitter:
        until(lambda: len(submitter.taken) >= 10, "submissions are taken")
        os.kill(leader.process.pid, signal.SIGSTOP)
        try:
            follower.wait_until_ready(TAKEOVER_SECONDS + 5)
        finally:
            os.kill(leader.process.pid, signal.SIGCONT)
        before = len(submitter.taken)
        until(lambda: len(submitter.taken) >= before + 10, "submissions are taken by the new leader")
    until(lambda: leader.probe("/readyz") == 503, "the old leader knows that it lost the lead")
    assert_all_ran_once(follower, submitter, pods)
    assert (follower.job(train["id"])["state"], follower.job(train["id"])["attempt"]) == ("running", 1)
    follower.turnstile("admin", "ledger", "verify")


@pytest.mark.postgres
def test_a_job_that_a_fenced_leader_left_behind_is_deleted_on_sight(
    pair: tuple[Daemon, Daemon], ground: Ground
) -> None:
    leader, _ = pair
    identity = leader.submit("train", image=IMAGE)["id"]
    leader.wait_for(identity, "running", "completed")
    api = ground.api()
    theirs = api.list_all("/apis/batch/v1/jobs")[0][0]
    allocation = "01JD8W3Z6Q5K9XN0V4T2R7M1AB"
    labels = {**theirs["metadata"]["labels"], names.ALLOCATION: allocation}
    theirs["metadata"] = {
        "name": f"job-{identity}-{allocation.lower()}",
        "labels": labels,
        "finalizers": [names.FINALIZER],
    }
    theirs["spec"]["template"]["metadata"]["labels"][names.ALLOCATION] = allocation
    api.create("/apis/batch/v1/namespaces/turnstile-acme/jobs", theirs)

    def is_gone() -> bool:
        found = api.list_all("/apis/batch/v1/jobs")[0] + api.list_all("/api/v1/pods")[0]
        return not [each for each in found if each["metadata"]["labels"].get(names.ALLOCATION) == allocation]

    until(is_gone, "the stray Job and its pods are gone")
    leader.turnstile("admin", "ledger", "verify")


def config_of(ground: Ground) -> tuple[str, str]:
    path = ground.folder / "single.toml"
    lines = f'[executor]\nkind = "kubernetes"\n[kubernetes]\nkubeconfig = "{ground.kubeconfig}"\n'
    path.write_text(lines, encoding="utf-8")
    return ("--config", str(path))


def test_a_jobs_secrets_are_the_namespaces_own_by_reference(make_daemon: MakeDaemon, ground: Ground) -> None:
    centre = make_daemon("centre", *config_of(ground)).start().set_up()
    words = ("submit", "--image", IMAGE, "-g", "1", "-t", "1h", "--secret", "wandb", "--", "train")
    identity = centre.turnstile(*words, who="mei").out.strip()
    centre.wait_for(identity, "running", "failed")
    assert centre.job(identity)["state"] == "running", centre.job(identity)["detail"]
    (made,) = ground.api().list_all("/apis/batch/v1/jobs")[0]
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "wandb"}}]
    refused = centre.request("PUT", "/v1/secrets/wandb", {"value": "hunter2"}, token="mei")
    assert refused.status in {403, 409, 422}
    assert "kubectl create secret" in refused.body.decode()
    assert "hunter2" not in centre.log


def test_a_first_start_without_its_cluster_answers_and_makes_its_token_once_it_leads(
    make_daemon: MakeDaemon, ground: Ground
) -> None:
    assert ground.server is not None
    ground.server.faults.append(Fault("GET", "/api/v1/nodes", times=1_000_000, status=503))
    centre = make_daemon("centre", *config_of(ground)).start(wait=False)
    until(lambda: centre.probe("/healthz") == 200, "it is alive", 90)
    assert centre.probe("/readyz") == 503
    assert not centre.token().exists()
    ground.server.faults.clear()
    centre.wait_until_ready()
    until(centre.token().exists, "the first operator's token")
    centre.set_up()
