"""Notices to people and their programs: which events there are, what a notice says, and how it is signed.

A notice is made of one line of a job's history. It names the job and how it fares; never its command, environment,
labels or output. Receivers know repeats by the delivery's id, which stays the same over all tries.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from scheduler.clock import iso_utc
from scheduler.core.model import EndReason, JobState

SIGNATURE_HEADER = "Turnstile-Signature"
TIMESTAMP_HEADER = "Turnstile-Timestamp"
DELIVERY_HEADER = "Turnstile-Delivery"
EVENT_HEADER = "Turnstile-Event"
FIRST_WAIT_MS = 10_000
LONGEST_WAIT_MS = 3_600_000
MOST_TRIES = 16
"""From ten seconds, doubling up to an hour: half a day of trying, which outlasts a night's outage of a receiver."""


class NoticeEvent(StrEnum):
    """What one may ask to be told of."""

    SUBMIT = "submit"
    START = "start"
    END = "end"  # in whatever way
    FAIL = "fail"
    TIMEOUT = "timeout"
    PREEMPT = "preempt"
    REQUEUE = "requeue"
    IDLE = "idle"
    BUDGET80 = "budget80"
    BUDGET100 = "budget100"
    NODE = "node"
    TEST = "test"


ASKABLE = tuple(event for event in NoticeEvent if event is not NoticeEvent.TEST)
_PASSED_ON = {
    event.value for event in (NoticeEvent.IDLE, NoticeEvent.BUDGET80, NoticeEvent.BUDGET100, NoticeEvent.NODE)
}


class NoticeWhen(StrEnum):
    """Of an array: a notice for each element, or one when the last has ended."""

    EACH = "each"
    LAST = "last"


class Channel(StrEnum):
    """How a notice travels."""

    WEBHOOK = "webhook"
    EMAIL = "email"


@dataclass(frozen=True, slots=True)
class NoticeJob:
    """What a notice may say of a job. `ref` is how people type it: `17`, `17_3`."""

    ref: str
    name: str
    account: str
    user: str
    state: str
    reason: str | None
    exit_code: int | None
    submitted_ms: int
    started_ms: int | None
    ended_ms: int | None


def events_of(kind: str, detail: Mapping[str, Any]) -> tuple[NoticeEvent, ...]:
    """Returns the events that a line of a job's history is, the most telling first; none for most lines."""
    reason = detail.get("reason")
    if kind == "submitted":
        return (NoticeEvent.SUBMIT,)
    if kind == "started":
        return (NoticeEvent.START,)
    if kind == "stopping" and reason == EndReason.PREEMPTED.value:
        return (NoticeEvent.PREEMPT,)
    if kind == "requeued":
        return (NoticeEvent.REQUEUE,)
    if kind == "ended":
        special = {JobState.FAILED.value: NoticeEvent.FAIL, JobState.TIMEOUT.value: NoticeEvent.TIMEOUT}
        found = special.get(str(detail.get("state")))
        return (NoticeEvent.END,) if found is None else (found, NoticeEvent.END)
    return (NoticeEvent(kind),) if kind in _PASSED_ON else ()


def body_of(event: NoticeEvent, at_ms: int, job: NoticeJob | None, counts: Mapping[str, int] | None) -> dict[str, Any]:
    """Returns a notice as JSON. `counts` are an array's elements by their final state, where one notice is for all."""
    body: dict[str, Any] = {
        "apiVersion": "turnstile/v1",
        "kind": "Notice",
        "event": event.value,
        "at": iso_utc(at_ms),
        "job": None,
        "elements": None if counts is None else dict(sorted(counts.items())),
        "next": [],
    }
    if job is not None:
        tenant, _, project = job.account.partition("/")
        body["job"] = {
            "id": job.ref,
            "name": job.name,
            "tenant": tenant,
            "project": project or None,
            "user": job.user,
            "state": job.state,
            "reason": job.reason,
            "exit_code": job.exit_code,
            "submitted_at": iso_utc(job.submitted_ms),
            "started_at": None if job.started_ms is None else iso_utc(job.started_ms),
            "ended_at": None if job.ended_ms is None else iso_utc(job.ended_ms),
        }
        body["next"] = [f"turnstile {verb} {job.ref}" for verb in _next_verbs(event)]
    return body


def _next_verbs(event: NoticeEvent) -> tuple[str, ...]:
    if event in {NoticeEvent.SUBMIT, NoticeEvent.REQUEUE, NoticeEvent.PREEMPT}:
        return ("why", "cancel")
    if event in {NoticeEvent.IDLE, NoticeEvent.BUDGET80, NoticeEvent.BUDGET100, NoticeEvent.START}:
        return ("logs", "cancel")
    return ("logs", "report")


def encoded(body: Mapping[str, Any], delivery: str) -> bytes:
    """Returns the bytes that are sent and signed: UTF-8 JSON with the delivery's id."""
    return json.dumps({**body, "id": delivery}, ensure_ascii=False, separators=(",", ":")).encode()


def signature(secret: str, timestamp_seconds: int, body: bytes) -> str:
    """Returns `sha256=…`, the HMAC-SHA256 in hex of `TIMESTAMP.BODY`: neither can be changed, nor replayed late."""
    signed = f"{timestamp_seconds}.".encode() + body
    return "sha256=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def letter(body: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the subject and the text of a notice as an e-mail."""
    event, job = body["event"], body["job"]
    if job is None:
        return "Turnstile: a test", "This is what notices will look like.\n"
    project = f" in {job['tenant']}/{job['project']}" if job["project"] else f" in {job['tenant']}"
    subject = f"Turnstile: {_PHRASES.get(event, event)}: job {job['id']} {job['name']}"
    lines = [f"Job {job['id']} {job['name']}{project}, submitted by {job['user']}: {_PHRASES.get(event, event)}."]
    if body["elements"]:
        lines.append("Elements: " + ", ".join(f"{count} {state}" for state, count in body["elements"].items()) + ".")
    for words, value in (("state", job["state"]), ("reason", job["reason"]), ("exit code", job["exit_code"])):
        if value is not None:
            lines.append(f"{words}: {value}")
    lines += ["", *body["next"]]
    # A name with a line break would begin a header of its own.
    return " ".join(subject.split()), "\n".join(lines) + "\n"


_PHRASES = {
    "submit": "submitted",
    "start": "started",
    "end": "ended",
    "fail": "failed",
    "timeout": "ran out of time",
    "preempt": "preempted",
    "requeue": "queued again",
    "idle": "its GPUs idle",
    "budget80": "80 % of the budget is spent",
    "budget100": "the budget is spent",
    "node": "trouble on its node",
}


def wait_ms(tries: int) -> int | None:
    """Returns the wait after so many failed tries; None when it is given up."""
    if tries >= MOST_TRIES:
        return None
    return min(FIRST_WAIT_MS << min(tries - 1, 30), LONGEST_WAIT_MS)
