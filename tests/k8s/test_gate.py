"""Pods that users make themselves: they wait as jobs, run where the plan says, are metered, and end like ours.

A real controller, store and executor over the API server of ours; what a real one of 1.20 shows is at the end.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from k8s import names
from k8s.admitting import keeps_gates
from k8s.api import Json
from k8s.cluster import Cluster
from k8s.gate import Gate
from k8s.jobs import KubernetesExecutor
from k8s.logkeeper import LogKeeper
from k8s.options import NodeOptions, Options
from scheduler.clock import LedgerClock
from scheduler.core.model import AccountId, AllocationId, EndReason, GpuClass, JobState, UserName
from scheduler.core.policy import Policy
from scheduler.loop import Controller
from scheduler.observer import Unobserved
from scheduler.store import queries
from scheduler.store.accounts import SaveAccount
from scheduler.store.actions import CancelJobs, RequeueJobs
from scheduler.store.database import Database
from scheduler.store.lease import LeaderLease
from scheduler.store.queries import JobFilter, JobRecord
from scheduler.store.tokens import Member, SaveMember
from scheduler.wire.submission import SubmissionRules
from tests.builders import account
from tests.databases import new_sqlite
from tests.k8s.controllers import GPU, PREFIX
from tests.k8s.grounds import FAST_WATCHES, Ground, until

T = TypeVar("T")
SECONDS = 60.0
NAMESPACE = "turnstile-acme"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


class Centre:
    """A leading controller over a cluster, its gate, and tenants `acme` (mei is a member) and `rival`."""

    def __init__(self, ground: Ground) -> None:
        self.ground, self.admin = ground, ground.api()
        url = new_sqlite(ground.folder / "turnstile.db")
        self.database, self.clock = Database.open(url), LedgerClock()
        self.lead()
        for name in ("acme", "acme/nlp", "rival", "rival/vision"):
            self.do(SaveAccount(account(name), name))
        self.do(SaveMember(Member(AccountId("acme"), UserName("mei"), "user")))
        until(lambda: self.controller.offers, "nodes", SECONDS)
        for name in ("turnstile-acme", "turnstile-rival"):
            labels = {names.INSTALLATION: "turnstile"}
            self.admin.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})

    def lead(self) -> None:
        """Begins to lead with nothing remembered, as after a restart."""
        api, options = self.ground.api(), Options(NodeOptions(lambda _: GpuClass("H100")))
        cluster = Cluster(api, options, FAST_WATCHES)
        keeper = LogKeeper(api, self.ground.folder / "logs")
        executor = KubernetesExecutor(api, self.clock, options, keeper, cluster)
        lease = LeaderLease(self.database, "test", "", 60_000)
        self.controller = Controller(self.database, executor, self.clock, Policy(), lease, Unobserved())
        self.gate = Gate(api, cluster, options, SubmissionRules(runs_images=True, needs_image=True), FAST_WATCHES)
        self.controller.start()
        assert self.controller.wait_until_settled(SECONDS), self.controller.health()
        until(lambda: self.controller.is_leading, "the lead", SECONDS)

    def end_term(self) -> None:
        self.gate.close()
        self.controller.stop()

    def close(self) -> None:
        self.end_term()
        self.database.dispose()
        self.admin.close()

    def make(
        self,
        name: str,
        *,
        namespace: str = NAMESPACE,
        gpus: int = 2,
        gates: tuple[str, ...] = (names.GATE,),
        labels: dict[str, str] | None = None,
        notes: dict[str, str] | None = None,
        **spec: object,
    ) -> None:
        """Makes a pod as its user would."""
        container = {"name": "train", "image": "train:1", "resources": {"limits": {GPU: str(gpus)}}}
        body: Json = {
            "metadata": {
                "name": name,
                "labels": {names.PROJECT: "nlp", **(labels or {})},
                "annotations": {names.USER: "mei", PREFIX + "run-seconds": "forever", **(notes or {})},
            },
            "spec": {
                "containers": [{"name": "sidecar", "image": "proxy:1"}, container],
                "schedulingGates": [{"name": gate} for gate in gates],
                "restartPolicy": "Never",
                **spec,
            },
        }
        self.admin.create(f"/api/v1/namespaces/{namespace}/pods", body)

    def until(self, look: Callable[[], T | None], what: str) -> T:
        def tick() -> T | None:
            self.gate.look(self.controller)
            return look()

        return until(tick, what, SECONDS)

    def pod(self, name: str, namespace: str = NAMESPACE) -> Json | None:
        found = self.admin.list_all(f"/api/v1/namespaces/{namespace}/pods")[0]
        return next((each for each in found if each["metadata"]["name"] == name), None)

    def status(self, name: str, word: str, namespace: str = NAMESPACE) -> str:
        """Waits until that is said of a pod, and returns the whole sentence."""

        def said() -> str | None:
            notes = (self.pod(name, namespace) or {"metadata": {}})["metadata"].get("annotations") or {}
            text = str(notes.get(names.STATUS, ""))
            return text if word in text else None

        return self.until(said, f"{word!r} said of pod {name}")

    def job(self, name: str, *states: JobState) -> JobRecord:
        """Waits until the job so named is in one of the states."""

        def found() -> JobRecord | None:
            with self.database.read() as connection:
                jobs = queries.list_jobs(connection, JobFilter(name=name))
            return next((each for each in jobs if each.job.state in states), None)

        return self.until(found, f"job {name} {states}")

    def do(self, command: Any) -> None:  # Any: whichever command
        self.controller.carry_out(command).result(SECONDS)


@pytest.fixture
def centre(memory: Ground) -> Iterator[Centre]:
    built = Centre(memory)
    yield built
    built.close()


def test_a_users_pod_becomes_a_job_runs_on_its_node_and_ends_with_its_phase(centre: Centre) -> None:
    product = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    centre.make("train", notes={names.TIME_LIMIT: "1h30m", names.GPU_CLASS: "H100"}, nodeSelector=product)
    job = centre.job("train", JobState.RUNNING)
    assert (job.job.account, job.job.user, job.gpu_class) == ("acme/nlp", "mei", "H100")
    assert (job.job.shape.gpus_per_node, job.job.time_limit_ms) == (2, 5_400_000)
    assert (job.labels["origin"], job.labels["pods"]) == ("adopted", f"{NAMESPACE}/train")
    pod = centre.pod("train")
    assert pod is not None
    assert pod["spec"]["nodeName"] == job.grants[0].node
    assert pod["spec"]["activeDeadlineSeconds"] > 5400, "it ends even where no daemon is there to end it"
    # What it holds is its job's: nothing of it counts as foreign beside that.
    offered = [device for each in centre.controller.executor.inventory() for device in each.devices]
    assert not [device for device in offered if device.is_foreign]
    assert centre.ground.server is not None
    centre.ground.server.logs["train"] = b"epoch 1\n"
    assert centre.controller.logs(AllocationId(job.last_allocation or ""), 0, 0, 100).data == b"epoch 1\n"
    centre.admin.merge(f"{PODS}/train", {"metadata": {"annotations": {PREFIX + "fail": "3"}}})
    ended = centre.job("train", JobState.FAILED)
    assert (ended.reason, ended.exit_code) == (EndReason.EXIT_NONZERO, 3)
    centre.controller.executor.observe()
    assert centre.pod("train") is not None, "it is its user's to remove"


def test_pods_without_a_turn_stay_gated_and_end_with_their_jobs_as_their_jobs_end_with_them(centre: Centre) -> None:
    for index in range(4):
        centre.make(f"full-{index}", gpus=8)
    full = [centre.job(f"full-{index}", JobState.RUNNING) for index in range(4)]
    waiting = {name: centre_pending(centre, name) for name in ("cancelled", "deleted", "opened", "vanished")}
    assert f"waits as job {waiting['deleted'].job.id}; turnstile why" in centre.status("deleted", "waits as job")

    centre.do(CancelJobs((waiting["cancelled"].job.id,), "mei"))
    centre.until(lambda: centre.pod("cancelled") is None, "deletion of the pod")
    centre.admin.delete(f"{PODS}/deleted")
    assert "was deleted before its turn" in (centre.job("deleted", JobState.CANCELLED).detail or "")
    centre.admin.merge(f"{PODS}/opened", {"spec": {"schedulingGates": None}})
    assert "has no gate" in (centre.job("opened", JobState.CANCELLED).detail or "")

    # One that vanishes while nobody leads; what runs goes on as it was.
    centre.end_term()
    centre.admin.delete(f"{PODS}/vanished")
    centre.lead()
    assert "was deleted before its turn" in (centre.job("vanished", JobState.CANCELLED).detail or "")
    assert centre.job("full-0", JobState.RUNNING).job.attempt == 1

    # Ours to stop, nobody's to make again: what is sent back to the queue is over.
    centre.do(RequeueJobs((full[1].job.id,), "op"))
    over = centre.job("full-1", JobState.FAILED)
    assert over.reason is EndReason.REQUEUED
    centre.do(CancelJobs((full[0].job.id,), "mei"))
    centre.job("full-0", JobState.CANCELLED)
    assert centre.pod("full-0") is None
    centre.admin.delete(f"{PODS}/full-2", {"gracePeriodSeconds": 1})
    assert centre.job("full-2", JobState.CANCELLED).job.id == full[2].job.id


def centre_pending(centre: Centre, name: str) -> JobRecord:
    centre.make(name, gpus=8)
    return centre.job(name, JobState.PENDING)


def test_what_keeps_a_pod_from_being_a_job_is_written_on_it(centre: Centre) -> None:
    rival = {names.PROJECT: "nlp"}
    centre.admin.create("/api/v1/namespaces", {"metadata": {"name": "kitchen"}})
    centre.make("limit", notes={names.TIME_LIMIT: "soon"})
    centre.make("nobody", notes={names.USER: ""})
    centre.make("stranger", notes={names.USER: "eve"})
    centre.make("idle", gpus=0)
    centre.make("huge", gpus=16)
    centre.make("lost", labels={names.PROJECT: "opera"})
    centre.make("theirs", notes={names.PROJECT: "rival/vision"})
    centre.make("far", namespace="kitchen")
    centre.make("mine", namespace="turnstile-rival", labels=rival)
    centre.make("open", gates=())
    centre.make("rank-0", labels={names.GANG: "g"}, notes={names.GANG_SIZE: "2"})
    assert "write it as 90m, 12h, 1h30m or 2d" in centre.status("limit", "time-limit")
    assert "annotate it with gpu-turnstile/user=NAME" in centre.status("nobody", "names no user")
    assert "eve is no member of acme/nlp" in centre.status("stranger", "is no job")
    assert "asks for no GPU" in centre.status("idle", "GPU")
    assert "no node has 16" in centre.status("huge", "is no job")
    assert "there is no project acme/opera" in centre.status("lost", "is no job")
    assert "rival/vision is another tenant's" in centre.status("theirs", "is no job")
    assert "namespace kitchen is no tenant's" in centre.status("far", "is no job", "kitchen")
    assert "mei is no member of rival/nlp" in centre.status("mine", "is no job", "turnstile-rival")
    assert "without the scheduling gate" in centre.status("open", "is not metered")
    assert "waits for the other pods of gang g: 1 are there" in centre.status("rank-0", "waits for")
    with centre.database.read() as connection:
        assert queries.list_jobs(connection, JobFilter()) == []
    centre.do(SaveMember(Member(AccountId("acme/nlp"), UserName("eve"), "user")))
    centre.admin.merge(f"{PODS}/stranger", {"metadata": {"annotations": {names.TIME_LIMIT: "2h"}}})
    centre.gate._again_ms.clear()  # half a minute, without waiting for it
    assert centre.job("stranger", JobState.RUNNING).job.user == "eve"


def test_the_pods_of_a_gang_run_together_each_on_a_node_of_its_own(centre: Centre) -> None:
    for rank in (0, 10, 2):
        centre.make(f"rank-{rank}", gpus=4, labels={names.GANG: "ring"}, notes={names.GANG_SIZE: "3"})
    job = centre.job("ring", JobState.RUNNING)
    assert [text.split("/")[1] for text in job.launch.adopts] == ["rank-0", "rank-2", "rank-10"]
    pods = [centre.pod(f"rank-{rank}") for rank in (0, 2, 10)]
    assert [pod["spec"]["nodeName"] for pod in pods if pod] == [grant.node for grant in job.grants]
    assert len({grant.node for grant in job.grants}) == 3
    centre.admin.merge(f"{PODS}/rank-2", {"metadata": {"annotations": {PREFIX + "fail": "7"}}})
    ended = centre.job("ring", JobState.FAILED)
    assert ended.exit_code == 7
    centre.until(lambda: centre.pod("rank-10") is None, "end of the other ranks")


def test_a_server_that_drops_gates_is_told_of_and_left_alone(centre: Centre, caplog: pytest.LogCaptureFixture) -> None:
    assert centre.ground.server is not None
    centre.ground.server.dropped_fields.add("schedulingGates")
    centre.make("early")
    centre.gate.look(centre.controller)
    assert "keeps no scheduling gates" in caplog.text
    pod = centre.pod("early")
    assert pod is not None
    assert names.STATUS not in pod["metadata"]["annotations"]
    offered = [device for each in centre.controller.executor.inventory() for device in each.devices]
    assert sum(device.is_foreign for device in offered) == 2


@pytest.mark.kubernetes
def test_a_real_server_says_by_what_it_stores_whether_it_keeps_gates(real: Ground) -> None:
    api = real.api()
    assert keeps_gates(api) is (api.server_version() >= (1, 27))
    api.close()
