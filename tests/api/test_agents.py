"""Agents against the real API: the agent's own code delivers to the daemon's own routes, with outages in between."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from metering.agent import Sampler
from metering.holders import HolderWatch
from metering.ledger import windows_of
from metering.reporter import AgentName, LinkProblem, LinkTrouble, Reporter
from metering.simulated import SimulatedNode, SimulatedReader
from metering.spool import Spool
from scheduler.auth import Role
from scheduler.clock import ManualClock
from scheduler.core.model import AllocationId, DeviceId, GpuClass, NodeName
from scheduler.executor import ExecutorError
from tests.api.centre import Centre
from tests.api.conftest import Client, People

HOST = "h200-01"
BEAT = {"instance": "one", "version": "1", "collector": "nvml", "driver_version": None, "now_ms": 0}


class ApiUplink:
    """Posts to the app; may be cut, and may lose answers after the daemon has acted."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.is_away = False
        self.loses_answers = False
        self.keys: list[str | None] = []

    def post(self, path: str, body: Mapping[str, Any], key: str | None = None) -> Mapping[str, Any]:
        if self.is_away:
            raise LinkProblem(LinkTrouble.AWAY, "connection refused")
        answer = self.client.post(path, json=dict(body), headers={} if key is None else {"Idempotency-Key": key})
        if answer.status_code >= 400:
            trouble = LinkTrouble.NOT_ALLOWED if answer.status_code in {401, 403} else LinkTrouble.REFUSED
            raise LinkProblem(trouble, answer.json()["detail"])
        if path.endswith("evidence"):
            self.keys.append(key)
            if self.loses_answers:
                raise LinkProblem(LinkTrouble.AWAY, "the connection broke off")
        found: Mapping[str, Any] = answer.json()
        return found


class Holders:
    """A witness that says what the test says."""

    def __init__(self) -> None:
        self.held: dict[str, AllocationId] = {}
        self.problem: str | None = None

    def holders(self) -> Mapping[str, AllocationId]:
        if self.problem is not None:
            raise ExecutorError(self.problem)
        return self.held

    def last_seen_ms(self, node: NodeName) -> int | None:
        return None


class Rig:
    """A simulated node's agent beside the API; time passes for both when told."""

    def __init__(self, centre: Centre, people: People, folder: Path, *, ahead_ms: int = 0) -> None:
        self.centre = centre
        self.clock = ManualClock(centre.clock.now_ms() + ahead_ms)
        self.reader = SimulatedReader(SimulatedNode(NodeName(HOST), GpuClass("H200"), 2), self.clock, lambda _: True)
        self.uuids = [gpu.uuid for gpu in self.reader.identities()[0]]
        self.witness = Holders()
        self.folder = folder
        self.uplink = ApiUplink(people.with_role(Role.AGENT, "", HOST))
        self.reporter = self.agent()

    def agent(self) -> Reporter:
        """The agent, begun anew on its spool."""
        sampler = Sampler(NodeName(HOST), self.reader, self.clock)
        name = AgentName(NodeName(HOST), "one", "1.0")
        return Reporter(name, sampler, Spool(self.folder), self.clock, HolderWatch(self.witness))

    def pass_minute(self) -> None:
        for _ in range(4):
            self.reporter.measure()
            self.clock.advance(seconds=15)
            self.centre.clock.advance(seconds=15)
        self.reporter.measure()
        self.reporter.close()

    def report(self) -> str | None:
        """Returns why the delivery failed, or None."""
        try:
            self.reporter.report(self.uplink)
        except LinkProblem as problem:
            return str(problem)
        return None

    def stored(self, place: int = 0) -> list[tuple[int, int]]:
        with self.centre.database.read() as connection:
            found = windows_of(connection, DeviceId(self.uuids[place]), 0, 2 * self.clock.now_ms())
        return [(window.from_ms, window.to_ms) for window in found]


@pytest.fixture
def rig(centre: Centre, people: People, tmp_path: Path) -> Rig:
    return Rig(centre, people, tmp_path / "spool")


def test_what_an_agent_measures_arrives_whole_after_hours_without_the_daemon_and_a_restart(rig: Rig) -> None:
    rig.report()
    rig.uplink.is_away = True
    for _ in range(90):
        rig.pass_minute()
        assert rig.report() == "connection refused"
    rig.reporter = rig.agent()
    rig.pass_minute()
    rig.uplink.is_away = False
    assert rig.report() is None
    assert rig.reporter.spooled == (0, 0, 0)
    stored = rig.stored()
    assert len(stored) == 91
    assert all(end == begin for (_, end), (begin, _) in pairwise(stored[:90]))


def test_a_batch_whose_answer_was_lost_is_sent_again_under_its_key_and_stored_once(rig: Rig) -> None:
    rig.pass_minute()
    rig.uplink.loses_answers = True
    assert rig.report() == "the connection broke off"
    rig.uplink.loses_answers = False
    assert rig.report() is None
    assert rig.uplink.keys[0] == rig.uplink.keys[1]
    assert len(rig.stored()) == 1


