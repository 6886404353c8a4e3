"""Starting jobs: `submit` and `run`."""

import time
import uuid
from dataclasses import replace
from functools import partial
from typing import Annotated

import typer

from cli import answers, costs, phrases, telling
from cli.answers import Json
from cli.asking import Asked, asked
from cli.errors import ExitCode, UsageProblem
from cli.faults import ApiError
from cli.following import Companion, exit_code_of
from cli.jobflags import FLAGS_OF_FIELDS, JobFlags
from cli.joblines import left_out
from cli.layout import View
from cli.render import envelope, listed
from cli.session import Session, job_in, number_of
from cli.verbs import with_flags
from cli.views import ended_as, history_view, job_view, reason_words

SECOND_INTERRUPT_SECONDS = 2.0
"""A second Ctrl-C within this time of the first is about the job, not about the view of it."""

_NO_LIMIT = ("time_limit_seconds", "is required")
"""What the API says of a job without a time limit."""
_NO_GPUS = ("gpus_per_node", "say how many GPUs: gpus_per_node or total_gpus, one of them")
"""What the API says of a job without GPUs, in the words of its fields."""
_NO_GPUS_HERE = "is required: how many GPUs on each node"
_VERBS = ("is ", "must ", "may ", "takes ", "asks ", "names ", "has ", "cannot ")
"""What a sentence goes on with whose subject is the flag; before others stands a colon."""
Words = Annotated[
    list[str] | None, typer.Argument(metavar="[FILE | SCRIPT | [--] COMMAND] [ARGS]...", help="What runs on the nodes.")
]


@with_flags(JobFlags)
def submit(
    ctx: typer.Context,
    command: Words = None,
    follow_it: Annotated[bool, typer.Option("-f", "--follow", help="Stay with it, as `run` does.")] = False,
) -> int | None:
    """Submit a job. Flags stand before the command; what stands behind it is the command's own.

    A job file (YAML or JSON) has the flags by their names; flags typed override it. `#SBATCH` lines of a script are
    read in Slurm's sense and printed back. In a pipe or a script stdout is the job's number alone, of a sweep one a
    line; what people read goes to stderr.

    Examples:
      turnstile submit -g H100:8 -N 4 -t 12h -n llama-sft -- torchrun train.py --lr 2e-5
      turnstile submit train.yaml -t 4h
      turnstile submit -g 1 -t 2h --sweep lr=1e-5,2e-5 -- python train.py --lr {lr}
      turnstile submit -g H100:8 -t 4h --dry-run -- ./train.sh
      JOB=$(turnstile submit -g 1 -t 1h -- python eval.py) && turnstile wait $JOB
    """
    session: Session = ctx.obj
    flags = session.flags
    assert isinstance(flags, JobFlags)
    job = asked(session, flags, command)
    if follow_it:
        _refuse_many(job.flags)
    sent = _send(session, job)
    _tell_all(session, sent, is_dry_run=flags.dry_run)
    if follow_it and not flags.dry_run:
        return attach(session, sent[0], has_end=False)  # what was submitted is the one document
    return None


@with_flags(JobFlags)
def run(
    ctx: typer.Context,
    command: Words = None,
    pty: Annotated[bool, typer.Option("--pty", help="At a terminal: a shell, unless a command is named.")] = False,
) -> int | None:
    """Submit a job and stay with it: its output is printed, and its exit status is this command's.

    Ctrl-C leaves the job running; a second Ctrl-C within two seconds cancels it. With --pty every key goes to the
    program, Ctrl-C too, nothing is kept of the session, and the job ends with its shell, or a minute after nobody sits
    there any more. 124: its time limit; 125: it never ran; 128+n: signal n. With -o json the job as it ended is on
    standard output, and what it wrote on standard error.

    Examples:
      turnstile run -g 1 -t 10m -- nvidia-smi
      turnstile run -g H100:8 -t 4h ./train.sh
      turnstile run --pty -g 1 -t 2h
    """
    session: Session = ctx.obj
    flags = session.flags
    assert isinstance(flags, JobFlags)
    if pty and not (session.screen.is_terminal_in or flags.dry_run):
        raise UsageProblem(
            "--pty needs a terminal, and standard input is none", "turnstile run …", "turnstile submit …"
        )
    job = asked(session, flags, command, needs_work=not pty)
    _refuse_many(job.flags)
    if pty:
        from cli.interactive import seated

        is_shell = not command and session.job_file is None
        job = replace(job, specs=tuple(seated(each, is_shell=is_shell) for each in job.specs))
    (answer,) = _send(session, job)
    if flags.dry_run:
        _tell(session, answer, is_dry_run=True)
        return None
    reference = _reference(answer)
    session.screen.say(f"Submitted {reference}")
    if not pty:
        return attach(session, answer)
    from cli.interactive import sit_at

    return sit_at(session, reference)


