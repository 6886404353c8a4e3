"""What people get wrong, against the real daemon: a sentence that helps, a stable code, the tabled exit status, nothing
stored, and never a stack trace (which `Daemon.turnstile` checks of every output)."""

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.daemons import Daemon, free_port, job

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all mistakes of this file: they leave nothing behind, which each test proves."""
    running = Daemon.at(tmp_path_factory.mktemp("bad") / "centre", "--sim", "2x8xH200").start().set_up()
    yield running
    running.assert_no_trace_in_log()
    running.close()


@pytest.fixture
def daemon(shared: Daemon) -> Iterator[Daemon]:
    """The shared daemon; nothing may have been stored by the time the test ends."""
    before = stored(shared)
    yield shared
    assert stored(shared) == before


def stored(daemon: Daemon) -> list[object]:
    return [each["id"] for each in daemon.get("/v1/jobs?state=all&limit=1000")["items"]]


# ---- the command line -----------------------------------------------------------------------------------------------

SUBMIT = ("submit", "-g", "H200:1", "-t", "1h")

MISTAKES = {
    "an unknown command": (("cancle", "10482"), 2, ("no command 'cancle'. did you mean 'cancel'?",)),
    "an unknown flag": (("submit", "--gpu", "8", "-t", "1h", "--", "true"), 2, ("--gpu", "--gpus")),
    "an unknown flag of queue": (("queue", "--sort", "id"), 2, ("--sort",)),
    "a time limit without a unit": (
        ("submit", "-g", "1", "-t", "90", "--", "./x"),
        2,
        ("-t 90 is ambiguous: slurm reads minutes, other tools seconds", "-t 90m", "-t 90s"),
    ),
    "more GPUs than a node has": (
        ("submit", "-g", "H200:16", "-t", "4h", "--", "./train.sh"),
        3,
        ("no node has 16 h200 (largest: 8), so this job could never start", "-g h200:8 -n 2", "code  never_fits"),
    ),
    "more nodes than there are": (
        ("submit", "-g", "H200:8", "-N", "3", "-t", "4h", "--", "true"),
        3,
        ("there are 2 such nodes", "never_fits"),
    ),
    "an unknown class": (
        ("submit", "-g", "H20:1", "-t", "1h", "--", "true"),
        3,
        ("no gpu class 'h20'", "did you mean", "h200"),
    ),
    "a count that is none": (("submit", "-g", "H200:eight", "-t", "1h", "--", "true"), 2, ("h200:eight",)),
    "a pool that is none": ((*SUBMIT, "-p", "mian", "--", "true"), 3, ("no pool 'mian'", "main")),
    "no command": (SUBMIT, 2, ("there is nothing to run", "-- ./train.sh")),
    "an array that is none": ((*SUBMIT, "-a", "9-0", "--", "true"), None, ("9-0",)),
    "an environment name that is none": (
        (*SUBMIT, "-e", "A B=1", "--", "true"),
        None,
        ("-e", "not the name of an environment variable", "-e name=value"),
    ),
    "a job that is none": (("show", "99"), 4, ("no job 99 in tenant acme",)),
    "the log of a job that is none": (("logs", "99"), 4, ("no job 99",)),
    "a cancel of a job that is none": (("cancel", "99"), 4, ("no job 99",)),
    "a wait for a job that is none": (("wait", "99"), 4, ("no job 99",)),
    "a newest job where there is none": (("show", "@"), 4, ()),
    "an admin's verb of a user": (("admin", "tenant", "create", "evil"), 5, ("user",)),
    "an admin's drain of a user": (("admin", "node", "drain", "h200-01", "--reason", "x"), 5, ()),
    "a price that is no file": (("admin", "price", "import", "absent.toml"), None, ("absent.toml",)),
    "a format that is none": (("queue", "-o", "xml"), 2, ("xml", "json")),
    "a state that is none": (("queue", "-s", "sleeping"), None, ("state", "pending", "completed")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_a_sentence_that_says_what_would_be_right(daemon: Daemon, mistake: str) -> None:
    words, code, told = MISTAKES[mistake]
    ran = daemon.turnstile(*words, who="mei", code=code)
    assert ran.code in {2, 3, 4, 5}, ran
    assert ran.out == "", "stdout is data"
    assert ran.err.startswith("error: "), ran.err
    missing = [text for text in told if text not in ran.err.lower()]
    assert not missing, ran.err


@pytest.mark.parametrize(
    "mistake", ["more GPUs than a node has", "an unknown class", "a job that is none", "an unknown flag"]
)
def test_with_json_the_same_mistake_is_one_object_on_stdout(daemon: Daemon, mistake: str) -> None:
    words, code, _ = MISTAKES[mistake]
    ran = daemon.turnstile(words[0], "-o", "json", *words[1:], who="mei", code=code)
    assert (ran.json["apiVersion"], ran.json["kind"]) == ("turnstile/v1", "Error")
    assert ran.json["code"] in {"never_fits", "invalid", "not_found", "usage"}
    assert ran.json["message"]
    assert isinstance(ran.json["try"], list)


def test_an_unknown_project_is_refused_by_name(daemon: Daemon) -> None:
    """Another tenant's project, one that does not exist, and paths that try to leave the token's account."""
    for project in ("acme/nlq", "birch/vision", "../birch", "acme/nlp/../../birch", "acme/nlp/", "/"):
        ran = daemon.turnstile(*SUBMIT, "-A", project, "--", "true", who="mei", code=None)
        assert ran.code in {3, 4, 5}, ran
        assert ran.err.startswith("error: "), ran.err


def test_a_job_file_with_several_problems_names_them_all(daemon: Daemon) -> None:
    answer = daemon.request("POST", "/v1/jobs", {"comand": ["x"], "gpus_per_node": "H100:eight"}, token="mei")
    assert (answer.status, answer.json["code"]) == (422, "invalid")
    problems = {each["field"]: each["message"] for each in answer.json["problems"]}
    assert "did you mean 'command'" in problems["comand"]
    assert {"gpus_per_node", "time_limit_seconds"} <= problems.keys()


# ---- who asks -------------------------------------------------------------------------------------------------------


def with_token(daemon: Daemon, tmp_path: Path, secret: str, mode: int = 0o600) -> dict[str, str]:
    path = tmp_path / "some.token"
    path.write_text(secret, encoding="utf-8")
    path.chmod(mode)
    return {"TURNSTILE_TOKEN_FILE": str(path)}


def test_a_wrong_token_is_refused_and_never_shown(daemon: Daemon, tmp_path: Path) -> None:
    wrong = daemon.token("mei").read_text(encoding="ascii").strip()[:-4] + "AAAA"
    ran = daemon.turnstile("queue", who=None, code=5, **with_token(daemon, tmp_path, wrong))
    assert ran.err.startswith("error: ")
    assert "turnstile login" in ran.err
    assert wrong not in ran.out + ran.err + daemon.log


def test_a_token_file_that_others_can_read_is_not_used(daemon: Daemon, tmp_path: Path) -> None:
    secret = daemon.token("mei").read_text(encoding="ascii")
    ran = daemon.turnstile("queue", who=None, code=2, **with_token(daemon, tmp_path, secret, 0o644))
    assert "can be read by others (mode 0644)" in ran.err
    assert "chmod 600" in ran.err
    assert secret.strip() not in ran.err


@pytest.mark.parametrize(("content", "code"), [("", 5), ("two words", 2), ("línea", 2), ("a\nb", 2)])
def test_a_token_file_without_a_token_is_no_token(daemon: Daemon, tmp_path: Path, content: str, code: int) -> None:
    daemon.turnstile("queue", who=None, code=code, **with_token(daemon, tmp_path, content))


def test_without_a_token_the_command_says_how_to_get_in(daemon: Daemon) -> None:
    ran = daemon.turnstile("queue", who=None, code=5)
    assert "turnstile login" in ran.err


def test_a_daemon_that_is_not_there_is_told_with_what_to_try(daemon: Daemon) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    for words in (("queue",), (*SUBMIT, "--", "true"), ("cancel", "1")):
        ran = daemon.turnstile(*words, who="mei", code=7, TURNSTILE_URL=nowhere)
        assert f"cannot reach {nowhere} (connection refused)" in ran.err
        assert "turnstile doctor" in ran.err


def test_a_server_that_is_no_turnstile_is_told_apart(daemon: Daemon) -> None:
    """Something else listens there and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(20)
        import threading

        def hang_up() -> None:
            for _ in range(3):  # a command asks that often at most
                try:
                    connection, _ = other.accept()
                except OSError:
                    return
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                connection.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{other.getsockname()[1]}"
        ran = daemon.turnstile("queue", who="mei", code=7, TURNSTILE_URL=address)
    thread.join(timeout=30)
    assert f"cannot reach {address}" in ran.err


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8470", "http://", "http://x:99999", "http://u:p@host"])
def test_what_is_no_address_is_a_usage_error(daemon: Daemon, url: str) -> None:
    ran = daemon.turnstile("queue", who="mei", code=2, TURNSTILE_URL=url)
    assert "URL" in ran.err


