"""Two daemons: on one PostgreSQL one leads and the other waits; on one data directory the second does not start."""

import json
import time
from typing import Any

import psycopg
import pytest

from tests.acceptance.conftest import MakeDaemon
from tests.acceptance.daemons import Daemon, job, until
from tests.acceptance.submitter import Submitter

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(150)]

TAKEOVER_SECONDS = 15.0
"""The promise."""


def lasting(url: str, job_id: int, seconds: float) -> None:
    """Says how long a held, simulated job will run: the simulation's own word, for which the API has none."""
    with psycopg.connect(url) as connection:
        (launch,) = connection.execute("SELECT launch::text FROM job WHERE id = %s", [job_id]).fetchone() or ("{}",)
        changed = json.dumps({**json.loads(launch), "simulated_seconds": seconds})
        connection.execute("UPDATE job SET launch = %s WHERE id = %s", [changed, job_id])


@pytest.mark.postgres
def test_when_the_leader_is_killed_the_other_leads_within_fifteen_seconds_and_nothing_is_lost(
    make_daemon: MakeDaemon, postgres: Any
) -> None:
    flags = ("--sim", "2x4xH200", "--database", postgres.get_uri())
    simulated = {"TURNSTILE_EXECUTOR_KIND": "simulated"}
    leader = make_daemon("leader", *flags, settings=simulated).start().set_up()
    follower = make_daemon("follower", *flags, settings=simulated).start(wait=False)
    follower.wait_until_it_answers()
    follower.share_tokens_of(leader)
    spans = gang_of(leader, postgres.get_uri(), seconds=25.0)

    assert_follows(follower, leader, spans["id"])
    through_follower = follower.turnstile(
        "submit", "-g", "1", "-t", "1m", "--hold", "--", "true", who="mei"
    ).out.strip()
    assert leader.job(through_follower)["state"] == "held", "the command line finds the leader by itself"

    submitter = Submitter(follower, [leader, follower], job("true"))
    submitter.start()
    try:
        until(lambda: len(submitter.taken) >= 20, "submissions are taken")
        leader.kill()
        killed = time.monotonic()
        before = len(submitter.taken)
        follower.wait_until_ready(TAKEOVER_SECONDS)
        assert time.monotonic() - killed <= TAKEOVER_SECONDS
        until(lambda: len(submitter.taken) >= before + 20, "submissions are taken by the new leader")
    finally:
        submitter.must_end.set()
        submitter.join(timeout=60)
    assert submitter.refusals <= {503}

    assert len(set(submitter.taken.values())) == len(submitter.taken), "a job each"
    for key, identity in submitter.taken.items():
        answer = follower.request("POST", "/v1/jobs", job("true"), token="mei", key=key)
        assert (answer.item["id"], answer.json["is_new"]) == (identity, False)
        assert follower.wait_for(identity, "completed")["attempt"] == 1
    follower.turnstile("release", through_follower, who="mei")
    follower.wait_for(through_follower, "completed")
    ended = follower.wait_for(spans["id"], "completed")
    assert (ended["started_at"], ended["attempt"]) == (spans["started_at"], 1), "it went on under the new leader"
    assert ended["elapsed_seconds"] == 25
    follower.turnstile("admin", "ledger", "verify")

    leader.start(wait=False)
    leader.wait_until_it_answers()
    assert_follows(leader, follower, spans["id"])
    stopped = time.monotonic()
    follower.terminate()
    leader.wait_until_ready(TAKEOVER_SECONDS)
    assert time.monotonic() - stopped < 8, "a leader that stops in order gives the lead away at once"
    leader.turnstile("admin", "ledger", "verify")
    for each in (leader, follower):
        each.assert_no_trace_in_log()


def gang_of(leader: Daemon, url: str, seconds: float) -> Any:  # Any: JSON
    """Starts a gang on both nodes that lasts so long, and returns it."""
    held = leader.submit("train", hold=True, nodes=2, gpus_per_node=1)["id"]
    lasting(url, held, seconds)
    leader.turnstile("release", str(held))
    return leader.wait_for(held, "running")


def assert_follows(follower: Daemon, leader: Daemon, known_job: int) -> None:
    """Reads are answered, writes are pointed at the leader, and the one who waits says that it waits."""
    assert follower.job(known_job)["id"] == known_job
    assert follower.turnstile("queue", "-s", "all", who="mei").code == 0
    refused = follower.request("POST", "/v1/jobs?dry_run=false", job("true"), token="mei")
    assert (refused.status, refused.headers["location"]) == (307, f"{leader.url}/v1/jobs?dry_run=false")
    ready = follower.request("GET", "/readyz", token=None)
    assert (ready.status, ready.json["problems"]) == (503, ["another daemon leads"])
    assert follower.probe("/metrics") == 200


def test_a_second_daemon_on_one_data_directory_refuses_with_clear_words(
    daemon: Daemon, make_daemon: MakeDaemon
) -> None:
    assert daemon.process is not None
    second = make_daemon("second")
    words = ["serve", "--data-dir", str(daemon.data), "--listen", f"127.0.0.1:{second.port}", "--sim", "2x4xH200"]
    refused = second.turnstile(*words, who=None, code=3)
    assert f"another daemon (process {daemon.process.pid}) runs with data directory {daemon.data}" in refused.err
    assert "stop it, or choose another directory" in refused.err
    assert daemon.is_ready(), "the first is none the worse"


def test_a_second_daemon_on_one_port_refuses_with_clear_words(daemon: Daemon, make_daemon: MakeDaemon) -> None:
    second = make_daemon("second")
    second.port = daemon.port
    refused = second.turnstile(*second.serve_words, who=None, code=3)
    assert f"cannot listen on 127.0.0.1:{daemon.port}" in refused.err
    assert "--listen" in refused.err
