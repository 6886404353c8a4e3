"""Answers about jobs as plain dicts, in the words that users see; fast enough for lists of a thousand.

Whoever builds one says what the caller may see; nothing here decides that. Absent is null, never missing. A job's own
id is an integer, that of an array's element a text such as `4711_3`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.clock import iso_utc
from scheduler.core.calibration import TrackRecord
from scheduler.core.estimate import StartEstimate
from scheduler.core.explain import Explanation
from scheduler.core.lifecycle import WAITING
from scheduler.core.model import GPU_UNITS, Account, GpuClass, Job, JobId, JobState, PoolName, Shape
from scheduler.core.reasons import SLURM_WORDS, Reason
from scheduler.store.queries import AllocationRecord, HistoryLine, JobRecord
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
    least_costs: Mapping[JobId, Json] = field(default_factory=dict)
    """The same of elastic gangs, were they never larger than they must be."""
    positions: Mapping[JobId, int] = field(default_factory=dict)
    estimates: Mapping[JobId, StartEstimate] = field(default_factory=dict)
    """Of starts that are promised."""


def job_answer(job: JobRecord, view: JobView, *, with_command: bool) -> Json:
    """Returns a job. Its command and its environment's names stand in it only `with_command`; values never."""
    core = job.job
    shape = core.shape
    tenant, _, project = core.account.partition("/")
    ended_or_now_ms = view.now_ms if job.ended_ms is None else job.ended_ms
    elapsed_ms = None if job.started_ms is None else max(0, ended_or_now_ms - job.started_ms)
    pools = view.pools.get(job.gpu_class, ())
    # A job that waits again keeps its last start in `allocations`; what it has now is nothing.
    is_placed = core.state not in WAITING
    nodes = len(job.grants) if shape.is_elastic and is_placed and job.grants else shape.nodes
    estimate = view.estimates.get(core.id)
    return {
        "id": job_answer_id(core.id, core.array, core.array_index),
        "array_id": core.array,
        "array_index": core.array_index,
        "name": job.name,
        "tenant": tenant,
        "project": project or None,
        "user": core.user,
        "state": core.state.value,
        "reason": None if job.reason is None else job.reason.value,
        "detail": job.detail,
        "hold": None if core.hold is None else core.hold.value,
        "gpus_per_node": gpu_count(shape.gpu_units),
        "nodes": nodes,
        "nodes_min": shape.nodes if shape.is_elastic else None,
        "nodes_max": shape.most_nodes if shape.is_elastic else None,
        "gpus_total": gpu_count(nodes * shape.gpu_units),
        "gpu_model": job.gpu_class,
        "gpu_classes": list(shape.gpu_classes),
        "topology": topology_text(shape),
        "pool": shape.pool or (pools[0] if len(pools) == 1 else None),
        "booking": job.booking.value if is_placed and job.booking is not None else core.wanted.value,
        "priority": PRIORITY_WORDS.get(core.priority, "normal"),
        "time_limit_seconds": core.time_limit_ms // 1000,
        "submitted_at": iso_utc(core.submitted_ms),
        "started_at": time_or_none(job.started_ms),
        "ended_at": time_or_none(job.ended_ms),
        "begin_at": time_or_none(core.begin_ms),
        "deadline_at": time_or_none(core.deadline_ms),
        "exit_code": job.exit_code,
        "attempt": max(1, core.attempt),
        "retries_left": core.retries_left,
        "retry_on": [reason.value for reason in core.retry_on],
        "waits_for": [str(each) for each in core.waits_for],
        "array_cap": core.array_cap,
        "node_names": [grant.node for grant in job.grants] if is_placed else [],
        "elapsed_seconds": None if elapsed_ms is None else elapsed_ms // 1000,
        "position": view.positions.get(core.id) if core.state is JobState.PENDING else None,
        "reasons": reason_answers(view.reasons.get(core.id, ())),
        "start_estimate": estimate_answer(estimate) if estimate and core.state is JobState.PENDING else None,
        "max_cost": view.max_costs.get(core.id),
        "max_cost_at_nodes_min": view.least_costs.get(core.id),
        "command": list(job.launch.argv) if with_command else None,
        "environment_names": sorted(job.launch.environment) if with_command else None,
        "labels": dict(job.labels),
    }


def topology_text(shape: Shape) -> str | None:
    """Returns the nearness that a gang asks for, as it is typed: `required:rack`."""
    if shape.topology is None:
        return None
    label, is_required = shape.topology
    return f"{'required' if is_required else 'preferred'}:{label}"


