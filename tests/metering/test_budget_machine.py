"""Money under any interleaving, against an oracle that counts gangs by hand, with crashes around each commit.

The oracle knows gangs as (account, from, to) and the price, nothing of holds or journals. What it holds the product to:
what is charged is what was used, to the micro-unit; what is left never falls below the overdraft; all that is kept
equals the fold of the journal; when nothing runs, nothing is set aside; a crash before a commit leaves nothing of it,
and a new process goes on from what the commit before left.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from sqlalchemy.engine import Connection

from metering.budgets import Purse, standings
from metering.core.budget import BudgetKind
from metering.core.journal import Ledger
from metering.journal import (
    balance_below,
    budgets,
    folded_balances,
    folded_use,
    kept_balances,
    kept_use,
    unbalanced_entries,
)
from metering.keeping import is_due
from scheduler.core.model import ROOT_ACCOUNT, AccountId, AllocationId, EndReason, JobId
from scheduler.core.policy import Policy
from scheduler.executor import Ended
from scheduler.refusal import Refused
from scheduler.store.database import Database
from scheduler.store.observations import RecordObservations
from scheduler.store.write import Writer
from tests.databases import new_sqlite
from tests.metering.purse import MICROS, PurseCentre

T = TypeVar("T")
K = TypeVar("K")
ACCOUNTS = ("acme/vision", "acme/nlp", "globex/nlp")
DEVICES = ("GPU-a-0", "GPU-a-1", "GPU-b-0", "GPU-b-1")
PRICE_MICROS_PER_HOUR = 18 * MICROS
MICROS_PER_MS = 5
"""18 an hour, exactly: no line is ever rounded, so sums say what was used."""
GRACE_MS = 30_000
STEP_SECONDS = 30
Crashes = st.sampled_from([None, None, "before", "after"])


class Crash(Exception):
    """The process dies here."""


@dataclass
class Gang:
    """What the oracle knows of a gang."""

    account: str
    device: str
    from_ms: int
    limit_ms: int
    stopped_ms: int | None = None
    to_ms: int | None = None

    def cost_micros(self, now_ms: int) -> int:
        return ((now_ms if self.to_ms is None else self.to_ms) - self.from_ms) * MICROS_PER_MS

    def due_ms(self) -> int:
        """When it ends by itself: at its limit, or at the end of its grace."""
        end_ms = self.from_ms + self.limit_ms
        return end_ms if self.stopped_ms is None else min(end_ms, self.stopped_ms + GRACE_MS)


class _Dying:
    """A database whose next transaction does all its work and is lost before its commit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.dialect = database.dialect

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with self._database.write() as connection:
            yield connection
            raise Crash


