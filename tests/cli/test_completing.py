"""What a shell is offered for the next word: live jobs and projects, and nothing at all when something is wrong."""

import pytest

from tests.cli.conftest import Home
from tests.cli.peer import Peer, envelope, page, problem
from tests.cli.recorded import QUEUE


def offered(home: Home, monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    """The words that bash is offered at the end of a line."""
    with monkeypatch.context() as patched:
        patched.setenv("_TURNSTILE_COMPLETE", "complete_bash")
        patched.setenv("COMP_WORDS", line)
        patched.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        done = home.turnstile()
    assert done.err == ""
    return done.out.split()


def test_jobs_are_offered_by_number_to_verbs_that_take_them(
    home: Home, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert offered(home, monkeypatch, "turnstile cancel 104") == ["10431", "10482", "10490_7", "10493"]
    assert offered(home, monkeypatch, "turnstile show 1048") == ["10482"]
    offered(home, monkeypatch, "turnstile exec 1")
    offered(home, monkeypatch, "turnstile port-forward 1")
    states = [each.query.get("state") for each in peer.requests("GET", "/v1/jobs")]
    assert states == [["live"], ["all"], ["running"], ["running"]]
    assert {tuple(each.query["user"]) for each in peer.requests("GET", "/v1/jobs")} == {("mei",)}


def test_projects_are_offered_after_their_flag(home: Home, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = [{"account": name} for name in ("acme", "acme/nlp", "acme/vision", "acme/vision")]
    peer.answers("GET", "/v1/quota", page("QuotaList", accounts))
    assert offered(home, monkeypatch, "turnstile submit -A v") == ["vision"]
    assert offered(home, monkeypatch, "turnstile queue -A ") == ["nlp", "vision"]


def test_nothing_is_offered_when_the_server_refuses_or_is_away(
    home: Home, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer.answers("GET", "/v1/jobs", problem("not_allowed", 403, "no"))
    assert offered(home, monkeypatch, "turnstile cancel 1") == []
    peer.answers("GET", "/v1/jobs", envelope("JobList", items="nonsense"))
    assert offered(home, monkeypatch, "turnstile cancel 1") == []
    peer.answers("GET", "/v1/jobs", QUEUE)
    assert offered(home, monkeypatch, "turnstile cancel 10482") == ["10482"]
