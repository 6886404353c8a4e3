"""The door to the server: what is repeated, what is not, and what is said when it fails."""

import io
import socket
from collections.abc import Iterator

import pytest

from cli.answers import BrokenAnswer
from cli.client import Client, Endpoint
from cli.faults import ApiError
from tests.cli.peer import Peer, Reply, envelope, page, problem, said
from tests.cli.recorded import stream

CUT = Reply(b"", breaks_off=True)


@pytest.fixture
def client(peer: Peer) -> Iterator[Client]:
    found = Client(Endpoint(peer.url, "tst_secret"))
    yield found
    found.close()


def test_a_get_is_repeated_when_the_connection_breaks(client: Client, peer: Peer) -> None:
    peer.answers("GET", "/x", CUT, CUT, envelope("X", n=1))
    assert client.get("/x")["n"] == 1
    assert len(peer.requests("GET", "/x")) == 3


def test_a_get_is_not_repeated_for_ever(client: Client, peer: Peer) -> None:
    peer.answers("GET", "/x", CUT)
    with pytest.raises(ApiError, match="the connection broke off") as failed:
        client.get("/x")
    assert failed.value.exit_code == 7
    assert len(peer.requests("GET", "/x")) == 3


def test_a_post_without_a_key_is_sent_once_however_it_fails(client: Client, peer: Peer) -> None:
    busy = problem("unavailable", 503, "no leader", headers={"Retry-After": "0"})
    for failure in (CUT, busy):
        peer.answers("POST", "/x", failure, envelope("X"))
        before = len(peer.requests("POST", "/x"))
        with pytest.raises(ApiError):
            client.post("/x", {})
        assert len(peer.requests("POST", "/x")) == before + 1


def test_a_post_with_a_key_is_repeated_with_the_same_key_and_body(client: Client, peer: Peer) -> None:
    busy = problem("unavailable", 503, "no leader", headers={"Retry-After": "0"})
    peer.answers("POST", "/x", CUT, busy, envelope("X"))
    client.post("/x", {"a": 1}, key="k1")
    sent = peer.requests("POST", "/x")
    assert [(each.headers["Idempotency-Key"], each.body) for each in sent] == [("k1", b'{"a":1}')] * 3


def test_a_retry_after_that_is_too_long_is_left_to_the_caller(client: Client, peer: Peer) -> None:
    peer.answers("GET", "/x", problem("too_many", 429, "slow down", headers={"Retry-After": "60"}))
    with pytest.raises(ApiError, match="slow down"):
        client.get("/x")
    assert len(peer.requests("GET", "/x")) == 1


def test_an_idle_connection_that_the_server_closed_is_opened_again(client: Client, peer: Peer) -> None:
    closing = said(envelope("X"), 200, Connection="close")
    peer.answers("GET", "/x", closing, envelope("X", n=2))
    client.get("/x")
    assert client.get("/x")["n"] == 2


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [
        ("invalid", 422, 3),
        ("never_fits", 422, 3),
        ("over_quota", 422, 3),
        ("over_budget", 422, 3),
        ("policy", 422, 3),
        ("conflict", 409, 3),
        ("too_large", 413, 3),
        ("not_found", 404, 4),
        ("not_logged_in", 401, 5),
        ("not_allowed", 403, 5),
        ("wrong_state", 409, 6),
        ("too_many", 429, 7),
        ("unavailable", 503, 7),
        ("internal", 500, 1),
    ],
)
def test_each_code_has_the_exit_status_of_the_table(
    client: Client, peer: Peer, code: str, status: int, exit_code: int
) -> None:
    wrong = [{"field": "nodes", "message": "must be at least 1"}]
    peer.answers("GET", "/x", problem(code, status, "why", **{"try": ["-N 1"], "problems": wrong}))
    with pytest.raises(ApiError) as failed:
        client.get("/x")
    error = failed.value
    assert (error.code, error.exit_code, error.message, error.tries) == (code, exit_code, "why", ("-N 1",))
    assert [(each.field, each.message) for each in error.problems] == [("nodes", "must be at least 1")]
    assert error.request_id == "01JD8W3Z6Q5K9XN0V4T2R7M1AB"


@pytest.mark.parametrize(("status", "exit_code"), [(404, 4), (401, 5), (502, 7), (500, 1), (418, 1)])
def test_a_stranger_in_the_servers_place_is_named_with_its_status(
    client: Client, peer: Peer, status: int, exit_code: int
) -> None:
    peer.answers("GET", "/x", Reply(b"<html>proxy</html>", status, {"Content-Type": "text/html"}))
    with pytest.raises(ApiError, match=f"answered {status}") as failed:
        client.get("/x")
    assert failed.value.exit_code == exit_code
    assert "html" not in failed.value.message


