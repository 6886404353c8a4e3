"""What jobs wrote, line by line: of several nodes each line with its rank before it, or each line as JSON.

Which nodes: `--rank`, and all of a small gang where it says nothing. Nothing here asks the server.
"""

import json
import re
from collections.abc import Callable, Mapping

from cli import answers
from cli.answers import Json
from cli.errors import CliError, UsageProblem
from cli.render import Screen, envelope

MOST_RANKS = 16
"""Nodes whose output is read at once: half of the streams that the server grants a token, so that a second one fits."""
LONGEST_LINE_BYTES = 64 * 1024
"""A line without an end goes on in the next one: what is not shown yet is held in memory, for each node."""
_RANKS = re.compile(r"([0-9]{1,7})(?:-([0-9]{1,7}))?", re.ASCII)
Add = Callable[[int, bytes], None]
"""Takes a piece of the output of one rank."""


def ranks(text: str, flag: str = "--rank") -> tuple[int, ...]:
    """Returns the ranks of `3`, `0,8` or `0-3,8`, in order and each once. Raises UsageProblem."""
    spans = [_RANKS.fullmatch(part.strip()) for part in text.split(",")]
    found: set[int] = set()
    for span in spans:
        if span is None or int(span[2] or span[1]) < int(span[1]):
            raise UsageProblem(f"{flag} {text!r} names no nodes; they are counted from 0", f"{flag} 0", f"{flag} 0-3,8")
        if int(span[2] or span[1]) - int(span[1]) >= MOST_RANKS or len(found) > MOST_RANKS:
            raise UsageProblem(f"{flag} {text} names more than {MOST_RANKS} nodes", f"{flag} 0-{MOST_RANKS - 1}")
        found.update(range(int(span[1]), int(span[2] or span[1]) + 1))
    if len(found) > MOST_RANKS:
        raise UsageProblem(f"{flag} {text} names more than {MOST_RANKS} nodes", f"{flag} 0-{MOST_RANKS - 1}")
    return tuple(sorted(found))


def all_ranks(job: Json) -> tuple[int, ...]:
    """Returns the ranks of the nodes that a job has or asks for, the first MOST_RANKS of them."""
    return tuple(range(min(answers.whole(job, "nodes") or 1, MOST_RANKS)))


def left_out(job: Json) -> str | None:
    """Returns what is said of the nodes that `all_ranks` leaves out; None where there are none."""
    nodes = answers.whole(job, "nodes") or 1
    if nodes <= MOST_RANKS:
        return None
    return f"{MOST_RANKS} of {nodes} nodes; of others: --rank {MOST_RANKS}-{min(nodes, 2 * MOST_RANKS) - 1}"


class Labelled:
    """Puts `3: ` before each line of rank 3, as `srun --label` does, so that lines of several nodes are never mixed."""

    def __init__(self, output: Callable[[bytes], None]) -> None:
        self._output = output
        self._rests: dict[int, bytes] = {}

    def add(self, rank: int, data: bytes) -> None:
        """Prints the lines that are whole; the rest waits for its end."""
        *whole, rest = (self._rests.get(rank, b"") + data).split(b"\n")
        while len(rest) >= LONGEST_LINE_BYTES:
            whole.append(rest[:LONGEST_LINE_BYTES])
            rest = rest[LONGEST_LINE_BYTES:]
        self._rests[rank] = rest
        if whole:
            self._output(b"".join(b"%d: %s\n" % (rank, line) for line in whole))

    def close(self) -> None:
        """Prints what has no end of line."""
        for rank, rest in sorted(self._rests.items()):
            if rest:
                self._output(b"%d: %s\n" % (rank, rest))
        self._rests.clear()


class JsonLines:
    """What a job wrote as JSON, each line as soon as it is whole: `jsonl` by itself, `json` as items of one document.

    The document is written as it grows, so that a log of any size needs no memory; one that broke off ends with
    `error`, and is a document nevertheless.
    """

    def __init__(self, screen: Screen, about: Mapping[str, object]) -> None:
        self._screen = screen
        self._about = dict(about)
        self._rests: dict[int, bytes] = {}
        self._is_open = False

    def add(self, rank: int, data: bytes) -> None:
        """Prints the lines that are whole; the rest waits for its end."""
        *whole, self._rests[rank] = (self._rests.get(rank, b"") + data).split(b"\n")
        for each in whole:
            self._one(rank, each)

    def close(self, error: CliError | None = None) -> None:
        """Writes what is left. Raises the error again where nothing was written before it."""
        if error is not None and not self._is_open:
            raise error
        for rank, rest in sorted(self._rests.items()):
            if rest:
                self._one(rank, rest)
        if self._screen.style.format == "json":
            self._begin()
            told = {} if error is None else {"error": {"code": error.code, "message": error.message}}
            tail = "".join(f",\n  {json.dumps(name)}: {_json(value)}" for name, value in told.items())
            self._print(f"\n  ]{tail}\n}}\n")

    def _one(self, rank: int, line: bytes) -> None:
        item: dict[str, object] = {"rank": rank, "line": line.decode("utf-8", "replace")}
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
