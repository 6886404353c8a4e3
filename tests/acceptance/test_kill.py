"""`kill -9` of the daemon at random instants, again and again: nothing is lost, nothing is done twice.

The instants are drawn from a seed, which is printed; TURNSTILE_TEST_SEED repeats it. (What the machine does at those
instants differs from run to run all the same.)
"""

import http.client
import json
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.daemons import Daemon, processes_of, until
from tests.acceptance.life import START, Witness, assert_export_adds_up, long_job, read_book, short_job

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

ROUNDS = 3
"""Each has a kill in every phase, and two in the last: 21."""
STUBBORN_SECONDS = 60.0


@dataclass(slots=True)
class Submission:
    """Something that a client wants once: its key and body stay the same however often it must be sent."""

    key: str
    body: dict[str, object]
    expects: str
    """The end that it must come to: completed, failed, timeout or cancelled."""
    code: int | None
    answers: list[Any] = field(default_factory=list)  # Any: JSON

    @property
    def size(self) -> int:
        return int(self.answers[0]["array_size"] or 1)

    @property
    def ids(self) -> range:
        """The ids of its jobs: consecutive for an array."""
        first = self.answers[0]["items"][0]
        start = int(str(first["id"]).partition("_")[0])
        return range(start, start + self.size)


class Clients:
    """Sends what must be sent until it is answered, whatever happens to the daemon meanwhile; several at a time."""

    def __init__(self, daemon: Daemon, rng: random.Random, book: Path) -> None:
        self.daemon = daemon
        self.rng = rng
        self.book = book
        self.submissions: list[Submission] = []
        self._pool = ThreadPoolExecutor(4)
        self._first_sent = threading.Event()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, body: dict[str, object], expects: str = "completed", code: int | None = 0) -> "Future[Submission]":
        wanted = Submission(f"key-{len(self.submissions)}", body, expects, code)
        self.submissions.append(wanted)
        return self._pool.submit(self._send, wanted)

    def cancel(self, wanted: Submission) -> "Future[Any]":
        body = {"ids": [str(id_) for id_ in wanted.ids]}
        return self._pool.submit(self._insist, "/v1/jobs/cancel", body, None, 200)

    def again(self, wanted: Submission) -> None:
        """Sends an answered submission once more: the same job, and no other."""
        answer = self._insist("/v1/jobs", wanted.body, wanted.key, 201)
        assert answer["is_new"] is False, answer
        assert (answer["items"][0]["id"], answer["array_size"]) == (
            wanted.answers[0]["items"][0]["id"],
            wanted.answers[0]["array_size"],
        )
        wanted.answers.append(answer)

    def _send(self, wanted: Submission) -> Submission:
        wanted.answers.append(self._insist("/v1/jobs", wanted.body, wanted.key, 201))
        return wanted

    def _insist(self, path: str, body: object, key: str | None, status: int) -> Any:  # Any: JSON
        deadline = time.monotonic() + STUBBORN_SECONDS
        while True:
            try:
                answer = self.daemon.request("POST", path, body, token="mei", key=key)
            except (OSError, http.client.HTTPException):
                said = "nothing"
            else:
                if answer.status == status:
                    return answer.json
                said = f"{answer.status} {answer.body!r}"
                assert answer.status == 503, f"{path} {json.dumps(body)}: {said}"
                assert "retry-after" in answer.headers, answer
            assert time.monotonic() < deadline, f"{path}: no answer in {STUBBORN_SECONDS:g} s, at last {said}"
            time.sleep(0.02)

    # ---- jobs -------------------------------------------------------------------------------------------------------

    def short(self, **spec: object) -> dict[str, object]:
        return short_job(self.book, round(self.rng.uniform(0.0, 0.3), 3), **spec)  # type: ignore[arg-type] # by name

    def lines(self) -> int:
        return sum(line.word == START for line in read_book(self.book))


Phase = Callable[[Clients], Sequence["Future[Any]"]]


def submission_storm(clients: Clients) -> Sequence["Future[Any]"]:
    """Killed while submissions are in flight: single jobs that fail and succeed, arrays, jobs that are held."""
    asked: list[Future[Submission]] = []
    for number in range(12):
        code = clients.rng.choice([0, 0, 3])
        if number % 4 == 0:
            asked.append(clients.submit(clients.short(array="0-2", code=0)))
        elif number % 4 == 1:
            asked.append(clients.submit(clients.short(code=code), "failed" if code else "completed", code))
        else:
            asked.append(clients.submit(clients.short(hold=True), "cancelled", None))
    time.sleep(clients.rng.uniform(0.0, 0.15))
    return asked


def gangs_starting(clients: Clients) -> Sequence["Future[Any]"]:
    """Killed around the instant at which gangs of two nodes start."""
    asked = [clients.submit(short_job(clients.book, 0.4, nodes=2, gpus_per_node=2)) for _ in range(3)]
    asked[0].result(timeout=STUBBORN_SECONDS)
    time.sleep(clients.rng.uniform(0.0, 0.15))
    return asked