def test_an_answer_that_is_not_json_is_the_servers_fault(client: Client, peer: Peer) -> None:
    peer.answers("GET", "/x", Reply(b"hello"))
    with pytest.raises(BrokenAnswer, match="did not answer JSON"):
        client.get("/x")


def test_a_server_that_is_not_there_is_asked_once_and_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(ApiError, match=rf"cannot reach http://127.0.0.1:{port} \(connection refused\)") as failed:
        Client(Endpoint(f"http://127.0.0.1:{port}", origin="context prod, from ~/x")).get("/x")
    assert failed.value.exit_code == 7
    assert failed.value.notes == ("context prod, from ~/x",)
    with pytest.raises(ApiError, match="no such host"):
        Client(Endpoint("http://no-such-host.invalid")).get("/x")


def test_a_follower_sends_a_write_to_the_leader_and_the_token_and_key_go_along(client: Client, peer: Peer) -> None:
    leader = Peer()
    try:
        leader.answers("POST", "/x", envelope("X", n=3))
        peer.answers("POST", "/x", Reply(b"", 307, {"Location": f"{leader.url}/x?dry_run=true"}))
        assert client.post("/x", {"a": 1}, key="k")["n"] == 3
        (sent,) = leader.requests("POST", "/x")
        assert sent.json == {"a": 1}
        assert sent.query == {"dry_run": ["true"]}
        assert (sent.headers["Authorization"], sent.headers["Idempotency-Key"]) == ("Bearer tst_secret", "k")
    finally:
        leader.close()


def test_redirects_that_go_in_circles_end(client: Client, peer: Peer) -> None:
    peer.answers("GET", "/x", Reply(b"", 307, {"Location": "/x"}))
    with pytest.raises(ApiError, match="answered 307"):
        client.get("/x")


def test_a_token_is_not_led_from_https_to_http_nor_to_another_scheme() -> None:
    client = Client(Endpoint("https://turnstile.example", "tst_secret"))
    for location in ("http://turnstile.example/x", "ftp://turnstile.example/x"):
        with pytest.raises(ApiError, match="may not be sent"):
            client._turn_to(location)


def test_a_list_is_read_to_its_last_page_or_to_as_many_as_are_wanted(client: Client, peer: Peer) -> None:
    pages = [page("L", [{"n": 1}, {"n": 2}], "p2"), page("L", [{"n": 3}], "p3"), page("L", [{"n": 4}])]
    peer.answers("GET", "/x", *pages)
    assert client.listing("/x", {"state": ["a", "b"]})["items"] == [{"n": n} for n in (1, 2, 3, 4)]
    assert [each.query.get("page") for each in peer.requests("GET", "/x")] == [None, ["p2"], ["p3"]]
    assert peer.requests("GET", "/x")[2].query["state"] == ["a", "b"]
    peer.answers("GET", "/y", *pages)
    some = client.listing("/y", most=3)
    assert (some["items"], some["next_page"]) == ([{"n": 1}, {"n": 2}, {"n": 3}], "p3")


def test_events_are_read_with_their_ids_and_a_broken_stream_ends_quietly(client: Client, peer: Peer) -> None:
    peer.answers("GET", "/logs", stream(b"one", b"two", is_complete=False), stream(start=6))
    first = list(client.events("/logs", {"rank": 0}))
    assert [(each.kind, each.id) for each in first] == [("message", "3"), ("message", "6")]
    rest = list(client.events("/logs", {"rank": 0}, after="6"))
    assert [each.kind for each in rest] == ["end"]
    assert peer.requests("GET", "/logs")[1].headers["Last-Event-ID"] == "6"


def test_a_download_that_breaks_off_is_an_error_and_not_a_short_file(client: Client, peer: Peer) -> None:
    peer.answers("GET", "/tar", Reply(b"half", breaks_off=True))
    with pytest.raises(ApiError, match="broke off"):
        client.save("/tar", None, io.BytesIO())
    peer.answers("GET", "/x", Reply(b'{"half":', breaks_off=True))
    with pytest.raises(ApiError, match="broke off"):
        client.get("/x")


def test_one_connection_carries_all_requests(client: Client, peer: Peer) -> None:
    peer.answers("GET", "/x", envelope("X"))
    client.get("/x")
    connection = client._connection
    client.get("/x")
    assert connection is not None
    assert client._connection is connection


def test_the_token_stands_in_no_representation_of_the_endpoint() -> None:
    assert "tst_secret" not in repr(Endpoint("https://x", "tst_secret")) + repr(
        Client(Endpoint("https://x", "tst_secret"))
    )