def attach(session: Session, submitted: Json, *, has_end: bool = True) -> int:
    """Prints the output of what was submitted until it ends and returns its exit status; Ctrl-C leaves it alone.

    Under `-o json` what it wrote goes to standard error; standard output has the job as it ended, if `has_end`.
    """
    screen, reference, known = session.screen, _reference(submitted), job_in(submitted)
    is_json = screen.style.format in {"json", "jsonl"}
    if (more := left_out(known)) is not None:
        screen.note(more)
    output = partial(screen.raw, is_error=True) if is_json else screen.raw
    try:
        job = Companion(session.client, screen, reference, is_known=True, output=output).follow(known)
    except KeyboardInterrupt:
        _detach(session, reference)
        return ExitCode.INTERRUPTED
    code = exit_code_of(job)
    if is_json and has_end:
        answer = listed("JobList", [dict(job)])
        screen.listing(answer, history_view(phrases.answered_at(answer)))
    if code != ExitCode.DONE:
        session.screen.say(f"job {reference} {ended_as(job)}")
    return code


@with_flags(JobFlags)
def quote(ctx: typer.Context, command: Words = None) -> None:
    """Tell what a job may cost and whether it could be submitted, and submit nothing. No command is needed.

    Examples:
      turnstile quote -g H100:8 -N 2 -t 10h
      turnstile quote train.yaml -t 24h
      turnstile quote -g H100:8 -t 10h -o json | jq -r .max_cost.amount
    """
    session: Session = ctx.obj
    flags = session.flags
    assert isinstance(flags, JobFlags)
    job = asked(session, flags, command, needs_work=False)
    answer = _post(session, job.specs[0], is_dry_run=True)
    if job.flags.max_cost is not None:
        costs.check(job.flags.max_cost, costs.most_of(answer), len(job.specs))
    found = costs.quoted(answer, len(job.specs))
    now = phrases.answered_at(answer)
    session.screen.document(envelope("Quote", found), QUOTE, telling.quoted(found, now))


QUOTE = View(
    (),
    lambda each: answers.text(answers.sub(each, "max_cost") or {}, "amount"),
    (
        "gpus_total", "gpu_model", "nodes", "time_limit_seconds", "jobs", "gpu_hours", "max_cost.amount",
        "max_cost.currency", "price_per_gpu_hour.amount", "start_estimate.p50", "nodes_max",
    ),
)  # fmt: skip


def _refuse_many(flags: JobFlags) -> None:
    if flags.sweep:
        raise UsageProblem("one can stay with one job, and a sweep is many", "turnstile submit --sweep … | xargs …")
    if flags.array is not None:
        raise UsageProblem(
            "one can stay with one job, and an array is many",
            f"JOB=$(turnstile submit -a {flags.array} …) && turnstile wait $JOB",
        )


