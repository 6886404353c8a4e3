"""Acting on jobs: `cancel`, `hold`, `release`, `requeue`, `checkpoint`, `update`.

Each is one request and, on the server, one transaction.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cli import answers, moments, phrases, values
from cli.answers import Json
from cli.client import step
from cli.errors import ExitCode, Refusal, UsageProblem
from cli.layout import Column, View
from cli.session import Session, job_in
from cli.verbs import with_flags

MANY = 10
"""Above so many jobs a person is asked, on a terminal."""
MOST_IDS = 50_000
"""The most jobs that one request may name."""
CHECKPOINT_VARIABLE = "TURNSTILE_CHECKPOINT_FILE"
"""Where a job finds the file that it touches when its work is saved."""
_DONE = {
    "cancelled": "cancelled {}",
    "stopping": "{} is being stopped",
    "already_ended": "{} has already ended ({})",
    "held": "held {}",
    "released": "released {}",
    "requeued": "requeued {}",
    "checkpointed": "noted that the work of {} is saved up to now",
    "changed": "changed {}",
    "unchanged": "{} is unchanged ({})",
}
_UNCHANGED = {
    ("hold", "running"): "{0} runs already, and a hold keeps jobs from starting: turnstile requeue {0}, or cancel {0}",
    (
        "hold",
        "starting",
    ): "{0} starts already, and a hold keeps jobs from starting: turnstile requeue {0}, or cancel {0}",
    ("release", "pending"): "{0} is not held",
    ("requeue", "pending"): "{0} waits already",
    ("requeue", "held"): "{0} is held: turnstile release {0}",
    ("checkpoint", "pending"): "{0} has not started: there is nothing to save yet",
    ("update", "running"): "{0} runs: of its terms only the time limit (-t) can change",
}
"""What is said of a job that a verb leaves as it is, by the verb and the job's state."""

Jobs = Annotated[list[str] | None, typer.Argument(metavar="JOB...", help="10482, 10482_7, a name, @, or - for stdin.")]


@dataclass(frozen=True, slots=True)
class Described:
    """Jobs that are described instead of named, and whether the person is sure."""

    state: Annotated[list[str] | None, typer.Option("-s", "--state", help="All in this state; repeatable.")] = None
    user: Annotated[str | None, typer.Option("-u", "--user", help="All of this user ('me' for yours).")] = None
    project: Annotated[str | None, typer.Option("-A", "--project", help="All of this project.")] = None
    name: Annotated[
        str | None, typer.Option("-n", "--name", "-J", help="All with this name; 'sweep-*': that begin so.")
    ] = None
    pool: Annotated[str | None, typer.Option("-p", "--pool", help="All for this pool.")] = None
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Don't ask.")] = False


@with_flags(Described)
def cancel(ctx: typer.Context, job: Jobs = None) -> None:
    """Cancel jobs. One that has ended already is left as it is, with a note.

    Examples:
      turnstile cancel 10482 10490_7
      turnstile cancel @
      turnstile cancel -u me -s pending
      turnstile queue -q -s pending | turnstile cancel -
    """
    _act(ctx.obj, "cancel", job)


@with_flags(Described)
def hold(ctx: typer.Context, job: Jobs = None) -> int | None:
    """Keep waiting jobs from starting until they are released.

    Examples:
      turnstile hold 10493
      turnstile hold -u me -s pending
    """
    return _act(ctx.obj, "hold", job)


@with_flags(Described)
def release(ctx: typer.Context, job: Jobs = None) -> int | None:
    """Let held jobs wait for their start again.

    Examples:
      turnstile release 10493
      turnstile release -u me -s held
    """
    return _act(ctx.obj, "release", job)


@with_flags(Described)
def requeue(ctx: typer.Context, job: Jobs = None) -> int | None:
    """Stop running jobs and let them wait for another start.

    Examples:
      turnstile requeue 10431
    """
    return _act(ctx.obj, "requeue", job)


