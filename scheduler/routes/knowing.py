"""What answers say about jobs besides their rows: which pool, why they wait, what they can cost at most.

Reasons in lists come from the last plan, a value that does not change: it is fetched from the planner at most twice a
second, and a list never waits for it longer than a person notices. Costs are remembered for a moment by question.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from sqlalchemy.engine import Connection

from scheduler.admission import Admission, BudgetLeft, CostQuestion, Quote, Submission
from scheduler.clock import iso_utc
from scheduler.core.explain import reasons_of
from scheduler.core.front import Front, front
from scheduler.core.model import (
    GPU_UNITS,
    AccountId,
    Booking,
    BookingWanted,
    GpuClass,
    Job,
    JobId,
    PoolName,
    Shape,
)
from scheduler.core.occupancy import charged_units
from scheduler.core.plan import Plan
from scheduler.core.reasons import Reason
from scheduler.refusal import Refused
from scheduler.routes.door import Door
from scheduler.store.jobs import JobDraft
from scheduler.wire.fitting import Offer
from scheduler.wire.problems import Json

_PLAN_LIFE_MS = 500
_PLAN_PATIENCE_SECONDS = 0.25
"""How long a list waits for the planner; after that it shows what the plan before said, or no reasons."""
_COST_LIFE_MS = 2000
_MOST_COSTS = 4096
MOST_NEW_COSTS = 64
"""Questions of money that one list asks; jobs beyond them show no cost there, and do when they are looked at."""
_DEAREST = {
    BookingWanted.AUTO: Booking.BURST,
    BookingWanted.GUARANTEED: Booking.GUARANTEED,
    BookingWanted.SPOT: Booking.SPOT,
}
"""What a job may be booked as at the most it can cost: `auto` may be wholly burst."""


@dataclass(frozen=True, slots=True)
class Priced:
    """What a job's greatest cost follows from."""

    account: AccountId
    shape: Shape
    wanted: BookingWanted
    time_limit_ms: int

    @classmethod
    def of(cls, job: Job | JobDraft) -> "Priced":
        """Returns what the cost of a job, or of one that is asked for, follows from."""
        return cls(job.account, job.shape, job.wanted, job.time_limit_ms)

    @classmethod
    def least(cls, job: Job) -> "Priced":
        """Returns the same for an elastic job that never gets more nodes than it must have."""
        return cls(job.account, replace(job.shape, most_nodes=None), job.wanted, job.time_limit_ms)


