"""A deadline is kept by the daemon, whatever state the job is in when it comes."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.acceptance.daemons import Daemon

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
