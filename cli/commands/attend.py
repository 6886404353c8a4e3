"""Staying with jobs: `logs` and `wait`."""

import json
import time
from collections.abc import Callable
from typing import Annotated

import typer

from cli import answers, phrases
from cli.answers import Json
from cli.client import step
from cli.errors import CliError, ExitCode, WaitedTooLong
from cli.following import Companion, exit_code_of, has_ended
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
    """Print what a job wrote, as it wrote it; as JSON line by line too, with -o json as the items of one document.

    Examples:
      turnstile logs 10482
      turnstile logs -f @
      turnstile logs 10482 --rank 3 --tail 50
    """
    session: Session = ctx.obj
    ref, node = session.reference(job), count(rank, "--rank", least=0)
    sink = _Lines(session, ref, node) if session.screen.style.format in {"json", "jsonl"} else None
    output = session.screen.raw if sink is None else sink.add
    try:
        code = _print_logs(session, ref, node, output, following=following, tail=tail, has_status=exit_status)
    except CliError as error:
        if sink is None:
            raise
        sink.close(error)
        return error.exit_code
    if sink is not None:
        sink.close()
    return code


class _Lines:
    """What a job wrote as JSON, each line as soon as it is whole: `jsonl` by itself, `json` as items of one document.

    The document is written as it grows, so that a log of any size needs no memory; one that broke off ends with
    `error`, and is a document nevertheless.
    """

    def __init__(self, session: Session, ref: str, rank: int) -> None:
        self._screen = session.screen
        self._about: dict[str, object] = {"id": ref, "rank": rank}
        self._rest = b""
        self._is_open = False

    def add(self, data: bytes) -> None:
        *whole, self._rest = (self._rest + data).split(b"\n")
        for each in whole:
            self._one(each)

    def close(self, error: CliError | None = None) -> None:
        """Writes what is left. Raises the error again where nothing was written before it."""
        if error is not None and not self._is_open:
            raise error
        if self._rest:
            self._one(self._rest)
        if self._screen.style.format == "json":
            self._begin()
            told = {} if error is None else {"error": {"code": error.code, "message": error.message}}
            tail = "".join(f",\n  {json.dumps(name)}: {_json(value)}" for name, value in told.items())
            self._print(f"\n  ]{tail}\n}}\n")

    def _one(self, line: bytes) -> None:
        item: dict[str, object] = {"line": line.decode("utf-8", "replace")}
        if self._screen.style.format == "json":
            is_first = not self._is_open
            self._begin()
            self._print(("\n    " if is_first else ",\n    ") + _json(item))
        else:
            self._is_open = True
            self._print(_json(self._about | item) + "\n")

    def _begin(self) -> None:
        if not self._is_open:
            self._is_open = True
            head = _json(envelope("JobLog", self._about)).removesuffix("}")
            self._print(f'{head}, "items": [')

    def _print(self, text: str) -> None:
        self._screen.raw(self._screen.concealed(text).encode())


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


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