# ---- states ---------------------------------------------------------------------------------------------------------


def test_what_is_over_cannot_be_undone_and_cancelling_it_again_is_no_failure(shared: Daemon) -> None:
    done = shared.turnstile("submit", "-g", "1", "-t", "1m", "--", "true", who="mei").out.strip()
    shared.turnstile("wait", done, who="mei")
    cancelled = shared.turnstile("cancel", done, who="mei", code=0)
    assert "completed" in cancelled.err, "a note says that it had ended"
    for verb in ("hold", "release", "requeue"):
        refused = shared.turnstile(verb, done, who="mei", code=6)
        assert "has already ended (completed)" in refused.err
    assert shared.job(done)["state"] == "completed"


# ---- HTTP as it should not be ---------------------------------------------------------------------------------------

BODIES = {
    "no JSON": b"{not json",
    "half of it": b'{"command": ["true"',
    "nothing": b"",
    "another type": b"[]",
    "a number": b"42",
    "null": b"null",
    "no UTF-8": b'{"name": "\xff\xfe"}',
    "a lone surrogate": json.dumps(job("true", name="\ud800")).encode(),
    "a NUL in a command": json.dumps(job("tr\0ue")).encode(),
    "very deep": b"[" * 100_000,
    "a huge number": b'{"command": ["true"], "gpus_per_node": 1' + b"0" * 5000 + b', "time_limit_seconds": 60}',
    "a negative number": json.dumps(job("true", gpus_per_node=-1)).encode(),
    "infinity": b'{"command": ["true"], "gpus_per_node": Infinity, "time_limit_seconds": 60}',
    "an endless limit": json.dumps(job("true", time_limit_seconds=2**62)).encode(),
}


