"""Stays with a job: its output as it comes, its end, and the exit status that the end means.

A job that is requeued begins its output anew with its next attempt; following goes on with that one. A stream that
breaks off is taken up where it ended.
"""

import base64
import binascii
import json
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence

from cli import answers
from cli.answers import BrokenAnswer, Json
from cli.client import Client, step
from cli.errors import ExitCode
from cli.faults import ApiError
from cli.joblines import Add, Labelled, all_ranks
from cli.render import Screen
from cli.session import job_in

ENDED = frozenset({"completed", "failed", "cancelled", "timeout"})
LONGEST_POLL_SECONDS = 60
"""The longest that the server holds a request that waits."""
ABSENCE_SECONDS = 120.0
"""How long a daemon may be away before following gives up: longer than a restart or a take-over (15 s)."""
_LONGEST_PAUSE_SECONDS = 5.0
_MOST_PIECES = 64
"""Pieces of output that wait to be printed; whoever reads them faster waits."""
_WAITING = frozenset({"pending", "held"})


def has_ended(job: Json) -> bool:
    """True when nothing more will happen to a job. Raises BrokenAnswer for what is no job."""
    state = answers.text(job, "state")
    if state is None:
        # Without this, waiting for the end of something that has none would never end.
        raise BrokenAnswer("a job has no state")
    return state in ENDED


def exit_code_of(job: Json) -> int:
    """Returns the exit status that stands for how a job ended: its own where it has one.

    124 for a walltime, 125 for a job that never ran or was lost, 128+n for a signal.
    """
    state, code = answers.text(job, "state"), answers.whole(job, "exit_code")
    if state == "completed":
        return ExitCode.DONE
    if state == "timeout":
        return ExitCode.JOB_TIMEOUT
    if answers.text(job, "started_at") is None:
        return ExitCode.JOB_NEVER_RAN
    if code is not None and code != 0:
        return 128 - code if code < 0 else min(code, 255)
    return 128 + signal.SIGTERM if state == "cancelled" else ExitCode.JOB_NEVER_RAN


