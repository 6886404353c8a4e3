"""Coming into a running job of this machine: programs beside it, its own terminal, its ports and nobody else's."""

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from scheduler.core.model import EndReason
from scheduler.executor import CannotRun, Enterable, Entered, EntryRefused, Program, StartOrder
from scheduler.rundir import ENTRANCE
from tests.executor.rigs import DEADLINE_SECONDS, LocalRig, order, shell

SERVER = """
import socket, sys, time
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
connection.sendall(b"hello from " + connection.recv(100))
time.sleep(60)
"""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[LocalRig]:
    found = LocalRig(tmp_path / "jobs")
    yield found
    found.close()


def read(fd: int, until: bytes | None = None) -> bytes:
    """Reads to the end, or until a text has come."""
    found, deadline = b"", time.monotonic() + DEADLINE_SECONDS
    while until is None or until not in found:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"only {found!r} came"
        try:
            piece = os.read(fd, 65536)
        except OSError:  # a terminal whose last program has gone
            return found
        if not piece:
            return found
        found += piece
    return found


def said(entered: Entered) -> dict[str, object]:
    entered.control.settimeout(DEADLINE_SECONDS)
    data = entered.control.recv(4096)
    return dict(json.loads(data)) if data else {}


def leave(entered: Entered) -> None:
    entered.control.close()
    for fd in (entered.input_fd, entered.output_fd, *(() if entered.error_fd is None else (entered.error_fd,))):
        os.close(fd)


def running(rig: LocalRig, started: StartOrder) -> StartOrder:
    rig.executor.start(started)
    rig.until_started(started)
    return started


def test_a_program_in_a_job_has_its_environment_directory_and_devices(rig: LocalRig, tmp_path: Path) -> None:
    job = running(rig, order("sleep", "60", environment={"COLOUR": "blue"}, workdir=str(tmp_path)))
    assert isinstance(rig.executor, Enterable)
    program = Program(("sh", "-c", 'echo "$COLOUR $CUDA_VISIBLE_DEVICES $EXTRA $PWD"; cat; echo oops >&2; exit 7'),
                      {"EXTRA": "more"})  # fmt: skip
    entered = rig.executor.enter(job.allocation.id, 0, program)
    os.write(entered.input_fd, b"typed\n")
    os.set_blocking(entered.input_fd, True)
    os.close(entered.input_fd)
    assert read(entered.output_fd) == f"blue GPU-n0-0,GPU-n0-1 more {tmp_path}\ntyped\n".encode()
    assert entered.error_fd is not None
    assert read(entered.error_fd) == b"oops\n"
    assert said(entered) == {"exit_code": 7}
    entered.control.close()
    os.close(entered.output_fd)
    os.close(entered.error_fd)


def test_a_program_at_a_terminal_has_its_size_and_hears_ctrl_c(rig: LocalRig) -> None:
    job = running(rig, order("sleep", "60"))
    entered = rig.executor.enter(job.allocation.id, 0, Program(("sh", "-c", "stty size; exec cat"), {}, (33, 101)))
    assert entered.error_fd is None
    read(entered.output_fd, b"33 101")
    os.write(entered.input_fd, b"typed\n")
    read(entered.output_fd, b"typed\r\ntyped")
    os.write(entered.input_fd, b"\x03")
    assert said(entered) == {"exit_code": 130}
    leave(entered)


def test_a_signal_reaches_the_program_and_not_the_job(rig: LocalRig) -> None:
    job = running(rig, order("sleep", "60"))
    entered = rig.executor.enter(job.allocation.id, 0, Program(("sleep", "50")))
    entered.control.send(json.dumps({"do": "signal", "number": signal.SIGTERM}).encode())
    assert said(entered) == {"exit_code": 143}
    leave(entered)
    other = rig.executor.enter(job.allocation.id, 0, Program(("true",)))
    assert said(other) == {"exit_code": 0}
    leave(other)


def test_a_program_ends_with_the_connection_of_who_started_it(rig: LocalRig, tmp_path: Path) -> None:
    mark = tmp_path / "gone"
    job = running(rig, order("sleep", "60"))
    # A shell tells which child a signal ended, and would die of telling nobody before it comes to its trap.
    script = f"exec 2>/dev/null; trap 'echo hung up > {mark}; exit' HUP; echo ready; while :; do sleep 0.05; done"
    entered = rig.executor.enter(job.allocation.id, 0, Program(("sh", "-c", script)))
    read(entered.output_fd, b"ready")
    leave(entered)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not mark.exists():
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.02)


def test_a_program_ends_with_the_job_and_nothing_of_it_stays_on_the_devices(rig: LocalRig) -> None:
    job = running(rig, shell("read line < /dev/null; sleep 0.5"))
    entered = rig.executor.enter(job.allocation.id, 0, Program(("sh", "-c", "echo $$; trap '' HUP TERM; sleep 60")))
    pid = int(read(entered.output_fd, b"\n"))
    assert rig.until_ended(job).reason is None
    assert said(entered) == {"exit_code": 137}
    assert not Path(f"/proc/{pid}").exists()
    leave(entered)


