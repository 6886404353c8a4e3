"""What was decided is told and proved later: `admin job explain JOB --at TIME --replay` on a real daemon."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.acceptance.conftest import MakeDaemon
from tests.acceptance.daemons import until

pytestmark = pytest.mark.acceptance


def now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


def test_why_a_job_waited_is_told_and_planned_again_after_it_has_ended(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("centre", "--sim", "2x4xH200", settings={"TURNSTILE_EXECUTOR_KIND": "simulated"})
    daemon.start().set_up()
    running = daemon.submit("sleep", "600", nodes=2, gpus_per_node=4, time_limit_seconds=900)["id"]
    daemon.wait_for(running, "running")
    waiting = daemon.submit("sleep", "1", gpus_per_node=4)["id"]
    held = daemon.submit("true", hold=True)["id"]
    until(lambda: daemon.get(f"/v1/jobs/{waiting}/why")["reasons"][0]["code"] == "capacity", "the tick looked at it")
    waited_at = now()
    assert daemon.request("POST", "/v1/jobs/cancel", {"ids": [str(running)]}).status == 200
    daemon.wait_for(waiting, "completed")

    def later(job: int, at: datetime) -> Any:  # Any: JSON
        return daemon.get(f"/v1/admin/jobs/{job}/decisions?at={at:%Y-%m-%dT%H:%M:%S.%fZ}")

    until(lambda: later(waiting, now())["items"], "the start is written down")
    words = ["admin", "job", "explain", str(waiting), "--at", waited_at.isoformat()]
    told = daemon.turnstile(*words, "--replay", "-o", "json").json
    assert (told["kind"], told["doing"], told["reasons"][0]["code"]) == ("DecisionList", "waiting", "capacity")
    assert told["since"]["decision"] <= told["tick"]["decision"]
    assert told["replay"]["is_same"] is True
    assert told["replay"]["reasons"][0].startswith("capacity (need 4")
    text = daemon.turnstile(*words, "--replay").out
    assert "planned once more: decides the same" in text
    assert f"{waiting} of acme: waiting at" in text

    after = later(waiting, now())
    assert after["doing"] == "ended"
    (start,) = after["items"]
    assert start["kind"] == "start"
    assert start["words"].startswith("burst on h200-0")
    assert start["allocation_id"] == daemon.get(f"/v1/jobs/{waiting}/allocations")["items"][0]["id"]
    assert later(held, waited_at)["reasons"][0]["code"] == "held_user"
    assert later(held, waited_at - timedelta(hours=1))["doing"] == "not_submitted"
    before = daemon.turnstile(*words[:-1], "3h", "--replay", code=4)
    assert "no state from before" in before.err
