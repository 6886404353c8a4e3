"""The client under test: in this process with its streams captured, or as a process of its own."""

import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pytest

from cli.main import run
from tests.cli.peer import Peer
from tests.cli.recorded import centre

ROOT = Path(__file__).parents[2]
TOKEN = "tst_sentinel-0123456789-never-shown"


@dataclass(frozen=True)
class Outcome:
    """What a run of the command left behind."""

    code: int
    out: str
    err: str


class _Terminal(io.TextIOWrapper):
    """Keeps what a terminal would show."""

    def isatty(self) -> bool:
        return True


class _Keyboard(io.StringIO):
    """Holds what a person at a terminal types."""

    def isatty(self) -> bool:
        return True


def _written(stream: io.TextIOWrapper) -> str:
    kept = stream.buffer
    assert isinstance(kept, io.BytesIO)  # made here
    return kept.getvalue().decode()


class Home:
    """A person's home, empty but for a token file, and a way to run the command there."""

    def __init__(self, path: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.token_file = path / "token"
        self.token_file.write_text(TOKEN + "\n")
        self.token_file.chmod(0o600)
        for name in [each for each in os.environ if each.startswith(("TURNSTILE_", "XDG_"))]:
            monkeypatch.delenv(name)
        kept = {
            "HOME": str(path),
            "XDG_CONFIG_DIRS": str(path / "etc"),
            "TZ": "UTC",
            "TERM": "xterm",
            "PYTHONPATH": str(ROOT),
            "TURNSTILE_URL": peer.url,
            "TURNSTILE_TOKEN_FILE": str(self.token_file),
        }
        for name, value in kept.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.chdir(path)
        self._monkeypatch = monkeypatch

    def turnstile(self, *arguments: str, stdin: str = "") -> Outcome:
        """Runs the command in this process, with pipes for streams."""
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        code = self._run(arguments, io.StringIO(stdin), out, err)
        return Outcome(code, *(_written(stream) for stream in (out, err)))

    def at_a_terminal(self, *arguments: str, typed: str = "") -> Outcome:
        """Runs the command in this process; its streams say that they are one terminal, which shows both outputs."""
        screen = _Terminal(io.BytesIO(), "utf-8", write_through=True)
        code = self._run(arguments, _Keyboard(typed), screen, screen)
        return Outcome(code, _written(screen), "")

    def _run(self, arguments: tuple[str, ...], stdin: TextIO, out: TextIO, err: TextIO) -> int:
        with self._monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", out)
            patched.setattr(sys, "stderr", err)
            patched.setattr(sys, "stdin", stdin)
            return run(list(arguments))


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A server that answers as the small centre."""
    found = Peer()
    centre(found)
    yield found
    found.close()


@pytest.fixture
def home(tmp_path: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A person's home whose environment names the peer."""
    return Home(tmp_path, peer, monkeypatch)