@pytest.mark.parametrize("body", BODIES)
def test_a_malformed_body_is_a_problem_document(daemon: Daemon, body: str) -> None:
    answer = daemon.request("POST", "/v1/jobs", BODIES[body], token="mei")
    assert answer.status == 422, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["code"] in {"invalid", "policy"}
    assert answer.json["detail"]
    assert "Traceback" not in answer.body.decode()


def test_a_body_larger_than_the_limit_is_refused_while_it_comes(daemon: Daemon) -> None:
    answer = daemon.request("POST", "/v1/jobs", json.dumps(job("x" * 2_000_000)).encode(), token="mei")
    assert (answer.status, answer.json["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nowhere", 404),
        ("DELETE", "/v1/jobs", 405),
        ("GET", "/v1/jobs/99", 404),
        ("GET", "/v1/jobs/%00", 404),
        ("GET", "/v1/jobs/..%2F..%2Fetc%2Fpasswd", 404),
        ("GET", "/v1/jobs?limit=0", 422),
        ("GET", "/v1/jobs?state=asleep", 422),
        ("GET", "/v1/jobs?page=nonsense", 422),
        ("GET", "/v1/jobs?colour=red", 422),
        ("GET", "/v1/jobs/1/logs?offset=-1", 422),
        ("GET", "/v1/admin/accounts", 403),
        ("GET", "/v1/admin/ledger/verify", 403),
    ],
)
def test_a_wrong_request_has_its_own_status(daemon: Daemon, method: str, path: str, status: int) -> None:
    answer = daemon.request(method, path, token="mei")
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["status"] == status


def test_what_is_no_http_at_all_harms_nobody(daemon: Daemon) -> None:
    for noise in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"\0" * 5000,
        b"GET / HTTP/1.1\r\nA: " + b"b" * 200_000,
    ):
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as connection:
            try:
                connection.sendall(noise)
                connection.shutdown(socket.SHUT_WR)
                said = connection.recv(65_536)
            except (ConnectionResetError, BrokenPipeError):
                said = b""
        assert not said or said.startswith(b"HTTP/1.1 4"), said
    assert daemon.probe("/readyz") == 200


def test_a_key_that_stood_for_another_request_is_a_conflict(shared: Daemon) -> None:
    shared.submit("true", hold=True, key="k")
    answer = shared.request("POST", "/v1/jobs", job("false", hold=True), token="mei", key="k")
    assert (answer.status, answer.json["code"]) == (409, "conflict")
    try:
        answer = shared.request("POST", "/v1/jobs", job("true"), token="mei", key="x" * 200)
    except http.client.HTTPException as problem:
        pytest.fail(f"no answer: {problem}")
    assert answer.status == 422
    shared.turnstile("cancel", "-s", "held", who="mei")
