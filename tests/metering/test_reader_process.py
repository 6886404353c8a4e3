"""The watchdog, with real processes that really hang and die. Deadlines are fractions of a second; nothing sleeps."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metering.gpus import GpuReader, ProblemCode, ThrottleReason
from metering.reader_process import ProcessReader, ReaderLimits
from scheduler.clock import ManualClock

FACTORY = "tests.metering.child_readers:scripted"
QUICK = ReaderLimits(call_seconds=1.0, start_seconds=30.0, first_pause_seconds=0.0, longest_pause_seconds=0.0)
PATIENT = ReaderLimits(call_seconds=30.0, first_pause_seconds=0.0, longest_pause_seconds=0.0)
MakeReader = Callable[..., ProcessReader]


@pytest.fixture
def make_reader(tmp_path: Path) -> Iterator[MakeReader]:
    readers: list[ProcessReader] = []

    def make(limits: ReaderLimits = PATIENT, factory: str = FACTORY, clock: ManualClock | None = None) -> ProcessReader:
        arguments = {"folder": str(tmp_path)} if factory == FACTORY else {}
        readers.append(ProcessReader(clock or ManualClock(), factory, arguments, limits=limits))
        return readers[-1]

    yield make
    for reader in readers:
        reader.close()


def started(reader: ProcessReader) -> ProcessReader:
    """Returns the reader once its child is up; each try is bounded by the call's deadline."""
    for _ in range(100):
        if reader.identities()[0]:
            return reader
    raise AssertionError("the child did not start")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_answers_come_through_the_process_unchanged_but_for_the_time(make_reader: MakeReader) -> None:
    clock = ManualClock(5_000_000)
    reader: GpuReader = make_reader(clock=clock)
    (identity,), _ = reader.identities()
    (sample,), (problem,) = reader.sample()
    assert (identity.uuid, identity.gpu_class, identity.memory_bytes) == ("GPU-1", "H200", 5)
    assert sample.throttle_reasons == (ThrottleReason.POWER_CAP,)
    assert (problem.code, problem.uuid, problem.index) == (ProblemCode.GPU_LOST, "GPU-2", 1)
    assert [(event.uuid, event.xid) for event in reader.xids(3)] == [("GPU-1", 79), (None, 31)]
    assert sample.at_ms == clock.now_ms(), "stamped with the caller's clock"
    assert reader.driver_version == "1.2.3"


def test_a_call_that_hangs_returns_at_its_deadline_and_its_process_is_ended(
    make_reader: MakeReader, tmp_path: Path
) -> None:
    reader = started(make_reader(QUICK))
    pid = reader.process_id
    assert pid is not None
    (tmp_path / "hang-sample").touch()
    before = time.monotonic()
    samples, (problem,) = reader.sample()
    assert time.monotonic() - before < QUICK.call_seconds + 2
    assert (samples, problem.code, problem.is_machine_wide) == ([], ProblemCode.READER_HUNG, True)
    assert "did not answer `sample` within 1 s" in problem.message
    assert not is_alive(pid)


def test_after_a_hang_a_new_process_reads_again(make_reader: MakeReader, tmp_path: Path) -> None:
    reader = started(make_reader(QUICK))
    first = reader.process_id
    (tmp_path / "hang-sample").touch()
    assert reader.sample()[0] == []
    (tmp_path / "hang-sample").unlink()
    started(reader)
    assert reader.process_id != first
    assert [sample.uuid for sample in reader.sample()[0]] == ["GPU-1"]


def test_a_call_of_the_driver_that_hangs_is_ended_too(make_reader: MakeReader) -> None:
    reader = started(make_reader(QUICK, "tests.metering.child_readers:hanging_in_the_driver"))
    samples, (problem,) = reader.sample()
    assert (samples, problem.code) == ([], ProblemCode.READER_HUNG)


def test_a_hang_in_xids_gives_none_and_the_deadline_includes_the_wait(make_reader: MakeReader, tmp_path: Path) -> None:
    reader = started(make_reader(QUICK))
    (tmp_path / "hang-xids").touch()
    before = time.monotonic()
    assert list(reader.xids(200)) == []
    assert 1.2 <= time.monotonic() - before < 4


def test_between_two_tries_calls_return_at_once_with_the_last_problem(make_reader: MakeReader, tmp_path: Path) -> None:
    (tmp_path / "unavailable").touch()
    reader = make_reader(ReaderLimits(call_seconds=30, first_pause_seconds=1000, longest_pause_seconds=1000))
    assert reader.sample()[1][0].message == "cannot start NVML: no library"
    before = time.monotonic()
    _, (problem,) = reader.sample()
    assert time.monotonic() - before < 0.5
    assert problem.code is ProblemCode.LIBRARY_NOT_FOUND
    assert problem.message.startswith("cannot start NVML: no library (tried again in ")
    assert len((tmp_path / "starts").read_text().split()) == 1


