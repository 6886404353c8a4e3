"""Cancel, hold, release, requeue and checkpoint: many jobs, one request, one transaction."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy.engine import Connection

from scheduler.auth import RUNS_JOBS, Rights
from scheduler.core.model import HoldKind, JobId
from scheduler.refusal import RefusalCode, Refused
from scheduler.routes.bodies import body_of
from scheduler.routes.door import Door, answer
from scheduler.routes.finding import check_may_act, filter_of, owned_jobs
from scheduler.routes.knowing import Priced, questions_of
from scheduler.store import actions, queries
from scheduler.store.lookups import JobOwner, owners_by_id
from scheduler.store.moving import Move, Pricing
from scheduler.store.write import Command
from scheduler.wire.answers import job_answer_id
from scheduler.wire.problems import Json, page
from scheduler.wire.requests import JobAction, JobFilterBody, JobUpdate, parse
from scheduler.wire.spec import PRIORITIES
from scheduler.wire.submission import check_deadline, check_priority, check_time_limit, utc_ms

MOST_MATCHED = 200_000
"""Jobs that one action may change: four times the promised 50,000, so that a transaction stays under half a minute."""

_OF_THE_SUSPENDED = frozenset({"cancel", "hold"})
"""What people of a suspended account may still do."""
Outcome = tuple[actions.JobAction, ...]
Make = Callable[[tuple[JobId, ...], Rights], Command[Outcome]]


def action_routes(door: Door) -> APIRouter:
    """Returns the routes of actions on jobs."""
    router = APIRouter(tags=["jobs"])
    runner = door.allow_change(RUNS_JOBS)
    stopper = door.allow_change(RUNS_JOBS, even_suspended=True)
    made: list[tuple[str, str, Make]] = [
        ("cancel", "End jobs, waiting or running", _cancel),
        ("hold", "Keep jobs from starting", _hold),
        ("release", "Let held jobs wait for their turn again", _release),
        ("requeue", "Stop running jobs and let them wait again", _requeue),
        ("checkpoint", "Note that the work of running jobs is saved up to now", _checkpoint),
    ]
    for verb, summary, make in made:
        router.add_api_route(
            f"/v1/jobs/{verb}",
            _endpoint(door, stopper if verb in _OF_THE_SUSPENDED else runner, make),
            methods=["POST"],
            name=verb,
            summary=summary,
            openapi_extra=body_of(JobAction),
        )

    @router.post(
        "/v1/jobs/update",
        summary="Give waiting jobs other terms, and running ones another time limit",
        openapi_extra=body_of(JobUpdate),
    )
    async def update(request: Request, rights: Annotated[Rights, Depends(runner)]) -> Response:
        asked = parse(JobUpdate, await request.body())
        if asked.time_limit_seconds is not None:
            check_time_limit(asked.time_limit_seconds, door.settings.rules)
        check_priority(asked.priority, rights, door.settings.rules)
        check_deadline(asked.deadline_at, door.now_ms)
        jobs = await door.read(lambda connection: owned_jobs(connection, rights, asked.ids))
        command = _update(tuple(job.id for job in jobs), asked, rights)
        if asked.name is not None or asked.project is not None:
            account = None if asked.project is None else rights.submission_account(asked.project)
            offers = door.controller.offers
            price: Pricing = lambda job: questions_of(Priced.of(job), offers)  # noqa: E731
            command = replace(command, move=Move(asked.name, account, price, door.settings.rules.keeps_secrets))
        outcome = await door.carry_out(command)
        return await door.aside(_answered, jobs, outcome, door.now_ms)

    return router


def _update(ids: tuple[JobId, ...], asked: JobUpdate, rights: Rights) -> actions.UpdateJobs:
    return actions.UpdateJobs(
        ids,
        rights.caller.user,
        time_limit_ms=None if asked.time_limit_seconds is None else asked.time_limit_seconds * 1000,
        priority=None if asked.priority is None else PRIORITIES[asked.priority],
        begin_ms=utc_ms(asked.begin_at),
        clears_begin=asked.begins_at_once,
        deadline_ms=utc_ms(asked.deadline_at),
        wanted=asked.booking,
        may_lengthen=rights.is_operator,
    )


def _endpoint(
    door: Door, runner: Callable[[Request], Awaitable[Rights]], make: Make
) -> Callable[..., Awaitable[Response]]:
    async def act(request: Request, rights: Annotated[Rights, Depends(runner)]) -> Response:
        asked = parse(JobAction, await request.body())
        jobs = await door.read(lambda connection: _meant(connection, asked, rights))
        outcome = await door.carry_out(make(tuple(job.id for job in jobs), rights)) if jobs else ()
        # Tens of thousands of rows take a while to write down; other requests do not wait for it.
        return await door.aside(_answered, jobs, outcome, door.now_ms)

    return act


def _cancel(ids: tuple[JobId, ...], rights: Rights) -> Command[Outcome]:
    return actions.CancelJobs(ids, rights.caller.user)


def _hold(ids: tuple[JobId, ...], rights: Rights) -> Command[Outcome]:
    return actions.HoldJobs(ids, _hold_kind(rights), rights.caller.user)


def _release(ids: tuple[JobId, ...], rights: Rights) -> Command[Outcome]:
    return actions.ReleaseJobs(ids, _hold_kind(rights), rights.caller.user)


def _requeue(ids: tuple[JobId, ...], rights: Rights) -> Command[Outcome]:
    return actions.RequeueJobs(ids, rights.caller.user)


def _checkpoint(ids: tuple[JobId, ...], _: Rights) -> Command[Outcome]:
    return actions.CheckpointJobs(ids)


def _hold_kind(rights: Rights) -> HoldKind:
    return HoldKind.ADMIN if rights.is_operator else HoldKind.USER


def _meant(connection: Connection, asked: JobAction, rights: Rights) -> tuple[JobOwner, ...]:
    if asked.ids is not None:
        return owned_jobs(connection, rights, asked.ids)
    assert asked.filter is not None, "the model takes ids or a filter"
    return _matched(connection, asked.filter, rights)


def _matched(connection: Connection, asked: JobFilterBody, rights: Rights) -> tuple[JobOwner, ...]:
    """Returns the jobs that a filter matches; of a user's filter without a name, the user's own."""
    wanted = filter_of(asked, rights)
    if wanted is None:
        return ()
    own = rights.acts_on_user
    if own is not None and wanted.users is None:
        wanted = replace(wanted, users=(own,))
    ids = queries.job_ids(connection, wanted, MOST_MATCHED + 1)
    if len(ids) > MOST_MATCHED:
        raise Refused(RefusalCode.TOO_LARGE, f"the filter matches more than {MOST_MATCHED} jobs; narrow it and repeat")
    jobs = owners_by_id(connection, ids)
    check_may_act(jobs, rights)
    return jobs


def _answered(jobs: tuple[JobOwner, ...], outcome: Outcome, now_ms: int) -> Response:
    shown_ids = {job.id: job_answer_id(job.id, job.array_id, job.array_index) for job in jobs}
    items: list[Json] = [
        {
            "id": shown_ids[each.job],
            "did": each.did.value,
            "state": None if each.state is None else each.state.value,
        }
        for each in outcome
    ]
    return answer(page("JobActionList", now_ms, items))
