"""A centre whose tenants have budgets: what tests of money drive, one command a step."""

from collections.abc import Sequence
from decimal import Decimal

import sqlalchemy as sa

from metering.budgets import set_budget, standing, top_up
from metering.core.budget import Budget, BudgetKind
from metering.journal import budgets
from metering.keeping import KeepBudgets, Kept
from scheduler.admission import CostQuestion, Money
from scheduler.core.events import Event
from scheduler.core.model import (
    GPU_UNITS,
    AccountId,
    AllocationId,
    Booking,
    DeviceId,
    Grant,
    JobId,
    NodeName,
    Shape,
    UserName,
)
from scheduler.core.plan import Plan, Start
from scheduler.executor import LaunchSpec
from scheduler.store.actions import UpdateJobs
from scheduler.store.allocations import ApplyPlan
from scheduler.store.jobs import JobDraft, SubmitJobs
from scheduler.store.tables import JOB
from tests.metering.centre import H100, Centre

MICROS = 10**6
VISION, ACME = AccountId("acme/vision"), AccountId("acme")


class PurseCentre(Centre):
    """A centre with nodes `a` and `b` of two GPUs and the tenants acme and globex."""

    events: tuple[Event, ...] = ()
    """What the last start, end or look said to the planner."""

    def budget(self, account: str, limit: str | int = 0, kind: BudgetKind = BudgetKind.MONTH, **named: object) -> None:
        terms = Budget(AccountId(account), kind, "CNY", "Asia/Shanghai", int(Decimal(limit) * MICROS), **named)  # type: ignore[arg-type]
        with self.database.write() as connection:
            set_budget(connection, terms, self.now_ms, "ops")

    def top_up(self, account: str, amount: int) -> None:
        with self.database.write() as connection:
            top_up(
                connection, budgets(connection)[AccountId(account)], amount * MICROS, self.now_ms, ("ops", "paid", None)
            )

    def left(self, account: str) -> int:
        """What may still be set aside, in micro-units."""
        with self.read() as connection:
            return standing(connection, budgets(connection)[AccountId(account)], self.now_ms).left_micros

    def keep(self, *, is_whole: bool = False) -> Kept:
        kept, self.events = self._writer.run(KeepBudgets(self.admission, is_whole))
        return kept

    def submit(
        self,
        hours: float = 1,
        account: str = "acme/vision",
        count: int = 1,
        max_cost: str | None = None,
        booking: Booking = Booking.BURST,
        grace: float = 30,
    ) -> Sequence[JobId]:
        limit_ms = int(hours * 3_600_000)
        question = CostQuestion(AccountId(account), H100, booking, GPU_UNITS, limit_ms)
        draft = JobDraft(
            AccountId(account),
            UserName("mei"),
            "train",
            Shape((H100,), 1, GPU_UNITS),
            limit_ms,
            LaunchSpec(("train",), "train", grace_seconds=grace),
            array_indexes=tuple(range(count)) if count > 1 else None,
            costs=(question,),
            max_cost=None if max_cost is None else Money(max_cost, ""),
        )
        tenant = AccountId(account.split("/", maxsplit=1)[0])
        ids, self.events = self._writer.run(SubmitJobs((draft,), tenant, UserName("mei")))
        return ids

    def try_start(self, job: JobId, device: str = "GPU-a-0", booking: Booking = Booking.BURST) -> AllocationId | str:
        """Starts a job on a device; returns its allocation, or why it was rejected."""
        node = NodeName(device.split("-")[1])
        grant = Grant(node, (DeviceId(device),), GPU_UNITS, 1000, 0)
        with self.read() as connection:
            planned = connection.execute(sa.select(JOB.c.account, JOB.c.time_limit_ms).where(JOB.c.id == job)).one()
        start = Start(job, H100, booking, (grant,), *planned)
        applied, self.events = self._writer.run(ApplyPlan(Plan(1, self.now_ms, (start,), terms=self.terms())))
        return applied.rejected[0][1] if applied.rejected else applied.started[0].allocation.id

    def give(self, job: JobId, hours: float) -> None:
        """Gives what runs another time limit, as an operator."""
        limit_ms = int(hours * 3_600_000)
        _, self.events = self._writer.run(UpdateJobs((job,), "ops", time_limit_ms=limit_ms, may_lengthen=True))

    def run_job(self, hours: float = 1, device: str = "GPU-a-0", **named: object) -> AllocationId:
        """Submits a job and runs it from now on."""
        (job,) = self.submit(hours, **named)  # type: ignore[arg-type]
        started = self.try_start(job, device)
        with self.read() as connection:
            assert connection.exec_driver_sql(
                "SELECT count(*) FROM charge_due WHERE allocation_id = '" + started + "'"
            ).scalar(), started
        allocation = AllocationId(started)
        self.running(allocation)
        return allocation
