"""Answers about jobs as plain dicts, in the words that users see; fast enough for lists of a thousand.

Whoever builds one says what the caller may see; nothing here decides that. Absent is null, never missing. A job's own
id is an integer, that of an array's element a text such as `4711_3`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.clock import iso_utc
from scheduler.core.explain import Explanation
from scheduler.core.model import GPU_UNITS, GpuClass, JobId, PoolName
from scheduler.core.reasons import SLURM_WORDS, Reason
from scheduler.store.queries import AllocationRecord, HistoryEntry, JobRecord
from scheduler.wire.problems import Json
from scheduler.wire.spec import PRIORITY_WORDS

JobAnswerId = int | str


def job_answer_id(job: JobId, array: JobId | None, index: int | None) -> JobAnswerId:
    """Returns the id as people see and type it."""
    return int(job) if array is None or index is None else f"{array}_{index}"


def time_or_none(at_ms: int | None) -> str | None:
    """Returns an instant as RFC 3339 UTC."""
    return None if at_ms is None else iso_utc(at_ms)


def gpu_count(units: int) -> int | float:
    """Returns capacity units as GPUs: whole where they are, else with four decimals."""
    whole, rest = divmod(units, GPU_UNITS)
    return whole if rest == 0 else round(units / GPU_UNITS, 4)


@dataclass(frozen=True, slots=True)
class JobView:
    """What an answer about jobs says besides the rows: the time, the pools, and what is known of those that wait."""

    now_ms: int
    pools: Mapping[GpuClass, Sequence[PoolName]] = field(default_factory=dict)
    reasons: Mapping[JobId, Sequence[Reason]] = field(default_factory=dict)
    max_costs: Mapping[JobId, Json] = field(default_factory=dict)
    positions: Mapping[JobId, int | None] = field(default_factory=dict)


def job_answer(job: JobRecord, view: JobView, *, with_command: bool) -> Json:
    """Returns a job. Its command and its environment's names stand in it only `with_command`; values never."""
    shape = job.shape
    account, _, project = job.account.partition("/")
    ended_or_now_ms = view.now_ms if job.ended_ms is None else job.ended_ms
    elapsed_ms = None if job.started_ms is None else max(0, ended_or_now_ms - job.started_ms)
    pools = view.pools.get(job.gpu_class, ())
    pool = shape.pool or (pools[0] if len(pools) == 1 else None)
    return {
        "id": job_answer_id(job.id, job.array_id, job.array_index),
        "array_id": job.array_id,
        "array_index": job.array_index,
        "name": job.name,
        "tenant": account,
        "project": project or None,
        "user": job.user,
        "state": job.state.value,
        "reason": None if job.reason is None else job.reason.value,
        "detail": job.detail,
        "hold": None if job.hold is None else job.hold.value,
        "gpus_per_node": gpu_count(shape.gpu_units),
        "nodes": shape.nodes,
        "gpus_total": gpu_count(shape.total_units),
        "gpu_model": job.gpu_class,
        "gpu_classes": list(shape.gpu_classes),
        "pool": pool,
        "booking": job.wanted.value if job.booking is None else job.booking.value,
        "priority": PRIORITY_WORDS.get(job.priority, "normal"),
        "time_limit_seconds": job.time_limit_ms // 1000,
        "submitted_at": iso_utc(job.submitted_ms),
        "started_at": time_or_none(job.started_ms),
        "ended_at": time_or_none(job.ended_ms),
        "exit_code": job.exit_code,
        "attempt": job.attempt,
        "retries_left": job.retries_left,
        "node_names": [grant.node for grant in job.grants],
        "elapsed_seconds": None if elapsed_ms is None else elapsed_ms // 1000,
        "position": view.positions.get(job.id),
        "reasons": reason_answers(view.reasons.get(job.id, ())),
        "start_estimate": None,
        "max_cost": view.max_costs.get(job.id),
        "command": list(job.launch.argv) if with_command else None,
        "environment_names": sorted(job.launch.environment) if with_command else None,
        "labels": dict(job.labels),
    }


def reason_answers(reasons: Sequence[Reason]) -> list[Json]:
    """Returns reasons with their numbers, the dominating one first: the one that blocks."""
    return [
        {
            "code": reason.code.value,
            "blocking": place == 0,
            "need": reason.need,
            "free": reason.free,
            "until": time_or_none(reason.until_ms),
            "slurm": SLURM_WORDS[reason.code],
            "detail": reason.detail,
        }
        for place, reason in enumerate(reasons)
    ]


def explanation_answer(job: JobRecord, found: Explanation) -> Json:
    """Returns the content of an Explanation."""
    return {
        "job_id": job_answer_id(job.id, job.array_id, job.array_index),
        "state": job.state.value,
        "as_of": iso_utc(found.as_of_ms),
        "decision": found.decision,
        "reasons": reason_answers(found.reasons),
        "ahead_jobs": found.ahead_jobs,
        "ahead_gpus": found.ahead_gpus,
        "position": found.position,
        "nodes_considered": found.nodes_considered,
        "nodes_fit": found.nodes_fit,
    }


def allocation_answer(found: AllocationRecord, job: JobRecord) -> Json:
    """Returns one start of a job. Devices are told by number: their ids are the operator's business."""
    return {
        "id": found.id,
        "job_id": job_answer_id(job.id, job.array_id, job.array_index),
        "attempt": found.attempt,
        "gpu_model": found.gpu_class,
        "booking": found.booking.value,
        "phase": None if found.ended_ms is not None else found.phase.value,
        "nodes": [
            {
                "name": grant.node,
                "gpus": gpu_count(grant.units * len(grant.devices)),
                "cpus": grant.cpu_millicores / 1000,
                "memory_bytes": grant.memory_bytes,
            }
            for grant in found.grants
        ],
        "time_limit_seconds": found.time_limit_ms // 1000,
        "decided_at": iso_utc(found.decided_ms),
        "started_at": time_or_none(found.started_ms),
        "stopping_at": time_or_none(found.stopping_ms),
        "ended_at": time_or_none(found.ended_ms),
        "stop_reason": None if found.stop_reason is None else found.stop_reason.value,
        "end_reason": None if found.end_reason is None else found.end_reason.value,
        "exit_code": found.exit_code,
        "detail": found.detail,
    }


def history_answer(entry: HistoryEntry) -> Json:
    """Returns one line of a job's history."""
    return {"at": iso_utc(entry.at_ms), "kind": entry.kind, "detail": dict(entry.detail)}
