"""Reads YAML and JSON as people write job files: mappings, lists and text, each with the line that it stands in.

Nothing is guessed about types: `2e-5`, `8`, `no` and `12:00:00` stay the text that was typed, and whoever knows the
key reads it. Tags, anchors and aliases are refused, size and depth are bounded, so that a file makes no object and
grows no bomb. PyYAML's events are read, not its documents, which know no lines; it is imported when a file is read.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from cli.errors import Problem

if TYPE_CHECKING:
    from yaml.events import Event

LARGEST_BYTES = 256 * 1024
"""Twice the most that a command and its environment may hold (128 KiB)."""
DEEPEST = 8
"""Job files have three levels; the rest is somebody's mistake."""
_ABSENT = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "yes", "on"})
_FALSE = frozenset({"false", "no", "off"})


class BrokenFile(Exception):
    """A file that cannot be read as YAML or JSON; `problem` has the line, where there is one."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.problem = Problem("" if line is None else f"line {line}", message)


@dataclass(frozen=True, slots=True)
class Scalar:
    """Text as it was typed, without its quotes. `is_plain`: there were none."""

    text: str
    line: int
    is_plain: bool

    @property
    def is_absent(self) -> bool:
        """True for `key:` without a value, `~` and `null`."""
        return self.is_plain and self.text in _ABSENT

    @property
    def truth(self) -> bool | None:
        """What it says as yes or no (YAML 1.1's words); None where it says neither."""
        word = self.text.lower() if self.is_plain else ""
        return True if word in _TRUE else False if word in _FALSE else None


@dataclass(frozen=True, slots=True)
class Listed:
    """A list, in order."""

    items: tuple["Value", ...]
    line: int


@dataclass(frozen=True, slots=True)
class Mapped:
    """Keys and values in the order of the file. A key may be there twice: that is the reader's to refuse."""

    pairs: tuple[tuple[Scalar, "Value"], ...]
    line: int


Value: TypeAlias = Scalar | Listed | Mapped


def read(data: bytes, *, is_json: bool = False) -> Mapped:
    """Returns the one mapping that a file holds. Raises BrokenFile, and nothing else, on any bytes."""
    if len(data) > LARGEST_BYTES:
        raise BrokenFile(f"has {len(data)} bytes; {LARGEST_BYTES} is the most")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as broken:
        raise BrokenFile("is not UTF-8 text", data[: broken.start].count(b"\n") + 1) from None
    if is_json:
        text = _checked_json(text)
    from yaml import MarkedYAMLError, SafeLoader, YAMLError, parse

    try:
        found = _document(iter(parse(text, Loader=SafeLoader)))
    except MarkedYAMLError as broken:
        line = None if broken.problem_mark is None else broken.problem_mark.line + 1
        raise BrokenFile(f"is not {'JSON' if is_json else 'YAML'}: {broken.problem}", line) from None
    except (YAMLError, ValueError, OverflowError):
        # The last two: PyYAML takes an escape such as "\UFFFFFFFF" for a character, and there is none of that number.
        raise BrokenFile("holds a character that YAML does not allow") from None
    if isinstance(found, Scalar) and found.is_absent:
        raise BrokenFile("is empty")
    if not isinstance(found, Mapped):
        raise BrokenFile("holds no keys; write 'key: value' lines", found.line)
    return found


def _checked_json(text: str) -> str:
    """JSON that a YAML reader takes as it is meant: JSON indents with tabs, which YAML does not allow."""
    try:
        json.loads(text, parse_int=str, parse_float=str)
    except json.JSONDecodeError as broken:
        raise BrokenFile(f"is not JSON: {broken.msg.lower()}", broken.lineno) from None
    except RecursionError:
        raise BrokenFile(f"is nested deeper than {DEEPEST} levels") from None
    return text.replace("\t", " ")


def _document(events: "Iterator[Event]") -> Value:
    from yaml.events import DocumentEndEvent, DocumentStartEvent, StreamEndEvent, StreamStartEvent

    found: Value | None = None
    for event in events:
        if isinstance(event, StreamStartEvent | DocumentEndEvent | StreamEndEvent):
            continue
        if isinstance(event, DocumentStartEvent) and found is None:
            found = _value(next(events), events, DEEPEST)
            continue
        raise BrokenFile("begins a second document; submit one job a file", _line(event))
    return found if found is not None else Scalar("", 1, is_plain=True)


def _value(event: "Event", events: "Iterator[Event]", depth: int) -> Value:
    from yaml.events import AliasEvent, MappingStartEvent, ScalarEvent, SequenceStartEvent

    line = _line(event)
    if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
        raise BrokenFile("anchors (&) and aliases (*) are not read; write the value out", line)
    if getattr(event, "tag", None) is not None:
        raise BrokenFile("tags (!) are not read; write the value alone", line)
    if depth == 0:
        raise BrokenFile(f"is nested deeper than {DEEPEST} levels", line)
    if isinstance(event, ScalarEvent):
        return Scalar(_joined(event.value), line, is_plain=not event.style)
    if isinstance(event, SequenceStartEvent):
        return Listed(tuple(_items(events, depth - 1)), line)
    assert isinstance(event, MappingStartEvent)  # the only other event that begins a value
    return Mapped(tuple(_pairs(events, depth - 1)), line)


def _items(events: "Iterator[Event]", depth: int) -> "Iterator[Value]":
    from yaml.events import SequenceEndEvent

    while not isinstance(event := next(events), SequenceEndEvent):
        yield _value(event, events, depth)


def _pairs(events: "Iterator[Event]", depth: int) -> "Iterator[tuple[Scalar, Value]]":
    from yaml.events import MappingEndEvent

    while not isinstance(event := next(events), MappingEndEvent):
        key = _value(event, events, depth)
        if not isinstance(key, Scalar):
            raise BrokenFile("a key is a word", key.line)
        yield key, _value(next(events), events, depth)


def _line(event: "Event") -> int:
    assert event.start_mark is not None  # the scanner marks what it reads; only events made by hand have none
    return event.start_mark.line + 1


def _joined(text: str) -> str:
    """Text whose surrogate pairs, as JSON escapes what lies beyond 16 bits, are characters."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError("half of a character") from None
