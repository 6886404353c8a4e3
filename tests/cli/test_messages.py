"""What people read when they ask for something that cannot be: what was wrong, and what would be right."""

import pytest

from tests.cli.conftest import Home
from tests.cli.peer import Peer, page, problem


def unchanged(state: str) -> dict[str, object]:
    return page("JobActionList", [{"id": 10482, "did": "unchanged", "state": state}])


@pytest.mark.parametrize(
    ("verb", "state", "code", "words"),
    [
        ("hold", "running", 6, "10482 runs already, and a hold keeps jobs from starting: turnstile requeue 10482"),
        ("hold", "held", 0, "10482 is unchanged (held)"),
        ("release", "pending", 0, "10482 is not held"),
        ("requeue", "held", 0, "10482 is held: turnstile release 10482"),
        ("checkpoint", "pending", 6, "10482 has not started: there is nothing to save yet"),
    ],
)
def test_a_verb_that_does_nothing_says_why_and_what_would_do_something(
    home: Home, peer: Peer, verb: str, state: str, code: int, words: str
) -> None:
    peer.answers("POST", f"/v1/jobs/{verb}", unchanged(state))
    done = home.turnstile(verb, "10482")
    assert (done.code, done.err.startswith(f"note: {words}")) == (code, True), done.err


def test_a_job_without_a_time_limit_is_told_how_one_looks(home: Home, peer: Peer) -> None:
    wrong = [{"field": "time_limit_seconds", "message": "is required"}]
    refused = problem("invalid", 422, "time_limit_seconds: is required", problems=wrong)
    peer.answers("POST", "/v1/jobs", refused)
    done = home.turnstile("submit", "-g", "1", "--", "x")
    assert done.err == "error: -t is required\n  try   -t 90m   or   -t 12h\n"


def test_a_secrets_value_on_the_command_line_is_refused_and_not_repeated(home: Home, peer: Peer) -> None:
    done = home.turnstile("secret", "set", "HF_TOKEN=abc-123", stdin="x")
    assert (done.code, "abc-123" in done.out + done.err) == (2, False)
    assert "turnstile secret set HF_TOKEN < FILE" in done.err
    assert not peer.asked


@pytest.mark.parametrize("words", [("tenant", "create", "../x"), ("project", "create", "acme/a b")])
def test_a_name_that_no_account_can_have_is_refused_with_the_step_that_is_wrong(
    home: Home, peer: Peer, words: tuple[str, ...]
) -> None:
    done = home.turnstile("admin", *words)
    assert (done.code, not peer.asked) == (2, True)
    assert "is none of its steps; a step begins with a letter or digit" in done.err


def test_names_in_any_script_are_names(home: Home, peer: Peer) -> None:
    home.turnstile("admin", "project", "create", "晨星智能/推理")
    assert peer.asked
