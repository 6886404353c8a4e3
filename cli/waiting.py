"""What a person at a terminal sees while one long answer is made: which it is, and for how long already.

Only where standard error is a terminal, and only after a moment: an answer that comes at once is not announced, and
what reads the output of a command sees nothing of it. The line is gone before anything else is printed.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cli.render import Screen

PATIENCE_SECONDS = 2.0
"""How long nothing is said: most answers have come by then."""
STEP_SECONDS = 1.0


@contextmanager
def waiting(screen: Screen, what: str, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Shows `what … 12 s` on a terminal while the body goes on; nothing elsewhere."""
    if not screen.is_terminal_err:
        yield
        return
    done = threading.Event()
    teller = threading.Thread(target=_tell, args=(screen, what, done, patience_seconds), daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


@contextmanager
def ended_by_term() -> Iterator[None]:
    """Lets SIGTERM end the body as Ctrl-C does, so that it takes away what it had half written.

    In the main thread, which alone gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(screen: Screen, what: str, done: threading.Event, patience_seconds: float) -> None:
    began = time.monotonic()
    shown = 0
    while not done.wait(STEP_SECONDS if shown else patience_seconds):
        line = f"{what} … {time.monotonic() - began:.0f} s"
        screen.raw(f"\r{line}".encode(), is_error=True)
        shown = len(line)
    if shown:
        screen.raw(f"\r{' ' * shown}\r".encode(), is_error=True)
