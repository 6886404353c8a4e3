"""The one renderer: everything that the client prints is printed here.

stdout is data, stderr is talk. Formats: `table` (plain columns, never cut), `wide` (all columns), `json` (the server's
envelope), `jsonl` (one item a line), `csv`, `name` (one name a line, also `-q`). Under `-o json` an error is an
envelope on stdout too, with the same exit status. Colour only on a terminal that wants it.
"""

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

from cli import layout, moments
from cli.answers import Json, at, items
from cli.errors import CliError, Problem, UsageProblem
from cli.layout import View, painted, visible
from cli.values import closest

API_VERSION = "turnstile/v1"
FORMATS = ("table", "wide", "json", "jsonl", "csv", "name")
_ENVELOPE = frozenset({"apiVersion", "kind", "generated_at"})
COLOURS = ("auto", "always", "never")
LINE_WIDTH = 96
"""Proposals stand on one line up to here; lists are never cut or wrapped."""


@dataclass(frozen=True, slots=True)
class Style:
    """How to print, as flags and terminal say."""

    format: str = "table"
    has_header: bool = True
    colour: str = "auto"

    @property
    def is_machine(self) -> bool:
        """True where stdout is read by a program, so that people's extras stay away from it."""
        return self.format in {"json", "jsonl", "csv", "name"}


def checked_style(form: str, *, is_quiet: bool, has_header: bool, colour: str) -> Style:
    """Returns the style that flags ask for. Raises UsageProblem on an unknown word."""
    if form not in FORMATS:
        raise UsageProblem(f"-o {form!r} is not one of {', '.join(FORMATS)}", *closest(form, FORMATS, "-o "))
    if colour not in COLOURS:
        raise UsageProblem(f"--color {colour!r} is not one of {', '.join(COLOURS)}")
    return Style("name" if is_quiet else form, has_header, colour)