def checkpoint(ctx: typer.Context, job: Jobs = None) -> int | None:
    """Say that a job's work is saved up to now. Inside a job it needs neither a name nor a token.

    Of the jobs that may be stopped for others, those go first that lose least of their work since they said so.

    Examples:
      turnstile checkpoint
      turnstile checkpoint 10431
    """
    session: Session = ctx.obj
    file = os.environ.get(CHECKPOINT_VARIABLE)
    if job:
        return _act(session, "checkpoint", job)
    if file is None:
        problem = f"name a job; outside of jobs there is no ${CHECKPOINT_VARIABLE}"
        raise UsageProblem(problem, "turnstile checkpoint 10431")
    try:
        Path(file).touch()
    except OSError as error:
        raise Refusal(f"{file} cannot be touched: {error.strerror}") from None
    session.screen.say("noted that the work of this job is saved up to now")
    return None


def update(
    ctx: typer.Context,
    job: Jobs = None,
    time: Annotated[str | None, typer.Option("-t", "--time", metavar="DUR", help="Another time limit: 4h.")] = None,
    priority: Annotated[str | None, typer.Option("--priority", metavar="WORD", help="low, normal or high.")] = None,
    booking: Annotated[str | None, typer.Option("--booking", metavar="HOW", help="auto, guaranteed or spot.")] = None,
    begin: Annotated[
        str | None, typer.Option("--begin", metavar="TIME", help="Not before: now+2h, 20:00; now for at once.")
    ] = None,
    deadline: Annotated[str | None, typer.Option("--deadline", metavar="TIME", help="Of no use after this.")] = None,
    name: Annotated[str | None, typer.Option("-n", "--name", "-J", metavar="TEXT", help="Another name.")] = None,
    project: Annotated[str | None, typer.Option("-A", "--project", metavar="NAME", help="Another project.")] = None,
) -> int | None:
    """Give waiting jobs other terms; what is not named stays as it is.

    Of a job that runs the time limit alone can change, counted from its start: you may shorten it, an operator may
    lengthen it, and a budget must have what that may cost. $TURNSTILE_DEADLINE in the job stays what it was.
    Another name or project is for jobs that wait, and for arrays as a whole; limits and budgets are as at submission.

    Examples:
      turnstile update 10482 -t 4h
      turnstile update @ --priority low --begin 20:00
      turnstile update 10482 -n sft-v2 -A vision
    """
    session: Session = ctx.obj
    now = moments.current()
    is_at_once = begin is not None and begin.strip().lower() == "now"
    terms: dict[str, object] = {
        "time_limit_seconds": None if time is None else values.duration(time, "-t"),
        "priority": None if priority is None else values.choice(priority, "--priority", ("low", "normal", "high")),
        "booking": None if booking is None else values.choice(booking, "--booking", ("auto", "guaranteed", "spot")),
        "begin_at": None if begin is None or is_at_once else moments.write(moments.ahead(begin, "--begin", now)),
        "begins_at_once": True if is_at_once else None,
        "deadline_at": None if deadline is None else moments.write(moments.ahead(deadline, "--deadline", now)),
        "name": name,
        "project": project,
    }
    asked = {key: value for key, value in terms.items() if value is not None}
    if not asked:
        raise UsageProblem("say what is to change", "turnstile update 10482 -t 4h")
    numbers = session.numbers(job or [], _from_stdin(session) if "-" in (job or ()) else None)
    answer = session.client.post("/v1/jobs/update", {"ids": numbers, **asked})
    _tell(session, "update", answer)
    return ExitCode.WRONG_STATE if any(_is_refused("update", each) for each in answers.items(answer)) else None


def boost(ctx: typer.Context, job: Jobs = None) -> int | None:
    """Put waiting jobs before others of their project; between tenants the shares decide, as ever.

    Examples:
      turnstile admin job boost 10482
    """
    return update(ctx, job, priority="high")


def _described(session: Session) -> tuple[dict[str, object], bool]:
    """Returns what the flags say of the jobs that are meant, and whether nobody need be asked."""
    flags = session.flags
    if not isinstance(flags, Described):
        return {}, True  # a verb that takes names alone, and harms nobody
    asked = {
        "state": [each for word in flags.state or () for each in word.split(",")] or None,
        "user": answers.text(session.me, "user") if flags.user == "me" else flags.user,
        "project": flags.project,
        "name": flags.name,
        "pool": flags.pool,
    }
    return {key: value for key, value in asked.items() if value is not None}, flags.yes


