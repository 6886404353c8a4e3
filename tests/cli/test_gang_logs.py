"""The output of a gang's nodes: which of them, and how their lines are told apart."""

import json
import subprocess
import sys

from tests.cli.conftest import Home
from tests.cli.peer import Asked, Peer, Reply, envelope, problem
from tests.cli.recorded import ended, job, stream

LOGS, WAIT = ("GET", "/v1/jobs/10482/logs"), ("GET", "/v1/jobs/10482/wait")


def _gang(peer: Peer, **parts: tuple[Reply, ...]) -> None:
    """A gang whose ranks (`r0`, `r1` …) stream so, one reply after the other."""
    left = {name: list(replies) for name, replies in parts.items()}

    def rank(asked: Asked) -> Reply:
        replies = left["r" + asked.query["rank"][0]]
        return replies.pop(0) if len(replies) > 1 else replies[0]

    peer.answers("GET", "/v1/jobs/10482", envelope("Job", **job(nodes=len(parts))))
    peer.answers(*LOGS, rank)


def test_lines_of_several_nodes_are_never_mixed_and_begin_with_their_ranks(home: Home, peer: Peer) -> None:
    cut = (stream(b"a\nb", is_complete=False), stream(b"c\n\xff\x00", start=3))
    _gang(peer, r0=cut, r1=(stream(b"x\n", b"y\nz\n"),), r2=(stream(),))
    peer.answers(*WAIT, ended(exit_code=0, nodes=3))
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "logs", "-f", "10482"], capture_output=True, timeout=60, check=True
    )
    lines = done.stdout.split(b"\n")
    assert [each for each in lines if each.startswith(b"0")] == [b"0: a", b"0: bc", b"0: \xff\x00"]
    assert [each for each in lines if each.startswith(b"1")] == [b"1: x", b"1: y", b"1: z"]
    assert len(lines) == 7
    resumed = [each for each in peer.requests(*LOGS) if "Last-Event-ID" in each.headers]
    assert [(each.query["rank"], each.headers["Last-Event-ID"]) for each in resumed] == [(["0"], "3")]


def test_some_nodes_of_a_gang_and_one_alone(home: Home, peer: Peer) -> None:
    _gang(peer, r0=(stream(b"a\n"),), r1=(stream(b"b\n"),), r2=(stream(b"c\n"),))
    peer.answers(*WAIT, ended(nodes=3))
    assert home.turnstile("logs", "-f", "10482", "--rank", "1").out == "b\n"
    streamed = home.turnstile("logs", "-f", "10482", "--rank", "0,2", "-o", "jsonl").out.splitlines()
    told = [(each["id"], each["rank"], each["line"]) for each in map(json.loads, streamed)]
    assert sorted(told) == [(10482, 0, "a"), (10482, 2, "c")]
    beyond = home.turnstile("logs", "10482", "--rank", "3")
    assert (beyond.code, beyond.err) == (4, "error: job 10482 has 3 nodes, counted from 0\n  try   --rank 2\n")
    for wrong in ("x", "2-1", "", "0-16"):
        assert home.turnstile("logs", "10482", "--rank", wrong).code == 2


def test_a_gang_that_starts_again_is_followed_on_all_of_its_nodes_again(home: Home, peer: Peer) -> None:
    both = (stream(b"first\n", attempt=1), stream(b"second\n", attempt=2))
    _gang(peer, r0=both, r1=both)
    again = envelope("Job", **job(state="running", nodes=2, attempt=2))
    peer.answers(*WAIT, again, ended(attempt=2, nodes=2))
    done = home.turnstile("logs", "-f", "10482")
    assert sorted(done.out.splitlines()) == ["0: first", "0: second", "1: first", "1: second"]
    assert "starts again (attempt 1 ended)" in done.err


def test_what_a_node_of_a_gang_has_lost_does_not_hide_the_others_logs(home: Home, peer: Peer) -> None:
    def part(asked: Asked) -> Reply:
        if asked.query["rank"] == ["0"]:
            return problem("not_found", 404, "the log of job 10482, rank 0, is not there (any more)")
        piece = b"here\nno end" if asked.query["offset"] == ["0"] else b""
        return Reply(piece, headers={"Turnstile-Next-Offset": "11"})

    peer.answers("GET", "/v1/jobs/10482", envelope("Job", **job(nodes=2)))
    peer.answers(*LOGS, part)
    done = home.turnstile("logs", "10482")
    assert (done.code, done.out) == (0, "1: here\n1: no end\n")
    assert done.err == "note: the log of job 10482, rank 0, is not there (any more)\n"
    peer.answers(*LOGS, problem("not_found", 404, "gone"))
    assert home.turnstile("logs", "10482").code == 4


def test_a_failure_on_one_nodes_stream_is_told_and_ends_the_command(home: Home, peer: Peer) -> None:
    _gang(peer, r0=(stream(b"a\n"),), r1=(problem("internal", 500, "the log is unreadable"),))
    done = home.turnstile("logs", "-f", "10482")
    assert (done.code, "the log is unreadable" in done.err) == (1, True)


def test_an_elastic_gang_is_followed_on_the_nodes_that_it_got(home: Home, peer: Peer) -> None:
    _gang(peer, r0=(stream(b"a\n"),), r1=(stream(b"b\n"),))
    waits = job(nodes=1, nodes_min=1, nodes_max=4)
    peer.answers("GET", "/v1/jobs/10482", envelope("Job", **waits))
    runs = envelope("Job", **waits | {"state": "running", "nodes": 2})
    peer.answers(*WAIT, envelope("Job", **waits), runs, ended(nodes=2, nodes_max=4))
    assert sorted(home.turnstile("logs", "-f", "10482").out.splitlines()) == ["0: a", "1: b"]


def test_of_a_large_gang_the_first_nodes_are_shown_and_the_others_named(home: Home, peer: Peer) -> None:
    peer.answers("GET", "/v1/jobs/10482", envelope("Job", **job(nodes=64)))
    done = home.turnstile("logs", "10482")
    assert done.err == "note: 16 of 64 nodes; of others: --rank 16-31\n"
    assert {each.query["rank"][0] for each in peer.requests(*LOGS)} == {str(rank) for rank in range(16)}
