"""A small centre on a real store: commands go through a Writer, events into the real state and into a naive model."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeVar

import sqlalchemy as sa

from scheduler.clock import ManualClock
from scheduler.core import events
from scheduler.core.lifecycle import ENDS
from scheduler.core.model import (
    GPU_UNITS,
    Account,
    AccountId,
    Allocation,
    AllocationId,
    Booking,
    Device,
    DeviceId,
    EndReason,
    GpuClass,
    Grant,
    Job,
    JobId,
    JobState,
    Node,
    NodeName,
    Phase,
    PoolName,
    Shape,
    UserName,
)
from scheduler.core.occupancy import GENESIS_HASH, Cursor, Evidence, Interval, interval_hash
from scheduler.core.plan import Plan, Start, Stop
from scheduler.core.policy import Policy
from scheduler.core.state import ClusterState
from scheduler.executor import Ended, LaunchSpec, NodeInventory, Observation, Started
from scheduler.refusal import Refused
from scheduler.store import read
from scheduler.store.accounts import SaveAccount
from scheduler.store.allocations import Applied, ApplyPlan
from scheduler.store.database import Database
from scheduler.store.history_tables import JOB_EVENT
from scheduler.store.inventory import SyncInventory
from scheduler.store.jobs import JobDraft, SubmitJobs
from scheduler.store.lease import LeaderLease
from scheduler.store.ledger_tables import DEVICE_END
from scheduler.store.observations import Recorded, RecordObservations
from scheduler.store.tables import DEVICE, JOB
from scheduler.store.write import Batch, Command, Done, Writer

T = TypeVar("T")
H200 = GpuClass("H200")
ACME = AccountId("acme")
PROJECT = AccountId("acme/vision")
ANA = UserName("ana")


def node(name: str = "n0", *, gpus: int = 4, **changes: Any) -> NodeInventory:
    """A node with GPUs `name/0`, `name/1`, …; plenty of CPU and memory."""
    machine = Node(NodeName(name), H200, PoolName("main"), 64_000, 1 << 40)
    devices = tuple(Device(DeviceId(f"{name}/{number}"), machine.name, H200) for number in range(gpus))
    return NodeInventory(replace(machine, **changes), devices)


def draft(gpus: int = 1, *, nodes: int = 1, units: int | None = None, **changes: Any) -> JobDraft:
    """A job of whole GPUs, or of a share when `units` is given."""
    shape = Shape((H200,), nodes, gpus * GPU_UNITS if units is None else units)
    plain = JobDraft(PROJECT, ANA, "train", shape, 3_600_000, LaunchSpec(("true",), "train"))
    return replace(plain, **changes)


def start(
    job: JobId, *devices: str, units: int = GPU_UNITS, cpu: int = 10, memory: int = 1024, **planned: Any
) -> Start:
    """A start on these devices (`n0/0`, …), grouped by node in the order named; planned for what `draft` makes."""
    by_node: dict[str, list[DeviceId]] = defaultdict(list)
    for device in devices:
        by_node[device.rpartition("/")[0]].append(DeviceId(device))
    grants = tuple(Grant(NodeName(name), tuple(ids), units, cpu, memory) for name, ids in by_node.items())
    return replace(Start(job, H200, Booking.BURST, grants, PROJECT, 3_600_000), **planned)


@dataclass
class Model:
    """What the events say, kept in plain dictionaries and nothing else."""

    accounts: dict[str, Account] = field(default_factory=dict)
    pools: dict[str, str | None] = field(default_factory=dict)
    nodes: dict[str, tuple[Node, tuple[Device, ...]]] = field(default_factory=dict)
    jobs: dict[int, Job] = field(default_factory=dict)
    allocations: dict[str, Allocation] = field(default_factory=dict)

    def apply(self, event: events.Event) -> None:
        """Takes one event in."""
        match event:
            case events.AccountChanged():
                self.accounts[event.account.id] = event.account
            case events.AccountRemoved():
                del self.accounts[event.account]
            case events.NodeChanged():
                self.nodes[event.node.name] = (event.node, event.devices)
            case events.NodeRemoved():
                del self.nodes[event.node]
            case events.PoolChanged():
                self.pools.pop(event.pool, None)
                if event.is_closed:
                    self.pools[event.pool] = event.reason
            case events.AllocationPromoted():
                old = self.allocations[event.allocation]
                self.allocations[old.id] = replace(old, booking=event.booking, segment=event.segment)
            case events.AllocationExtended():
                old = self.allocations[event.allocation]
                self.allocations[old.id] = replace(old, time_limit_ms=event.time_limit_ms)
                self._change(old.job, time_limit_ms=event.time_limit_ms)
            case _:
                self._apply_to_jobs(event)

    def _apply_to_jobs(self, event: events.Event) -> None:
        match event:
            case events.JobSubmitted() | events.JobChanged():
                self.jobs[event.job.id] = event.job
            case events.JobHeld():
                self._change(event.job, state=JobState.HELD, hold=event.kind)
            case events.JobReleased():
                self._change(event.job, state=JobState.PENDING, hold=None)
            case events.JobEnded():
                del self.jobs[event.job]
            case _:
                self._apply_to_gangs(event)

    def _apply_to_gangs(self, event: events.Event) -> None:
        """Surplus nodes leave their job as it is: only gangs move jobs."""
        match event:
            case events.AllocationMade():
                made = event.allocation
                self.allocations[made.id] = made
                state = {"state": JobState.STARTING, "allocation": made.id, "attempt": made.attempt}
                self._move(made, **state, begin_ms=None, is_backing_off=False)
            case events.AllocationStarted():
                old = self.allocations[event.allocation]
                if old.phase is Phase.STARTING:
                    self._move(old, state=JobState.RUNNING)
                    old = replace(old, phase=Phase.RUNNING)
                self.allocations[old.id] = replace(old, started_ms=event.at_ms)
            case events.AllocationStopping():
                old = self.allocations[event.allocation]
                self.allocations[old.id] = replace(old, phase=Phase.STOPPING, stop_reason=event.reason)
                self._move(old, state=JobState.STOPPING)
            case events.AllocationCheckpointed():
                old = self.allocations[event.allocation]
                self.allocations[old.id] = replace(old, checkpointed_ms=event.at_ms)
            case events.AllocationEnded():
                if self.allocations.pop(event.allocation).surplus_of is None:
                    self.jobs[event.job.id] = event.job
                    if event.job.state in ENDS:
                        del self.jobs[event.job.id]

    def _move(self, gang: Allocation, **changes: Any) -> None:
        if gang.surplus_of is None:
            self._change(gang.job, **changes)

    def _change(self, job: JobId, **changes: Any) -> None:
        self.jobs[job] = replace(self.jobs[job], **changes)


@dataclass
class Centre:
    """The store under test, with a clock to move and two models of what the events said."""

    database: Database
    clock: ManualClock
    writer: Writer
    epoch: int
    state: ClusterState = field(default_factory=ClusterState)
    model: Model = field(default_factory=Model)

    @classmethod
    def open(cls, database: Database, *inventory: NodeInventory) -> "Centre":
        """A centre with these nodes (two of four GPUs by default) and the project acme/vision."""
        clock = ManualClock()
        epoch = LeaderLease(database, "daemon", "http://daemon", 15_000).acquire(clock.now_ms())
        assert epoch is not None
        centre = cls(database, clock, Writer(database, clock, Policy(), epoch), epoch)
        centre.do(SyncInventory(inventory or (node("n0"), node("n1")), Evidence.CONTROLLER))
        centre.do(SaveAccount(Account(ACME), "Acme"))
        centre.do(SaveAccount(Account(PROJECT), "Vision"))
        return centre

    def do(self, command: Command[T]) -> T:
        """Commits one command and returns its answer. Raises Refused."""
        value, happened = self.writer.run(command)
        self._live_through(happened)
        return value

    def commit(self, *commands: Command[object]) -> Batch:
        """Commits several commands in one transaction."""
        batch = self.writer.commit(commands)
        self._live_through(batch.events)
        return batch

    def submit(self, *drafts: JobDraft, key: str | None = None, sha: str = "one") -> tuple[JobId, ...]:
        """Submits jobs as ana of acme."""
        return self.do(SubmitJobs(drafts or (draft(),), ACME, ANA, key, sha if key else None))

    def apply(self, *starts: Start, stops: Sequence[Stop] = ()) -> Applied:
        """Applies a plan."""
        return self.do(ApplyPlan(Plan(1, self.clock.now_ms(), starts, tuple(stops), terms=dict(self.state.accounts))))

    def run(self, *devices: str, units: int = GPU_UNITS, **changes: Any) -> Allocation:
        """Submits a job and starts it on these devices; returns its allocation, in phase starting."""
        shape = draft(len(devices)) if units == GPU_UNITS else draft(units=units)
        (job,) = self.submit(replace(shape, **changes))
        asked = self.state.jobs[job]
        planned = start(job, *devices, units=units, account=asked.account, time_limit_ms=asked.time_limit_ms)
        applied = self.apply(planned)
        assert not applied.rejected, applied.rejected
        return applied.started[0].allocation

    def started(self, allocation: Allocation | str, at_ms: int | None = None) -> Recorded:
        """Observes a start, now by default."""
        return self.observe(Started(_id(allocation), self.clock.now_ms() if at_ms is None else at_ms))

    def ended(
        self,
        allocation: Allocation | str,
        reason: EndReason | None = None,
        at_ms: int | None = None,
        started_ms: int | None = None,
    ) -> Recorded:
        """Observes an end, now by default."""
        end_ms = self.clock.now_ms() if at_ms is None else at_ms
        return self.observe(Ended(_id(allocation), end_ms, 0 if reason is None else 1, reason, started_ms))

    def observe(self, *observations: Observation) -> Recorded:
        """Records observations in one command."""
        return self.do(RecordObservations(observations))

    def reopen(self) -> None:
        """Forgets all that is in memory, as a crash does, and starts again from the database."""
        self.writer = Writer(self.database, self.clock, Policy(), self.epoch)
        self.state = self.rebuilt()

    def rebuilt(self) -> ClusterState:
        """The state as the database has it."""
        with self.database.read() as connection:
            return read.build_state(read.load_state_parts(connection))

    def job_state(self, job: JobId) -> JobState:
        """The stored state of a job."""
        return JobState(str(self.job_column(job, "state")))

    def job_column(self, job: JobId, name: str) -> object:
        """One stored column of a job."""
        with self.database.read() as connection:
            return connection.execute(sa.select(JOB.c[name]).where(JOB.c.id == job)).scalar_one()

    def kinds(self, job: JobId) -> list[str]:
        """The kinds of a job's history."""
        with self.database.read() as connection:
            statement = sa.select(JOB_EVENT.c.kind).where(JOB_EVENT.c.job_id == job).order_by(JOB_EVENT.c.sequence)
            return list(connection.execute(statement).scalars())

    def intervals(self, device: str | None = None) -> list[Interval]:
        """The closed intervals, of one device or all."""
        with self.database.read() as connection:
            return [each for each in read.occupancy(connection) if device in {None, each.device}]

    def cursors(self, device: str | None = None) -> list[Cursor]:
        """The open lanes, of one device or all."""
        with self.database.read() as connection:
            return [each for each in read.cursors(connection) if device in {None, each.device}]

    def check(self) -> None:
        """Memory, the naive model and the database say the same, and the ledger is a partition."""
        self.state.check()
        rebuilt = self.rebuilt()
        assert rebuilt.facts() == self.state.facts()
        rebuilt.check()
        assert {key: account for key, account in self.state.accounts.items() if key} == self.model.accounts
        assert self.state.closed_pools == self.model.pools
        assert self.state.jobs == self.model.jobs
        assert self.state.allocations == self.model.allocations
        assert self.state.facts()["nodes"] == self.model.nodes
        check_ledger(self.database, self.clock.now_ms())

    def _live_through(self, happened: Iterable[events.Event]) -> None:
        for event in happened:
            self.state.apply(event)
            self.model.apply(event)