def test_xids_are_told_once_each_and_stand_in_the_nodes_history(rig: Rig, people: People) -> None:
    rig.pass_minute()
    rig.reader.inject_xid(rig.uuids[0], 13)
    rig.pass_minute()
    rig.pass_minute()
    assert rig.report() is None
    history = people.operator().get(f"/v1/admin/nodes/{HOST}/history").json()["items"]
    assert [(item["event"], item["device"]) for item in history] == [("agent_first", None), ("xid", rig.uuids[0])]
    assert "XID 13, application" in history[1]["detail"]


def test_who_holds_which_gpu_is_told_as_long_as_it_lasts(rig: Rig, centre: Centre, people: People) -> None:
    job = people.user().submit()
    centre.tick()
    rig.witness.held = {rig.uuids[0]: centre.allocation_of(job)}
    rig.pass_minute()
    assert rig.report() is None
    assert rig.reporter.link.refused == 1  # the job runs on h1, and this agent speaks for another node


def test_a_witness_out_of_order_is_a_problem_that_operators_see(rig: Rig, people: People) -> None:
    rig.witness.problem = "the kubelet does not answer"
    rig.pass_minute()
    assert rig.report() is None
    (listed,) = people.operator().get("/v1/admin/agents").json()["items"]
    assert listed["problems"] == ["who holds which GPU is not known: the kubelet does not answer"]
    assert (listed["gpus"], listed["is_silent"], listed["node"]) == (2, False, HOST)


@pytest.mark.parametrize("ahead_ms", [-90_000, 0, 90_000])
def test_the_clocks_difference_is_measured_on_both_sides(
    centre: Centre, people: People, tmp_path: Path, ahead_ms: int
) -> None:
    rig = Rig(centre, people, tmp_path, ahead_ms=ahead_ms)
    assert rig.report() is None
    assert rig.reporter.link.skew_ms == ahead_ms
    history = people.operator().get(f"/v1/admin/nodes/{HOST}/history").json()["items"]
    assert ("clock_skew" in [item["event"] for item in history]) == (ahead_ms != 0)
    assert people.operator().get("/v1/admin/agents").json()["items"][0]["clock_skew_seconds"] == ahead_ms / 1000


def test_a_batch_that_will_never_be_taken_holds_up_no_other(rig: Rig) -> None:
    rig.report()
    Spool(rig.folder).add({"windows": "nonsense", "xids": [], "holdings": []})
    rig.reporter = rig.agent()
    rig.pass_minute()
    assert rig.report() is None
    assert rig.reporter.spooled[0] == 0
    assert len(rig.stored()) == 1


def test_a_full_disk_is_said_in_the_next_heartbeat_and_sampling_goes_on(rig: Rig, people: People) -> None:
    rig.report()
    rig.folder.rename(rig.folder.with_name("gone"))
    rig.pass_minute()
    assert rig.report() is None
    (listed,) = people.operator().get("/v1/admin/agents").json()["items"]
    assert "the spool cannot be written" in listed["problems"][0]
    assert rig.reporter.spooled[2] == 1


def test_a_token_speaks_for_its_node_and_that_of_any_node_for_all(people: People) -> None:
    own, shared = people.with_role(Role.AGENT, "", "h1"), people.with_role(Role.AGENT, "", "any-node")
    tenant = people.with_role(Role.AGENT, "acme", "h1")
    assert own.post("/v1/agents/h1/heartbeat", json=BEAT).json()["pool"] == "main"
    refused = own.post("/v1/agents/h2/heartbeat", json=BEAT)
    assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed")
    assert refused.json()["try"][1] == "turnstile admin token create --role agent -u h2"
    assert shared.post("/v1/agents/h2/heartbeat", json=BEAT).status_code == 200
    assert tenant.post("/v1/agents/h1/heartbeat", json=BEAT).status_code == 403


def test_evidence_without_a_key_or_beyond_the_bounds_is_refused_in_words(people: People) -> None:
    agent = people.with_role(Role.AGENT, "", "h1")
    agent.post("/v1/agents/h1/heartbeat", json=BEAT)
    assert "names this batch" in agent.post("/v1/agents/h1/evidence", json={}).json()["problems"][0]["message"]
    many = {"xids": [{"uuid": None, "xid": 1, "count": 1, "at_ms": 0}] * 1001}
    key = {"Idempotency-Key": "k"}
    refused = agent.post("/v1/agents/h1/evidence", json=many, headers=key).json()
    assert refused["problems"][0]["message"] == "must have at most 1000 entries"
    broken = {"uuid": "GPU-1", "from_ms": 5, "to_ms": 5}
    refused = agent.post("/v1/agents/h1/evidence", json={"windows": [broken]}, headers=key).json()
    assert refused["code"] == "invalid"


def test_an_agent_that_is_forgotten_is_expected_no_more(rig: Rig, people: People) -> None:
    rig.report()
    operator = people.operator()
    assert operator.request("DELETE", f"/v1/admin/agents/{HOST}").status_code == 200
    assert operator.get("/v1/admin/agents").json()["items"] == []
    assert operator.request("DELETE", f"/v1/admin/agents/{HOST}").status_code == 404
