"""The API over the daemon's own controller, its threads and a virtual executor: all but the socket."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from ulid import ULID

from metering.admission import BudgetAdmission
from metering.routes import ledger_routes
from scheduler.auth import Role, new_secret, secret_hash
from scheduler.clock import LedgerClock
from scheduler.core.model import AccountId, UserName
from scheduler.core.policy import Policy
from scheduler.executor import LaunchSpec
from scheduler.loop import Controller
from scheduler.routes.app import api
from scheduler.routes.needs import ApiSettings
from scheduler.simulated import SimulatedExecutor
from scheduler.store.accounts import SaveAccount
from scheduler.store.database import Database
from scheduler.store.jobs import JobDraft, SubmitJobs
from scheduler.store.lease import LeaderLease
from scheduler.store.tokens import SaveToken
from scheduler.telemetry import Telemetry
from tests.api.conftest import Client, Http, job_spec
from tests.builders import account, node, shape
from tests.databases import new_sqlite

DEADLINE_SECONDS = 30.0
ENDLESS_BURST = 10**9


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Controller, Http]]:
    database = Database.open(new_sqlite(tmp_path / "turnstile.db"))
    clock, telemetry = LedgerClock(), Telemetry("1.2.3")
    executor = SimulatedExecutor(clock, lambda: [node("h1"), node("h2")])
    lease = LeaderLease(database, "test", "http://test.invalid", 60_000)
    controller = Controller(database, executor, clock, Policy(), lease, telemetry)
    controller.start()
    assert controller.wait_until_settled(DEADLINE_SECONDS), controller.health()
    for name in ("acme", "acme/vision"):
        controller.carry_out(SaveAccount(account(name), name)).result(DEADLINE_SECONDS)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not controller.offers and time.monotonic() < deadline:
        time.sleep(0.01)
    limits = ApiSettings(version="1.2.3", requests_burst=ENDLESS_BURST)
    http = Http(api(controller, BudgetAdmission(), limits, telemetry, (ledger_routes,)))
    yield controller, http
    http.close()
    controller.stop()
    database.dispose()


def user_of(controller: Controller, http: Http, role: Role = Role.USER, account_path: str = "acme/vision") -> Client:
    secret = new_secret()
    token = SaveToken(str(ULID()), secret_hash(secret), role.value, AccountId(account_path), UserName("ana"))
    controller.carry_out(token).result(DEADLINE_SECONDS)
    return Client(http, secret)


def holds_all(controller: Controller) -> int:
    """Submits a job that holds every GPU for an hour of virtual time."""
    launch = LaunchSpec(("train",), "train", simulated_seconds=3600.0)
    whole = JobDraft(AccountId("acme/vision"), UserName("ana"), "train", shape(gpus=8, nodes=2), 7_200_000, launch)
    [job] = controller.carry_out(SubmitJobs((whole,), AccountId("acme"), UserName("ana"))).result(DEADLINE_SECONDS)
    return job


def test_a_job_is_submitted_runs_is_cancelled_and_leaves_a_sound_ledger(served: tuple[Controller, Http]) -> None:
    controller, http = served
    user = user_of(controller, http)
    short = user.submit()
    assert user.get(f"/v1/jobs/{short}/wait?timeout_seconds=30").json()["state"] == "completed"
    job = holds_all(controller)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while user.get(f"/v1/jobs/{job}").json()["state"] != "running":
        assert time.monotonic() < deadline, user.get(f"/v1/jobs/{job}/why").text
    assert [cls["free"] for cls in user.get("/v1/gpus").json()["items"]] == [0]
    waiting = user.submit()
    reasons = user.get(f"/v1/jobs/{waiting}/why").json()["reasons"]
    assert reasons[0]["code"] in {"capacity", "order"}
    assert user.post("/v1/jobs/cancel", json={"ids": [str(job)]}).json()["items"][0]["did"] == "stopping"
    ended = user.get(f"/v1/jobs/{job}/wait?timeout_seconds=30").json()
    assert (ended["state"], ended["reason"]) == ("cancelled", "cancelled")
    operator = user_of(controller, http, Role.OPERATOR, "")
    assert operator.get("/v1/admin/ledger/verify").json()["is_sound"] is True
    metrics = operator.get("/metrics").text
    assert 'turnstile_jobs_started_total{pool="main"}' in metrics
    assert "turnstile_schedule_cycle_seconds_count" in metrics
    assert "turnstile_ledger_last_posted_timestamp_seconds 1" in metrics


def test_twenty_requests_at_once_under_one_key_make_one_job_through_the_desk(served: tuple[Controller, Http]) -> None:
    controller, http = served
    headers = {**user_of(controller, http).headers, "Idempotency-Key": "once"}

    async def all_at_once() -> list[httpx.Response]:
        return await asyncio.gather(
            *(http.client.post("/v1/jobs", json=job_spec(hold=True), headers=headers) for _ in range(20))
        )

    answers = http.run(all_at_once())
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["items"][0]["id"] for answer in answers}) == 1


def test_submissions_that_arrive_together_share_commits_and_lose_nothing(served: tuple[Controller, Http]) -> None:
    controller, http = served
    user = user_of(controller, http)

    async def many() -> list[httpx.Response]:
        return await asyncio.gather(
            *(http.client.post("/v1/jobs", json=job_spec(hold=True), headers=user.headers) for _ in range(300))
        )

    answers = http.run(many())
    ids = [answer.json()["items"][0]["id"] for answer in answers]
    assert len(set(ids)) == 300
    assert [job["id"] for job in user.get("/v1/jobs?limit=1000").json()["items"]] == sorted(ids)
