"""Stays with a job: its output as it comes, its end, and the exit status that the end means.

A job that is requeued begins its output anew with its next attempt; following goes on with that one. A stream that
breaks off is taken up where it ended.
"""

import base64
import binascii
import json
import signal
import time

from cli import answers
from cli.answers import BrokenAnswer, Json
from cli.client import Client, step
from cli.errors import ExitCode
from cli.faults import ApiError
from cli.render import Screen
from cli.session import job_in

ENDED = frozenset({"completed", "failed", "cancelled", "timeout"})
LONGEST_POLL_SECONDS = 60
"""The longest that the server holds a request that waits."""
ABSENCE_SECONDS = 120.0
"""How long a daemon may be away before following gives up: longer than a restart or a take-over (15 s)."""
_LONGEST_PAUSE_SECONDS = 5.0


def has_ended(job: Json) -> bool:
    """True when nothing more will happen to a job."""
    return answers.text(job, "state") in ENDED


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


def wait_for_end(client: Client, screen: Screen, ref: str, deadline: float | None = None) -> Json | None:
    """Returns a job once it has ended, or None when `deadline` (monotonic seconds) came first."""
    while True:
        left = LONGEST_POLL_SECONDS if deadline is None else deadline - time.monotonic()
        asked = max(0, min(LONGEST_POLL_SECONDS, int(left)))
        asked_at = time.monotonic()
        job = _ask(client, screen, ref, asked, deadline)
        if job is not None and has_ended(job):
            return job
        if deadline is not None and time.monotonic() >= deadline:
            return None
        if asked == 0 or time.monotonic() - asked_at < 0.5:
            # A server that answers at once is asked again soon, but not in a tight loop.
            time.sleep(0.25 if deadline is None else max(0.0, min(0.25, deadline - time.monotonic())))


def follow(client: Client, screen: Screen, ref: str, rank: int = 0) -> Json:
    """Prints a job's output until the job has ended, and returns the job."""
    while True:
        attempt = _stream(client, screen, ref, rank)
        job = _settled(client, screen, ref, attempt)
        if has_ended(job):
            return job
        screen.say(f"job {ref} starts again (attempt {attempt} ended); its output begins anew")


def _ask(client: Client, screen: Screen, ref: str, hold_seconds: int, deadline: float | None) -> Json | None:
    """The job, held back by the server until it ends or `hold_seconds` are over. None when `deadline` came first.

    A daemon that is restarted is waited for: the job does not need it to go on.
    """
    given_up_at = time.monotonic() + ABSENCE_SECONDS
    pause = 0.25
    is_told = False
    while True:
        try:
            return job_in(client.get(f"/v1/jobs/{step(ref)}/wait", {"timeout_seconds": hold_seconds}))
        except ApiError as problem:
            if problem.exit_code != ExitCode.UNREACHABLE or time.monotonic() >= given_up_at:
                raise
            if not is_told:
                screen.note(f"{problem.message}; the job goes on, trying again")
                is_told = True
        if deadline is not None and time.monotonic() >= deadline:
            return None
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def _settled(client: Client, screen: Screen, ref: str, attempt: int) -> Json:
    """The job once it has ended, or once it has another attempt than the one whose output is complete."""
    while True:
        job = _ask(client, screen, ref, 1, None)
        assert job is not None  # there is no deadline
        if has_ended(job) or (answers.whole(job, "attempt") or 0) > attempt:
            return job
        time.sleep(0.05)


def _stream(client: Client, screen: Screen, ref: str, rank: int) -> int:
    """Prints one attempt's output to its end; returns which attempt it was."""
    after: str | None = None
    quiet_since = time.monotonic()
    pause = 0.05
    while True:
        try:
            for event in client.events(f"/v1/jobs/{step(ref)}/logs", {"rank": rank}, after=after):
                after = event.id or after
                content = _content(event.data)
                if event.kind == "end":
                    return answers.whole(content, "attempt") or 1
                screen.raw(_bytes(content))
                quiet_since, pause = time.monotonic(), 0.05
        except ApiError as problem:
            if problem.exit_code != ExitCode.UNREACHABLE or time.monotonic() - quiet_since > ABSENCE_SECONDS:
                raise
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


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
