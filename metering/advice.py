"""What to do otherwise next time, told only where the ledger and the windows prove it: a pure function of a job's use.

Each piece of advice has a code, a closed list, and a sentence with its numbers. None is a guess: what was not measured
gives no advice.
"""

from dataclasses import dataclass

from metering.core.quantity import GPU_HOURS_DECIMALS, MS_PER_HOUR, divide, fixed
from metering.efficiency import JobUse
from scheduler.core.model import EndReason, JobState

LEAST_WAIT_MS = 60_000
"""A job that waited less would not have started earlier by anything that it can do."""
LEAST_TAIL_MS = 600_000
"""Ten minutes: shorter silence at the end is the writing of a last checkpoint."""
_STEPS_MS = ((3_600_000, 300_000), (21_600_000, 1_800_000), (86_400_000, 3_600_000))
"""Limits up to an hour are told in steps of 5 min, up to 6 h of 30 min, up to a day of 1 h, beyond of 6 h."""
_LONGEST_STEP_MS = 21_600_000


@dataclass(frozen=True, slots=True)
class JobEnd:
    """What advice needs to know of the job itself."""

    state: JobState
    reason: EndReason | None
    time_limit_ms: int
    waited_ms: int | None
    nodes: int


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to do otherwise: `shorter_time`, `longer_time`, `fewer_gpus`, `all_idle` or `idle_end`."""

    code: str
    message: str


def advise(end: JobEnd, use: JobUse) -> tuple[Advice, ...]:
    """Returns what can be advised, in the order of its worth; nothing for a job that has not ended."""
    if end.state not in {JobState.COMPLETED, JobState.FAILED, JobState.TIMEOUT, JobState.CANCELLED}:
        return ()
    found = [_gpus(use), _tail(use), _time(end, use)]
    return tuple(each for each in found if each is not None)


def _gpus(use: JobUse) -> Advice | None:
    quiet = sum(each.is_never_busy for each in use.last)
    if not quiet:
        return None
    hours = _hours(quiet * use.last_ran_ms)
    if quiet == len(use.last):
        return Advice("all_idle", f"no GPU was ever busy: {hours} GPU-h of the last start were for nothing")
    return Advice(
        "fewer_gpus",
        f"{quiet} of {len(use.last)} GPUs were never busy ({hours} GPU-h); ask for {len(use.last) - quiet} in all",
    )


def _tail(use: JobUse) -> Advice | None:
    tail_ms = use.last_idle_tail_ms
    if tail_ms < LEAST_TAIL_MS or all(each.is_never_busy for each in use.last):
        return None
    hours = _hours(tail_ms * len(use.last))
    return Advice("idle_end", f"no GPU was busy in its last {duration(tail_ms)} ({hours} GPU-h)")


def _time(end: JobEnd, use: JobUse) -> Advice | None:
    if end.state is JobState.TIMEOUT:
        limit = duration(end.time_limit_ms)
        return Advice(
            "longer_time", f"it was stopped at its limit of {limit}; a longer -t, or checkpoints, let it finish"
        )
    enough_ms = limit_for(use.last_ran_ms)
    has_waited = end.waited_ms is not None and end.waited_ms >= LEAST_WAIT_MS
    if end.state is not JobState.COMPLETED or not has_waited or enough_ms * 2 > end.time_limit_ms:
        return None
    return Advice(
        "shorter_time",
        f"-t {duration(enough_ms)} would have been enough ({duration(use.last_ran_ms)} of {duration(end.time_limit_ms)}"
        " used); shorter jobs fit into earlier gaps",
    )


def limit_for(ran_ms: int) -> int:
    """Returns the limit that a run of this length needs: a quarter more, in a number that people type."""
    wanted = ran_ms + ran_ms // 4
    step = next((step for up_to, step in _STEPS_MS if wanted <= up_to), _LONGEST_STEP_MS)
    return max(-(-wanted // step) * step, step)


def duration(length_ms: int) -> str:
    """Returns a time as `-t` takes it, to the minute: `3h40m`, `12h`, `2d`; `45s` below one."""
    seconds = length_ms // 1000
    if seconds < 60:
        return f"{seconds}s"
    minutes = seconds // 60
    days, rest = divmod(minutes, 1440)
    parts = ((days, "d"), (rest // 60, "h"), (rest % 60, "m"))
    return "".join(f"{amount}{unit}" for amount, unit in parts if amount)


def _hours(gpu_ms: int) -> str:
    # What was for nothing, however little, is never told as 0.
    places = range(1, GPU_HOURS_DECIMALS + 1)
    decimals = next((each for each in places if divide(gpu_ms * 10**each, MS_PER_HOUR)), 1)
    return fixed(divide(gpu_ms * 10**decimals, MS_PER_HOUR), decimals)