def jobs_running(clients: Clients) -> Sequence["Future[Any]"]:
    """Killed while jobs run."""
    before = clients.lines()
    asked = [clients.submit(short_job(clients.book, 1.0, code=7), "failed", 7)]
    asked += [clients.submit(short_job(clients.book, 1.0, gpus_per_node=3)) for _ in range(2)]
    until(lambda: clients.lines() > before, "a job starts")
    time.sleep(clients.rng.uniform(0.0, 0.3))
    return asked


def jobs_ending(clients: Clients) -> Sequence["Future[Any]"]:
    """Killed around the ends of jobs: their own, and by their time limit."""
    before = clients.lines()
    asked = [clients.submit(short_job(clients.book, 0.3)) for _ in range(3)]
    asked.append(clients.submit(long_job(clients.book, time_limit_seconds=1, grace_seconds=1), "timeout", None))
    until(lambda: clients.lines() > before, "a job starts")
    time.sleep(clients.rng.uniform(0.15, 0.45))
    return asked


def cancelling(clients: Clients) -> Sequence["Future[Any]"]:
    """Killed while jobs that run, and jobs that wait, are being cancelled."""
    before = clients.lines()
    asked = [clients.submit(long_job(clients.book, gpus_per_node=4), "cancelled", None) for _ in range(3)]
    wanted = [each.result(timeout=STUBBORN_SECONDS) for each in asked]
    until(lambda: clients.lines() > before, "a job starts")
    cancels = [clients.cancel(each) for each in wanted]
    time.sleep(clients.rng.uniform(0.0, 0.06))
    return cancels


def recovering(clients: Clients) -> Sequence["Future[Any]"]:
    """Killed, and killed again while it starts: before or while it finds its jobs."""
    asked = [clients.submit(clients.short()) for _ in range(2)]
    clients.daemon.kill()
    clients.daemon.start(wait=False)
    time.sleep(clients.rng.uniform(0.3, 1.2))
    return asked


PHASES: tuple[Phase, ...] = (submission_storm, gangs_starting, jobs_running, jobs_ending, cancelling, recovering)


@pytest.fixture
def seed() -> int:
    given = os.environ.get("TURNSTILE_TEST_SEED")
    drawn = int(given) if given else secrets.randbits(32)
    print(f"TURNSTILE_TEST_SEED={drawn}")
    return drawn


def live_through(clients: Clients) -> None:
    """Kills the daemon in every phase, as often as ROUNDS says, and lets the clients have their answers each time."""
    for _ in range(ROUNDS):
        for phase in clients.rng.sample(PHASES, len(PHASES)):
            waiting = phase(clients)
            answered = [each for each in clients.submissions if each.answers]
            clients.daemon.kill()
            clients.daemon.start()
            for each in waiting:
                each.result(timeout=STUBBORN_SECONDS)
            for repeated in clients.rng.sample(answered, min(3, len(answered))):
                clients.again(repeated)


def let_everything_end(clients: Clients) -> None:
    """Cancels what is held, and waits until nothing waits or runs any more."""
    daemon = clients.daemon
    answer = daemon.request("POST", "/v1/jobs/cancel", {"filter": {"state": ["held"]}}, token="mei")
    assert answer.status == 200, answer
    until(lambda: not daemon.get("/v1/jobs?state=live")["items"], "every job ends")


def test_kill_dash_nine_at_any_instant_loses_nothing_and_does_nothing_twice(
    daemon: Daemon, seed: int, tmp_path: Path
) -> None:
    book, files = tmp_path / "book.txt", tmp_path / "files"
    clients = Clients(daemon, random.Random(seed), book)
    try:
        live_through(clients)
        for each in clients.submissions:
            assert each.answers, each
        let_everything_end(clients)
    finally:
        clients.close()
    assert daemon.kills >= 20
    daemon.turnstile("admin", "ledger", "verify")
    days = ("--from", "2020-01-01", "--to", "2100-01-01", "--zone", "UTC")
    daemon.turnstile("admin", "ledger", "export", str(files), *days)
    daemon.terminate()
    daemon.turnstile("admin", "ledger", "verify", "--copy", str(daemon.database))
    daemon.turnstile("admin", "ledger", "verify", str(files), "--copy", str(daemon.database))
    daemon.assert_no_trace_in_log()

    witness = Witness(daemon.database, book)
    ids = [id_ for each in clients.submissions for id_ in each.ids]
    assert sorted(ids) == sorted(witness.jobs), "what was acknowledged exists, once, and nothing else does"
    for each in clients.submissions:
        for id_ in each.ids:
            found = witness.jobs[id_]
            assert (found["state"], found["attempt"]) == (each.expects, min(1, found["attempt"])), (each, found)
            assert each.code is None or found["exit_code"] == each.code, (each, found)
    by_themselves = {id_ for each in clients.submissions for id_ in each.ids if each.expects in {"completed", "failed"}}
    assert witness.double_starts() == []
    assert witness.incomplete_runs(by_themselves) == []
    assert len({row["job_id"] for row in witness.allocations}) == len(witness.allocations), "one allocation an attempt"
    assert witness.devices_shared_by_processes(by_themselves) == []
    assert witness.devices_shared_in_ledger() == []
    assert [row["device"] for row in witness.open if row["state"] == "allocated"] == []
    assert_export_adds_up(files, witness.gpu_ms_running())
    assert processes_of(daemon.data) == []
