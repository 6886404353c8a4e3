"""A long answer is announced to a person at a terminal, and to nobody else."""

import os
import signal
import threading

import pytest

from cli.render import Screen
from cli.waiting import ended_by_term, waiting


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_shows_what_is_waited_for_and_then_nothing_of_it(
    is_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen({})
    screen.is_terminal_err = is_terminal
    told = threading.Event()
    monkeypatch.setattr("sys.stderr.flush", told.set)
    with waiting(screen, "proving the ledger", patience_seconds=0.001):
        assert not is_terminal or told.wait(60)
    said = capsys.readouterr()
    assert said.out == ""
    if not is_terminal:
        assert said.err == ""
        return
    first, *_, blank, end = said.err.split("\r")[1:]
    assert first.startswith("proving the ledger … ")
    assert blank == " " * len(blank)
    assert end == ""


def test_an_answer_that_comes_at_once_is_not_announced(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen({})
    screen.is_terminal_err = True
    with waiting(screen, "proving the ledger", patience_seconds=600):
        pass
    assert capsys.readouterr().err == ""


def terminated(left: list[str]) -> None:
    with ended_by_term():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 60)  # ends as soon as the signal is there
        finally:
            left.clear()


def test_being_terminated_ends_what_is_written_as_an_interrupt_does() -> None:
    before, left = signal.getsignal(signal.SIGTERM), ["half a file"]
    with pytest.raises(KeyboardInterrupt):
        terminated(left)
    assert not left
    assert signal.getsignal(signal.SIGTERM) is before
