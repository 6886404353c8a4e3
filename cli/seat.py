"""Sitting at a program that runs elsewhere: bytes from here to it and back, its terminal's size, Ctrl-C.

At a terminal every key goes to the program, Ctrl-C and Ctrl-Z too: this end is in raw mode until the program has ended.
Through pipes Ctrl-C here is an interrupt there; a second one leaves.
"""

import json
import os
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from cli.answers import BrokenAnswer, mapping, whole
from cli.faults import ApiError
from cli.render import Screen

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

_PIECE_BYTES = 64 << 10
_INPUT = b"\x00"
_ERRORS = b"\x02"


def size() -> dict[str, int]:
    """Returns rows and columns of this terminal."""
    found = shutil.get_terminal_size()
    return {"rows": max(1, found.lines), "columns": max(1, found.columns)}


def sit(opened: "ClientConnection", screen: Screen, *, is_terminal: bool) -> int | None:
    """Stays until the program has ended; returns its exit status, None when it is not told. Raises ApiError when the
    connection breaks."""
    typing = threading.Thread(target=_type, args=(opened,), name="typing", daemon=True)
    if not is_terminal:
        typing.start()
        return _listen_and_interrupt(opened, screen)
    with _raw(), _resizing(opened):
        typing.start()
        return _listen(opened, screen)


def _listen_and_interrupt(opened: "ClientConnection", screen: Screen) -> int | None:
    was_interrupted = False
    while True:
        try:
            return _listen(opened, screen)
        except KeyboardInterrupt:
            if was_interrupted:
                raise
            was_interrupted = True
            opened.send(json.dumps({"signal": "INT"}))


def _listen(opened: "ClientConnection", screen: Screen) -> int | None:
    """Prints what comes until the program has ended."""
    from websockets.exceptions import ConnectionClosed

    while True:
        try:
            piece = opened.recv()
        except ConnectionClosed:
            raise ApiError("unavailable", "the connection to the job broke off") from None
        if isinstance(piece, str):
            try:
                return whole(mapping(json.loads(piece)), "exit_code")
            except ValueError:
                raise BrokenAnswer("the session ends with no words") from None
        screen.raw(piece[1:], is_error=piece[:1] == _ERRORS)


def _type(opened: "ClientConnection") -> None:
    """Sends what is typed until there is no more of it or nobody listens."""
    from websockets.exceptions import ConnectionClosed

    with suppress(OSError, ValueError, ConnectionClosed):
        while piece := os.read(sys.stdin.fileno(), _PIECE_BYTES):
            opened.send(_INPUT + piece)
        opened.send(_INPUT)


@contextmanager
def _raw() -> Iterator[None]:
    """Every key as it is, until the end, however it ends."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setraw(terminal)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextmanager
def _resizing(opened: "ClientConnection") -> Iterator[None]:
    """Tells the program when this terminal's size changes."""

    def changed(_number: int, _frame: FrameType | None) -> None:
        # Not in the signal's own time: what it interrupted may be sending.
        threading.Thread(target=_tell_size, args=(opened,), daemon=True).start()

    before = signal.signal(signal.SIGWINCH, changed)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def _tell_size(opened: "ClientConnection") -> None:
    from websockets.exceptions import ConnectionClosed

    found = size()
    with suppress(ConnectionClosed):
        opened.send(json.dumps({"resize": [found["rows"], found["columns"]]}))
