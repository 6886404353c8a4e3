"""What a daemon checks of itself when somebody asks, from its lease to the notices that could not be delivered.

Reads only. Each finding says what was seen and, where it is not well, what to do.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from cli.daemon.attendance import Attendance
from metering.ledger_watch import UNIT_MS_PER_GPU_SECOND, LedgerWatch
from metering.settling import PeriodKeeper
from scheduler.checkup import Check, Checkup
from scheduler.core.model import DeviceHealth, NodeAvailability
from scheduler.core.plan import Plan
from scheduler.core.state import ClusterState
from scheduler.loop import Controller
from scheduler.refusal import Refused
from scheduler.store.database import StoreError
from scheduler.store.read import build_state, load_state_parts
from scheduler.store.tables import DELIVERY
from scheduler.telemetry import Telemetry

LEAST_FREE_BYTES = 1 << 30
"""A gigabyte: some hours of a busy centre's database, in which somebody can act."""
LEAST_FREE_PERCENT = 5
MOST_STEP_MS = 5_000
"""How far the ledger's clock may be ahead of the machine's: more, and the machine's was set back."""
MOST_LAG_MS = 300_000
"""As the alert on the ledger's lag."""
TRIES = 5
"""Memory and database are compared between two commits; a busy centre may have none so far apart."""
ANSWER_SECONDS = 20.0
MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Patient:
    """The parts of a daemon that are looked at."""

    controller: Controller
    data_dir: Path
    attendance: Attendance
    ledger: LedgerWatch
    periods: PeriodKeeper
    telemetry: Telemetry


def checkups(patient: Patient) -> tuple[Checkup, ...]:
    """Returns all checks, in the order in which an operator would look."""
    looks: Sequence[Callable[[Patient], Sequence[Check]]] = (
        _lease, _database, _agreement, _planner, _disk, _clock, _agents, _gpus, _ledger, _periods, _deliveries,
    )  # fmt: skip
    return tuple(partial(_looked, look, patient) for look in looks)


def _looked(look: Callable[[Patient], Sequence[Check]], patient: Patient) -> Sequence[Check]:
    """Runs one check; what keeps it from being done is its finding."""
    name = look.__name__.removeprefix("_")
    try:
        return look(patient)
    except (StoreError, Refused) as problem:
        return [Check(name, None, f"not checked: {problem}")]
    except FutureTimeout:
        words = f"not checked: the planner did not answer within {ANSWER_SECONDS:g} s"
        return [Check(name, None, words, "see the check `planner`")]


def _lease(patient: Patient) -> Sequence[Check]:
    controller = patient.controller
    if controller.is_leading:
        return [Check("lease", is_ok=True, detail="this daemon leads")]
    url = controller.leader_url
    if url:
        return [
            Check("lease", is_ok=True, detail=f"{url} leads, and this daemon follows", advice=f"doctor --url {url}")
        ]
    words = "; ".join(controller.health())
    advice = "the database first: a daemon that can write takes the lease within seconds"
    return [Check("lease", is_ok=False, detail=f"no daemon leads: {words}", advice=advice)]


def _database(patient: Patient) -> Sequence[Check]:
    began = time.perf_counter()
    try:
        with patient.controller.database.read() as connection:
            connection.execute(sa.text("SELECT 1")).all()
    except StoreError as problem:
        return [
            Check("database", is_ok=False, detail=str(problem), advice="mend the database; nothing is lost meanwhile")
        ]
    took_ms = (time.perf_counter() - began) * 1000
    return [
        Check("database", is_ok=True, detail=f"{patient.controller.database.redacted_url} answers in {took_ms:.0f} ms")
    ]


def _agreement(patient: Patient) -> Sequence[Check]:
    """Compares the planner's memory with a state built anew from the database: they must be the same."""
    controller = patient.controller
    half_life_ms = controller.policy.debt_half_life_ms

    def facts(state: ClusterState, _: Plan) -> dict[str, object]:
        return state.facts()

    if not controller.is_leading:
        return [Check("agreement", is_ok=None, detail="not checked: a follower holds nothing in memory")]
    for _ in range(TRIES):
        seen = controller.version
        with controller.database.read() as connection:
            parts = load_state_parts(connection, half_life_ms)
        in_memory = controller.ask(facts).result(ANSWER_SECONDS)
        if controller.version != seen:
            continue
        in_database = build_state(parts, half_life_ms).facts()
        wrong = sorted(name for name, value in in_database.items() if in_memory.get(name) != value)
        if not wrong:
            words = f"memory and database agree: {len(parts.jobs)} live jobs, {len(parts.allocations)} allocations"
            return [Check("agreement", is_ok=True, detail=words)]
        words = f"memory and database differ in {', '.join(wrong)}"
        return [Check("agreement", is_ok=False, detail=words, advice="restart the daemon, and report it with its log")]
    return [Check("agreement", is_ok=None, detail=f"not compared: something changed at each of {TRIES} looks")]


def _planner(patient: Patient) -> Sequence[Check]:
    problems = patient.controller.health()
    if not problems:
        return [Check("planner", is_ok=True, detail="plans, and the executor answers")]
    advice = "the words say which part; its log has more. Running jobs go on"
    return [Check("planner", is_ok=False, detail="; ".join(problems), advice=advice)]


