"""The database goes away, the disk is full, a supervisor is killed, the daemon is told to stop: what holds meanwhile,
and that nothing is missing afterwards."""

import json
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from os import kill
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import MakeDaemon
from tests.acceptance.daemons import Answer, Daemon, is_running, job, until
from tests.acceptance.life import END, START, long_job, read_book, short_job

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(150)]

BUSY_SECONDS = 10.0
"""How long a transaction waits for a lock (scheduler.store.database), and so an answer for a locked database."""
NOTICED_MS = 1000
"""Between the last word of a job and its end as its supervisor sees it, on a busy machine. Faults last longer."""


def submit(daemon: Daemon, body: object, key: str) -> Answer:
    return daemon.request("POST", "/v1/jobs", body, token="mei", key=key)


def insist(daemon: Daemon, body: object, key: str) -> Any:  # Any: JSON
    """Sends a submission until it is taken; every other answer must be an honest refusal."""

    def taken() -> Any:  # Any: JSON
        answer = submit(daemon, body, key)
        if answer.status == 201:
            return answer.json
        assert_honest_refusal(answer)
        return None

    return until(taken, "the submission is taken", also=daemon.state_of_health)


def assert_honest_refusal(answer: Answer) -> None:
    assert answer.status == 503, answer
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json["code"] == "unavailable"
    assert "Traceback" not in answer.body.decode()


def assert_ended_when_it_said(daemon: Daemon, book: Path, job_id: int) -> None:
    """A job is billed to its end, not to when a daemon learned of it."""
    (said_ms,) = [line.at_ms for line in read_book(book) if line.job == job_id and line.word == END]
    (found,) = [each["ended_at"] for each in daemon.get(f"/v1/jobs/{job_id}/allocations")["items"]]
    late_ms = datetime.fromisoformat(found).timestamp() * 1000 - said_ms
    assert -1 <= late_ms < NOTICED_MS, f"{late_ms} ms after its own word"


def said_its_end(book: Path, job_id: int) -> bool:
    return any(line.job == job_id and line.word == END for line in read_book(book))


def begin(daemon: Daemon, book: Path, body: dict[str, object]) -> Any:  # Any: JSON
    """Submits a job and waits until its process says that it starts."""
    made = insist(daemon, body, f"first {len(read_book(book))}")["items"][0]
    until(lambda: any(line.job == made["id"] for line in read_book(book)), "the job starts")
    return daemon.wait_for(made["id"], "running")


def while_it_is_gone(daemon: Daemon, book: Path, gone: Callable[[], object], back: Callable[[], object]) -> None:
    """Takes something away that the daemon needs to write, under a job that ends meanwhile, and gives it back."""
    running = begin(daemon, book, short_job(book, 1.0, code=5))
    before = insist(daemon, job("true", hold=True), "before")["items"][0]["id"]
    gone()
    refused = [submit(daemon, job("true", name="during", hold=True), f"during {number}") for number in range(2)]
    for answer in refused:
        assert_honest_refusal(answer)
    until(lambda: said_its_end(book, running["id"]), "the job ends by itself")
    time.sleep(NOTICED_MS / 1000)  # so that its discovery is later than its end may be
    back()
    daemon.wait_until_ready()
    answers = [insist(daemon, job("true", name="during", hold=True), f"during {number}") for number in range(2)]
    assert [each["is_new"] for each in answers] == [True, True], "what was refused was not stored"
    assert insist(daemon, job("true", hold=True), "before")["items"][0]["id"] == before
    ended = daemon.wait_for(running["id"], "failed")
    assert (ended["exit_code"], ended["attempt"]) == (5, 1)
    assert_ended_when_it_said(daemon, book, running["id"])
    assert len(daemon.get("/v1/jobs?state=all&limit=100")["items"]) == 4
    daemon.turnstile("admin", "ledger", "verify")
    daemon.assert_no_trace_in_log()


def test_a_locked_database_refuses_submissions_and_loses_nothing(daemon: Daemon, tmp_path: Path) -> None:
    """Somebody else's transaction, such as a careless backup's, holds the file for longer than anybody waits."""
    lock = sqlite3.connect(daemon.database, isolation_level=None, check_same_thread=False)
    with closing(lock):
        listed: list[int] = []

        def gone() -> None:
            lock.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            listed.append(daemon.request("GET", "/v1/jobs", token="mei").status)
            assert time.monotonic() - began < BUSY_SECONDS / 2, "a query waits for no writer"

        while_it_is_gone(daemon, tmp_path / "book.txt", gone, lambda: lock.execute("ROLLBACK"))
        assert listed == [200]


