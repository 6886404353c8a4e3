"""Looking at jobs: `queue`, `show`, `why`, `history`, `report`."""

import time
from typing import Annotated

import typer

from cli import answers, layout, moments, phrases, reporting, telling, views
from cli.answers import Json
from cli.client import Query, step
from cli.session import MOST_LISTED, Session, job_in
from cli.values import count

_REFRESH_SECONDS = 2.0
_STATES = "pending, held, starting, running, stopping, completed, failed, cancelled, timeout, live, ended, all"


def queue(
    ctx: typer.Context,
    user: Annotated[str | None, typer.Option("-u", "--user", help="Jobs of this user ('me' for yours).")] = None,
    project: Annotated[str | None, typer.Option("-A", "--project", help="Jobs of this project.")] = None,
    state: Annotated[list[str] | None, typer.Option("-s", "--state", help=f"One of {_STATES}; repeatable.")] = None,
    pool: Annotated[str | None, typer.Option("-p", "--pool", help="Jobs for this pool.")] = None,
    name: Annotated[
        str | None, typer.Option("-n", "--name", "-J", help="Jobs with this name; 'sweep-*': that begin so.")
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Jobs of this tenant (operators).")] = None,
    limit: Annotated[str, typer.Option("--limit", help="At most so many jobs.")] = "200",
    show_all: Annotated[bool, typer.Option("-a", "--all", help="Ended jobs too.")] = False,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Show it again every two seconds.")] = False,
) -> None:
    """List jobs that wait or run.

    Examples:
      turnstile queue
      turnstile queue -u me -s pending
      turnstile queue -q -s pending | turnstile cancel -
      turnstile queue -o json | jq '.items[].id'
    """
    session: Session = ctx.obj
    most = count(limit, "--limit")
    query = {
        "state": [each for word in (state or []) for each in word.split(",")] or (["all"] if show_all else ["live"]),
        "user": answers.text(session.me, "user") if user == "me" else user,
        "project": project,
        "pool": pool,
        "name": name,
        "tenant": tenant,
        "limit": min(most, MOST_LISTED),
    }
    while True:
        answer = session.client.listing("/v1/jobs", query, most=most)
        if watch:
            session.screen.clear()
        session.screen.listing(answer, views.job_view(phrases.answered_at(answer)))
        if not watch:
            return
        session.screen.flush()
        time.sleep(_REFRESH_SECONDS)


def history(
    ctx: typer.Context,
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Tell what happened to this job.")] = None,
    since: Annotated[str, typer.Option("-S", "--since", help="7d, today, 2026-11-01 …")] = "7d",
    user: Annotated[str | None, typer.Option("-u", "--user", help="Jobs of this user ('me' for yours).")] = None,
    project: Annotated[str | None, typer.Option("-A", "--project", help="Jobs of this project.")] = None,
    state: Annotated[list[str] | None, typer.Option("-s", "--state", help="Only this state; repeatable.")] = None,
    name: Annotated[
        str | None, typer.Option("-n", "--name", "-J", help="Jobs with this name; 'sweep-*': that begin so.")
    ] = None,
    limit: Annotated[str, typer.Option("--limit", help="At most so many jobs.")] = "200",
) -> None:
    """List jobs that have ended, newest first; with JOB, what happened to that one.

    Examples:
      turnstile history --since 7d
      turnstile history -u me -s failed
      turnstile history 10482
    """
    session: Session = ctx.obj
    if job is not None:
        answer: Json = session.client.listing(f"/v1/jobs/{step(session.reference(job))}/events")
        session.screen.listing(answer, telling.event_view(phrases.answered_at(answer)))
        return
    most = count(limit, "--limit")
    query: Query = {
        "state": [each for word in (state or []) for each in word.split(",")] or ["ended"],
        "since": moments.write(moments.ago(since, "--since", moments.current())),
        "user": answers.text(session.me, "user") if user == "me" else user,
        "project": project,
        "name": name,
        "limit": min(most, MOST_LISTED),
    }
    answer = session.client.listing("/v1/jobs", query, most=most)
    session.screen.listing(answer, views.history_view(phrases.answered_at(answer)))


def show(
    ctx: typer.Context, job: Annotated[str, typer.Argument(metavar="JOB", help="10482, 10482_7, a name, @")]
) -> None:
    """Tell all about one job.

    Examples:
      turnstile show 10482
      turnstile show @          your newest job
      turnstile show dpo-run -o json
    """
    session: Session = ctx.obj
    answer = session.client.get(f"/v1/jobs/{step(session.reference(job))}")
    now = phrases.answered_at(answer)
    found = job_in(answer)
    session.screen.document(answer, views.job_view(now), telling.told(found, now))


def why(
    ctx: typer.Context, job: Annotated[str, typer.Argument(metavar="JOB", help="10482, 10482_7, a name, @")]
) -> None:
    """Tell why a job waits, and what would let it start.

    Examples:
      turnstile why 10482
      turnstile why @ -o json
    """
    session: Session = ctx.obj
    ref = session.reference(job)
    answer = session.client.get(f"/v1/jobs/{step(ref)}/why", {"sooner": "true"})
    now = phrases.answered_at(answer)
    found = answer if session.screen.style.is_machine else session.job(ref)
    session.screen.document(answer, telling.why_view(), telling.explained(answer, found, now))


def report(
    ctx: typer.Context, job: Annotated[str, typer.Argument(metavar="JOB", help="10482, 10482_7, a name, @")]
) -> None:
    """Tell how well a job used its GPUs, what it cost, and what to do otherwise (as Slurm's seff).

    What was not measured is left out. Busy and idle are of the time that GPU windows cover; energy is an estimate by
    the GPUs' own sensors. A job of several starts has a table of them; -o wide shows it always.

    Examples:
      turnstile report 10431
      turnstile report @ -o json
    """
    session: Session = ctx.obj
    answer = session.client.get(f"/v1/jobs/{step(session.reference(job))}/report")
    now = phrases.answered_at(answer)
    starts = answers.items(answer)
    told = reporting.reported(answer)
    if len(starts) > 1 or session.screen.style.format == "wide":
        columns = telling.allocation_view(now).columns
        told += ["", *layout.lines(columns, starts, has_header=session.screen.style.has_header, is_coloured=False)]
    session.screen.document(answer, reporting.VIEW, told)
