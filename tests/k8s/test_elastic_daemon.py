"""An elastic gang from submission to its last node: real controller, store and executor over an API server of ours."""

from collections.abc import Iterator

import pytest

from cli.daemon.attendance import AttendedExecutor
from k8s import names
from k8s.cluster import Cluster
from k8s.jobs import KubernetesExecutor
from k8s.logkeeper import LogKeeper
from k8s.options import NodeOptions, Options, PodOptions, TimeOptions
from metering.agents import AgentWatch
from metering.verify import verify
from scheduler.clock import LedgerClock
from scheduler.core.model import AccountId, AllocationId, EndReason, GpuClass, JobId, JobState, UserName
from scheduler.core.policy import Policy
from scheduler.executor import LaunchSpec
from scheduler.loop import Controller
from scheduler.observer import Unobserved
from scheduler.store.accounts import SaveAccount
from scheduler.store.actions import CancelJobs
from scheduler.store.database import Database
from scheduler.store.jobs import JobDraft, SubmitJobs
from scheduler.store.lease import LeaderLease
from scheduler.store.queries import history_of
from scheduler.store.queries import job as stored_job
from tests.builders import account, shape
from tests.databases import new_sqlite
from tests.k8s.controllers import PREFIX
from tests.k8s.grounds import FAST_WATCHES, Ground, until
from tests.loop.test_controller import assert_memory_equals_database, state_of

SECONDS = 60.0


class Centre:
    """Daemons that come and go over one database and one cluster of four nodes."""

    def __init__(self, ground: Ground) -> None:
        self.ground, self.admin, self.clock = ground, ground.api(), LedgerClock()
        url = new_sqlite(ground.folder / "turnstile.db")
        self.database = Database.open(url)
        self.lead()
        for each in (account("acme"), account("acme/nlp"), account("vip", guarantee=24), account("vip/p")):
            self.controller.carry_out(SaveAccount(each, each.id)).result(SECONDS)
        until(lambda: self.controller.offers, "nodes", SECONDS)

    def lead(self) -> None:
        api = self.ground.api()
        pods = PodOptions(annotations={PREFIX + "run-seconds": "forever"})
        times = TimeOptions(node_lost_seconds=0.0)
        options = Options(NodeOptions(lambda _: GpuClass("H100")), pods, times=times)
        keeper = LogKeeper(api, self.ground.folder / "logs")
        executor = KubernetesExecutor(api, self.clock, options, keeper, Cluster(api, options, FAST_WATCHES))
        lease = LeaderLease(self.database, "test", "", 60_000)
        attended = AttendedExecutor(executor, AgentWatch())
        self.controller = Controller(self.database, attended, self.clock, Policy(), lease, Unobserved())
        self.controller.start()
        assert self.controller.wait_until_settled(SECONDS), self.controller.health()
        until(lambda: self.controller.is_leading, "the lead", SECONDS)

    def restart(self) -> None:
        self.controller.stop()
        self.lead()

    def close(self) -> None:
        self.controller.stop()
        self.database.dispose()
        self.admin.close()

    def submit(self, project: str, nodes: int, most: int | None = None) -> JobId:
        tenant = AccountId(project.partition("/")[0])
        spec = LaunchSpec(("train",), "train", image="train:1", grace_seconds=5.0)
        size = shape(gpus=8, nodes=nodes, most_nodes=most)
        draft = JobDraft(AccountId(project), UserName("mei"), "job", size, 3_600_000, spec)
        (job,) = self.controller.carry_out(SubmitJobs((draft,), tenant, UserName("mei"), None, None)).result(SECONDS)
        return job

    def nodes_of(self, job: JobId) -> list[str]:
        with self.database.read() as connection:
            found = stored_job(connection, job)
        assert found is not None
        return [grant.node for grant in found.grants]

    def until_state(self, job: JobId, state: JobState) -> None:
        until(lambda: state_of(self.controller, job) is state, f"{state} of job {job}", SECONDS)

    def reasons(self, job: JobId) -> list[object]:
        with self.database.read() as connection:
            return [each.detail.get("reason") for each in history_of(connection, job) if each.kind == "shrunk"]

    def pods_on(self, job: JobId) -> set[str]:
        found = self.admin.list_all("/api/v1/pods", {"labelSelector": f"{names.JOB}={job}"})[0]
        return {pod["spec"]["nodeName"] for pod in found if pod["spec"].get("nodeName")}


@pytest.fixture
def centre(memory: Ground) -> Iterator[Centre]:
    made = Centre(memory)
    yield made
    made.close()


def test_a_gang_gives_its_surplus_to_a_guarantee_and_loses_another_to_a_dead_node_and_runs_on(centre: Centre) -> None:
    train = centre.submit("acme/nlp", 1, 4)
    centre.until_state(train, JobState.RUNNING)
    nodes = centre.nodes_of(train)
    assert len(nodes) == len(centre.pods_on(train)) == 4
    centre.restart()
    assert centre.pods_on(train) == set(nodes), "a restart makes nothing new and ends nothing"
    bought = centre.submit("vip/p", 3)
    centre.until_state(bought, JobState.RUNNING)
    assert state_of(centre.controller, train) is JobState.RUNNING, "what stays goes on"
    assert centre.nodes_of(train) == nodes[:1]
    until(lambda: centre.pods_on(train) == set(nodes[:1]), "the other pods' end", SECONDS)
    centre.controller.carry_out(CancelJobs((train, bought), "mei")).result(SECONDS)
    until(lambda: centre.controller.ask(lambda state, _: not state.jobs).result(SECONDS), "an empty centre", SECONDS)

    second = centre.submit("acme/nlp", 1, 2)
    centre.until_state(second, JobState.RUNNING)
    kept, lost = centre.nodes_of(second)
    centre.admin.delete(f"/api/v1/nodes/{lost}")
    until(lambda: centre.nodes_of(second) == [kept], "the loss", SECONDS)
    assert state_of(centre.controller, second) is JobState.RUNNING
    assert (centre.reasons(train), centre.reasons(second)) == ([EndReason.PREEMPTED], [EndReason.NODE_LOST])
    centre.restart()
    assert state_of(centre.controller, second) is JobState.RUNNING
    assert_memory_equals_database(centre.controller)
    with centre.database.read() as connection:
        report = verify(connection)
    assert report.is_proved, report.findings
    assert centre.controller.logs(_gang_of(centre, second), 0, 0, 100) is not None
    centre.controller.carry_out(CancelJobs((second,), "mei")).result(SECONDS)
    until(lambda: centre.controller.ask(lambda state, _: not state.jobs).result(SECONDS), "an empty centre", SECONDS)


def _gang_of(centre: Centre, job: JobId) -> AllocationId:
    with centre.database.read() as connection:
        found = stored_job(connection, job)
    assert found is not None
    assert found.last_allocation is not None
    return found.last_allocation