def _disk(patient: Patient) -> Sequence[Check]:
    usage = shutil.disk_usage(patient.data_dir)
    percent = 100 * usage.free // max(1, usage.total)
    words = f"{usage.free / 2**30:.1f} GiB ({percent} %) free where the data directory is"
    if usage.free >= LEAST_FREE_BYTES and percent >= LEAST_FREE_PERCENT:
        return [Check("disk", is_ok=True, detail=words)]
    advice = "make room: old job logs (executor.log_retention_days), the decision tape (decisions.tape_hours)"
    return [Check("disk", is_ok=False, detail=words, advice=advice)]


def _clock(patient: Patient) -> Sequence[Check]:
    ahead_ms = patient.controller.clock.now_ms() - time.time_ns() // 1_000_000
    if ahead_ms <= MOST_STEP_MS:
        return [Check("clock", is_ok=True, detail="the ledger's time is the machine's")]
    words = f"the machine's clock is {ahead_ms / 1000:.0f} s behind the ledger's, which never goes back"
    return [Check("clock", is_ok=False, detail=words, advice="set the machine's clock by NTP; the ledger waits for it")]


def _agents(patient: Patient) -> Sequence[Check]:
    states = patient.attendance.watch.states()
    silent = [each.node for each in states if each.silent_ms is not None]
    skewed = [each.node for each in states if each.is_skewed]
    found = [Check("agents", is_ok=True, detail=f"{len(states)} agents, all heard")]
    if silent:
        advice = "look at the agent there; `turnstile admin agent forget NODE` if it is gone for good"
        found = [Check("agents", is_ok=False, detail=f"{len(silent)} silent: {_named(silent)}", advice=advice)]
    if skewed:
        words = f"{len(skewed)} nodes with another time: {_named(skewed)}"
        found.append(Check("agents", is_ok=False, detail=words, advice="set their clocks by NTP"))
    return found


def _gpus(patient: Patient) -> Sequence[Check]:
    def ill(state: ClusterState, _: Plan) -> tuple[int, list[str], list[str]]:
        rooms = state.capacity.rooms.values()
        devices = [device for room in rooms for device in room.devices]
        bad = sorted(f"{each.node}: {each.reason}" for each in devices if each.health is not DeviceHealth.OK)
        nodes = [each.node for each in rooms if each.node.availability is not NodeAvailability.UP]
        return len(devices), bad, sorted(f"{each.name} {each.availability.value}: {each.reason}" for each in nodes)

    if not patient.controller.is_leading:
        return []
    count, bad, nodes = patient.controller.ask(ill).result(ANSWER_SECONDS)
    found = []
    if bad:
        advice = "`turnstile admin node history NODE`, and the runbook of its XID"
        found.append(Check("gpus", is_ok=False, detail=f"{len(bad)} of {count} ill: {_named(bad)}", advice=advice))
    if nodes:
        words = f"{len(nodes)} out of use: {_named(nodes)}"
        found.append(
            Check("nodes", is_ok=False, detail=words, advice="`turnstile admin node resume NODE` once it is well")
        )
    return found or [Check("gpus", is_ok=True, detail=f"all {count} GPUs are well")]


def _ledger(patient: Patient) -> Sequence[Check]:
    if not patient.controller.is_leading:
        return []
    now_ms, posted_ms = patient.controller.clock.now_ms(), patient.telemetry.posted_ms
    lag_ms = None if posted_ms is None else now_ms - posted_ms
    wrong = patient.ledger.imbalance_unit_ms
    if lag_ms is not None and lag_ms > MOST_LAG_MS:
        words = f"nothing was written for {lag_ms // 1000} s"
        return [Check("ledger", is_ok=False, detail=words, advice="the database's disk and log: runbook LedgerLag")]
    if wrong:
        words = f"{wrong / UNIT_MS_PER_GPU_SECOND:.0f} GPU-seconds are counted twice or not at all"
        return [Check("ledger", is_ok=False, detail=words, advice="send no invoice; `turnstile admin ledger verify`")]
    if wrong is None:
        return [Check("ledger", is_ok=None, detail="not looked at yet; it is once a window (metering.window_seconds)")]
    return [Check("ledger", is_ok=True, detail="written a moment ago, and every GPU's time adds up")]


def _periods(patient: Patient) -> Sequence[Check]:
    standing = patient.periods.standing
    if standing is None:
        return []
    if standing.broken:
        words = f"{standing.broken} closed periods lack rows that they were sealed with"
        return [Check("billing", is_ok=False, detail=words, advice="`turnstile admin ledger verify`, and report it")]
    if standing.overdue or standing.uncorrected:
        words = f"{standing.overdue} periods to close, {standing.uncorrected} to correct"
        return [Check("billing", is_ok=False, detail=words, advice="`turnstile admin ledger close PERIOD`")]
    return [Check("billing", is_ok=True, detail="no period waits to be closed or corrected")]


def _deliveries(patient: Patient) -> Sequence[Check]:
    row = DELIVERY.c
    failing = sa.select(sa.func.count()).where(row.done_ms.is_(None), row.error.is_not(None))
    with patient.controller.database.read() as connection:
        count = connection.execute(failing).scalar_one()
    if not count:
        return [Check("notices", is_ok=True, detail="none failed to be delivered")]
    advice = "people's own webhooks mostly; all of them: the mail server (notify.smtp_host)"
    return [
        Check("notices", is_ok=False, detail=f"{count} could not be delivered yet and are tried again", advice=advice)
    ]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
