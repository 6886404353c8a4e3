"""Staying with jobs: `logs` and `wait`."""

import json
import time
from collections.abc import Callable
from typing import Annotated

import typer

from cli import answers, phrases
from cli.answers import Json
from cli.client import step
from cli.errors import ExitCode, WaitedTooLong
from cli.following import Companion, exit_code_of, has_ended
from cli.layout import View
from cli.render import envelope, listed
from cli.session import MOST_LISTED, Session, number_of
from cli.values import count, duration
from cli.views import ending, history_view

_CHUNK_BYTES = 1 << 20


def logs(
    ctx: typer.Context,
    job: Annotated[str, typer.Argument(metavar="JOB", help="10482, 10482_7, a name, @")],
    following: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job ends.")] = False,
    rank: Annotated[str, typer.Option("--rank", metavar="N", help="Output of this node of the job.")] = "0",
    tail: Annotated[
        str | None, typer.Option("--tail", metavar="N", help="Only the last N lines of what there is.")
    ] = None,
    exit_status: Annotated[bool, typer.Option("--exit-status", help="With -f: return the job's exit status.")] = False,
) -> int | None:
    """Print what a job wrote, as it wrote it; with -o jsonl each line as it comes, with -o json all of them at the end.

    Examples:
      turnstile logs 10482
      turnstile logs -f @
      turnstile logs 10482 --rank 3 --tail 50
    """
    session: Session = ctx.obj
    ref, node = session.reference(job), count(rank, "--rank", least=0)
    sink = _Lines(session, ref, node) if session.screen.style.format in {"json", "jsonl"} else None
    output = session.screen.raw if sink is None else sink.add
    code = _print_logs(session, ref, node, output, following=following, tail=tail, has_status=exit_status)
    if sink is not None:
        sink.close()
    return code


class _Lines:
    """What a job wrote as JSON: `jsonl` prints each line when it is whole, `json` one document at the end."""

    def __init__(self, session: Session, ref: str, rank: int) -> None:
        self._screen = session.screen
        self._ref = ref
        self._rank = rank
        self._rest = b""
        self._kept: list[dict[str, object]] = []

    def add(self, data: bytes) -> None:
        *whole, self._rest = (self._rest + data).split(b"\n")
        for each in whole:
            self._one(each)

    def close(self) -> None:
        if self._rest:
            self._one(self._rest)
        if self._screen.style.format == "json":
            self._screen.document(
                envelope("JobLog", {"id": self._ref, "rank": self._rank, "items": self._kept}), _LOG, []
            )

    def _one(self, line: bytes) -> None:
        item: dict[str, object] = {"line": line.decode("utf-8", "replace")}
        if self._screen.style.format == "json":
            self._kept.append(item)
            return
        told = {"id": self._ref, "rank": self._rank, **item}
        self._screen.raw(json.dumps(told, ensure_ascii=False).encode() + b"\n")


_LOG = View((), lambda each: answers.text(each, "id"), ("id", "rank"))


def _print_logs(
    session: Session,
    ref: str,
    node: int,
    output: Callable[[bytes], None],
    *,
    following: bool,
    tail: str | None,
    has_status: bool,
) -> int | None:
    if following:
        ended = Companion(session.client, session.screen, ref, output=output).follow(node)
        return exit_code_of(ended) if has_status else None
    lines = None if tail is None else count(tail, "--tail")
    kept, offset = b"", 0
    while True:
        query = {"rank": node, "offset": offset, "limit_bytes": _CHUNK_BYTES}
        chunk, headers = session.client.chunk(f"/v1/jobs/{step(ref)}/logs", query)
        said = headers.get("turnstile-next-offset", "")
        if not said.isdigit():
            # Without this, a stranger that answers the same for ever would be read for ever.
            raise answers.BrokenAnswer("a piece of the log does not say where it ends")
        following_offset = int(said)
        if lines is None:
            output(chunk)
        else:
            kept = b"".join((kept + chunk).splitlines(keepends=True)[-lines:])
        if not chunk or following_offset <= offset:
            break
        offset = following_offset
    output(kept)
    return None


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
            how = ending(each)
            told = f"{phrases.job_id(each)} {answers.text(each, 'state')}"
            session.screen.say(told + (f" ({how})" if how else ""))
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