def _send(session: Session, job: Asked) -> list[Json]:
    """Submits one job, or one for each combination of a sweep; returns the answers, in order. Says each number at once.

    A sweep that is refused on its way keeps what it has submitted, and says what that is.
    """
    flags = job.flags
    if flags.max_cost is not None:
        answer = _post(session, job.specs[0], is_dry_run=True)
        costs.check(flags.max_cost, costs.most_of(answer), len(job.specs))
    answers_: list[Json] = []
    capped = {} if flags.max_cost is None else {"max_cost": costs.part(flags.max_cost, len(job.specs))}
    for spec in ({**each, **capped} for each in job.specs):
        try:
            answers_.append(_post(session, spec, is_dry_run=flags.dry_run))
        except ApiError as problem:
            if answers_ and not flags.dry_run:
                sent = " ".join(_reference(each) for each in answers_)
                problem.notes = (*problem.notes, f"{len(answers_)} of {len(job.specs)} are submitted: {sent}")
            raise
    return answers_


def _post(session: Session, spec: Json, *, is_dry_run: bool) -> Json:
    # One key for all attempts of this submission: whichever of them arrives, there is one job.
    key = str(uuid.uuid4())
    try:
        return session.client.post("/v1/jobs", spec, key=key, query={"dry_run": "true" if is_dry_run else None})
    except ApiError as problem:
        _name_flags(problem)
        if problem.code == "unavailable" and not is_dry_run:
            problem.notes = (*problem.notes, "if it arrived after all, 'turnstile queue -u me' shows it")
        raise


def _name_flags(refused: ApiError) -> None:
    """Puts the flags that people typed in the place of the fields that the API knows."""
    if any((each.field, each.message) == _NO_GPUS for each in refused.problems):
        refused.tries = refused.tries or ("-g 1", "-g H100:8", "--total-gpus 16")
        refused.message = refused.message.replace(_NO_GPUS[1], _NO_GPUS_HERE)
        refused.problems = tuple(
            replace(each, message=each.message.replace(_NO_GPUS[1], _NO_GPUS_HERE)) for each in refused.problems
        )
    for field, flag in FLAGS_OF_FIELDS.items():
        if refused.message.startswith(f"{field}: "):
            said = refused.message.removeprefix(f"{field}: ")
            refused.message = f"{flag}{' ' if said.startswith(_VERBS) else ': '}{said}"
    if not refused.tries and any((each.field, each.message) == _NO_LIMIT for each in refused.problems):
        refused.tries = ("-t 90m", "-t 12h")
    refused.problems = tuple(
        replace(each, field=FLAGS_OF_FIELDS.get(each.field.partition(".")[0], each.field)) for each in refused.problems
    )


def _reference(answer: Json) -> str:
    """The number of what was submitted; of an array, the array's."""
    job = job_in(answer)
    array = answers.whole(job, "array_id")
    return str(array) if array is not None else number_of(job)


def _tell_all(session: Session, sent: list[Json], *, is_dry_run: bool) -> None:
    """Shows what was submitted; of a sweep, all jobs in one list."""
    if len(sent) == 1:
        _tell(session, sent[0], is_dry_run=is_dry_run)
        return
    if session.screen.style.format in {"json", "jsonl", "csv"}:
        whole = listed("JobList", [dict(job_in(each)) for each in sent])
        session.screen.listing(whole, job_view(phrases.answered_at(sent[0])))
        return
    common = ["each", *_told(sent[0], None)[1:]]
    if is_dry_run and session.screen.style.format == "name":
        return
    if is_dry_run:
        headings = [_told(answer, None)[0] for answer in sent]
        session.screen.document(sent[0], job_view(phrases.answered_at(sent[0])), [*headings, *common])
        return
    for answer in sent:
        reference = _reference(answer)
        _show(session, reference, _told(answer, reference)[:1])
    _show(session, None, common)


def _tell(session: Session, answer: Json, *, is_dry_run: bool) -> None:
    screen = session.screen
    if screen.style.format in {"json", "jsonl", "csv"}:
        screen.listing(answer, job_view(phrases.answered_at(answer)))
        return
    if is_dry_run and screen.style.format == "name":
        return  # what is not submitted has no number
    if is_dry_run:
        screen.document(answer, job_view(phrases.answered_at(answer)), _told(answer, None))
        return
    reference = _reference(answer)
    _show(session, reference, _told(answer, reference))


