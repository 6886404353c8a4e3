"""The exit statuses that scripts rely on, one by one, each as the verb that a script would call returns it."""

from dataclasses import dataclass

import pytest

from tests.cli.conftest import Home
from tests.cli.peer import Json, Peer, Reply, envelope, page, problem, said
from tests.cli.recorded import ended, job, stream

JOB, JOBS, WAIT, LOGS, WHOAMI = (
    ("GET", "/v1/jobs/10482"),
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs/10482/wait"),
    ("GET", "/v1/jobs/10482/logs"),
    ("GET", "/v1/whoami"),
)
SHOW, SUBMIT, RUN = ("show", "10482"), ("submit", "-t", "1h", "x"), ("run", "-t", "1h", "--", "x")


def refused(code: str, status: int) -> Reply:
    """A server's refusal."""
    return problem(code, status, "why")


def done(verb: str, did: str, state: str) -> Json:
    """What a verb did to a job."""
    return page("JobActionList", [{"id": 10482, "did": did, "state": state}])


@dataclass(frozen=True)
class Row:
    """One row: what is typed, the request that is answered in a way of its own, and the exit status."""

    code: int
    words: tuple[str, ...]
    asked: tuple[str, str] | None = None
    answer: Reply | Json | None = None


NEVER_RAN: Json = {"state": "failed", "exit_code": None, "started_at": None, "reason": "image_pull"}
TABLE = {
    "done": Row(0, SHOW),
    "wait for a job that completed": Row(0, ("wait", "10482"), WAIT, ended()),
    "cancel of a job that has ended": Row(
        0, ("cancel", "10482"), ("POST", "/v1/jobs/cancel"), done("cancel", "already_ended", "failed")
    ),
    "help": Row(0, ("queue", "--help")),
    "the server failed": Row(1, SHOW, JOB, refused("internal", 500)),
    "the server answers nonsense": Row(1, SHOW, JOB, Reply(b"[]")),
    "no such command": Row(2, ("cancle", "10482")),
    "no such flag": Row(2, ("queue", "--gpu")),
    "a bare number as a time": Row(2, ("submit", "-g", "1", "-t", "90", "--", "x")),
    "a word that is none of the words": Row(2, ("queue", "-o", "yaml")),
    "a context that is not configured": Row(2, ("queue", "--context", "nowhere")),
    "an invalid request": Row(3, SUBMIT, JOBS, refused("invalid", 422)),
    "never fits": Row(3, SUBMIT, JOBS, refused("never_fits", 422)),
    "over quota": Row(3, SUBMIT, JOBS, refused("over_quota", 422)),
    "over budget": Row(3, SUBMIT, JOBS, refused("over_budget", 422)),
    "against the policy": Row(3, SUBMIT, JOBS, refused("policy", 422)),
    "an idempotency key used twice": Row(3, SUBMIT, JOBS, refused("conflict", 409)),
    "a file with problems": Row(3, ("submit", "bad.yaml")),
    "a directive that is not supported": Row(3, ("submit", "bad.sh")),
    "no such job": Row(4, ("show", "99")),
    "no such tenant": Row(4, ("admin", "tenant", "show", "nobody")),
    "no such job file": Row(4, ("submit", "none.yaml")),
    "no such price file": Row(4, ("admin", "price", "import", "none.toml")),
    "no such file for the environment": Row(4, ("submit", "-t", "1h", "--env-file", "none.env", "x")),
    "not logged in": Row(5, SHOW, JOB, refused("not_logged_in", 401)),
    "not allowed": Row(5, SHOW, JOB, refused("not_allowed", 403)),
    "no token": Row(5, ("queue", "--token-file", "none")),
    "wrong state by the server": Row(
        6, ("exec", "10482", "--", "x"), ("GET", "/v1/jobs/10482/exec"), refused("wrong_state", 409)
    ),
    "hold of a job that runs": Row(
        6, ("hold", "10482"), ("POST", "/v1/jobs/hold"), done("hold", "unchanged", "running")
    ),
    "release of a job that has ended": Row(
        6, ("release", "10482"), ("POST", "/v1/jobs/release"), done("release", "already_ended", "failed")
    ),
    "no daemon": Row(7, ("queue", "--url", "http://127.0.0.1:9")),
    "no daemon leads": Row(7, SHOW, JOB, refused("unavailable", 503)),
    "too many requests": Row(7, SHOW, JOB, problem("too_many", 429, "slow down", headers={"Retry-After": "3600"})),
    "wait --timeout ran out": Row(8, ("wait", "10482", "--timeout", "1s"), WAIT, envelope("Job", **job())),
    "run: the job's own": Row(3, RUN, WAIT, ended(state="failed", exit_code=3)),
    "wait: the job's own": Row(42, ("wait", "10482"), WAIT, ended(state="failed", exit_code=42)),
    "logs -f --exit-status: the job's own": Row(
        7, ("logs", "-f", "10482", "--exit-status"), WAIT, ended(state="failed", exit_code=7)
    ),
    "killed by signal 9": Row(137, RUN, WAIT, ended(state="failed", exit_code=-9)),
    "out of memory": Row(137, RUN, WAIT, ended(state="failed", exit_code=137, reason="oom")),
    "walltime": Row(124, RUN, WAIT, ended(state="timeout", exit_code=143)),
    "never ran": Row(125, RUN, WAIT, ended(**NEVER_RAN)),
    "lost": Row(125, RUN, WAIT, ended(state="failed", exit_code=None, reason="node_lost")),
}


@pytest.mark.parametrize("name", TABLE)
def test_each_exit_status_is_the_tabled_one(name: str, home: Home, peer: Peer) -> None:
    row = TABLE[name]
    (home.path / "bad.yaml").write_text("comands: [x]\n")
    (home.path / "bad.sh").write_text("#!/bin/sh\n#SBATCH --nice=5\n#SBATCH -t 60\ntrue\n")
    peer.answers(*LOGS, stream(b""))
    if row.asked is not None and row.answer is not None:
        peer.answers(*row.asked, row.answer if isinstance(row.answer, Reply) else said(row.answer))
    plain = home.turnstile(*row.words)
    assert plain.code == row.code, plain
    is_refusal = row.code in range(1, 9) and row.asked not in {
        WAIT,
        ("POST", "/v1/jobs/hold"),
        ("POST", "/v1/jobs/release"),
    }
    if is_refusal:
        # The same status where an error is an envelope.
        as_json = home.turnstile("-o", "json", *row.words) if "-o" not in row.words else plain
        assert as_json.code == row.code
        assert plain.err.startswith("error: ")


def test_every_status_of_the_table_is_tried() -> None:
    assert {row.code for row in TABLE.values()} >= {*range(9), 124, 125, 137}


def test_a_change_that_another_one_overtook_is_made_of_what_is_there_by_then(home: Home, peer: Peer) -> None:
    before, after = ({"id": "acme", "weight": 1, "limit": {"H100": most}, "version": str(most)} for most in (8, 64))
    peer.answers("GET", "/v1/admin/accounts", page("AccountList", [before]), page("AccountList", [after]))
    overtaken = problem("conflict", 409, "acme was changed by somebody else since it was read; nothing was changed")
    peer.answers("PUT", "/v1/admin/accounts/acme", overtaken, envelope("Account", id="acme", weight=3))
    assert home.turnstile("admin", "tenant", "set", "acme", "--weight", "3").code == 0
    first, second = peer.requests("PUT", "/v1/admin/accounts/acme")
    assert (first.query["version"], second.query["version"]) == (["8"], ["64"])
    assert (second.json["weight"], second.json["limit"]) == (3, {"H100": 64})
