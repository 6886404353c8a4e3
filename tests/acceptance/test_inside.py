"""Typed at a real terminal against a real daemon: exec, run --pty, run and Ctrl-C, port-forward, top."""

import contextlib
import http.client
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.daemons import Daemon, environment, until

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180)]
SERVER = "import http.server, sys; s = http.server.HTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler); \
print(s.server_port, flush=True); s.serve_forever()"

OWN_TERMINAL = "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); \
os.execvp(sys.argv[1], sys.argv[1:])"
"""Makes standard input the terminal of a session of its own, as a person's is, so that Ctrl-C there is a signal."""


@dataclass
class Terminal:
    """A command at a pseudo-terminal of 30 rows and 100 columns."""

    process: "subprocess.Popen[bytes]"
    fd: int
    inner: int
    """The command's own side: tells the terminal's settings when the command is gone."""
    before: list[Any]
    """Its settings when the command began."""
    seen: bytes = b""

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def resize(self, rows: int, columns: int) -> None:
        """Makes the window another size, which its command is told by SIGWINCH."""
        termios.tcsetwinsize(self.inner, (rows, columns))

    def reads(self, text: bytes, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come; only:\n{self.seen.decode(errors='replace')}"
            try:
                piece = os.read(self.fd, 65536)
            except OSError:
                piece = b""
            assert piece, f"{text!r} did not come before the end; only:\n{self.seen.decode(errors='replace')}"
            self.seen += piece

    def ends_with(self, code: int) -> None:
        # What it still says is read, for nobody may end while its terminal is full.
        deadline = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.seen.decode(errors="replace")
            ready, _, _ = select.select([self.fd], [], [], 0.05)
            if ready:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.fd, 65536)
        assert self.process.returncode == code, self.seen.decode(errors="replace")
        assert b"Traceback" not in self.seen


@contextlib.contextmanager
def sitting(daemon: Daemon, *words: str, who: str = "mei") -> Iterator[Terminal]:
    outer, inner = pty.openpty()
    termios.tcsetwinsize(inner, (30, 100))
    before = termios.tcgetattr(inner)
    more = {"TURNSTILE_URL": daemon.url, "TURNSTILE_TOKEN_FILE": str(daemon.token(who)), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", OWN_TERMINAL, *daemon.command, *words],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env=environment(daemon.folder, more),
        cwd=daemon.folder,
    )
    try:
        yield Terminal(process, outer, inner, before)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        os.close(inner)
        os.close(outer)


def test_exec_runs_beside_the_job_and_tells_its_status(daemon: Daemon) -> None:
    number = str(daemon.submit("sleep", "60", name="train")["id"])
    daemon.wait_for(number, "running")
    said = daemon.turnstile(
        "exec", "train", "--", "sh", "-c", 'echo "$TURNSTILE_JOB_ID $CUDA_VISIBLE_DEVICES"; exit 7', who="mei", code=7
    )
    assert said.out.startswith(f"{number} GPU-")
    assert "cannot run 'no-such'" in daemon.turnstile("exec", number, "no-such", who="mei", code=127).err
    assert daemon.turnstile("exec", number, "--", "sh", "-c", "kill -9 $$", who="mei", code=137).out == ""
    events = daemon.get(f"/v1/jobs/{number}/events")["items"]
    assert [each["kind"] for each in events].count("entered") >= 2
    for words, code, text in (
        ((number,), 2, "say what to run"),
        ((number, "-t", "sh"), 2, "flags stand before the job"),
        (("-t", number, "sh"), 2, "needs a terminal"),
        (("--rank", "3", number, "true"), 4, "--rank 0"),
        (("99", "true"), 4, "no job 99"),
    ):
        assert text in daemon.turnstile("exec", *words, who="mei", code=code).err
    assert "needs" in daemon.turnstile("exec", number, "true", code=5).err  # an operator looks into nobody's job
    daemon.turnstile("cancel", number, who="mei")
    daemon.wait_for(number, "cancelled")
    assert "only a running job" in daemon.turnstile("exec", number, "true", who="mei", code=6).err