def test_a_full_disk_refuses_submissions_and_loses_nothing(daemon: Daemon, tmp_path: Path) -> None:
    """The kernel refuses the daemon every byte it would add to a file, as a full disk or a quota does."""
    assert daemon.process is not None
    pid = daemon.process.pid
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    while_it_is_gone(
        daemon,
        tmp_path / "book.txt",
        lambda: _limit(pid, 0, most),
        lambda: _limit(pid, most, most),
    )
    with closing(sqlite3.connect(daemon.database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def _limit(pid: int, soft: int, hard: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.postgres
def test_a_stopped_postgresql_refuses_submissions_and_loses_nothing(
    make_daemon: MakeDaemon, postgres: Any, tmp_path: Path
) -> None:
    daemon = make_daemon("centre", "--sim", "2x4xH200", "--database", postgres.get_uri()).start().set_up()
    while_it_is_gone(daemon, tmp_path / "book.txt", postgres.stop, postgres.ensure_postgres_running)


def test_a_job_whose_supervisor_is_killed_is_lost_with_its_node_and_starts_again(
    daemon: Daemon, tmp_path: Path
) -> None:
    book = tmp_path / "book.txt"
    lost = begin(daemon, book, short_job(book, 3.0))
    other = begin(daemon, book, long_job(book))
    (allocation,) = daemon.get(f"/v1/jobs/{lost['id']}/allocations")["items"]
    claim = json.loads((daemon.data / "jobs" / "runs" / allocation["id"] / "0" / "claim.json").read_text())
    kill(claim["pid"], signal.SIGKILL)
    waits = daemon.wait_for(lost["id"], "pending")
    assert waits["reasons"][0]["code"] == "backoff", waits
    assert not is_running(claim["job_pid"]), "nothing runs on GPUs that count as free"
    assert daemon.job(other["id"])["state"] == "running", "others go on"
    ended = daemon.wait_for(lost["id"], "completed", seconds=40)
    assert (ended["exit_code"], ended["attempt"]) == (0, 2)
    ends = [each["end_reason"] for each in daemon.get(f"/v1/jobs/{lost['id']}/allocations")["items"]]
    assert ends == ["node_lost", None], "the second start ended by itself"
    words = [(line.word, line.attempt) for line in read_book(book) if line.job == lost["id"]]
    assert words == [(START, 1), (START, 2), (END, 2)]
    daemon.turnstile("admin", "ledger", "verify")
    daemon.assert_no_trace_in_log()


@contextmanager
def people_who_wait(daemon: Daemon, reference: int) -> Iterator[list[int]]:
    """A long poll and a log stream that are open while the block runs; yields what the poll was answered."""
    answered: list[int] = []

    def poll() -> None:
        answered.append(daemon.request("GET", f"/v1/jobs/{reference}/wait?timeout_seconds=50", token="mei").status)

    threads = [
        threading.Thread(target=each)
        for each in (poll, lambda: daemon.turnstile("logs", "-f", str(reference), code=None))
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.7)  # both are then open; were one not, the test would prove less and not fail
    yield answered
    for thread in threads:
        thread.join(timeout=90)


def test_sigterm_stops_the_daemon_at_once_and_its_jobs_go_on_and_are_found_again(
    daemon: Daemon, tmp_path: Path
) -> None:
    book = tmp_path / "book.txt"
    goes_on = begin(daemon, book, short_job(book, 4.0, code=9))
    ends_alone = begin(daemon, book, short_job(book, 1.5))
    with people_who_wait(daemon, goes_on["id"]):
        seconds = daemon.terminate()
        assert seconds < 8, f"it took {seconds:.1f} s to stop"
        holder = sqlite3.connect(daemon.database).execute("SELECT holder FROM leader_lease").fetchone()
        assert holder == ("",), "the lease was given back, so that another daemon may lead at once"
        until(lambda: said_its_end(book, ends_alone["id"]), "a job ends while there is no daemon")
        daemon.start()
    assert daemon.wait_for(ends_alone["id"], "completed")["exit_code"] == 0
    assert_ended_when_it_said(daemon, book, ends_alone["id"])
    ended = daemon.wait_for(goes_on["id"], "failed")
    assert (ended["exit_code"], ended["attempt"], ended["started_at"]) == (9, 1, goes_on["started_at"])
    daemon.turnstile("admin", "ledger", "verify")
    daemon.assert_no_trace_in_log()