def values(batch: Batch) -> list[object]:
    """The outcomes of a batch: values, and refusals as their codes."""
    return [outcome.value if isinstance(outcome, Done) else outcome.code for outcome in batch.outcomes]


def refused(batch: Batch, index: int) -> Refused:
    """The refusal at a place of a batch."""
    outcome = batch.outcomes[index]
    assert isinstance(outcome, Refused)
    return outcome


def check_ledger(database: Database, now_ms: int) -> None:
    """Proves the partition: every instant of every device's life belongs to intervals whose units are the device's."""
    with database.read() as connection:
        closed = list(read.occupancy(connection))
        open_ = list(read.cursors(connection))
        head = read.ledger_head(connection)
        devices = connection.execute(sa.select(DEVICE.c.id, DEVICE.c.units, DEVICE.c.first_seen_ms)).all()
        ends = {tuple(row) for row in connection.execute(sa.select(DEVICE_END.c.device, DEVICE_END.c.at_ms))}
    _check_chain(closed, head)
    pieces: dict[str, list[tuple[int, int, int, int]]] = defaultdict(list)
    for interval in closed:
        pieces[interval.device].append((interval.from_ms, interval.to_ms, interval.lane, interval.occupant.units))
    for cursor in open_:
        assert cursor.since_ms <= now_ms
        pieces[cursor.device].append((cursor.since_ms, now_ms, cursor.lane, cursor.occupant.units))
    assert set(pieces) | {device for device, _ in ends} == {device.id for device in devices}
    for device in devices:
        mine = pieces[device.id]
        is_there = any(cursor.device == device.id for cursor in open_)
        assert sum(cursor.occupant.units for cursor in open_ if cursor.device == device.id) == device.units * is_there
        _check_lanes(mine, {at for ended, at in ends if ended == device.id})
        edges = sorted({device.first_seen_ms, now_ms, *(edge for since, to, _, _ in mine for edge in (since, to))})
        assert edges[0] == device.first_seen_ms
        for at in edges[:-1]:
            units = sum(units for since, to, _, units in mine if since <= at < to)
            assert units == device.units or (units == 0 and (device.id, at) in ends)


def _check_chain(closed: Sequence[Interval], head: read.LedgerHead) -> None:
    previous = GENESIS_HASH
    for sequence, interval in enumerate(closed, start=1):
        assert interval.sequence == sequence
        assert interval.previous_hash == previous
        assert interval.hash == interval_hash(previous, interval)
        previous = interval.hash
    assert head == read.LedgerHead(len(closed), previous)


def _check_lanes(pieces: Sequence[tuple[int, int, int, int]], ends: set[int]) -> None:
    for lane in {piece[2] for piece in pieces}:
        mine = sorted(piece for piece in pieces if piece[2] == lane)
        for before, after in pairwise(mine):
            has_ended = before[1] in ends and before[1] < after[0]
            assert has_ended or (before[1] == after[0] if lane == 0 else before[1] <= after[0])


def _id(allocation: Allocation | str) -> AllocationId:
    return allocation.id if isinstance(allocation, Allocation) else AllocationId(allocation)