def test_exec_passes_standard_input_on_and_big_output_back(daemon: Daemon, tmp_path: Path) -> None:
    number = str(daemon.submit("sleep", "60")["id"])
    daemon.wait_for(number, "running")
    sent = os.urandom(3_000_000)
    more = {"TURNSTILE_URL": daemon.url, "TURNSTILE_TOKEN_FILE": str(daemon.token("mei"))}
    done = subprocess.run(
        [*daemon.command, "exec", number, "--", "cat"],
        input=sent,
        capture_output=True,
        env=environment(daemon.folder, more),
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == sent


def test_a_shell_in_a_running_job_has_a_terminal_and_ctrl_c_is_its_own(daemon: Daemon) -> None:
    number = str(daemon.submit("sleep", "120")["id"])
    daemon.wait_for(number, "running")
    with sitting(daemon, "exec", "-t", number, "--", "sh", "-c", "stty size; trap 'echo caught; exit 3' INT; "
                 "echo ready; while :; do sleep 0.05; done") as seat:  # fmt: skip
        seat.reads(b"ready")
        assert b"30 100" in seat.seen
        seat.type(b"\x03")
        seat.reads(b"caught")
        seat.ends_with(3)
    assert daemon.job(number)["state"] == "running"


def test_run_pty_is_a_shell_in_a_job_of_its_own_and_ends_with_its_status(daemon: Daemon) -> None:
    with sitting(daemon, "run", "--pty", "-g", "1", "-t", "5m", "-n", "shell", "-e", "PS1=ready> ", "--", "sh") as seat:
        seat.reads(b"Submitted")
        seat.reads(b"ready> ")
        seat.type(b"echo gpu=$CUDA_VISIBLE_DEVICES; tty\n")
        seat.reads(b"gpu=GPU-")
        seat.reads(b"/dev/pts/")
        seat.type(b"sleep 100\n")
        time.sleep(0.3)
        seat.type(b"\x03")
        seat.type(b"echo still $((40+2))\n")
        seat.reads(b"still 42")
        seat.type(b"exit 9\n")
        seat.ends_with(9)
    ended = daemon.wait_for(number_of(seat), "failed")
    assert (ended["exit_code"], ended["reason"]) == (9, "exit_nonzero")


def number_of(seat: Terminal) -> int:
    return int(seat.seen.split(b"Submitted ")[1].split()[0])


def test_a_terminal_comes_back_after_the_daemon_was_killed(daemon: Daemon) -> None:
    with sitting(daemon, "run", "--pty", "-g", "1", "-t", "5m", "-e", "PS1=ready> ", "--", "sh") as seat:
        seat.reads(b"ready> ")
        seat.type(b"word=remembered\n")
        seat.reads(b"word=remembered")
        daemon.kill()
        daemon.start()
        seat.reads(b"coming back")
        until(lambda: answered(seat), "the terminal is back")
        seat.type(b"exit 0\n")
        seat.ends_with(0)


def answered(seat: Terminal) -> bool:
    with contextlib.suppress(AssertionError):
        seat.type(b"echo is-$word\n")
        seat.reads(b"is-remembered", seconds=2.0)
        return True
    return False


def test_ctrl_c_before_a_shell_runs_cancels_its_job(daemon: Daemon) -> None:
    daemon.submit("sleep", "60", gpus_per_node=4, nodes=2)
    with sitting(daemon, "run", "--pty", "-g", "1", "-t", "5m") as seat:
        seat.reads(b"waits: turnstile why")
        seat.type(b"\x03")
        seat.reads(b"cancelled")
        seat.ends_with(130)
    assert daemon.job(number_of(seat))["state"] == "cancelled"


def test_top_shows_a_real_queue_fits_the_window_and_gives_the_terminal_back(daemon: Daemon) -> None:
    daemon.submit("sleep", "60", name="first")
    with sitting(daemon, "top", "--every", "1h") as seat:  # what is shown again is shown for a key, or a new window
        seat.reads(b"first")
        seat.reads(b"q quits")
        assert b"of 8 free" in seat.seen
        number = str(daemon.submit("sleep", "60", name="second")["id"])
        daemon.wait_for(number, "running")
        seat.type(b" ")
        seat.reads(b"second")
        for place in range(12):
            daemon.submit("sleep", "60", name=f"more-{place}", hold=True)
        seat.type(b" ")
        seat.reads(b"more-11")
        assert b" more: turnstile queue" not in seat.seen
        seat.resize(10, 60)
        seat.reads(b" more: turnstile queue")
        seat.type(b"\x03")
        seat.ends_with(130)
        assert termios.tcgetattr(seat.inner) == seat.before
        assert seat.seen.rindex(b"\x1b[?1049l") > seat.seen.rindex(b"second"), "the screen is left"
        assert b"\x1b[?25h" in seat.seen[seat.seen.rindex(b"second") :], "the cursor is shown"


def test_ctrl_c_leaves_a_real_job_running_and_a_second_one_cancels_it_when_asked(daemon: Daemon) -> None:
    words = ("run", "-g", "1", "-t", "5m", "--", "sh", "-c", "echo begun; sleep 100")
    with sitting(daemon, *words) as seat:
        seat.reads(b"begun")
        seat.type(b"\x03")
        seat.reads(b"goes on")
        seat.ends_with(130)
    assert daemon.job(number_of(seat))["state"] == "running"
    with sitting(daemon, *words) as seat:
        seat.reads(b"begun")
        seat.type(b"\x03")
        seat.reads(b"Ctrl-C again")
        seat.type(b"\x03")
        seat.reads(b"[y/N]")
        seat.type(b"y\n")
        seat.ends_with(130)
    daemon.wait_for(number_of(seat), "cancelled")


def test_a_jobs_port_is_reached_from_here_and_nobody_elses_is(daemon: Daemon) -> None:
    number = str(daemon.submit(sys.executable, "-c", SERVER, name="web")["id"])

    def printed() -> str:
        return daemon.turnstile("logs", number, who="mei").out.strip()

    port = until(printed, "the server listens")
    more = {"TURNSTILE_URL": daemon.url, "TURNSTILE_TOKEN_FILE": str(daemon.token("mei"))}
    with subprocess.Popen(
        [*daemon.command, "port-forward", "web", f"0:{port}", "-o", "jsonl"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(daemon.folder, more),
        cwd=daemon.folder,
    ) as forward:
        assert forward.stdout is not None
        local = json.loads(forward.stdout.readline())["local_port"]
        for _ in range(3):
            connection = http.client.HTTPConnection("127.0.0.1", local, timeout=30)
            connection.request("GET", "/")
            answer = connection.getresponse()
            assert answer.status == 200
            assert b"Directory listing" in answer.read()
            connection.close()
        forward.send_signal(signal.SIGINT)
        assert forward.wait(30) == 130


def test_ports_that_cannot_be_are_refused_in_words(daemon: Daemon) -> None:
    number = str(daemon.submit("sleep", "60")["id"])
    daemon.wait_for(number, "running")
    assert "names no ports" in daemon.turnstile("port-forward", number, "http", who="mei", code=2).err
    assert "cannot be had" in daemon.turnstile("port-forward", number, f"{daemon.port}:80", who="mei", code=2).err
    assert daemon.turnstile("port-forward", number, "0:80", code=5).err  # an operator's token
    assert "no job 99" in daemon.turnstile("port-forward", "99", "0:80", who="mei", code=4).err
