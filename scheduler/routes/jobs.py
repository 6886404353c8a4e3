"""Submitting, listing and looking at jobs."""

import hashlib
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from scheduler.admission import Admission
from scheduler.auth import READS_JOBS, RUNS_JOBS, Rights
from scheduler.core.explain import Explanation, explain
from scheduler.core.model import JobId, tenant_of
from scheduler.core.lifecycle import ENDS
from scheduler.routes.door import Door, answer
from scheduler.routes.finding import filter_of, found_job, totals_of
from scheduler.routes.knowing import Knowing
from scheduler.store import queries
from scheduler.store.jobs import JobDraft, SubmitJobs
from scheduler.wire.answers import (
    JobView,
    allocation_answer,
    explanation_answer,
    history_answer,
    job_answer,
)
from scheduler.wire.problems import Json, envelope, page
from scheduler.wire.requests import JobListQuery, not_found
from scheduler.wire.spec import JobSpec, parse_spec
from scheduler.wire.submission import draft_of
from scheduler.wire.text import is_printable
from scheduler.refusal import Problem
from scheduler.wire.spec import invalid

_LONGEST_KEY = 128
_MOST_EVENTS = 1000
"""Of one job's history in one answer: sixteen attempts make about a hundred."""


def job_routes(door: Door, knowing: Knowing) -> APIRouter:
    """Returns the routes of jobs."""
    router = APIRouter(tags=["jobs"])
    reader = door.allow(READS_JOBS)
    runner = door.allow_change(RUNS_JOBS)

    @router.post("/v1/jobs", status_code=201, summary="Submit a job or an array", openapi_extra=_body(JobSpec))
    async def submit(
        request: Request,
        rights: Annotated[Rights, Depends(runner)],
        dry_run: Annotated[bool, Query(description="Say what would happen and store nothing.")] = False,
        idempotency_key: Annotated[str | None, Header(description="The same key makes a job once.")] = None,
    ) -> Response:
        body = await request.body()
        key = _checked_key(idempotency_key)
        controller = door.controller
        draft = draft_of(parse_spec(body), rights, controller.offers, door.settings.rules, door.now_ms)
        cost = await knowing.max_cost(draft)
        if dry_run:
            return answer(page("JobList", door.now_ms, [_preview(draft, door, knowing, cost)], is_dry_run=True))
        command = SubmitJobs(
            drafts=(draft,),
            tenant=tenant_of(draft.account),
            user=draft.user,
            key=key,
            request_sha256=hashlib.sha256(body).hexdigest() if key is not None else None,
        )
        ids = await door.carry_out(command)
        return answer(_submitted(ids, draft, door, knowing, cost), 201)