def _show(session: Session, reference: str | None, told: list[str]) -> None:
    """Prints a number where a program reads it, and what people read where people do."""
    screen = session.screen
    if reference is not None and (screen.style.is_machine or not screen.is_terminal_out):
        screen.plain(reference)
    if screen.style.format == "name":
        return
    for line in told:
        if screen.is_terminal_out:
            screen.plain(line)
        else:
            screen.say(line)


def _told(answer: Json, reference: str | None) -> list[str]:
    job, now = job_in(answer), phrases.answered_at(answer)
    name, size = (
        answers.text(job, "name") or "",
        answers.whole(answer, "array_size") or answers.whole(job, "array_size"),
    )
    elements = f", {phrases.plural(size, 'element')}" if size is not None else ""
    heading = f"Submitted {reference}  {name}{elements}" if reference else f"Would submit {name}{elements}"
    limit = answers.whole(job, "time_limit_seconds")
    least, most_nodes = answers.whole(job, "nodes") or 1, answers.whole(job, "nodes_max")
    nodes = phrases.plural(least, "node") if most_nodes is None else f"{least} to {most_nodes} nodes"
    each = " ".join(filter(None, (answers.number(job, "gpus_per_node") or "?", answers.text(job, "gpu_model"))))
    total, most_gpus = answers.number(job, "gpus_total") or "?", phrases.most_gpus(job)
    in_all = phrases.plural_of(total, "GPU") if most_gpus is None else f"{total} to {most_gpus} GPUs"
    gets = f"{nodes} × {each} = {in_all}"
    gets += f" for at most {phrases.compact(limit)}" if limit is not None else ""
    pool, start = answers.text(job, "pool"), answers.sub(job, "start_estimate")
    expected = phrases.clock(answers.text(start, "p50"), now) if start is not None else None
    most, one, state = costs.most_of(answer), phrases.money(answers.sub(job, "max_cost")), answers.text(job, "state")
    lines = [heading.rstrip(), f"  gets     {gets}" + (f", pool {pool}" if pool else "")]
    if expected is not None:
        place = answers.whole(job, "position")
        lines.append(f"  start    ~{expected}" + (f", number {place} in its queue" if place is not None else ""))
    if reference is None and (reasons := answers.items(job, "reasons")):
        lines.append(f"  waits    {reason_words(reasons[0])}")
    if most is not None:
        at_least = phrases.money(answers.sub(job, "max_cost_at_nodes_min"))
        on = f"; {at_least} on {least} nodes" if at_least is not None and size is None else ""
        lines.append(f"  cost     at most {most}" + (f" ({size} × {one})" if size is not None else on))
    lines += costs.budget_lines(answer, most, is_dry_run=reference is None)
    if state == "held":
        lines.append("  held     until it is released")
    if reference is not None:
        first = f"release {reference}" if state == "held" else f"logs -f {reference}"
        lines.append(f"  next     turnstile {first} · turnstile why {reference} · turnstile cancel {reference}")
    return lines


def _detach(session: Session, reference: str) -> None:
    """Leaves the job running, says how to come back, and takes a second Ctrl-C for a wish to cancel."""
    screen = session.screen
    try:
        screen.say(f"detached: job {reference} goes on")
        screen.say(f"  turnstile logs -f {reference}   or   turnstile cancel {reference}   (Ctrl-C again: cancel now)")
        time.sleep(SECOND_INTERRUPT_SECONDS)
    except KeyboardInterrupt:
        _cancel_now(session, reference)


def _cancel_now(session: Session, reference: str) -> None:
    screen = session.screen
    if screen.is_terminal_in and not screen.ask(f"cancel job {reference}?"):
        return
    session.client.close()  # the interrupt may have hit a request half-way
    session.client.post("/v1/jobs/cancel", {"ids": [reference]})
    screen.say(f"cancelled {reference}")
