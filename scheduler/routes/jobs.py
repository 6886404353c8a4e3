"""Submitting, listing and looking at jobs."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from sqlalchemy.engine import Connection

from scheduler.auth import READS_JOBS, RUNS_JOBS, Rights
from scheduler.core.explain import Explanation
from scheduler.core.model import Dependency, Job, JobState
from scheduler.routes.bodies import body_of
from scheduler.routes.door import Door, answer
from scheduler.routes.finding import cursor_job, cursor_text, dependencies, filter_of, found_job, is_newest_last
from scheduler.routes.foreseeing import Foreseeing, Foreseen
from scheduler.routes.shown import Shown
from scheduler.routes.submitting import Submit, checked_key, preview, submitted
from scheduler.store import queries
from scheduler.store.lookups import held_units
from scheduler.store.secrets import check_secrets
from scheduler.wire.answers import (
    allocation_answer,
    change_answer,
    explanation_answer,
    gpu_count,
    history_answer,
    job_answer_id,
    project_order_answer,
)
from scheduler.wire.problems import Json, envelope, page
from scheduler.wire.requests import LIVE_STATES, JobListQuery
from scheduler.wire.spec import JobSpec, parse_spec
from scheduler.wire.submission import Centre, draft_of

Ref = Annotated[str, Path(max_length=128, description="An id, `id_index`, or a name: the caller's newest so named.")]


def job_routes(door: Door, shown: Shown) -> APIRouter:
    """Returns the routes of jobs."""
    router = APIRouter(tags=["jobs"])
    reader = door.allow(READS_JOBS)
    runner = door.allow_change(RUNS_JOBS)
    foreseeing = Foreseeing(door, shown.knowing)

    @router.post("/v1/jobs", status_code=201, summary="Submit a job or an array", openapi_extra=body_of(JobSpec))
    async def submit(
        request: Request,
        rights: Annotated[Rights, Depends(runner)],
        dry_run: Annotated[bool, Query(description="Say what would happen and store nothing.")] = False,
        idempotency_key: Annotated[str | None, Header(description="The same key makes a job once.")] = None,
    ) -> Response:
        body = await request.body()
        key = checked_key(idempotency_key)
        spec = parse_spec(body)
        after = await _looked_up(door, rights, spec)
        asked = draft_of(spec, rights, Centre(door.controller.offers, door.settings.rules, door.now_ms), after)
        draft = replace(asked, costs=shown.knowing.submission(asked).questions)
        if dry_run:
            return answer(await preview(door, (shown, foreseeing), draft, rights))
        return answer(await submitted(door, shown, draft, Submit.of(draft, key, body), rights), 201)

    @router.get("/v1/jobs", summary="List jobs")
    async def list_jobs(
        rights: Annotated[Rights, Depends(reader)], asked: Annotated[JobListQuery, Query()]
    ) -> Response:
        wanted = filter_of(asked, rights)
        after = cursor_job(asked.page)
        newest_first = wanted is not None and not is_newest_last(wanted)

        def look_up(connection: Connection) -> tuple[list[queries.JobRecord], Json]:
            found = (
                []
                if wanted is None
                else queries.list_jobs(
                    connection, wanted, after=after, limit=asked.limit + 1, newest_first=newest_first
                )
            )
            return found, _totals(connection, rights)

        found, totals = await door.read(look_up)
        jobs = found[: asked.limit]
        next_page = cursor_text(jobs[-1].job.id) if len(found) > asked.limit else None
        items = await shown.jobs(jobs, rights)
        return answer(page("JobList", door.now_ms, items, next_page, totals=totals))

    @router.get("/v1/jobs/{ref}", summary="One job")
    async def show(ref: Ref, rights: Annotated[Rights, Depends(reader)]) -> Response:
        job = await door.read(lambda connection: found_job(connection, rights, ref))
        return answer(await shown.job("Job", job, rights))

    @router.get("/v1/jobs/{ref}/why", summary="Why it waits")
    async def why(
        ref: Ref,
        rights: Annotated[Rights, Depends(reader)],
        sooner: Annotated[bool, Query(description="Also try what would start it now: some ten plans.")] = False,
    ) -> Response:
        job = await door.read(lambda connection: found_job(connection, rights, ref))
        found = await foreseeing.job(job.job.id) if job.job.state in LIVE_STATES else None
        # A job that has ended, or ends this instant, waits for nothing: an explanation without reasons.
        told = found or Foreseen(Explanation(job.job.id, 0, door.now_ms, reasons=()))
        helps = await foreseeing.sooner(job.job, told.explanation) if sooner else ()
        content = explanation_answer(job, told.explanation, told.estimate, told.record)
        changes = [change_answer(job.job, each) for each in helps]
        shares = [each for each in told.shares if rights.may_see_account(each["account"])]
        visible = [each for each in told.ahead if rights.may_see_account(each.account)]
        ahead = await door.read(lambda connection: _named(connection, visible))
        order = None if told.project is None else project_order_answer(told.project)
        content.update(ahead=ahead, project_order=order, shares=shares, sooner=changes if sooner else None)
        return answer(envelope("Explanation", door.now_ms, **content))

    @router.get("/v1/jobs/{ref}/events", summary="The job's history")
    async def events(ref: Ref, rights: Annotated[Rights, Depends(reader)]) -> Response:
        found = await door.read(
            lambda connection: queries.history_of(connection, found_job(connection, rights, ref).job.id)
        )
        return answer(page("JobEventList", door.now_ms, [history_answer(each) for each in found]))

    @router.get("/v1/jobs/{ref}/allocations", summary="The job's starts")
    async def allocations(ref: Ref, rights: Annotated[Rights, Depends(reader)]) -> Response:
        def look_up(connection: Connection) -> list[Json]:
            job = found_job(connection, rights, ref)
            return [allocation_answer(each, job) for each in queries.allocations_of(connection, job.job.id)]

        return answer(page("AllocationList", door.now_ms, await door.read(look_up)))

    return router


def _named(connection: Connection, jobs: list[Job]) -> list[Json]:
    """Returns jobs ahead of another by number, name and owner."""
    found = [queries.job(connection, each.id) for each in jobs]
    return [
        {
            "id": job_answer_id(each.job.id, each.job.array, each.job.array_index),
            "name": each.name,
            "account": each.job.account,
            "user": each.job.user,
            "gpus_total": gpu_count(each.job.shape.total_units),
        }
        for each in found
        if each is not None
    ]


def _totals(connection: Connection, rights: Rights) -> Json:
    """Returns live jobs by state and GPUs held by class, of the caller's tenant; of all tenants for the centre's."""
    tenant = rights.caller.tenant
    wanted = queries.JobFilter(under=tenant, states=tuple(LIVE_STATES))
    counts = queries.count_jobs_by(connection, ["state"], wanted)
    held = held_units(connection, tenant)
    return {
        "jobs": {state.value: counts.get((state.value,), 0) for state in JobState if state in LIVE_STATES},
        "gpus_held": {gpu_class: gpu_count(units) for gpu_class, units in held.items()},
    }


async def _looked_up(door: Door, rights: Rights, spec: JobSpec) -> tuple[Dependency, ...]:
    """Returns what the job waits for. Raises Refused for other jobs or secrets that are not there for its account."""
    has_secrets = bool(spec.secrets) and door.settings.rules.keeps_secrets
    if not spec.after and not has_secrets:
        return ()
    account = rights.submission_account(spec.project)
    if has_secrets:
        await door.read(lambda connection: check_secrets(connection, account, spec.secrets))
    return await door.read(lambda connection: dependencies(connection, rights, account, spec.after))
