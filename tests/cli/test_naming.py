"""Naming jobs: every verb that takes jobs takes them in every way, and what describes jobs is the server's to find."""

import pytest

from tests.cli.conftest import Home
from tests.cli.peer import Peer, envelope, page
from tests.cli.recorded import job

ACTING = {
    "cancel": "cancel",
    "scancel": "cancel",
    "hold": "hold",
    "release": "release",
    "requeue": "requeue",
    "checkpoint": "checkpoint",
    "update": "update",
}
"""The verbs that act on several jobs, with what they ask the server for."""
READING = ("show", "history", "why", "report", "seff", "logs", "wait", "exec")
"""The verbs that are about one job."""
NEWEST = [job(id=10501), job(id=10500)]
REFERENCES = {"10482_7": "10482_7", "@": "10501", "@~1": "10500", "dpo-run": "dpo-run"}


@pytest.mark.parametrize("verb", [*ACTING, *READING])
def test_a_verb_takes_elements_ages_and_names_and_ids_from_a_pipe(home: Home, peer: Peer, verb: str) -> None:
    peer.answers("GET", "/v1/jobs", page("JobList", NEWEST))
    peer.answers("GET", "/v1/jobs/dpo-run", envelope("Job", **job(id=10431)))
    if verb in ACTING:
        terms = ("-t", "2h") if verb == "update" else ()
        home.turnstile(verb, *REFERENCES, "-", *terms, stdin="10493 10482_7\n")
        [sent] = peer.requests("POST", f"/v1/jobs/{ACTING[verb]}")
        assert sent.json["ids"] == ["10482_7", "10501", "10500", "10431", "10493"]
        return
    rest = ("--", "true") if verb == "exec" else ()
    for typed, meant in REFERENCES.items():
        home.turnstile(verb, typed, *rest)
        last = peer.asked[-1].path.split("/")
        # Where a name must be a number first, the server has just said which.
        assert last[:4] in (["", "v1", "jobs", meant], ["", "v1", "jobs", "10431"]), (verb, typed, last)


@pytest.mark.parametrize(
    ("words", "query"),
    [
        (("queue", "-s", "pending", "-u", "ana", "-A", "nlp", "-p", "ib"), {"state": ["pending"], "pool": ["ib"]}),
        (("squeue", "-u", "me", "-n", "sft"), {"user": ["mei"], "name": ["sft"]}),
        (("history", "-u", "me", "-A", "nlp"), {"user": ["mei"], "project": ["nlp"], "state": ["ended"]}),
        (("sacct", "--since", "2026-11-01"), {"since": ["2026-11-01T00:00:00Z"]}),
    ],
    ids=["queue", "squeue", "history", "sacct"],
)
def test_lists_are_filtered_by_the_server(
    home: Home, peer: Peer, words: tuple[str, ...], query: dict[str, list[str]]
) -> None:
    assert home.turnstile(*words).code == 0
    asked = peer.requests("GET", "/v1/jobs")[-1].query
    assert {key: asked.get(key) for key in query} == query