@pytest.mark.parametrize(("argv", "code"), [(("no-such-program",), 127), (("/etc/passwd",), 126)])
def test_what_is_no_program_is_told_as_a_shell_does(rig: LocalRig, argv: tuple[str, ...], code: int) -> None:
    job = running(rig, order("sleep", "60"))
    with pytest.raises(CannotRun, match="cannot run") as refused:
        rig.executor.enter(job.allocation.id, 0, Program(argv))
    assert refused.value.exit_code == code


def test_a_job_that_is_over_or_older_than_entrances_refuses_in_words(rig: LocalRig) -> None:
    job = order("sleep", "60")
    with pytest.raises(EntryRefused, match="does not run"):
        rig.executor.enter(job.allocation.id, 0, Program(("true",)))
    running(rig, job)
    (rig.base / "runs" / job.allocation.id / "0" / ENTRANCE).unlink()
    with pytest.raises(EntryRefused, match="older daemon"):
        rig.executor.enter(job.allocation.id, 0, Program(("true",)))


def test_what_is_not_understood_at_the_entrance_harms_nobody(rig: LocalRig) -> None:
    job = running(rig, order("sleep", "60"))
    path = rig.base / "runs" / job.allocation.id / "0"
    for packet in (b"nonsense", b"[]", b'{"do": "fly"}', b'{"do": "run", "argv": 3, "environment": {}}'):
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as caller:
            at = os.open(path, os.O_PATH)
            caller.connect(f"/proc/self/fd/{at}/{ENTRANCE}")
            os.close(at)
            caller.settimeout(DEADLINE_SECONDS)
            caller.send(packet)
            assert b"not understood" in caller.recv(4096)
    entered = rig.executor.enter(job.allocation.id, 0, Program(("true",)))
    assert said(entered) == {"exit_code": 0}
    leave(entered)


def test_a_job_with_a_terminal_waits_for_its_viewer_and_ends_with_its_shell(rig: LocalRig) -> None:
    job = running(rig, order("sh", "-c", "echo prompt; read word; echo got $word; exit 5", is_terminal=True))
    entered = rig.executor.attach(job.allocation.id, 0, (24, 80))
    with pytest.raises(EntryRefused, match="already"):
        rig.executor.attach(job.allocation.id, 0, (24, 80))
    read(entered.output_fd, b"prompt")
    leave(entered)
    # A daemon that was restarted sits down again: nothing was lost in between.
    again = rig.restart()
    again.recover([job])
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            entered = again.attach(job.allocation.id, 0, (24, 80))
            break
        except EntryRefused:
            assert time.monotonic() < deadline, "the seat stays taken"
            time.sleep(0.02)
    os.write(entered.input_fd, b"word\n")
    read(entered.output_fd, b"got word")
    assert rig.until_ended(job).exit_code == 5
    leave(entered)
    assert b"nothing is kept" in rig.output(job)


def test_only_a_job_with_a_terminal_can_be_attached_to(rig: LocalRig) -> None:
    job = running(rig, order("sleep", "60"))
    with pytest.raises(EntryRefused, match="run --pty"):
        rig.executor.attach(job.allocation.id, 0, (24, 80))


def test_a_shell_that_ignores_sigterm_ends_when_its_job_is_stopped(rig: LocalRig) -> None:
    job = running(rig, order("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done", is_terminal=True))
    entered = rig.executor.attach(job.allocation.id, 0, (24, 80))
    read(entered.output_fd, b"ready")
    rig.executor.stop(job.allocation.id, DEADLINE_SECONDS * 10, EndReason.CANCELLED)
    assert rig.until_ended(job).reason is EndReason.CANCELLED
    leave(entered)


def test_a_port_that_the_job_listens_on_is_reached(rig: LocalRig) -> None:
    job = running(rig, order(sys.executable, "-c", SERVER))
    port = int(rig.until_printed(job, b"\n"))
    with closing(rig.executor.reach(job.allocation.id, 0, port)) as connection:
        connection.sendall(b"me")
        assert connection.recv(100) == b"hello from me"


def test_a_port_of_anybody_else_is_as_if_nobody_listened(rig: LocalRig) -> None:
    job, other = running(rig, order("sleep", "60")), running(rig, order(sys.executable, "-c", SERVER))
    theirs = int(rig.until_printed(other, b"\n"))
    with closing(socket.create_server(("127.0.0.1", 0))) as database:
        for port in (theirs, database.getsockname()[1], 1):
            with pytest.raises(EntryRefused, match="no process of the job listens"):
                rig.executor.reach(job.allocation.id, 0, port)
        database.settimeout(0.05)
        with pytest.raises(TimeoutError):
            database.accept()  # nobody has even knocked


def test_a_port_shared_with_somebody_else_is_refused(rig: LocalRig) -> None:
    with closing(socket.socket()) as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind(("127.0.0.1", 0))
        ours.listen()
        port = ours.getsockname()[1]
        script = (
            "import socket, time; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1);"
            f"s.bind(('127.0.0.1', {port})); s.listen(); print('ready', flush=True); time.sleep(60)"
        )
        job = running(rig, order(sys.executable, "-c", script))
        rig.until_printed(job, b"ready")
        with pytest.raises(EntryRefused, match="another's too"):
            rig.executor.reach(job.allocation.id, 0, port)
