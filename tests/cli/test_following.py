"""Staying with jobs: output, ends, exit statuses, Ctrl-C."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from cli.errors import ExitCode
from cli.following import exit_code_of
from tests.cli.conftest import Home
from tests.cli.peer import Asked, Json, Peer, Reply, envelope, page, problem, said
from tests.cli.recorded import ELEMENT, ended, job, on_one_node, stream

LOGS, WAIT = ("GET", "/v1/jobs/10482/logs"), ("GET", "/v1/jobs/10482/wait")
RUN = ("run", "-t", "1h", "--", "./x")


@pytest.fixture(autouse=True)
def one_node(peer: Peer) -> None:
    """The jobs of these tests take one node, but where a test says otherwise."""
    on_one_node(peer)


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"state": "completed", "exit_code": 0}, 0),
        ({"state": "failed", "exit_code": 3}, 3),
        ({"state": "failed", "exit_code": 137}, 137),
        ({"state": "failed", "exit_code": -9}, 137),
        ({"state": "failed", "exit_code": None, "reason": "node_lost"}, 125),
        ({"state": "failed", "exit_code": None, "started_at": None, "reason": "image_pull"}, 125),
        ({"state": "timeout", "exit_code": 143}, 124),
        ({"state": "cancelled", "exit_code": None, "started_at": None}, 125),
        ({"state": "cancelled", "exit_code": None}, 143),
        ({"state": "cancelled", "exit_code": 137}, 137),
    ],
)
def test_how_a_job_ended_is_an_exit_status(facts: Json, code: int, home: Home, peer: Peer) -> None:
    assert exit_code_of(ended(**facts)) == code
    peer.answers(*WAIT, ended(**facts))
    peer.answers(*LOGS, stream(b"x\n"))
    assert home.turnstile("wait", "10482").code == code
    assert home.turnstile(*RUN).code == code
    assert home.turnstile("logs", "-f", "10482", "--exit-status").code == code
    assert home.turnstile("logs", "-f", "10482").code == 0


def test_run_prints_the_jobs_output_alone_on_stdout(home: Home, peer: Peer) -> None:
    peer.answers(*LOGS, stream(b"one\n", b"\xff\x00raw", b"two\n"))
    peer.answers(*WAIT, ended())
    done = subprocess.run([sys.executable, "-m", "cli.main", *RUN], capture_output=True, timeout=60, check=True)
    assert done.stdout == b"one\n\xff\x00rawtwo\n"
    assert done.stderr == b"Submitted 10482\n"


def test_output_that_breaks_off_is_taken_up_where_it_ended(home: Home, peer: Peer) -> None:
    peer.answers(*LOGS, stream(b"one\n", is_complete=False), Reply(b"", breaks_off=True), stream(b"two\n", start=4))
    peer.answers(*WAIT, ended())
    assert home.turnstile(*RUN).out == "one\ntwo\n"
    assert peer.requests(*LOGS)[-1].headers["Last-Event-ID"] == "4"


def test_a_job_that_starts_again_is_followed_from_the_beginning_of_its_next_output(home: Home, peer: Peer) -> None:
    peer.answers(*LOGS, stream(b"first\n", attempt=1), stream(b"second\n", attempt=2))
    again = envelope("Job", **job(state="running", nodes=1, attempt=2))
    peer.answers(*WAIT, envelope("Job", **job(state="pending", nodes=1, attempt=1)), again, ended(attempt=2))
    done = home.turnstile("logs", "-f", "10482", "--exit-status")
    assert (done.code, done.out) == (0, "first\nsecond\n")
    assert "starts again (attempt 1 ended)" in done.err
    assert "Last-Event-ID" not in peer.requests(*LOGS)[1].headers


def test_a_daemon_that_restarts_is_waited_for(home: Home, peer: Peer) -> None:
    away = problem("unavailable", 503, "no leader")
    peer.answers(*WAIT, envelope("Job", **job()), away, Reply(b"", breaks_off=True), ended(state="failed", exit_code=3))
    done = home.turnstile("wait", "10482")
    assert done.code == 3
    assert "note: no leader; the job goes on, trying again" in done.err


def test_a_daemon_that_restarts_before_the_first_word_of_a_job_is_waited_for(home: Home, peer: Peer) -> None:
    away = problem("unavailable", 503, "no leader")
    peer.answers(*WAIT, envelope("Job", **job()), away, ended(state="failed", exit_code=3))
    assert home.turnstile("wait", "10482").code == 3
    asked = [each.query["timeout_seconds"] for each in peer.requests(*WAIT)]
    assert asked[:2] == [["0"], ["60"]], "it is known before it is waited for"
    peer.answers(*LOGS, stream(is_complete=False), away, stream(b"first word\n"))
    peer.answers(*WAIT, ended())
    assert home.turnstile("logs", "-f", "10482").out == "first word\n"


def test_a_daemon_that_was_never_there_is_not_waited_for(home: Home, peer: Peer) -> None:
    for asked, arguments in ((WAIT, ("wait", "10482")), (LOGS, ("logs", "-f", "10482"))):
        peer.answers(*asked, problem("unavailable", 503, "no leader"))
        assert home.turnstile(*arguments).code == ExitCode.UNREACHABLE


def test_a_job_that_is_not_there_is_exit_4_in_each_way_of_staying_with_one(home: Home, peer: Peer) -> None:
    for arguments in (("wait", "99"), ("logs", "99"), ("logs", "-f", "99")):
        assert home.turnstile(*arguments).code == ExitCode.NOT_FOUND


def test_wait_returns_the_worst_of_several(home: Home, peer: Peer) -> None:
    peer.answers("GET", "/v1/jobs/1/wait", ended(id=1))
    peer.answers("GET", "/v1/jobs/2/wait", ended(id=2, state="failed", exit_code=9))
    peer.answers("GET", "/v1/jobs/3/wait", ended(id=3, state="failed", exit_code=4))
    assert home.turnstile("wait", "1", "2", "3").code == 9
    assert home.turnstile("wait", "-", stdin="1\n3\n").code == 4


def test_wait_says_that_there_was_nothing_to_wait_for(home: Home) -> None:
    done = home.turnstile("wait", "-", stdin="")
    assert (done.code, done.err) == (0, "no jobs to wait for\n")


def test_a_cancelled_job_is_not_said_to_be_cancelled_by_cancelling(home: Home, peer: Peer) -> None:
    peer.answers(*WAIT, ended(state="cancelled", reason="cancelled", exit_code=None, nodes=1))
    assert home.turnstile("wait", "10482").err == "10482 cancelled\n"
    peer.answers(*LOGS, stream())
    assert home.turnstile(*RUN).err.splitlines()[-1] == "job 10482 cancelled"


def test_wait_for_an_array_waits_for_all_of_its_elements(home: Home, peer: Peer) -> None:
    first = ended(id="10490_0", array_id=10490, array_index=0)
    peer.answers("GET", "/v1/jobs/10490/wait", first)
    peer.answers("GET", "/v1/jobs", page("JobList", [first, ELEMENT]))
    peer.answers("GET", "/v1/jobs/10490_7/wait", ended(**ELEMENT | {"state": "timeout"}))
    assert home.turnstile("wait", "10490").code == ExitCode.JOB_TIMEOUT
    assert peer.requests("GET", "/v1/jobs")[0].query["array"] == ["10490"]


def test_wait_gives_up_with_8_and_the_job_goes_on(home: Home, peer: Peer) -> None:
    peer.answers(*WAIT, envelope("Job", **job()))
    done = home.turnstile("wait", "10482", "--timeout", "1s")
    assert done.code == ExitCode.WAITED_TOO_LONG
    assert "job 10482 has not ended within 1s; it goes on" in done.err


def test_logs_prints_what_there_is_in_pieces_and_its_tail(home: Home, peer: Peer) -> None:
    def part(asked: Asked) -> Reply:
        whole = b"".join(b"line %d\n" % n for n in range(10))
        offset = int(asked.query["offset"][0])
        piece = whole[offset : offset + 13]
        return Reply(piece, headers={"Turnstile-Next-Offset": str(offset + len(piece))})

    peer.answers(*LOGS, part)
    assert home.turnstile("logs", "10482").out == "".join(f"line {n}\n" for n in range(10))
    peer.answers("GET", "/v1/jobs/10482", envelope("Job", **job()))
    assert home.turnstile("logs", "10482", "--tail", "3", "--rank", "2").out == "line 7\nline 8\nline 9\n"
    assert peer.requests(*LOGS)[-1].query["rank"] == ["2"]


@pytest.mark.parametrize("following", [(), ("-f",)])
def test_logs_as_json_are_whole_lines_whatever_bytes_are_in_them(
    home: Home, peer: Peer, following: tuple[str, ...]
) -> None:
    wrote = b'say "hi"\xff\n\x1b[31mred\nno end'

    def part(asked: Asked) -> Reply:
        if following:
            return stream(wrote[:11], wrote[11:])
        offset = int(asked.query["offset"][0])
        piece = wrote[offset : offset + 11]
        return Reply(piece, headers={"Turnstile-Next-Offset": str(offset + len(piece))})

    peer.answers(*LOGS, part)
    peer.answers(*WAIT, ended())
    lines = ['say "hi"\N{REPLACEMENT CHARACTER}', "\x1b[31mred", "no end"]
    streamed = home.turnstile("logs", "10482", *following, "-o", "jsonl").out
    assert "\x1b" not in streamed
    assert [json.loads(each)["line"] for each in streamed.splitlines()] == lines
    document = json.loads(home.turnstile("logs", "10482", *following, "-o", "json").out)
    assert (document["kind"], [each["line"] for each in document["items"]]) == ("JobLog", lines)


def test_logs_that_cannot_be_had_are_one_error_in_json(home: Home, peer: Peer) -> None:
    peer.answers(*LOGS, problem("not_found", 404, "no job 10482 in tenant acme"))
    done = home.turnstile("logs", "10482", "-o", "json")
    assert (done.code, json.loads(done.out)["kind"]) == (4, "Error")


def test_cancel_reads_ids_from_stdin_and_sends_them_in_one_request(home: Home, peer: Peer) -> None:
    home.turnstile("cancel", "-", stdin="10482\n10490_7 10482\n")
    (sent,) = peer.requests("POST", "/v1/jobs/cancel")
    assert sent.json == {"ids": ["10482", "10490_7"]}
    empty = home.turnstile("cancel", "-", stdin="")
    assert (empty.code, empty.err) == (0, "no jobs to cancel\n")
    assert home.turnstile("cancel").code == 2


def test_jobs_are_described_for_the_server_to_find_and_never_named_as_well(home: Home, peer: Peer) -> None:
    home.turnstile("cancel", "-u", "me", "-s", "pending,held", "-p", "h100-ib")
    (sent,) = peer.requests("POST", "/v1/jobs/cancel")
    assert sent.json == {"filter": {"user": "mei", "state": ["pending", "held"], "pool": "h100-ib"}}
    assert home.turnstile("cancel", "10482", "-s", "pending").code == 2


def test_the_newest_job_is_meant_by_an_at_sign_and_an_array_counts_once(home: Home, peer: Peer) -> None:
    elements = [ELEMENT | {"array_index": n, "id": f"10490_{n}"} for n in (7, 6)]
    peer.answers("GET", "/v1/jobs", page("JobList", elements, "p2"), page("JobList", [job(), job(id=10431)]))
    for typed, number in (("@", "10490"), ("@~1", "10482"), ("@~2", "10431")):
        peer.answers("GET", "/v1/jobs", page("JobList", elements, "p2"), page("JobList", [job(), job(id=10431)]))
        home.turnstile("hold", typed)
        assert peer.requests("POST", "/v1/jobs/hold")[-1].json == {"ids": [number]}
    peer.answers("GET", "/v1/jobs", page("JobList", [job()]))
    assert home.turnstile("hold", "@~3").code == ExitCode.NOT_FOUND
    assert peer.requests("GET", "/v1/jobs")[0].query == {"user": ["mei"], "state": ["all"], "limit": ["1000"]}


def test_a_job_is_named_by_its_name(home: Home, peer: Peer) -> None:
    peer.answers("GET", "/v1/jobs/dpo%20run", envelope("Job", **job(id=10500)))
    assert home.turnstile("release", "dpo run").code == 0
    assert peer.requests("POST", "/v1/jobs/release")[0].json == {"ids": ["10500"]}


def test_the_view_is_shown_again_until_interrupted(home: Home, peer: Peer) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "cli.main", "queue", "-w", "-o", "jsonl"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(8)]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == ExitCode.INTERRUPTED
    assert lines[:4] == lines[4:]
    assert len(peer.requests("GET", "/v1/jobs")) >= 2


class Terminal:
    """The command on a terminal of its own, typed into and read as a person would."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""

    def read_until(self, words: str) -> None:
        """Reads until the terminal shows some words."""
        deadline = time.monotonic() + 20
        while words not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._ours], [], [], 0.2)[0]:
                self.shown += os.read(self._ours, 65_536).decode()

    def type(self, text: str) -> None:
        """Types."""
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """Presses Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Waits for the end, reads what was shown last, and returns the exit status."""
        try:
            code = self.process.wait(20)
            while select.select([self._ours], [], [], 0)[0]:
                try:
                    self.shown += os.read(self._ours, 65_536).decode()
                except OSError:  # Linux says so that nobody holds the other side any more
                    break
            return code
        finally:
            os.close(self._ours)