def test_the_pause_doubles_up_to_its_limit_and_starts_over_after_a_success(
    make_reader: MakeReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skipped = 0.0  # instead of waiting, time is moved
    really = time.monotonic
    monkeypatch.setattr("metering.reader_process.time.monotonic", lambda: really() + skipped)
    (tmp_path / "unavailable").touch()
    reader = make_reader(ReaderLimits(call_seconds=30, first_pause_seconds=100, longest_pause_seconds=400))
    pauses = []
    for _ in range(4):
        reader.sample()
        pauses.append(round(reader._next_start - really() - skipped, -2))
        skipped += 500
    assert pauses == [100, 200, 400, 400]
    (tmp_path / "unavailable").unlink()
    started(reader)
    (tmp_path / "die-sample").touch()
    reader.sample()
    assert round(reader._next_start - really() - skipped, -2) == 100


def test_a_process_that_dies_is_said_with_its_status_and_replaced(make_reader: MakeReader, tmp_path: Path) -> None:
    reader = started(make_reader())
    (tmp_path / "die-sample").touch()
    samples, (problem,) = reader.sample()
    assert (samples, problem.code) == ([], ProblemCode.READER_DIED)
    assert "ended during `sample` with status 7" in problem.message
    (tmp_path / "die-sample").unlink()
    assert [sample.uuid for sample in reader.sample()[0]] == ["GPU-1"]


def test_a_process_killed_between_two_calls_is_noticed(make_reader: MakeReader) -> None:
    reader = started(make_reader())
    assert reader.process_id is not None
    os.kill(reader.process_id, signal.SIGKILL)
    os.waitid(os.P_PID, reader.process_id, os.WEXITED | os.WNOWAIT)
    assert reader.sample()[1][0].code is ProblemCode.READER_DIED
    assert started(reader).sample()[0]


def test_an_answer_that_is_none_ends_the_process_and_not_the_caller(make_reader: MakeReader, tmp_path: Path) -> None:
    reader = started(make_reader())
    (tmp_path / "babble-sample").touch()
    samples, (problem,) = reader.sample()
    assert (samples, problem.code) == ([], ProblemCode.READER_DIED)


def test_a_driver_that_starts_slowly_is_waited_for_and_not_killed(make_reader: MakeReader, tmp_path: Path) -> None:
    (tmp_path / "hang-start").touch()
    reader = make_reader(QUICK)
    problems = [reader.sample()[1][0] for _ in range(2)]
    assert {problem.code for problem in problems} == {ProblemCode.READER_STARTING}
    assert len({reader.process_id}) == 1
    assert reader.process_id is not None


def test_a_driver_that_never_starts_is_given_up(make_reader: MakeReader, tmp_path: Path) -> None:
    (tmp_path / "hang-start").touch()
    reader = make_reader(ReaderLimits(call_seconds=30, start_seconds=0.3, first_pause_seconds=1000))
    _, (problem,) = reader.sample()
    assert problem.code is ProblemCode.READER_HUNG
    assert "did not answer `start` within 0.3 s" in problem.message
    assert reader.process_id is None


def test_an_unforeseen_error_of_the_reader_is_a_sentence_and_no_trace(
    make_reader: MakeReader, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken").touch()
    _, (problem,) = make_reader().sample()
    assert problem.message == f"the reader {FACTORY} did not start: RuntimeError: an error that nobody foresaw"
    assert "Traceback" not in capfd.readouterr().err


def test_a_replaced_driver_gets_a_new_process(make_reader: MakeReader, tmp_path: Path) -> None:
    reader = started(make_reader())
    first = reader.process_id
    (tmp_path / "driver-gone").touch()
    assert reader.sample()[1][0].code is ProblemCode.DRIVER_NOT_LOADED
    (tmp_path / "driver-gone").unlink()
    assert [sample.uuid for sample in reader.sample()[0]] == ["GPU-1"]
    assert reader.process_id != first


def test_processes_that_the_kernel_does_not_let_go_are_not_piled_up(make_reader: MakeReader) -> None:
    # A process that ignores SIGKILL cannot be made here; one that was never killed stands for it.
    reader = make_reader(ReaderLimits(stuck_processes=1))
    stuck = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        reader._stuck.append(stuck)
        _, (problem,) = reader.sample()
        assert (problem.code, reader.process_id) == (ProblemCode.READER_HUNG, None)
        assert f"processes {stuck.pid} hang in the driver" in problem.message
    finally:
        stuck.kill()
        stuck.communicate()
    assert reader.sample()[0], "once it is gone, a new one is started"


def test_a_second_thread_does_not_wait_longer_than_its_own_deadline(make_reader: MakeReader, tmp_path: Path) -> None:
    reader = started(make_reader(QUICK))
    (tmp_path / "hang-sample").touch()
    threads = [threading.Thread(target=reader.sample) for _ in range(4)]
    before = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert time.monotonic() - before < 2 * QUICK.call_seconds + 2


def test_a_key_pressed_on_the_daemons_terminal_does_not_reach_the_child(make_reader: MakeReader) -> None:
    pid = started(make_reader()).process_id
    assert pid is not None
    assert os.getsid(pid) == pid != os.getsid(0)


def test_a_closed_reader_has_no_process_and_says_so(make_reader: MakeReader) -> None:
    reader = started(make_reader())
    pid = reader.process_id
    assert pid is not None
    reader.close()
    assert not is_alive(pid)
    assert reader.sample()[1][0].message == "the reader was closed"
    assert reader.process_id is None


def test_a_hanging_child_ends_with_its_parent_even_when_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "hang-sample").touch()
    command = [sys.executable, "-m", "tests.metering.child_readers", str(tmp_path)]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert daemon.stdout is not None
    try:
        child = int(daemon.stdout.readline())
        assert is_alive(child)
        gone = os.pidfd_open(child)
    finally:
        daemon.kill()
        daemon.communicate()
    poll = select.poll()
    poll.register(gone, select.POLLIN)
    assert poll.poll(20_000), "the child is still there 20 s after its parent was killed"
    os.close(gone)