class Money(RuleBasedStateMachine):
    """Jobs of three projects on four GPUs, under budgets that change."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.database = Database.open(new_sqlite(self.folder / "turnstile.db"))
        self.centre = PurseCentre(self.database)
        for account in ACCOUNTS:
            self.centre.tenant(account)
        for node in "ab":
            self.centre.node(node)
        self.centre.publish()
        self.waiting: list[tuple[JobId, str, int]] = []
        self.gangs: dict[AllocationId, Gang] = {}
        self.lowered: set[str] = set()

    def teardown(self) -> None:
        self.everything_is_looked_at()
        self.database.dispose()
        shutil.rmtree(self.folder)

    # ---- what people and time do ----------------------------------------------------------------------------------

    @initialize(limit=st.integers(20, 120), overdraft=st.integers(0, 10))
    def tenants_have_budgets(self, limit: int, overdraft: int) -> None:
        self.centre.budget("acme", limit, overdraft_micros=overdraft * MICROS)
        self.centre.budget("globex", kind=BudgetKind.PREPAID)

    @rule(account=st.sampled_from(["acme", "acme/vision"]), limit=st.integers(0, 150))
    def a_budget_changes(self, account: str, limit: int) -> None:
        self.centre.budget(account, limit)
        self.lowered.discard(account)
        if self.centre.left(account) < 0:
            self.lowered.add(account)

    @rule(account=st.sampled_from(["acme", "globex"]), amount=st.integers(1, 60))
    def somebody_pays(self, account: str, amount: int) -> None:
        before = self.centre.left(account)
        self.centre.top_up(account, amount)
        assert self.centre.left(account) == before + amount * MICROS

    @rule(account=st.sampled_from(ACCOUNTS), minutes=st.integers(1, 240), count=st.integers(1, 3), crash=Crashes)
    def somebody_submits(self, account: str, minutes: int, count: int, crash: str | None) -> None:
        needed = minutes * count * 60_000 * MICROS_PER_MS
        left = self.least_left(account)
        try:
            jobs = self.with_crash(crash, lambda: self.centre.submit(minutes / 60, account, count))
        except Refused:
            assert left is not None
            assert needed > left
        else:
            assert left is None or needed <= left
            self.waiting += [(job, account, minutes * 60_000) for job in jobs]

    @precondition(lambda self: self.waiting and self.free())
    @rule(data=st.data(), crash=Crashes)
    def one_starts(self, data: st.DataObject, crash: str | None) -> None:
        place = data.draw(st.integers(0, len(self.waiting) - 1))
        job, account, limit_ms = self.waiting[place]
        left, device = self.least_left(account), self.free()[0]
        started = self.with_crash(crash, lambda: self.centre.try_start(job, device))
        if "set aside" in started:
            assert left is not None
            assert left < min(limit_ms, 3_600_000) * MICROS_PER_MS
            return
        assert left is None or left >= min(limit_ms, 3_600_000) * MICROS_PER_MS
        del self.waiting[place]
        gang = AllocationId(started)
        self.centre.running(gang)
        self.gangs[gang] = Gang(account, device, self.centre.now_ms, limit_ms)

    @precondition(lambda self: self.live())
    @rule(data=st.data(), late_seconds=st.integers(0, 600), crash=Crashes)
    def one_ends_and_is_seen_late_and_twice(self, data: st.DataObject, late_seconds: int, crash: str | None) -> None:
        gang = data.draw(st.sampled_from(self.live()))
        known = self.gangs[gang]
        known.to_ms = max(known.from_ms, self.centre.now_ms - 1000 * late_seconds)
        if known.stopped_ms is not None:  # the ledger has it as stopping since then
            known.to_ms = max(known.to_ms, known.stopped_ms)
        seen = RecordObservations((Ended(gang, known.to_ms, 0, None),) * 2)
        self.with_crash(crash, lambda: self.centre._writer.run(seen))

    @rule(steps=st.integers(1, 40), crash=Crashes)
    def time_passes(self, steps: int, crash: str | None) -> None:
        for _ in range(steps):
            self.centre.clock.advance(seconds=STEP_SECONDS)
            for gang in self.live():
                if self.gangs[gang].due_ms() <= self.centre.now_ms:
                    self.ends(gang)
            with self.database.read() as connection:
                has_work = is_due(connection, self.centre.now_ms)
            if has_work:
                self.keep(crash)
                crash = None

    @rule()
    def everything_is_looked_at(self) -> None:
        """Charged is what was used, to the micro-unit; nothing is set aside for what has ended."""
        with self.database.write() as connection:
            connection.exec_driver_sql("UPDATE charge_due SET due_ms = 0")
        self.keep()
        now_ms = self.centre.now_ms
        with self.database.read() as connection:
            for tenant in ("acme", "globex"):
                charged = -balance_below(connection, Ledger.REVENUE, AccountId(tenant), "CNY")
                mine = [gang for gang in self.gangs.values() if gang.account.startswith(f"{tenant}/")]
                assert charged == sum(gang.cost_micros(now_ms) for gang in mine), tenant
            if not self.live():
                assert balance_below(connection, Ledger.HOLD, ROOT_ACCOUNT, "CNY") == 0

    # ---- what must hold -------------------------------------------------------------------------------------------

    @invariant()
    def no_more_is_spent_and_set_aside_than_there_is(self) -> None:
        with self.database.read() as connection:
            for account, found in standings(connection, self.centre.now_ms).items():
                assert found.left_micros >= 0 or account in self.lowered, found

    @invariant()
    def what_is_kept_is_the_fold_of_a_balanced_journal(self) -> None:
        with self.database.read() as connection:
            assert list(unbalanced_entries(connection)) == []
            assert _nonzero(kept_balances(connection)) == _nonzero(folded_balances(connection))
            kept = kept_use(connection)
            for account, budget in budgets(connection).items():
                mine = {from_ms: micros for (name, from_ms), micros in kept.items() if name == account}
                assert _nonzero(mine) == _nonzero(folded_use(connection, budget))

    # ---- means ----------------------------------------------------------------------------------------------------

    def keep(self, crash: str | None = None) -> None:
        for gang in self.with_crash(crash, self.centre.keep).stopped:
            self.gangs[gang].stopped_ms = self.centre.now_ms

    def ends(self, gang: AllocationId) -> None:
        known = self.gangs[gang]
        known.to_ms = known.due_ms()
        self.centre._writer.run(RecordObservations((Ended(gang, known.to_ms, 1, EndReason.EXIT_NONZERO),)))

    def with_crash(self, crash: str | None, work: Callable[[], T]) -> T:
        """Does the work; `before`: once in vain, lost before its commit; `after`: another process goes on from it."""
        if crash == "before":
            self.another_process(_Dying(self.database))
            try:
                work()
            except Crash:
                self.another_process(self.database)
            else:
                raise AssertionError("the commit was to be lost")
        result = work()
        if crash == "after":
            self.another_process(self.database)
        return result

    def another_process(self, database: "Database | _Dying") -> None:
        # A database that dies is one in all that a writer asks of it.
        self.centre._writer = Writer(database, self.centre.clock, Policy(), None, self.centre.admission)  # type: ignore[arg-type]

    def least_left(self, account: str) -> int | None:
        with self.database.read() as connection:
            return Purse.of(connection, AccountId(account)).left_micros(connection, "CNY", self.centre.now_ms)

    def live(self) -> list[AllocationId]:
        return [gang for gang, known in self.gangs.items() if known.to_ms is None]

    def free(self) -> list[str]:
        taken = {self.gangs[gang].device for gang in self.live()}
        return [device for device in DEVICES if device not in taken]


def _nonzero(sums: dict[K, int]) -> dict[K, int]:
    return {key: value for key, value in sums.items() if value}


def test_money_under_any_interleaving() -> None:
    run_machine(
        Money,
        settings=settings(
            max_examples=25,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            # A failing run of some hundred transactions is told as it is: to shrink it takes many minutes.
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
        ),
    )
