"""What becomes of a bug of ours: a trace in a file that only the person can read, and a sentence that names it."""

import os
import time
import traceback
from pathlib import Path

import platformdirs

from cli.contexts import short
from cli.errors import CliError
from cli.render import Screen


class Bug(CliError):
    """Turnstile's command failed in a way that it does not know."""


def report(bug: BaseException, screen: Screen) -> Bug:
    """Writes the trace of a bug, without values of variables and without the token; returns what to tell."""
    number = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}"
    folder = Path(platformdirs.user_state_dir("turnstile")) / "reports"
    path = folder / f"{number}.txt"
    trace = screen.concealed("".join(traceback.format_exception(bug)))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
            opened.write(trace)
        kept = f"its trace is in {short(path)}"
    except OSError as problem:
        kept = f"its trace could not be kept ({problem.strerror})"
    what = f"turnstile failed unexpectedly ({type(bug).__name__}); this is a bug, report {number}"
    return Bug(what, code="internal", notes=(kept,))