class Knowing:
    """Shared by the routes of one app. Belongs to one event loop."""

    def __init__(self, door: Door, admission: Admission) -> None:
        self._door = door
        self._admission = admission
        self._plan: Plan | None = None
        self._front = Front()
        self._plan_at_ms = -_PLAN_LIFE_MS
        self._fetching: asyncio.Task[None] | None = None
        self._budgets: dict[AccountId, tuple[BudgetLeft | None, int]] = {}
        self._costs: dict[CostQuestion, tuple[Quote | None, int]] = {}
        self._pools: tuple[Sequence[Offer], Mapping[GpuClass, Sequence[PoolName]]] = ((), {})

    # ---- pools ------------------------------------------------------------------------------------------------------

    @property
    def pools(self) -> Mapping[GpuClass, Sequence[PoolName]]:
        """The pools that have nodes of each class."""
        offers = self._door.controller.offers
        if self._pools[0] is not offers:
            found: dict[GpuClass, set[PoolName]] = {}
            for offer in offers:
                found.setdefault(offer.gpu_class, set()).add(offer.pool)
            self._pools = (offers, {gpu_class: sorted(names) for gpu_class, names in found.items()})
        return self._pools[1]

    # ---- reasons ----------------------------------------------------------------------------------------------------

    async def reasons(self, jobs: Iterable[Job]) -> dict[JobId, tuple[Reason, ...]]:
        """Returns why jobs wait, as of the last plan known; empty on a follower, which plans nothing."""
        waiting = list(jobs)
        plan = await self._last_plan() if waiting else None
        return {} if plan is None else {job.id: reasons_of(plan, job) for job in waiting}

    @property
    def front(self) -> Front:
        """Who is next, as of the plan that `reasons` last told from."""
        return self._front

    async def _last_plan(self) -> Plan | None:
        if not self._door.controller.is_leading:
            return None
        if self._door.now_ms - self._plan_at_ms >= _PLAN_LIFE_MS:
            if self._fetching is None or self._fetching.done():
                self._fetching = asyncio.get_running_loop().create_task(self._fetch_plan())
            await asyncio.wait([self._fetching], timeout=_PLAN_PATIENCE_SECONDS)
        return self._plan

    async def _fetch_plan(self) -> None:
        asked_ms = self._door.now_ms
        try:
            self._plan, self._front = await self._door.ask(lambda state, plan: (plan, front(state, plan)))
        except Refused:
            self._plan, self._front = None, Front()  # it has stopped leading in between
        self._plan_at_ms = asked_ms

    # ---- money ------------------------------------------------------------------------------------------------------

    async def max_cost(self, job: Priced | JobDraft) -> Json | None:
        """Returns the most that a job can cost; None where a class that it may get has no price."""
        return (await self.max_costs([job]))[0]

    async def max_costs(self, jobs: Sequence[Priced | JobDraft], most_new: int = MOST_NEW_COSTS) -> list[Json | None]:
        """Returns the most that each job can cost, in order, asking the store about at most so many new sizes."""
        now_ms = self._door.now_ms
        questions = [questions_of(job, self._door.controller.offers) for job in jobs]
        unknown = {question: None for asked in questions for question in asked if not self._is_known(question, now_ms)}
        wanted = list(unknown)[:most_new]
        if wanted:
            quotes = await self._door.read(lambda connection: self._quotes(connection, wanted, now_ms))
            if len(self._costs) + len(quotes) > _MOST_COSTS:
                self._costs.clear()
            self._costs.update(quotes)
        return [self._dearest(asked) for asked in questions]

    def _is_known(self, question: CostQuestion, now_ms: int) -> bool:
        found = self._costs.get(question)
        return found is not None and now_ms - found[1] < _COST_LIFE_MS

    def _quotes(
        self, connection: Connection, questions: Sequence[CostQuestion], now_ms: int
    ) -> dict[CostQuestion, tuple[Quote | None, int]]:
        return {each: (self._admission.most_cost(connection, each, now_ms), now_ms) for each in questions}

    def _dearest(self, questions: Sequence[CostQuestion]) -> Json | None:
        quotes = [self._costs.get(question, (None, 0))[0] for question in questions]
        known = [quote.most for quote in quotes if quote is not None]
        if not known or len(known) < len(quotes) or len({money.currency for money in known}) > 1:
            return None
        most = max(known, key=lambda money: Decimal(money.amount))
        return {"amount": most.amount, "currency": most.currency}

    def submission(self, draft: JobDraft) -> Submission:
        """Returns what admission is asked about a draft."""
        return Submission(questions_of(draft, self._door.controller.offers), draft.count, draft.max_cost)

    async def budget(self, draft: JobDraft) -> Json | None:
        """Returns the budget nearest to a draft's account, what it keeps after the draft, and whether that is enough.

        A preview's answer: a submission is checked again in its own transaction.
        """
        now_ms, asked = self._door.now_ms, self.submission(draft)

        def look(connection: Connection) -> tuple[BudgetLeft | None, Refused | None]:
            left = self._admission.budget_left(connection, draft.account, now_ms)
            try:
                self._admission.admit(connection, asked, now_ms)
            except Refused as refused:
                return left, refused
            return left, None

        left, refused = await self._door.read(look)
        if left is None and refused is None:
            return None
        answer = _budget_answer(left)
        fits: Json = {"fits": True, "message": None, "try": []}
        if refused is not None:
            fits = {"fits": False, "message": refused.message, "try": list(refused.tries)}
        return {**(answer or {}), **fits}

    async def budget_before(self, draft: JobDraft) -> Json | None:
        """Returns the budget nearest to a draft's account as it stands before the draft is submitted; None without one.

        Ask before the submission: a job that starts at once has its hold taken off what is left, and an echo that
        takes the most it can cost off that would count it twice. It may be a moment old, unless the draft would then
        not fit: somebody topped it up since.
        """
        cost = await self.max_cost(draft)
        known = self._budgets.get(draft.account)
        left = None if known is None or known[0] is None else Decimal(known[0].left.amount)
        if cost is not None and left is not None and left < Decimal(str(cost["amount"])) * draft.count:
            del self._budgets[draft.account]
        return await self._budget_of(draft.account)

    async def _budget_of(self, account: AccountId) -> Json | None:
        now_ms = self._door.now_ms
        found = self._budgets.get(account)
        if found is None or now_ms - found[1] >= _COST_LIFE_MS:
            left = await self._door.read(lambda connection: self._admission.budget_left(connection, account, now_ms))
            if len(self._budgets) >= _MOST_COSTS:
                self._budgets.clear()
            found = self._budgets[account] = (left, now_ms)
        return _budget_answer(found[0])

    async def is_affordable(self, job: Job) -> bool:
        """Tells whether budgets would let the job be submitted now."""
        now_ms = self._door.now_ms
        asked = Submission(questions_of(job, self._door.controller.offers), 1)

        def admits(connection: Connection) -> bool:
            try:
                self._admission.admit(connection, asked, now_ms)
            except Refused:
                return False
            return True

        return await self._door.read(admits)


def questions_of(job: Priced | JobDraft | Job, offers: Sequence[Offer]) -> tuple[CostQuestion, ...]:
    """Returns what a job may cost, a question for each class that it may get."""
    return tuple(
        CostQuestion(
            job.account, gpu_class, _DEAREST[job.wanted], _charged(job.shape, gpu_class, offers), job.time_limit_ms
        )
        for gpu_class in job.shape.gpu_classes
    )


def _charged(shape: Shape, gpu_class: GpuClass, offers: Sequence[Offer]) -> int:
    """Returns the units that the gang is charged for, on the smallest nodes that hold it: the most it can be."""
    charged = shape.gpu_units
    for offer in offers:
        if offer.gpu_class == gpu_class and offer.gpus * GPU_UNITS >= shape.gpu_units:
            cpu = (shape.cpu_millicores or 0, offer.cpu_millicores)
            memory = (shape.memory_bytes or 0, offer.memory_bytes)
            if cpu[0] <= cpu[1] and memory[0] <= memory[1]:
                charged = max(charged, charged_units(shape.gpu_units, cpu, memory, offer.gpus * GPU_UNITS))
    return charged * (shape.largest_units // shape.gpu_units)


def _budget_answer(left: BudgetLeft | None) -> Json | None:
    if left is None:
        return None
    return {
        "account": left.account,
        "period": left.kind,
        "is_hard": left.is_hard,
        "left": {"amount": left.left.amount, "currency": left.left.currency},
        "period_ends_at": None if left.ends_ms is None else iso_utc(left.ends_ms),
        "zone": left.zone,
    }
