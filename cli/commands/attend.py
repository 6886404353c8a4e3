"""Staying with jobs: `logs` and `wait`."""

import time
from typing import Annotated

import typer

from cli import answers, phrases
from cli.answers import Json
from cli.client import step
from cli.errors import CliError, ExitCode, WaitedTooLong
from cli.faults import ApiError
from cli.following import Companion, exit_code_of, has_ended
from cli.joblines import Add, JsonLines, Labelled, all_ranks, left_out, ranks
from cli.render import listed
from cli.session import MOST_LISTED, NoSuchJob, Session, number_of
from cli.values import count, duration
from cli.views import ended_as, history_view

_CHUNK_BYTES = 1 << 20


def logs(
    ctx: typer.Context,
    job: Annotated[str, typer.Argument(metavar="JOB", help="10482, 10482_7, a name, @")],
    following: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job ends.")] = False,
    rank: Annotated[
        str | None, typer.Option("--rank", metavar="N", help="Output of this node of the job alone; 0-3,8: of these.")
    ] = None,
    tail: Annotated[
        str | None, typer.Option("--tail", metavar="N", help="Only the last N lines of what there is, of each node.")
    ] = None,
    exit_status: Annotated[bool, typer.Option("--exit-status", help="With -f: return the job's exit status.")] = False,
) -> int | None:
    """Print what a job wrote, as it wrote it; as JSON line by line too, with -o json as the items of one document.

    Lines of a gang of several nodes begin with the node's rank (`3: epoch 1`), of the first 16 nodes where --rank says
    nothing; with one rank alone they are as it wrote them.

    Examples:
      turnstile logs 10482
      turnstile logs -f @
      turnstile logs 10482 --rank 3 --tail 50
    """
    session: Session = ctx.obj
    chosen = None if rank is None else ranks(rank)
    lines = None if tail is None else count(tail, "--tail")
    found = session.job(job)
    read = _Reading(session, number_of(found), found, chosen)
    sink = None
    if session.screen.style.format in {"json", "jsonl"}:
        one = read.ranks[0] if len(read.ranks) == 1 else None
        sink = JsonLines(session.screen, {"id": found.get("id"), "rank": one})
    try:
        code = None
        if following:
            code = read.follow(sink, has_status=exit_status)
        else:
            read.whole(sink, lines)
    except CliError as error:
        if sink is None:
            raise
        sink.close(error)
        return error.exit_code
    if sink is not None:
        sink.close()
    return code


class _Reading:
    """Reads a job's output: of `chosen` ranks, or of all nodes of a small gang."""

    def __init__(self, session: Session, ref: str, job: Json, chosen: tuple[int, ...] | None) -> None:
        self._session = session
        self._ref = ref
        self._job = job
        self._chosen = chosen
        self.ranks = chosen or all_ranks(job)
        """The ranks to read, as far as they are known before the job has started."""
        most = answers.whole(job, "nodes_max") or answers.whole(job, "nodes") or 1
        if max(self.ranks) >= most:
            counted = phrases.plural(most, "node")
            raise NoSuchJob(f"job {ref} has {counted}, counted from 0", code="not_found", tries=(f"--rank {most - 1}",))
        if chosen is None and (more := left_out(job)) is not None:
            session.screen.note(more)

    def follow(self, sink: JsonLines | None, *, has_status: bool) -> int | None:
        """Prints what comes until the job ends; returns its exit status where that is wanted."""
        companion = Companion(self._session.client, self._session.screen, self._ref)
        ended = companion.follow(self._job, self._chosen, add=None if sink is None else sink.add)
        return exit_code_of(ended) if has_status else None

    def whole(self, sink: JsonLines | None, lines: int | None) -> None:
        """Prints what there is, node after node. Raises ApiError where no node of several has a log."""
        missing: ApiError | None = None
        is_any = False
        for each in self.ranks:
            plain = Labelled(self._session.screen.raw) if len(self.ranks) > 1 else None
            add = sink.add if sink is not None else plain.add if plain is not None else self._raw
            try:
                self._print(each, add, lines)
                is_any = True
            except ApiError as problem:
                if problem.code != "not_found" or len(self.ranks) == 1:
                    raise
                missing = problem
                self._session.screen.note(problem.message)
            if plain is not None:
                plain.close()
        if missing is not None and not is_any:
            raise missing

    def _raw(self, _rank: int, data: bytes) -> None:
        self._session.screen.raw(data)

    def _print(self, rank: int, add: Add, lines: int | None) -> None:
        kept, offset = b"", 0
        while True:
            query = {"rank": rank, "offset": offset, "limit_bytes": _CHUNK_BYTES}
            chunk, headers = self._session.client.chunk(f"/v1/jobs/{step(self._ref)}/logs", query)
            said = headers.get("turnstile-next-offset", "")
            if not said.isdigit():
                # Without this, a stranger that answers the same for ever would be read for ever.
                raise answers.BrokenAnswer("a piece of the log does not say where it ends")
            following_offset = int(said)
            if lines is None:
                add(rank, chunk)
            else:
                kept = b"".join((kept + chunk).splitlines(keepends=True)[-lines:])
            if not chunk or following_offset <= offset:
                break
            offset = following_offset
        add(rank, kept)


def wait(
    ctx: typer.Context,
    job: Annotated[list[str], typer.Argument(metavar="JOB...", help="10482, 10482_7, a name, @, or - for stdin.")],
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="DUR", help="Give up after: 30m, 2h (exit 8).")
    ] = None,
) -> int:
    """Wait until jobs have ended, and return their exit status (of several: the worst).

    124: its time limit; 125: it never ran; 128+n: signal n; 8: --timeout ran out.

    Examples:
      turnstile wait 10482 && turnstile report 10482
      turnstile wait @ @~1 --timeout 2h
    """
    session: Session = ctx.obj
    limit = None if timeout is None else duration(timeout, "--timeout")
    deadline = None if limit is None else time.monotonic() + limit
    references = [session.reference(each) for each in job if each != "-"]
    if "-" in job:
        references += session.screen.read_words()
        if not references:
            session.screen.say("no jobs to wait for")
    ended: list[dict[str, object]] = []
    for reference in dict.fromkeys(references):
        found = Companion(session.client, session.screen, reference).wait_for_end(deadline)
        elements = None if found is None else _elements(session, reference, found, deadline)
        if elements is None:
            assert limit is not None  # without a deadline the wait ends with the job
            raise WaitedTooLong(f"job {reference} has not ended within {phrases.compact(limit)}; it goes on")
        ended += [dict(each) for each in elements]
    answer = listed("JobList", ended)
    if session.screen.style.is_machine:
        session.screen.listing(answer, history_view(phrases.answered_at(answer)))
    else:
        for each in ended:
            session.screen.say(f"{phrases.job_id(each)} {ended_as(each)}")
    return max((exit_code_of(each) for each in ended), default=ExitCode.DONE)


def _elements(session: Session, reference: str, job: Json, deadline: float | None) -> list[Json] | None:
    """All elements of an array that was named by its own number, once they have ended; else the job itself.

    None when `deadline` came first.
    """
    array = answers.whole(job, "array_id")
    if array is None or reference != str(array):
        return [job]
    listing = session.client.listing("/v1/jobs", {"array": array, "state": "all", "limit": MOST_LISTED})
    ended: list[Json] = []
    for each in answers.items(listing):
        number = number_of(each)
        companion = Companion(session.client, session.screen, number, is_known=True)
        element = each if has_ended(each) else companion.wait_for_end(deadline)
        if element is None:
            return None
        ended.append(element)
    return ended