def _act(session: Session, verb: str, jobs: list[str] | None) -> int | None:
    asked, is_sure = _described(session)
    if jobs and asked:
        raise UsageProblem("name jobs or describe them, not both", f"turnstile {verb} {jobs[0]}")
    if asked:
        body: dict[str, object] = {"filter": asked}
        doubt: str | None = (
            f"{verb} all jobs with {', '.join(f'{key} {_words(value)}' for key, value in asked.items())}?"
        )
    else:
        numbers = session.numbers(jobs or [], _from_stdin(session) if "-" in (jobs or ()) else None)
        if not numbers:
            session.screen.say(f"no jobs to {verb}")
            return None
        if len(numbers) > MOST_IDS:
            raise UsageProblem(
                f"{len(numbers)} jobs are too many for one request", f"turnstile {verb} -u me -s pending"
            )
        body = {"ids": numbers}
        doubt = None if is_sure or not session.screen.is_terminal_in else _doubt(session, verb, numbers)
    if doubt is not None and not is_sure and session.screen.is_terminal_in and not session.screen.ask(doubt):
        session.screen.say("nothing was done")
        return None
    answer = session.client.post(f"/v1/jobs/{verb}", body)
    _tell(session, verb, answer)
    # What was described, and not named, may well have ended meanwhile.
    return ExitCode.WRONG_STATE if jobs and any(_is_refused(verb, each) for each in answers.items(answer)) else None


def _is_refused(verb: str, done: Json) -> bool:
    """Tells whether the job's state did not allow what was asked; a job that is as it should be is no such case."""
    did, state = answers.text(done, "did"), answers.text(done, "state")
    if did == "unchanged" and verb == "update":
        return state not in {"pending", "held"}
    if did == "unchanged":
        return verb == "checkpoint" or (verb == "hold" and state != "held")
    return did == "already_ended"


def _words(value: object) -> str:
    return "|".join(str(each) for each in value) if isinstance(value, list) else str(value)


def _from_stdin(session: Session) -> list[str]:
    if session.screen.is_terminal_in:
        raise UsageProblem("- reads jobs from standard input, which is this terminal", "turnstile queue -q | …")
    return session.screen.read_words()


def _doubt(session: Session, verb: str, numbers: list[str]) -> str | None:
    """The question to ask before acting on many jobs, or on somebody else's; None if there is no doubt."""
    if len(numbers) > MANY:
        return f"{verb} {len(numbers)} jobs?"
    me = answers.text(session.me, "user")
    for number in numbers:
        owner = answers.text(job_in(session.client.get(f"/v1/jobs/{step(number)}")), "user")
        if owner != me:
            return f"job {number} is {owner}'s; {verb} it?"
    return None


def _tell(session: Session, verb: str, answer: Json) -> None:
    screen = session.screen
    if screen.style.is_machine:
        screen.listing(answer, _VIEW)
        return
    done = answers.items(answer)
    if len(done) > MANY:
        counted = Counter(answers.text(each, "did") or "?" for each in done)
        screen.say(
            ", ".join(f"{phrases.plural(n, 'job')} {did.replace('_', ' ')}" for did, n in sorted(counted.items()))
        )
        return
    for each in done:
        did, state = answers.text(each, "did") or "?", answers.text(each, "state") or "?"
        words = _DONE.get(did, did + " {}")
        if did == "unchanged":
            words = _UNCHANGED.get((verb, state), words)
        words = words.format(phrases.job_id(each), state)
        if did in {"already_ended", "unchanged"}:
            screen.note(words)
        else:
            screen.say(words)
    if not done:
        screen.say("no job matched")


_VIEW = View(
    columns=(Column("ID", phrases.job_id, is_right=True), Column("DID", lambda each: answers.text(each, "did"))),
    name=phrases.job_id,
    fields=("id", "did", "state"),
    empty="no job matched",
)
