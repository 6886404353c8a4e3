"""What came of a job, over HTTP: `GET /v1/jobs/{ref}/report`, for whoever may see the job."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response
from sqlalchemy.engine import Connection

from metering.advice import JobEnd, advise
from metering.core.quantity import AMOUNT_DECIMALS, GPU_HOURS_DECIMALS, MS_PER_HOUR, divide, fixed
from metering.efficiency import JobUse, job_use
from metering.energy_epochs import EnergyEpoch
from scheduler.auth import READS_JOBS, Rights
from scheduler.clock import iso_utc
from scheduler.routes.door import Door, answer
from scheduler.routes.finding import found_job
from scheduler.routes.limits import Slots
from scheduler.store import queries
from scheduler.wire.answers import allocation_answer, job_answer_id
from scheduler.wire.fitting import MEMORY_LABEL
from scheduler.wire.problems import Json, page

MOST_REPORTS, MOST_REPORTS_PER_TOKEN = 4, 2
"""Reports at once: where prices have tiers, one reads all that its tenant used in the month."""
MILLIJOULES_PER_KWH = 3_600_000_000
MOST_EPOCHS = 256
"""Of energy counters that a report lists: those of a machine of eight GPUs that was booted thirty times."""
_Ref = Annotated[str, Path(max_length=128, description="An id, `id_index`, or a name: the caller's newest so named.")]


def report_routes(door: Door) -> APIRouter:
    """Returns the route of jobs' reports."""
    router = APIRouter(tags=["jobs"])
    reader = door.allow(READS_JOBS)
    slots = Slots(MOST_REPORTS, MOST_REPORTS_PER_TOKEN, "job reports")

    @router.get("/v1/jobs/{ref}/report", summary="How well a job used its GPUs, and what it cost")
    async def report(ref: _Ref, rights: Annotated[Rights, Depends(reader)]) -> Response:
        slots.check(rights.caller.token_id)
        with slots.counted(rights.caller.token_id):
            starts, content = await door.aside(_reported, door, rights, ref)
        return answer(page("JobReport", door.now_ms, starts, **content))

    return router


def _reported(door: Door, rights: Rights, ref: str) -> tuple[list[Json], Json]:
    with door.controller.database.read() as connection:
        return report_of(connection, found_job(connection, rights, ref), _memory_by_class(door), door.now_ms)


def report_of(
    connection: Connection, job: queries.JobRecord, memory_bytes: dict[str, int], now_ms: int
) -> tuple[list[Json], Json]:
    """Returns a job's starts, and what came of them."""
    starts = queries.allocations_of(connection, job.job.id)
    use = job_use(connection, [each.allocation.id for each in starts], now_ms)
    core = job.job
    first_ms = min((each.allocation.decided_ms for each in starts), default=None)
    waited_ms = None if first_ms is None else max(first_ms - core.submitted_ms, 0)
    end = JobEnd(core.state, job.reason, core.time_limit_ms, waited_ms, core.shape.nodes)
    content: Json = {
        "job_id": job_answer_id(core.id, core.array, core.array_index),
        "name": job.name,
        "account": core.account,
        "user": core.user,
        "state": core.state.value,
        "reason": None if job.reason is None else job.reason.value,
        "exit_code": job.exit_code,
        "submitted_at": iso_utc(core.submitted_ms),
        "waited_seconds": None if waited_ms is None else waited_ms // 1000,
        "time_limit_seconds": core.time_limit_ms // 1000,
        "ran_seconds": use.last_ran_ms // 1000 if starts else None,
        "gpu": _gpu(use, memory_bytes.get(job.gpu_class)),
        "energy": _energy(use),
        "costs": [_cost(use, currency) for currency in sorted(use.charges)],
        "advice": [{"code": each.code, "message": each.message} for each in advise(end, use)],
    }
    return [allocation_answer(each, job) for each in starts], content


def _gpu(use: JobUse, memory_total: int | None) -> Json:
    measured_ms, ppm = use.measured_ms, use.utilization_ppm
    return {
        "held_gpu_hours": _hours(use.gpu_ms),
        "measured_gpu_hours": _hours(measured_ms),
        "coverage_ratio": _ratio(measured_ms, use.gpu_ms),
        "busy_percent": None if ppm is None else divide(ppm, 10_000),
        "idle_gpu_hours": _hours(use.idle_ms) if measured_ms else None,
        "idle_percent": divide(100 * use.idle_ms, measured_ms) if measured_ms else None,
        "memory_max_bytes": use.memory_max_bytes,
        "memory_bytes": memory_total,
        "count": len(use.last) or None,
        "never_busy": sum(each.is_never_busy for each in use.last) if measured_ms else None,
    }


def _energy(use: JobUse) -> Json | None:
    millijoules = use.energy_millijoules
    if millijoules is None:
        return None
    return {
        "kwh": _kwh(millijoules),
        "coverage_ratio": _ratio(use.energy_ms, use.gpu_ms),
        "is_estimate": True,
        "counter_restarts": use.counter_restarts,
        "epochs": [_epoch(each) for each in use.epochs[:MOST_EPOCHS]],
    }


def _epoch(epoch: EnergyEpoch) -> Json:
    span = {"from": iso_utc(epoch.from_ms), "to": iso_utc(epoch.to_ms)}
    return {"gpu": epoch.device, **span, "kwh": _kwh(epoch.millijoules)}


def _kwh(millijoules: int) -> str:
    return fixed(divide(millijoules * 10**AMOUNT_DECIMALS, MILLIJOULES_PER_KWH), AMOUNT_DECIMALS)


def _cost(use: JobUse, currency: str) -> Json:
    group = use.charges[currency]
    (price, book) = next(iter(use.prices)) if len(use.prices) == 1 else (None, None)
    return {
        "currency": currency or None,
        "amount": fixed(group.amount_micros, AMOUNT_DECIMALS) if currency else None,
        "gpu_hours": fixed(group.gpu_hours_nano, GPU_HOURS_DECIMALS),
        "preempted_gpu_hours": fixed(group.preempted_hours_nano, GPU_HOURS_DECIMALS),
        "price_per_gpu_hour": price if currency else None,
        "price_book": book if currency else None,
        "lines": group.lines,
    }


def _hours(gpu_ms: int) -> str:
    return fixed(divide(gpu_ms * 10**GPU_HOURS_DECIMALS, MS_PER_HOUR), GPU_HOURS_DECIMALS)


def _ratio(part: int, whole: int) -> float | None:
    return round(min(part / whole, 1.0), 4) if whole else None


def _memory_by_class(door: Door) -> dict[str, int]:
    """Returns the memory of a GPU by class, as nodes say it; the least where nodes of a class differ."""
    found: dict[str, int] = {}
    for offer in door.controller.offers:
        told = offer.labels.get(MEMORY_LABEL, "")
        if told.isdigit() and int(told) > 0:
            found[offer.gpu_class] = min(int(told), found.get(offer.gpu_class, int(told)))
    return found
