"""A deadline is kept by the daemon, whatever state the job is in when it comes."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.acceptance.daemons import Daemon, until

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(150)]

LATEST_SECONDS = 20.0
"""After the deadline: a look every two seconds, the grace of a process that ends at SIGTERM, and a busy machine."""


def test_at_its_deadline_a_running_job_is_stopped_and_a_waiting_one_fails(daemon: Daemon) -> None:
    due = datetime.fromtimestamp(time.time(), UTC) + timedelta(seconds=6)
    running = daemon.submit("sleep", "600", time_limit_seconds=900, deadline_at=due.isoformat())["id"]
    waiting = daemon.submit("true", hold=True, deadline_at=due.isoformat())["id"]
    daemon.wait_for(running, "running")
    stopped = daemon.wait_for(running, "timeout", seconds=6 + LATEST_SECONDS)
    failed = daemon.wait_for(waiting, "failed", seconds=LATEST_SECONDS)
    for job in (stopped, failed):
        assert job["reason"] == "deadline", job
        late_seconds = (datetime.fromisoformat(job["ended_at"]) - due).total_seconds()
        assert 0 <= late_seconds < LATEST_SECONDS, job
    daemon.assert_no_trace_in_log()


def test_a_job_that_is_stopped_gets_the_signal_that_it_asked_for(daemon: Daemon) -> None:
    script = "trap 'echo saved; exit 0' USR1; trap 'echo wrong' TERM; echo ready; while :; do sleep 0.1; done"
    asked: Any = {"time_limit_seconds": 600, "checkpoint_signal": "USR1", "grace_seconds": 20}
    job = daemon.submit("/bin/sh", "-c", script, **asked)["id"]
    daemon.wait_for(job, "running")
    until(lambda: "ready" in daemon.turnstile("logs", str(job), who="mei").out, "it listens")
    daemon.turnstile("cancel", "-y", str(job), who="mei")
    daemon.wait_for(job, "cancelled")
    words = daemon.turnstile("logs", str(job), who="mei").out.split()
    assert ("saved" in words, "wrong" in words) == (True, False), words
