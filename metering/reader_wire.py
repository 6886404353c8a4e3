"""GPU values as JSON lines: what `reader_process` and the process it watches say to each other.

A request is `{"call": …, "wait_ms": …}`; an answer carries `items`, `problems` and `driver_version`. Both ends are of
one installation, so there is no version to negotiate.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from metering.gpus import GpuIdentity, GpuProblem, GpuSample, ProblemCode, ThrottleReason, XidEvent
from scheduler.core.model import GpuClass

LINE_BYTES_LIMIT = 16 * 1024 * 1024
"""Longest line taken from the other end: a thousand times what a node of 16 GPUs in MIG mode needs."""


def encode(message: Mapping[str, object]) -> bytes:
    """Returns a message as one line."""
    return json.dumps(message).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Returns the message of a line. Raises ValueError when it is not a JSON object."""
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("a message between reader and watchdog is a JSON object")  # noqa: TRY004 -- about text, not a type
    return message


def to_rows(values: Iterable[GpuIdentity | GpuSample | XidEvent | GpuProblem]) -> list[dict[str, Any]]:
    """Returns values as JSON objects."""
    return [asdict(value) for value in values]


def identity_of(row: Mapping[str, Any]) -> GpuIdentity:
    """Returns the identity that `to_rows` wrote."""
    return GpuIdentity(**{**row, "gpu_class": GpuClass(row["gpu_class"])})


def sample_of(row: Mapping[str, Any], at_ms: int) -> GpuSample:
    """Returns the sample that `to_rows` wrote, stamped anew: see `reader_process` for why."""
    reasons = row["throttle_reasons"]
    throttled = None if reasons is None else tuple(ThrottleReason(word) for word in reasons)
    processes = None if row["process_ids"] is None else tuple(row["process_ids"])
    return GpuSample(**{**row, "at_ms": at_ms, "throttle_reasons": throttled, "process_ids": processes})


def xid_of(row: Mapping[str, Any], at_ms: int) -> XidEvent:
    """Returns the XID that `to_rows` wrote, stamped anew."""
    return XidEvent(row["uuid"], row["xid"], at_ms)


def problem_of(row: Mapping[str, Any]) -> GpuProblem:
    """Returns the problem that `to_rows` wrote."""
    return GpuProblem(**{**row, "code": ProblemCode(row["code"])})
