"""`run --pty`: waiting until a job has a terminal, sitting there, and what its end means here."""

import os
import time
from collections.abc import Mapping

from cli import answers
from cli.answers import Json
from cli.channel import channel
from cli.client import step
from cli.errors import ExitCode
from cli.faults import ApiError
from cli.following import Companion, exit_code_of, has_ended
from cli.seat import sit, size
from cli.session import Session, job_in
from cli.views import ended_as, ending

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 2.0
RECONNECT_SECONDS = 45.0
"""For a connection that broke: less than the minute that a terminal is kept for who left it."""
_SHELL = ["/bin/sh", "-c", 'exec "${SHELL:-/bin/sh}"']


def seated(spec: Json, *, is_shell: bool) -> dict[str, object]:
    """Returns a job's spec with a terminal of this one's kind; `is_shell` when no command was named."""
    environment = spec.get("env")
    known = environment if isinstance(environment, Mapping) else {}
    work = {"command": _SHELL} if is_shell else {}
    return {**spec, **work, "terminal": True, "env": {"TERM": os.environ.get("TERM") or "dumb", **known}}


def sit_at(session: Session, reference: str) -> int:
    """Waits until the job runs, sits at its terminal until its end, and returns the job's exit status.

    Ctrl-C before it runs cancels it: nobody wants a terminal that nobody sits at.
    """
    while True:
        try:
            job = _until_it_runs(session, reference)
        except KeyboardInterrupt:
            _cancel(session, reference)
            return ExitCode.INTERRUPTED
        if not has_ended(job):
            job = _sit(session, reference)
        if has_ended(job):
            code = exit_code_of(job)
            if code != ExitCode.DONE and ending(job):
                session.screen.say(f"job {reference} {ended_as(job)}")
            return code
        session.screen.say(f"job {reference} was stopped and waits to start again; Ctrl-C cancels it")


def _until_it_runs(session: Session, reference: str) -> Json:
    pause, is_told = _FIRST_PAUSE_SECONDS, False
    while True:
        job = job_in(session.client.get(f"/v1/jobs/{step(reference)}"))
        state = answers.text(job, "state")
        if has_ended(job) or state == "running":
            return job
        if not is_told and pause >= _LONGEST_PAUSE_SECONDS:
            session.screen.say(f"job {reference} waits: turnstile why {reference}   (Ctrl-C cancels it)")
            is_told = True
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def _sit(session: Session, reference: str) -> Json:
    """Sits there until the program has ended, coming back after a broken connection; returns the job then."""
    given_up_at = time.monotonic() + RECONNECT_SECONDS
    while True:
        try:
            with channel(session.client, f"/v1/jobs/{step(reference)}/attach", {"terminal": size()}) as opened:
                sit(opened, session.screen, is_terminal=True)
            break
        except ApiError as broken:
            if broken.exit_code == ExitCode.WRONG_STATE and "somebody" not in broken.message:
                break  # it has ended in the meantime
            if broken.exit_code not in {ExitCode.UNREACHABLE, ExitCode.WRONG_STATE}:
                raise
            if time.monotonic() > given_up_at:
                raise
            session.screen.say(f"{broken.message}; coming back to job {reference}\r")
            time.sleep(1.0)
    return _settled(session, reference)


def _settled(session: Session, reference: str) -> Json:
    """Returns the job once the end of its program is known, or once it waits for another start."""
    deadline = time.monotonic() + RECONNECT_SECONDS
    while True:
        job = Companion(session.client, session.screen, reference, is_known=True).wait_for_end(time.monotonic() + 1.0)
        if job is not None:
            return job
        job = job_in(session.client.get(f"/v1/jobs/{step(reference)}"))
        if answers.text(job, "state") not in {"running", "stopping"} or time.monotonic() > deadline:
            return job


def _cancel(session: Session, reference: str) -> None:
    session.client.close()  # the interrupt may have hit a request half-way
    session.client.post("/v1/jobs/cancel", {"ids": [reference]})
    session.screen.say(f"cancelled {reference}")
