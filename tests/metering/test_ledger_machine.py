"""The whole ledger against a naive model that counts seconds.

Jumping clocks, zones, crashes around commits, lost nodes, storms of preemptions, GPUs cut into MIG instances and made
whole again, evidence that is late, doubled or out of order; on PostgreSQL in a smaller run.
"""

import csv
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy.engine import make_url

from metering.core.quantity import UNIT_MS_PER_GPU_HOUR
from metering.export import export_usage
from metering.ledger import publish
from metering.usage_report import GroupBy, Span, usage_by
from metering.verify import verify, verify_export
from scheduler.clock import ManualClock
from scheduler.core.ending import COMPLETED, EvidenceKind
from scheduler.core.model import GPU_UNITS, AllocationId, Device, DeviceId, EndReason
from scheduler.core.occupancy import Evidence
from scheduler.core.policy import Policy
from scheduler.executor import CutGpu, Ended, Started
from scheduler.store.allocations import MarkStopping
from scheduler.store.database import Database
from scheduler.store.evidence import RecordEvidence, Said
from scheduler.store.inventory import SyncInventory
from scheduler.store.observations import RecordObservations
from scheduler.store.transaction import Transaction
from scheduler.store.write import Command, Writer
from tests.databases import new_sqlite
from tests.metering.builders import book
from tests.metering.centre import Centre

PRICE = 18
MIN_RUN_SECONDS = 600
PARTS = (5400, 3600, 1800)
"""Units of the instances that a GPU is cut into: 3, 2 and 1 of its 7 parts; one part is nobody's."""
MICROS = 10**6
TENANTS = ("acme/vision", "globex/nlp")
CASES = {
    # Half an hour before a midnight or a change of the clock.
    "Asia/Shanghai": datetime(1986, 5, 3, 15, 30, tzinfo=UTC),
    "America/New_York": datetime(2026, 11, 1, 3, 30, tzinfo=UTC),
    "Australia/Lord_Howe": datetime(2026, 4, 4, 12, 30, tzinfo=UTC),
}


class Killed(Exception):
    """The daemon died inside a transaction."""


class Die:
    """A command that dies: what came before it in the transaction is lost."""

    def execute(self, tx: Transaction) -> None:
        raise Killed


class JumpingClock(ManualClock):
    """A wall clock that people set, forwards and back."""

    def jump(self, seconds: int) -> None:
        self._now_ms += seconds * 1000


@dataclass
class Use:
    """One allocation as the model knows it, in whole seconds."""

    tenant: str
    devices: tuple[DeviceId, ...]
    started_s: int | None = None
    end_s: int | None = None
    ceiling_s: int = 0
    is_lost: bool = False
    is_preempted: bool = False
    units: int = GPU_UNITS
    """Of each device: a MIG instance has fewer than a GPU."""
    said: list[tuple[EvidenceKind, int]] = field(default_factory=list)

    def seconds(self, now_s: int) -> range:
        """The seconds that the tenant pays for."""
        if self.started_s is None:
            return range(0)
        end_s = now_s if self.end_s is None else self._end()
        return range(self.started_s, max(self.started_s, end_s))

    def _end(self) -> int:
        assert self.end_s is not None
        ends = [at for kind, at in self.said if kind is EvidenceKind.ENDED]
        if not self.is_lost:
            return min([self.end_s, *ends])
        if ends:
            return min(*ends, self.ceiling_s)
        silent = [at for kind, at in self.said if kind is EvidenceKind.SILENT]
        alive = [at for kind, at in self.said if kind is EvidenceKind.ALIVE]
        return min(max([min([self.end_s, *silent]), *alive]), self.ceiling_s)

    @property
    def is_given_back(self) -> bool:
        """Its node was lost, and nobody says that it had ended well; or it was preempted in its first ten minutes."""
        if self.is_preempted and self.started_s is not None:
            return self._end() - self.started_s < MIN_RUN_SECONDS
        return self.is_lost and not any(kind is EvidenceKind.ENDED for kind, _ in self.said)


