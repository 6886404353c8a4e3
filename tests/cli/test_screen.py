"""`top` and `queue -w` on a real terminal: what they show, and how they leave it."""

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from tests.cli.conftest import Home
from tests.cli.peer import Asked, Json, Peer, Reply, page, problem, said
from tests.cli.recorded import RUNNING, job

PATIENCE_SECONDS = 30.0
_AS_FOREGROUND = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from cli.main import main; main()"
"""Takes the terminal for the new session's own, so that Ctrl-C typed on it interrupts, and runs the command."""
ENTER_SCREEN, LEAVE_SCREEN, SHOW_CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"


class Terminal:
    """A command on a terminal of its own, 100 × 30, of which it is the foreground process."""

    def __init__(self, *arguments: str) -> None:
        self._ours, self.theirs = pty.openpty()
        termios.tcsetwinsize(self.theirs, (30, 100))
        self.before = termios.tcgetattr(self.theirs)
        self.seen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", _AS_FOREGROUND, *arguments],
            stdin=self.theirs, stdout=self.theirs, stderr=self.theirs, start_new_session=True,
        )  # fmt: skip

    def wait_for(self, wanted: bytes, times: int = 1) -> None:
        """Reads until something has been shown so often."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.seen.count(wanted) < times:
            assert time.monotonic() < deadline, f"{wanted!r} was not shown: {self.seen[-2000:]!r}"
            self._read(0.2)

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def end(self) -> int:
        """Reads to the end; returns the exit status."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end: {self.seen[-500:]!r}"
            self._read(0.05)
        self._read(0)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        os.close(self._ours)
        os.close(self.theirs)

    def _read(self, seconds: float) -> None:
        while select.select([self._ours], [], [], seconds)[0]:
            self.seen += os.read(self._ours, 65_536)
            seconds = 0


@pytest.fixture
def terminals(home: Home, peer: Peer) -> Iterator[list[Terminal]]:
    """The terminals of a test, put away at its end."""
    assert home.path.exists()
    made: list[Terminal] = []
    yield made
    for each in made:
        each.close()


def opened(terminals: list[Terminal], *arguments: str) -> Terminal:
    made = Terminal(*arguments)
    terminals.append(made)
    return made


def changing(peer: Peer) -> None:
    """A queue in which another job stands each time it is asked for."""
    asked_before: list[str] = []

    def answer(asked: Asked) -> Reply:
        asked_before.append(asked.path)
        return said(page("JobList", [RUNNING, job(id=20_000 + len(asked_before), name=f"turn-{len(asked_before)}")]))

    peer.answers("GET", "/v1/jobs", answer)


def test_top_shows_jobs_and_gpus_again_and_again_until_q(terminals: list[Terminal], peer: Peer) -> None:
    changing(peer)
    screen = opened(terminals, "top", "--every", "1s")
    for shown in (ENTER_SCREEN, b"llama-sft", "32×H100".encode(), b"turn-1", b"turn-2", b"q quits"):
        screen.wait_for(shown)
    screen.type(b"x")  # a key that means nothing asks again, and does no harm
    screen.wait_for(b"turn-3")
    screen.type(b"q")
    assert screen.end() == 0
    assert termios.tcgetattr(screen.theirs) == screen.before
    assert screen.seen.rindex(LEAVE_SCREEN) > screen.seen.rindex(b"turn-3")
    assert SHOW_CURSOR in screen.seen[screen.seen.rindex(b"turn-3") :]


def test_ctrl_c_leaves_top_and_the_terminal_as_it_was(terminals: list[Terminal]) -> None:
    screen = opened(terminals, "top")
    screen.wait_for(b"q quits")
    assert termios.tcgetattr(screen.theirs) != screen.before  # keys are taken without echo while it runs
    screen.type(b"\x03")
    assert screen.end() == 130
    assert termios.tcgetattr(screen.theirs) == screen.before
    assert LEAVE_SCREEN in screen.seen
    assert b"Traceback" not in screen.seen


def test_a_refusal_while_top_runs_is_told_on_the_terminal_as_it_was(terminals: list[Terminal], peer: Peer) -> None:
    jobs: Json = page("JobList", [RUNNING])
    peer.answers("GET", "/v1/jobs", jobs, problem("not_logged_in", 401, "the token has expired"))
    screen = opened(terminals, "top", "--every", "1s")
    screen.wait_for(b"the token has expired")
    assert screen.end() == 5
    assert screen.seen.rindex(b"the token has expired") > screen.seen.rindex(LEAVE_SCREEN)
    assert termios.tcgetattr(screen.theirs) == screen.before


def test_top_outlives_a_daemon_that_is_away_for_a_moment(terminals: list[Terminal], peer: Peer) -> None:
    away = problem("unavailable", 503, "no leader")
    peer.answers("GET", "/v1/jobs", page("JobList", [RUNNING]), away, page("JobList", [job(name="back-again")]))
    screen = opened(terminals, "top", "--every", "1s")
    screen.wait_for(b"no leader")
    screen.wait_for(b"back-again")
    screen.type(b"q")
    assert screen.end() == 0


def test_more_jobs_than_the_screen_has_lines_are_counted(terminals: list[Terminal], peer: Peer) -> None:
    peer.answers("GET", "/v1/jobs", page("JobList", [job(id=n, name="j\x1b[2Jx") for n in range(20_000, 20_100)]))
    screen = opened(terminals, "top")
    screen.wait_for(b" more: turnstile queue")
    screen.wait_for(rb"j\x1b[2Jx")
    screen.type(b"q")
    assert screen.end() == 0


def test_top_without_a_terminal_says_what_does_instead(home: Home) -> None:
    done = home.turnstile("top")
    assert (done.code, done.out) == (2, "")
    assert "top needs a terminal" in done.err
    assert "turnstile queue -w" in done.err


def test_a_watched_queue_is_shown_again_in_its_place_until_ctrl_c(terminals: list[Terminal], peer: Peer) -> None:
    changing(peer)
    screen = opened(terminals, "queue", "-w")
    screen.wait_for(b"turn-1")
    screen.wait_for(b"turn-2")
    assert screen.seen.count(b"\x1b[H\x1b[2J") == 2
    screen.type(b"\x03")
    assert screen.end() == 128 + signal.SIGINT
    assert termios.tcgetattr(screen.theirs) == screen.before
    assert b"Traceback" not in screen.seen


def test_a_watched_queue_in_a_pipe_is_a_stream_of_lines(home: Home, peer: Peer) -> None:
    changing(peer)
    with subprocess.Popen(
        [sys.executable, "-m", "cli.main", "queue", "-w", "-o", "jsonl"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(30) == 130
    assert [b"turn-" in line for line in lines] == [False, True, False, True]
    assert b"\x1b" not in b"".join(lines) + rest
