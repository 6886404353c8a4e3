"""`top`: jobs and GPUs, full screen, asked for again every other second. The only command that takes the screen.

The terminal is left as it was found, however `top` ends: by `q`, by Ctrl-C, or by an error, which is told afterwards.
Rich draws; nothing else of the client loads it.
"""

import contextlib
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from cli import answers, layout, phrases, views
from cli.answers import Json, number, text
from cli.errors import ExitCode, UsageProblem
from cli.faults import ApiError
from cli.layout import visible
from cli.session import Session
from cli.values import duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_MOST_JOBS = 200
_STALE_SECONDS = 60.0
"""How long a daemon may be away before `top` gives up: longer than a restart or a take-over (15 s)."""
_BAR_CELLS = 20
_RESIZED = "resized"
"""Told instead of a key: the terminal has another size, and what is known is drawn anew."""


def top(
    ctx: typer.Context,
    user: Annotated[str | None, typer.Option("-u", "--user", help="Jobs of this user ('me' for yours).")] = None,
    project: Annotated[str | None, typer.Option("-A", "--project", help="Jobs of this project.")] = None,
    every: Annotated[str, typer.Option("--every", metavar="DUR", help="Ask again so often.")] = "2s",
) -> int:
    """Watch jobs and GPUs, full screen, until q or Ctrl-C. Another key asks again at once; another size is drawn anew.

    Examples:
      turnstile top
      turnstile top -u me --every 10s
    """
    session: Session = ctx.obj
    pause = duration(every, "--every")
    if not (session.screen.is_terminal_in and session.screen.is_terminal_out) or session.screen.style.is_machine:
        raise UsageProblem("top needs a terminal", "turnstile queue -w", "turnstile queue -o json")
    query = {
        "state": "live",
        "user": answers.text(session.me, "user") if user == "me" else user,
        "project": project,
        "limit": _MOST_JOBS,
    }
    # The first answer comes before the screen is taken: a server that is not there is told like anywhere else.
    jobs, gpus = _ask(session, query)
    from rich.console import Console
    from rich.live import Live

    console = Console(no_color=session.screen.style.colour == "never" or None, highlight=False)
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        trouble, heard_at = "", time.monotonic()
        while True:
            live.update(drawn(jobs, gpus, trouble, console), refresh=True)
            key = pressed(pause)
            if key in {"q", "Q", "\x03", "\x04", ""}:
                return ExitCode.DONE
            if key == _RESIZED:
                continue
            try:
                jobs, gpus = _ask(session, query)
                trouble, heard_at = "", time.monotonic()
            except ApiError as problem:
                if problem.exit_code != ExitCode.UNREACHABLE or time.monotonic() - heard_at > _STALE_SECONDS:
                    raise
                trouble = problem.message


def _ask(session: Session, query: dict[str, str | int | None]) -> tuple[Json, Json]:
    return session.client.get("/v1/jobs", query), session.client.listing("/v1/gpus")


@contextlib.contextmanager
def _keys() -> "Iterator[_Pressed]":
    """Gives keys as they are pressed, without echo; the terminal's settings are put back at the end."""
    import os

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    heard_before = signal.signal(signal.SIGWINCH, lambda *_: _wake(write_end))
    try:
        tty.setcbreak(descriptor)  # Ctrl-C stays an interrupt
        yield _Pressed(descriptor, read_end)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, heard_before)
        os.close(read_end)
        os.close(write_end)


def _wake(write_end: int) -> None:
    import os

    with contextlib.suppress(BlockingIOError):  # it is told already
        os.write(write_end, b"r")


class _Pressed:
    """Waits for a key, or for another size of the terminal."""

    def __init__(self, descriptor: int, resized: int) -> None:
        self._descriptor = descriptor
        self._resized = resized

    def __call__(self, seconds: float) -> str | None:
        """Returns the key that was pressed within a time, or `_RESIZED`; None if there was none, "" when the terminal
        is gone."""
        import os

        ready = select.select([self._descriptor, self._resized], [], [], seconds)[0]
        if not ready:
            return None
        if self._resized in ready:
            os.read(self._resized, 1024)
            return _RESIZED
        return os.read(self._descriptor, 1).decode("ascii", "replace")


def drawn(jobs: Json, gpus: Json, trouble: str, console: "Console") -> "RenderableType":
    """Returns the screen: a line of totals, GPUs by class, then as many jobs as there is room for."""
    from rich.console import Group
    from rich.text import Text

    now = phrases.answered_at(jobs)
    heading = Text(f"turnstile  {now.astimezone():%H:%M:%S}  ", style="bold")
    heading.append(visible(views.totals(jobs) or ""), style="default not bold")
    heading.no_wrap, heading.overflow = True, "ellipsis"
    classes = answers.items(gpus)
    room = max(console.size.height - len(classes) - 5, 1)
    found = answers.items(jobs)
    parts: list[RenderableType] = [heading, _gpu_table(classes), Text(""), *_job_lines(found[:room], now)]
    if len(found) > room:
        parts.append(Text(f"… {len(found) - room} more: turnstile queue", style="dim"))
    footer = Text(visible(trouble), style="red") if trouble else Text("q quits", style="dim")
    footer.no_wrap, footer.overflow = True, "ellipsis"
    return Group(*parts, footer)


def _gpu_table(classes: list[Json]) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for _ in range(4):
        table.add_column(no_wrap=True)
    for each in classes:
        total, free = float(number(each, "total") or 0), float(number(each, "free") or 0)
        used = 0 if total <= 0 else round(_BAR_CELLS * min(max(total - free, 0) / total, 1))
        bar = Text("█" * used, style="green").append("░" * (_BAR_CELLS - used), style="dim")
        words = f"{number(each, 'free') or '?'} of {number(each, 'total') or '?'} free"
        waiting = number(each, "pending_jobs")
        table.add_row(
            Text(visible(text(each, "gpu_model") or "?")),
            bar,
            Text(words),
            Text(f"{waiting} waiting" if waiting else ""),
        )
    return table


def _job_lines(jobs: list[Json], now: datetime) -> "list[RenderableType]":
    """The rows of `queue`, each on one line: what is cut where the terminal ends is the end of the last column."""
    from rich.text import Text

    columns = [column for column in views.job_view(now).columns if not column.is_wide]
    lines = layout.lines(columns, jobs, has_header=True, is_coloured=True)
    heading, *rows = (Text.from_ansi(line, no_wrap=True, overflow="ellipsis") for line in lines)
    heading.stylize("bold")
    return [heading, *rows]