class LedgerMachine(RuleBasedStateMachine):
    """The store's own commands on one side, sets of seconds on the other."""

    make_url: Callable[[Path], str]
    zone: str

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path(tempfile.mkdtemp(prefix="turnstile-machine-"))
        self.database = Database.open(type(self).make_url(self._folder))
        start_ms = round(CASES[self.zone].timestamp() * 1000)
        self.clock = JumpingClock(start_ms)
        self.centre = Centre(self.database, start_ms)
        self.start_ms = self.ledger_ms = start_ms
        self._restart()
        for tenant in TENANTS:
            self.centre.tenant(tenant)
        self.free = [*self.centre.node("a"), *self.centre.node("b")]
        self.whole = self.centre.node("m", gpus=1)
        self.free_parts, self.is_cut, self.cuts = list(self.whole), False, 0
        self.units = dict.fromkeys(self.whole, GPU_UNITS)
        with self.database.write() as connection:
            publish(connection, book(effective_ms=0, prices={"burst": str(PRICE)}, tax="0"), start_ms)
        self.uses: dict[AllocationId, Use] = {}
        self.sent: list[Said] = []

    def teardown(self) -> None:
        self._check_everything()
        self.database.dispose()
        shutil.rmtree(self._folder)

    def _restart(self) -> None:
        """A new daemon on the same database: it knows nothing but what is committed."""
        self.centre.clock = self.clock
        self.centre._writer = Writer(self.database, self.clock, Policy(), None)

    def _tick(self) -> int:
        """Returns the ledger's second of the next command: its clock never runs back."""
        self.ledger_ms = max(self.ledger_ms, self.clock.now_ms())
        return self.ledger_ms // 1000

    def _twice(self, command: Command[object]) -> None:
        """Carries out a command that dies before its commit, then, restarted, the same, and again after its commit."""
        with pytest.raises(Killed):
            self.centre._writer.commit([command, Die()])
        self._restart()
        self.centre.carry_out(command)
        self._restart()
        self.centre.carry_out(command)

    # ---- what happens ----------------------------------------------------------------------------------------------

    @rule(seconds=st.integers(1, 2400))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds=seconds)

    @rule(seconds=st.integers(-4000, 900))
    def somebody_sets_the_clock(self, seconds: int) -> None:
        self.clock.jump(seconds)

    @precondition(lambda self: self.free)
    @rule(gpus=st.integers(1, 2), tenant=st.sampled_from(TENANTS))
    def a_gang_starts(self, gpus: int, tenant: str) -> None:
        self._tick()
        devices = tuple(self.free[:gpus])
        if len({device.split("-")[1] for device in devices}) > 1:
            devices = devices[:1]
        self.free = self.free[len(devices) :]
        self.uses[self.centre.start(*devices, account=tenant)] = Use(tenant, devices)

    @precondition(lambda self: self.free_parts)
    @rule(tenant=st.sampled_from(TENANTS))
    def a_job_starts_on_the_gpu_that_may_be_cut(self, tenant: str) -> None:
        self._tick()
        device = self.free_parts.pop(0)
        units = self.units[device]
        self.uses[self.centre.start(device, account=tenant, units=units)] = Use(tenant, (device,), units=units)

    @precondition(lambda self: len(self.free_parts) == (len(PARTS) if self.is_cut else 1))
    @rule(is_the_same=st.booleans())
    def the_gpu_is_cut_into_instances_or_made_whole(self, is_the_same: bool) -> None:
        """Nobody holds it. The instances are new ones, or those of the time before; what is left over is nobody's."""
        self._tick()
        self.is_cut, self.cuts = not self.is_cut, self.cuts + (not is_the_same)
        parts = [DeviceId(f"MIG-{self.cuts}-{place}") for place in range(len(PARTS))] if self.is_cut else [*self.whole]
        sizes = PARTS if self.is_cut else (GPU_UNITS,)
        self.units |= dict(zip(parts, sizes, strict=True))
        nodes = self.centre._nodes
        node = nodes[-1].node
        cut = tuple(Device(part, node.name, node.gpu_class, self.units[part]) for part in parts)
        left = CutGpu(self.whole[0], node.gpu_class, GPU_UNITS - sum(PARTS))
        nodes[-1] = replace(nodes[-1], devices=cut, cut_gpus=(left,) if self.is_cut else ())
        self._twice(SyncInventory(tuple(nodes), Evidence.NODE))
        self.free_parts = parts

    @precondition(lambda self: self._in(started=True))
    @rule(tenant=st.sampled_from((None, *TENANTS)))
    def a_storm_of_preemptions(self, tenant: str | None) -> None:
        """All that runs, or all of one tenant, has to go at once, and is gone at once."""
        now_s = self._tick()
        gone = tuple(id_ for id_ in self._in(started=True) if tenant in {None, self.uses[id_].tenant})
        if not gone:
            return
        self.centre.carry_out(MarkStopping(gone, EndReason.PREEMPTED))
        self._twice(RecordObservations(tuple(Ended(id_, now_s * 1000, None, EndReason.PREEMPTED) for id_ in gone)))
        for use in map(self.uses.__getitem__, gone):
            use.end_s = use.ceiling_s = now_s
            use.is_preempted = True
            self._give_back(use)

    def _give_back(self, use: Use) -> None:
        (self.free_parts if use.devices[0] in self.units else self.free).extend(use.devices)

    @precondition(lambda self: self._in(started=False))
    @rule(data=st.data())
    def it_runs(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(self._in(started=False)))
        self.uses[id_].started_s = self._tick()
        self.centre._writer.run(RecordObservations((Started(id_, self.ledger_ms),)))

    @precondition(lambda self: self._in(started=True))
    @rule(data=st.data(), ago=st.integers(0, 1500), is_lost=st.booleans())
    def it_ends(self, data: st.DataObject, ago: int, is_lost: bool) -> None:
        id_ = data.draw(st.sampled_from(self._in(started=True)))
        use, now_s = self.uses[id_], self._tick()
        assert use.started_s is not None
        use.end_s = min(max(now_s - ago, use.started_s), now_s)
        use.is_lost, use.ceiling_s = is_lost, now_s if is_lost else use.end_s
        reason = EndReason.NODE_LOST if is_lost else None
        self._twice(RecordObservations((Ended(id_, (now_s - ago) * 1000, None, reason),)))
        self._give_back(use)
        # Seen twice, with the unclamped time: that is a word of its own.
        if now_s - ago != use.end_s and not is_lost:
            use.said.append((EvidenceKind.ENDED, max(now_s - ago, use.started_s)))
        elif now_s - ago != use.end_s:
            use.said.append((EvidenceKind.SILENT, now_s - ago))

    @precondition(lambda self: self._ended())
    @rule(data=st.data(), kind=st.sampled_from(EvidenceKind), at=st.integers(-900, 1800))
    def something_is_heard_late(self, data: st.DataObject, kind: EvidenceKind, at: int) -> None:
        id_ = data.draw(st.sampled_from(self._ended()))
        use = self.uses[id_]
        assert use.end_s is not None
        at_s = use.end_s + at
        reason = COMPLETED if kind is EvidenceKind.ENDED else None
        said = Said(f"{id_}/{kind}/{at_s}", id_, kind, at_s * 1000, Evidence.NODE, reason)
        self._tick()
        self._twice(RecordEvidence((said,)))
        self.sent.append(said)
        use.said.append((kind, at_s))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def all_of_it_is_heard_again_in_another_order(self, data: st.DataObject) -> None:
        self._tick()
        again = data.draw(st.permutations(self.sent))
        self.centre.carry_out(RecordEvidence(tuple(again)))

    def _in(self, *, started: bool) -> list[AllocationId]:
        return [id_ for id_, use in self.uses.items() if use.end_s is None and (use.started_s is not None) == started]

    def _ended(self) -> list[AllocationId]:
        return [id_ for id_, use in self.uses.items() if use.end_s is not None]

    # ---- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def the_tenants_hold_the_seconds_that_the_model_counts(self) -> None:
        now_s = self.ledger_ms // 1000
        if self.ledger_ms == self.start_ms:
            return
        span = Span(self.start_ms, self.ledger_ms, ZoneInfo(self.zone))
        with self.database.read() as connection:
            groups = {group.key: group for group in usage_by(connection, span, GroupBy.PROJECT)}
        amounts: dict[str, int] = defaultdict(int)
        for use in self.uses.values():
            for seconds in self._days(use, now_s).values():
                exact = Fraction(seconds * use.units * PRICE * MICROS, 3600 * GPU_UNITS)
                amounts[use.tenant] += 0 if use.is_given_back else round(exact)
        hours = {tenant: sum(round(hours * 10**9) for hours in self._lines(tenant, now_s)) for tenant in TENANTS}
        for tenant in TENANTS:
            found = groups.get(tenant)
            assert (found.gpu_hours_nano if found else 0) == hours[tenant], tenant
            assert (found.amount_micros if found else 0) == amounts[tenant], tenant

    def _lines(self, tenant: str, now_s: int) -> list[Fraction]:
        """The exact GPU-hours of each line."""
        return [
            Fraction(seconds * use.units, 3600 * GPU_UNITS)
            for use in self.uses.values()
            if use.tenant == tenant
            for seconds in self._days(use, now_s).values()
        ]

    def _days(self, use: Use, now_s: int) -> dict[date, int]:
        """The GPU-seconds of each civil day, counted one by one."""
        days: dict[date, int] = defaultdict(int)
        zone = ZoneInfo(self.zone)
        for second in use.seconds(now_s):
            days[datetime.fromtimestamp(second, zone).date()] += len(use.devices)
        return days

    def _capacity_unit_ms(self) -> int:
        """Five GPUs, however often one of them is cut and made whole."""
        return 5 * GPU_UNITS * (self.ledger_ms - self.start_ms)

    def _check_everything(self) -> None:
        with self.database.read() as connection:
            report = verify(connection, self.ledger_ms)
            assert report.is_proved, report.findings
            if self.ledger_ms == self.start_ms:
                return
            folder = self._folder / "out"
            span = (self.start_ms, self.ledger_ms)
            manifest = export_usage(connection, folder, *span, ZoneInfo(self.zone), known_until_ms=self.ledger_ms)
            assert verify_export(folder, connection).is_proved
        now_s = self.ledger_ms // 1000
        counted = sum(hours for tenant in TENANTS for hours in self._lines(tenant, now_s))
        assert manifest.sums["held_unit_ms"] == counted * UNIT_MS_PER_GPU_HOUR
        assert manifest.sums["capacity_unit_ms"] == self._capacity_unit_ms()
        billed: dict[str, Decimal] = defaultdict(Decimal)
        (focus,) = folder.glob("focus_*.csv")
        with focus.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                billed[row["BillingAccountId"]] += Decimal(row["BilledCost"])
        with (folder / "invoice_totals.csv").open(newline="", encoding="utf-8-sig") as stream:
            payable = {row["tenant_id"]: Decimal(row["payable"]) for row in csv.DictReader(stream)}
        assert billed == payable


def run(zone: str, make_url: Callable[[Path], str], examples: int, steps: int) -> None:
    machine = type("Machine", (LedgerMachine,), {"make_url": staticmethod(make_url), "zone": zone})
    health = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=health
        ),
    )


@pytest.mark.parametrize("zone", CASES)
def test_whatever_happens_the_ledger_says_what_counting_seconds_says(zone: str) -> None:
    run(zone, lambda folder: new_sqlite(folder / "t.db"), examples=10, steps=18)


@pytest.mark.postgres
def test_on_postgresql_too_the_ledger_says_what_counting_seconds_says(postgres: str) -> None:
    name = make_url(postgres).database
    engine = sa.create_engine(make_url(postgres).set(drivername="postgresql+psycopg", database="postgres"))
    made: list[str] = []

    def copy_of(_: Path) -> str:
        made.append(f"{name}_{len(made)}")
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(f'CREATE DATABASE "{made[-1]}" TEMPLATE "{name}"')
        return make_url(postgres).set(database=made[-1]).render_as_string(hide_password=False)

    try:
        run("Australia/Lord_Howe", copy_of, examples=2, steps=12)
    finally:
        engine.dispose()
    assert made