@pytest.fixture
def silent(peer: Peer) -> Callable[[], None]:
    """A peer whose stream of output says one line and then nothing, until it is let go."""
    over = threading.Event()

    def quiet(_: Asked) -> Reply:
        over.wait(20)
        return stream(b"late\n")

    peer.answers(*LOGS, stream(b"epoch 1\n", is_complete=False), quiet)
    peer.answers(*WAIT, ended())
    return over.set


def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(
    home: Home, peer: Peer, silent: Callable[[], None]
) -> None:
    terminal = Terminal(*RUN)
    terminal.read_until("epoch 1")
    terminal.interrupt()
    terminal.read_until("detached: job 10482 goes on")
    assert terminal.end() == ExitCode.INTERRUPTED
    silent()
    assert "turnstile logs -f 10482" in terminal.shown
    assert peer.requests("POST", "/v1/jobs/cancel") == []


@pytest.mark.parametrize(("answer", "cancels"), [("y\n", 1), ("n\n", 0), ("\n", 0)])
def test_a_second_ctrl_c_cancels_after_a_question(
    home: Home, peer: Peer, silent: Callable[[], None], answer: str, cancels: int
) -> None:
    terminal = Terminal(*RUN)
    terminal.read_until("epoch 1")
    terminal.interrupt()
    terminal.read_until("Ctrl-C again")
    terminal.interrupt()
    terminal.read_until("cancel job 10482? [y/N]")
    terminal.type(answer)
    assert terminal.end() == ExitCode.INTERRUPTED
    silent()
    assert len(peer.requests("POST", "/v1/jobs/cancel")) == cancels