class Screen:
    """Prints. One for each run of the command; `style` is set once the flags are read."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.style = Style()
        self.is_terminal_in = _is_terminal(sys.stdin)
        self.is_terminal_out = _is_terminal(sys.stdout)
        self.is_terminal_err = _is_terminal(sys.stderr)
        self._environment = environment
        self._secret: str | None = None
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, ValueError):
                # A terminal that cannot show a character gets an escape for it, not a crash.
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

    def conceal(self, secret: str | None) -> None:
        """Makes sure that a token is printed nowhere, whoever quotes it."""
        self._secret = secret

    def listing(self, answer: Json, view: View) -> None:
        """Prints a list, as the format asks."""
        found = items(answer)
        if self.style.format == "json":
            self._document(answer)
        elif self.style.format == "jsonl":
            for item in found:
                self._out(json.dumps(item, ensure_ascii=False))
        elif self.style.format == "csv":
            self._csv(found, view)
        elif self.style.format == "name":
            for item in found:
                self._out(visible(view.name(item) or "-"))
        else:
            self._table(answer, found, view)

    def document(self, answer: Json, view: View, told: list[str]) -> None:
        """Prints one thing: `told` for people, or the answer itself; CSV and names by the view."""
        if self.style.format == "json":
            self._document(answer)
        elif self.style.format == "jsonl":
            self._out(json.dumps(answer, ensure_ascii=False))
        elif self.style.format == "csv":
            self._csv([answer], view)
        elif self.style.format == "name":
            self._out(visible(view.name(answer) or "-"))
        else:
            for line in told:
                self._out(visible(line))

    def plain(self, text: str) -> None:
        """Prints one line of data that has no other form: a completion script, an id."""
        self._out(text)

    def raw(self, data: bytes, *, is_error: bool = False) -> None:
        """Prints bytes as they are: what a job wrote; `is_error` to standard error."""
        stream = sys.stderr if is_error else sys.stdout
        stream.flush()
        stream.buffer.write(data)
        stream.buffer.flush()

    def say(self, line: str) -> None:
        """Tells the person something that is not data."""
        self._err(visible(line))

    def note(self, line: str) -> None:
        """Points out something that the person may not have meant."""
        self.say(f"note: {line}")

    def clear(self) -> None:
        """Empties a terminal's window, for a list that is shown again; elsewhere nothing."""
        if self.is_terminal_out and not self.style.is_machine:
            sys.stdout.write("\x1b[H\x1b[2J")

    def flush(self) -> None:
        """Lets the reader have what was printed so far."""
        sys.stdout.flush()

    def ask(self, question: str) -> bool:
        """Asks and returns whether the answer is yes. Only to be called on a terminal."""
        assert self.is_terminal_in  # a prompt that nobody sees would hang a script
        sys.stderr.write(f"{visible(question)} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in {"y", "yes"}

    def read_words(self) -> list[str]:
        """Returns what stands on standard input, split at white space."""
        return sys.stdin.read().split()

    def ask_secret(self, question: str) -> str:
        """Asks for a secret without showing what is typed."""
        import getpass

        return getpass.getpass(f"{question}: ", stream=sys.stderr)

    def error(self, error: CliError) -> None:
        """Prints what went wrong: on stderr for people, as an envelope on stdout where the format is JSON."""
        if self.style.format in {"json", "jsonl"}:
            self._document(error_envelope(error), is_one_line=self.style.format == "jsonl")
            return
        is_painted = self._paints(self.is_terminal_err)
        label = painted("error:", "red") if is_painted else "error:"
        self._err(f"{label} {visible(error.message)}")
        for note in error.notes:
            self._err(f"  {visible(note)}")
        for problem in _further(error):
            place = f"{visible(problem.field)}  " if problem.field else ""
            self._err(f"  {place}{visible(problem.message)}")
        proposals = [visible(each) for each in error.tries]
        line = f"  try   {'   or   '.join(proposals)}"
        if len(line) <= LINE_WIDTH:
            proposals = [line.removeprefix("  try   ")]
        for i, proposal in enumerate(proposals if error.tries else ()):
            self._err(f"  {'try  ' if i == 0 else '  or '} {proposal}")
        if error.exit_code == 3 and error.code != "invalid":
            self._err(f"  code  {error.code}")

    def _table(self, answer: Json, found: list[Json], view: View) -> None:
        is_coloured = self._paints(self.is_terminal_out)
        columns = [column for column in view.columns if self.style.format == "wide" or not column.is_wide]
        if found:
            for line in layout.lines(columns, found, has_header=self.style.has_header, is_coloured=is_coloured):
                self._out(line)
        else:
            self.say(view.empty)
        footer = view.footer(answer)
        if footer is not None and self.style.has_header and found:
            # In a pipe the rows alone are data: a summary among them would be one more row.
            for line in footer.splitlines():
                if self.is_terminal_out:
                    self._out(visible(line))
                else:
                    self.say(line)

    def _csv(self, found: list[Json], view: View) -> None:
        import csv
        import io

        page = io.StringIO()
        writer = csv.writer(page, lineterminator="\n")
        if self.style.has_header:
            writer.writerow([field.replace(".", "_") for field in view.fields])
        for item in found:
            writer.writerow([layout.csv_cell(at(item, field)) for field in view.fields])
        self._out(page.getvalue().removesuffix("\n"))

    def _document(self, document: Json, *, is_one_line: bool = False) -> None:
        self._out(json.dumps(document, ensure_ascii=False, indent=None if is_one_line else 2))

    def _paints(self, is_terminal: bool) -> bool:
        if self.style.colour != "auto":
            return self.style.colour == "always"
        return is_terminal and not self._environment.get("NO_COLOR") and self._environment.get("TERM") != "dumb"

    def _out(self, line: str) -> None:
        sys.stdout.write(self.concealed(line) + "\n")

    def _err(self, line: str) -> None:
        sys.stdout.flush()
        sys.stderr.write(self.concealed(line) + "\n")
        sys.stderr.flush()

    def concealed(self, text: str) -> str:
        """Returns text without the token."""
        return text.replace(self._secret, "[token]") if self._secret else text


def envelope(kind: str, content: Json) -> dict[str, object]:
    """Returns an answer that this client makes itself, in the shape of the server's."""
    return {"apiVersion": API_VERSION, "kind": kind, "generated_at": moments.write(moments.current()), **content}


def listed(kind: str, found: list[dict[str, object]]) -> dict[str, object]:
    """Returns a list that this client makes itself; items that were answers of their own lose their envelopes."""
    bare = [{key: value for key, value in item.items() if key not in _ENVELOPE} for item in found]
    return envelope(kind, {"items": bare, "next_page": None})


def error_envelope(error: CliError) -> dict[str, object]:
    """Returns an error as JSON."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Error",
        "code": error.code,
        "message": error.message,
        "try": list(error.tries),
        "problems": [{"field": each.field or None, "message": each.message} for each in error.problems],
        "notes": list(error.notes),
    }


def _further(error: CliError) -> tuple[Problem, ...]:
    """The problems that the sentence does not tell already: with one alone it usually does."""
    is_told = len(error.problems) == 1 and error.problems[0].message in error.message
    return () if is_told else error.problems


def discard_output() -> None:
    """Gives up on a reader that went away: what is still buffered goes nowhere instead of failing again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()