class Companion:
    """Stays with one job. `is_known`: the server has said that the job is there, and so is worth waiting for. `output`
    takes what the job writes; standard output does otherwise.

    A daemon that is restarted is waited for, up to ABSENCE_SECONDS: the job does not need it to go on. One that was
    never there is the caller's to decide about: ApiError.
    """

    def __init__(
        self,
        client: Client,
        screen: Screen,
        ref: str,
        *,
        is_known: bool = False,
        output: Callable[[bytes], None] | None = None,
    ) -> None:
        self._output = output or screen.raw
        self._client = client
        self._screen = screen
        self._ref = ref
        self._path = f"/v1/jobs/{step(ref)}"
        self._is_known = is_known

    def wait_for_end(self, deadline: float | None = None) -> Json | None:
        """Returns the job once it has ended, or None when `deadline` (monotonic seconds) came first."""
        while True:
            left = LONGEST_POLL_SECONDS if deadline is None else deadline - time.monotonic()
            is_first = not self._is_known
            # At first whether it is there: from then on a daemon that is restarted is waited for.
            asked = 0 if is_first else max(0, min(LONGEST_POLL_SECONDS, int(left)))
            asked_at = time.monotonic()
            job = self._ask(asked, deadline)
            if job is not None and has_ended(job):
                return job
            if deadline is not None and time.monotonic() >= deadline:
                return None
            if not is_first and (asked == 0 or time.monotonic() - asked_at < 0.5):
                # A server that answers at once is asked again soon, but not in a tight loop.
                time.sleep(0.25 if deadline is None else max(0.0, min(0.25, deadline - time.monotonic())))

    def follow(self, job: Json | None = None, ranks: Sequence[int] | None = None, *, add: Add | None = None) -> Json:
        """Prints the output of some of the job's nodes until the job has ended, and returns the job.

        `ranks`: of these nodes; of all of a small gang where there are none, `job` being what is known of it. Of
        several nodes each line has its rank before it, and `add` takes all pieces where it is given.
        """
        labelled = Labelled(self._output)
        while True:
            wanted = ranks or all_ranks(self._placed(job or {}))
            if len(wanted) == 1:
                attempt = self._stream(self._client, wanted[0], add or (lambda _rank, data: self._output(data)))
            else:
                attempt = self._streams(wanted, add or labelled.add)
                labelled.close()
            job = self._settled(attempt)
            if has_ended(job):
                return job
            self._screen.say(f"job {self._ref} starts again (attempt {attempt} ended); its output begins anew")

    def _placed(self, job: Json) -> Json:
        """The job, once it is known how many nodes it has: one that would take more waits for its start."""
        found: Json | None = job
        while found and answers.whole(found, "nodes_max") is not None and answers.text(found, "state") in _WAITING:
            found = self._ask(1, None)
            if found is not None and answers.text(found, "state") in _WAITING:
                time.sleep(0.1)
        return found or {}

    def _streams(self, ranks: Sequence[int], add: Add) -> int:
        """Prints one attempt's output on several nodes as it comes, to its end on all; returns which attempt it was.

        Each has a connection of its own and is read by a thread; what they read is printed by this one alone.
        """
        pieces: queue.Queue[tuple[int, bytes | int | Exception]] = queue.Queue(_MOST_PIECES)

        def read(rank: int) -> None:
            client = Client(self._client.endpoint)
            try:
                pieces.put((rank, self._stream(client, rank, lambda of, data: pieces.put((of, data)))))
            except Exception as problem:  # noqa: BLE001  (a thread's edge: it is raised where it is waited for)
                pieces.put((rank, problem))
            finally:
                client.close()

        for rank in ranks:
            # Nobody waits for these after Ctrl-C: a quiet stream would keep the command alive.
            threading.Thread(target=read, args=(rank,), daemon=True).start()
        left, attempt = len(ranks), 1
        while left:
            rank, piece = pieces.get()
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, int):
                left, attempt = left - 1, max(attempt, piece)
            else:
                add(rank, piece)
        return attempt

    def _ask(self, hold_seconds: int, deadline: float | None) -> Json | None:
        """The job, held back by the server until it ends or `hold_seconds` are over; None if `deadline` came first."""
        given_up_at = time.monotonic() + ABSENCE_SECONDS
        pause = 0.0
        while True:
            try:
                job = job_in(self._client.get(f"{self._path}/wait", {"timeout_seconds": hold_seconds}))
            except ApiError as problem:
                if not self._is_worth_waiting(problem, given_up_at):
                    raise
                if not pause:
                    self._screen.note(f"{problem.message}; the job goes on, trying again")
            else:
                self._is_known = True
                return job
            if deadline is not None and time.monotonic() >= deadline:
                return None
            pause = min(max(pause * 2, 0.25), _LONGEST_PAUSE_SECONDS)
            time.sleep(pause)

    def _settled(self, attempt: int) -> Json:
        """The job once it has ended, or once it has another attempt than the one whose output is complete."""
        while True:
            job = self._ask(1, None)
            assert job is not None  # there is no deadline
            if has_ended(job) or (answers.whole(job, "attempt") or 0) > attempt:
                return job
            time.sleep(0.05)

    def _stream(self, client: Client, rank: int, add: Add) -> int:
        """Hands on one attempt's output on one node to its end; returns which attempt it was."""
        after: str | None = None
        pause, given_up_at = 0.05, time.monotonic() + ABSENCE_SECONDS
        while True:
            try:
                for event in client.events(f"{self._path}/logs", {"rank": rank}, after=after):
                    self._is_known = True
                    after = event.id or after
                    content = _content(event.data)
                    if event.kind == "end":
                        return answers.whole(content, "attempt") or 1
                    add(rank, _bytes(content))
                    pause, given_up_at = 0.05, time.monotonic() + ABSENCE_SECONDS
                self._is_known = True  # the stream of a job that has said nothing yet was cut
            except ApiError as problem:
                if not self._is_worth_waiting(problem, given_up_at):
                    raise
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _is_worth_waiting(self, problem: ApiError, given_up_at: float) -> bool:
        is_away = problem.exit_code == ExitCode.UNREACHABLE
        return is_away and self._is_known and time.monotonic() < given_up_at


def _content(data: str) -> Json:
    try:
        return answers.mapping(json.loads(data)) if data else {}
    except ValueError:
        raise BrokenAnswer("an event of the log is not JSON") from None


def _bytes(content: Json) -> bytes:
    try:
        return base64.b64decode(answers.text(content, "data_base64") or "", validate=True)
    except binascii.Error:
        raise BrokenAnswer("an event of the log is not base64") from None
