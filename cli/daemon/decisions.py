"""What was decided is forgotten after a time: the log and the tape each have their own."""

from cli.daemon.settings import Decisions
from scheduler.loop import Controller
from scheduler.store.decisions import MOST_FORGOTTEN, ForgetDecisions

FORGET_SECONDS = 600
"""Between two times of forgetting."""
MOST_TURNS = 200
"""Transactions at one time: a million rows in ten minutes, which is more than a centre decides."""
_HOUR_MS = 3_600_000
_ANSWER_SECONDS = 30.0


def forget_decisions(controller: Controller, kept: Decisions) -> None:
    """Deletes what is older than the settings say, in small transactions. Raises Refused, StoreError."""
    if not controller.is_leading:
        return
    now_ms = controller.clock.now_ms()
    log_before_ms = now_ms - round(kept.log_days * 24 * _HOUR_MS)
    tape_before_ms = now_ms - round(kept.tape_hours * _HOUR_MS)
    for _ in range(MOST_TURNS):
        command = ForgetDecisions(log_before_ms, tape_before_ms)
        if controller.carry_out(command).result(timeout=_ANSWER_SECONDS) < MOST_FORGOTTEN:
            return