def test_a_person_is_asked_before_many_jobs_or_somebody_elses_are_cancelled(home: Home, peer: Peer) -> None:
    peer.answers("GET", "/v1/jobs/77", envelope("Job", **job(id=77, user="ana")))
    for arguments, question in (
        (("cancel", *(str(n) for n in range(1, 12))), "cancel 11 jobs? [y/N]"),
        (("cancel", "77"), "job 77 is ana's; cancel it? [y/N]"),
        (("cancel", "-s", "pending"), "cancel all jobs with state pending? [y/N]"),
    ):
        terminal = Terminal(*arguments)
        terminal.read_until(question)
        terminal.type("n\n")
        terminal.read_until("nothing was done")
        assert terminal.end() == 0
    assert peer.requests("POST", "/v1/jobs/cancel") == []
    own = Terminal("cancel", "10482")
    own.read_until("cancelled 10482")
    assert own.end() == 0
    sure = Terminal("cancel", "-y", "77")
    sure.read_until("cancelled")
    assert sure.end() == 0


def test_actions_on_many_jobs_are_counted_and_not_listed(home: Home, peer: Peer) -> None:
    many = [{"id": n, "did": "cancelled" if n % 2 else "already_ended", "state": "cancelled"} for n in range(100)]
    peer.answers("POST", "/v1/jobs/cancel", said(page("JobActionList", many)))
    done = home.turnstile("cancel", "-s", "live")
    assert done.err == "50 jobs already ended, 50 jobs cancelled\n"


def test_logs_as_json_come_as_they_are_written_and_a_break_leaves_a_document(home: Home, peer: Peer) -> None:
    peer.answers(
        *LOGS, stream(b"one\n", b"two\n", is_complete=False), problem("internal", 500, "the log is unreadable")
    )
    broken = home.turnstile("logs", "-f", "10482", "-o", "json")
    document = json.loads(broken.out)
    assert (broken.code, [each["line"] for each in document["items"]]) == (1, ["one", "two"])
    assert document["error"] == {"code": "internal", "message": "the log is unreadable"}
    peer.answers(*LOGS, problem("not_found", 404, "no job 10482"))
    refused = home.turnstile("logs", "-f", "10482", "-o", "json")
    assert (refused.code, json.loads(refused.out)["kind"]) == (4, "Error")