def reason_answers(reasons: Sequence[Reason]) -> list[Json]:
    """Returns reasons with their numbers, the dominating one first; each of them blocks."""
    return [
        {
            "code": reason.code.value,
            "blocking": True,
            "need": reason.need,
            "free": reason.free,
            "unit": reason.unit or "gpus",
            "until": time_or_none(reason.until_ms),
            "slurm": SLURM_WORDS[reason.code],
            "detail": reason.detail,
        }
        for reason in reasons
    ]


def explanation_answer(
    job: JobRecord, found: Explanation, estimate: StartEstimate | None = None, record: TrackRecord | None = None
) -> Json:
    """Returns the content of an Explanation."""
    core = job.job
    return {
        "job_id": job_answer_id(core.id, core.array, core.array_index),
        "state": core.state.value,
        "as_of": iso_utc(found.as_of_ms),
        "decision": found.decision,
        "reasons": reason_answers(found.reasons),
        "ahead_jobs": found.ahead_jobs,
        "ahead_gpus": found.ahead_gpus,
        "position": found.position,
        "nodes_considered": found.nodes_considered,
        "nodes_fit": found.nodes_fit,
        "start_estimate": None if estimate is None else estimate_answer(estimate, record),
    }


def project_order_answer(account: Account) -> Json:
    """Returns what a project's own order goes by besides priority and submit time."""
    return {
        "account": account.id,
        "limit_weight": account.limit_weight,
        "service_weight": account.service_weight,
        "slowdown_weight": account.slowdown_weight,
        "takes_turns": account.takes_turns,
    }


def estimate_answer(estimate: StartEstimate, record: TrackRecord | None = None) -> Json:
    """Returns when a job would start: p50 by what jobs used of their limits lately, p90 if all take them whole.

    Where enough estimates of the pool were measured (`is_measured`), p90 is what nine of ten past starts kept to.
    """
    return {
        "p50": iso_utc(estimate.likely_ms),
        "p90": iso_utc(estimate.late_ms),
        "assumed_used_ratio": estimate.used_permille / 1000,
        "is_promised": estimate.is_promised,
        "is_measured": estimate.is_measured,
        "pool": estimate.pool,
        "past_estimates": 0 if record is None else record.count,
        "past_median_error_seconds": None if record is None else round(record.median_error_ms / 1000),
    }


def change_answer(job: Job, changed: Job) -> Json:
    """Returns what another job asks for that would start now: what differs, and as flags of `submit`."""
    shape, new = job.shape, changed.shape
    flags: list[str] = []
    gpus = gpu_count(new.gpu_units)
    if new.gpu_classes != shape.gpu_classes:
        flags += ["-g", f"{','.join(new.gpu_classes)}:{gpus}"]
    elif new.gpu_units != shape.gpu_units:
        flags += ["-g", f"{','.join(shape.gpu_classes)}:{gpus}"]
    if new.nodes != shape.nodes:
        flags += ["-N", f"{new.nodes}-{new.most_nodes}" if new.is_elastic else str(new.nodes)]
    if changed.time_limit_ms != job.time_limit_ms:
        hours, rest_ms = divmod(changed.time_limit_ms, 3_600_000)
        flags += ["-t", f"{changed.time_limit_ms // 60_000}m" if rest_ms else f"{hours}h"]
    if changed.wanted is not job.wanted:
        flags += ["--booking", changed.wanted.value]
    return {
        "flags": flags,
        "gpu_classes": list(new.gpu_classes),
        "gpus_per_node": gpus,
        "nodes": new.nodes,
        "nodes_max": new.most_nodes if new.is_elastic else None,
        "time_limit_seconds": changed.time_limit_ms // 1000,
        "booking": changed.wanted.value,
    }


def allocation_answer(record: AllocationRecord, job: JobRecord) -> Json:
    """Returns one start of a job. Devices are told by number: their ids are the operator's business."""
    found, core = record.allocation, job.job
    return {
        "id": found.id,
        "job_id": job_answer_id(core.id, core.array, core.array_index),
        "attempt": found.attempt,
        "gpu_model": found.gpu_class,
        "booking": found.booking.value,
        "surplus_of": found.surplus_of,
        "phase": None if record.ended_ms is not None else found.phase.value,
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
        "stopping_at": time_or_none(record.stopping_ms),
        "ended_at": time_or_none(record.ended_ms),
        "stop_reason": None if found.stop_reason is None else found.stop_reason.value,
        "end_reason": None if record.end_reason is None else record.end_reason.value,
        "exit_code": record.exit_code,
        "detail": record.detail,
    }


def history_answer(line: HistoryLine) -> Json:
    """Returns one line of a job's history."""
    return {"at": iso_utc(line.at_ms), "kind": line.kind, "detail": dict(line.detail)}
