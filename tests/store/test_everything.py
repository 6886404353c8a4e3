"""Every command together with the real planner: what a plan of the present state decides, the store takes, at once.

A walk submits arrays with caps, chains of dependencies, deadlines and guarantees, changes accounts, nodes, pools and
reservations, lets gangs end and crash, and ticks now and then, sometimes with a command between plan and commit. After
each step memory is what the database holds and the ledger is a partition; after each tick nothing more can start, no
limit is exceeded, and every reason that a job is told is true.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Engine

from scheduler.core.cycle import plan
from scheduler.core.events import PreemptionWeighed, ReservationsPlanned
from scheduler.core.explain import explain
from scheduler.core.lifecycle import ACTIVE
from scheduler.core.model import (
    GPU_UNITS,
    Account,
    AccountId,
    BookingWanted,
    Dependency,
    DependencyKind,
    EndReason,
    HoldKind,
    Job,
    JobId,
    JobState,
    NodeAvailability,
    NodeName,
    Phase,
    PoolName,
    lineage,
)
from scheduler.core.occupancy import Evidence
from scheduler.core.plan import Plan
from scheduler.core.policy import Policy
from scheduler.core.reasons import ReasonCode
from scheduler.core.state import ClusterState
from scheduler.core.stretch import Claim
from scheduler.executor import Ended, Observation, Started
from scheduler.store.accounts import SaveAccount, SuspendAccount
from scheduler.store.actions import (
    CancelJobs,
    CheckpointJobs,
    EndOverdue,
    HoldJobs,
    ReleaseJobs,
    RequeueJobs,
    UpdateJobs,
)
from scheduler.store.allocations import Applied, ApplyPlan
from scheduler.store.database import Database
from scheduler.store.inventory import SetDrain, SyncInventory
from scheduler.store.jobs import SubmitJobs
from scheduler.store.pools import SetPool
from scheduler.store.reservations import MakeReservation, RemoveReservation, TurnReservations
from scheduler.store.write import Command
from tests.store.harness import ACME, ANA, H200, PROJECT, Centre, draft, node, values

NODES = ("n0", "n1")
SPEECH, GLOBEX, NLP = AccountId("acme/speech"), AccountId("globex"), AccountId("globex/nlp")
PROJECTS = (PROJECT, SPEECH, NLP)
POLICY = Policy()
MOST_ROUNDS = 8
"""Plans in a row that may each find something to do at one instant; more is a planner that never rests."""


class Life:
    """A centre with the real planner."""

    def __init__(self, database: Database, random: Random) -> None:
        self.random = random
        self.tally: Counter[str] = Counter()
        self.inventory = {name: node(name, gpus=3) for name in NODES}
        self.centre = Centre.open(database, *self.inventory.values())
        self.decision = 0
        self.last = Plan(0, 0)
        self.account(ACME, guarantee={H200: 2})
        self.account(SPEECH)
        self.account(GLOBEX, weight=2)
        self.account(NLP)
        self.steps: dict[Callable[[], None], int] = {
            self.time_passes: 10,
            self.submit: 10,
            self.settle: 20,
            self.race: 12,
            self.observe: 16,
            self.act: 5,
            self.update: 3,
            self.change_account: 1,
            self.change_nodes: 1,
            self.heal: 4,
            self.reserve: 3,
            self.crash: 2,
        }

    def step(self) -> None:
        (chosen,) = self.random.choices(list(self.steps), weights=list(self.steps.values()))
        chosen()
        self.check()

    def check(self) -> None:
        self.centre.check()
        now_ms = self.centre.clock.now_ms()
        assert _owed(self.centre.rebuilt(), now_ms) == _owed(self.centre.state, now_ms), "a restart changes debts"

    def account(self, id_: AccountId, **terms: object) -> None:
        self.centre.do(SaveAccount(replace(Account(id_), **terms), id_))  # type: ignore[arg-type]

    # ---- what happens ---------------------------------------------------------------------------------------------

    def time_passes(self) -> None:
        self.centre.clock.advance(milliseconds=self.random.choice([0, 1, 1000, 11_000, 60_000, 660_000]))
        self.centre.do(EndOverdue())
        self.centre.do(TurnReservations())

    def submit(self) -> None:
        pick, now_ms = self.random.choice, self.centre.clock.now_ms()
        live = sorted(self.centre.state.jobs)
        changes: dict[str, Any] = {
            "account": pick(PROJECTS),
            "wanted": pick([*[BookingWanted.AUTO] * 3, BookingWanted.GUARANTEED, *[BookingWanted.SPOT] * 2]),
            "priority": pick([0, 0, 0, 1, -1]),
            "time_limit_ms": pick([60_000, 3_600_000, 7_200_000]),
            "retries": pick([0, 1]),
        }
        if self.random.random() < 0.1:
            changes |= {"array_indexes": (0, 1, 2, 3), "array_cap": pick([None, 1, 2])}
        if live and self.random.random() < 0.1:
            kind = pick([DependencyKind.AFTEROK, DependencyKind.AFTERANY, DependencyKind.AFTERNOTOK])
            changes["after"] = (Dependency(kind, JobId(pick(live))),)
        if self.random.random() < 0.1:
            changes["begin_ms"] = now_ms + 30_000
        if self.random.random() < 0.15:
            changes["deadline_ms"] = now_ms + pick([45_000, 1_000_000])
        if self.random.random() < 0.2:
            asked = draft(units=GPU_UNITS // 3, **changes)
        else:
            asked = draft(pick([1, 1, 2, 3]), nodes=pick([1, 1, 1, 1, 2]), **changes)
        # A limit or a suspension may turn it away at the door.
        self.centre.commit(SubmitJobs((asked,), ACME, ANA))

    def observe(self) -> None:
        """Gangs start; those that were asked to end do, and now and then others."""
        now_ms, seen = self.centre.clock.now_ms(), list[Observation]()
        for gang in list(self.centre.state.allocations.values()):
            chance = self.random.random()
            if gang.phase is Phase.STARTING and chance < 0.8:
                seen.append(Started(gang.id, now_ms))
            elif gang.phase is Phase.STOPPING and chance < 0.8:
                seen.append(Ended(gang.id, now_ms, 1, self.random.choice([EndReason.EXIT_NONZERO, None])))
            elif chance < 0.05:
                reason = self.random.choice([None, None, EndReason.EXIT_NONZERO, EndReason.NODE_LOST, EndReason.OOM])
                seen.append(Ended(gang.id, now_ms - self.random.choice([0, 500]), 1, reason))
        if seen:
            recorded = self.centre.observe(*seen)
            self.tally["ended"] += len(recorded.ended)

    def act(self) -> None:
        self.centre.commit(self._action())

    def _action(self) -> Command[object]:
        live = sorted(self.centre.state.jobs) or [JobId(999)]
        ids = tuple(self.random.choices([*live, *sorted(self.centre.state.claims.by_job)], k=2))
        commands: list[Command[object]] = [
            HoldJobs(ids, HoldKind.USER, "ana"),
            ReleaseJobs(tuple(live), HoldKind.ADMIN, "root"),
            ReleaseJobs(tuple(live), HoldKind.ADMIN, "root"),
            CancelJobs(ids, "ana"),
            RequeueJobs(ids, "ana"),
            CheckpointJobs(ids),
        ]
        return self.random.choice(commands)

    def update(self) -> None:
        self.centre.commit(self._update())

    def _update(self) -> Command[object]:
        live = sorted(self.centre.state.jobs) or [JobId(999)]
        ids = tuple(self.random.choices([*live, *sorted(self.centre.state.claims.by_job)], k=2))
        now_ms = self.centre.clock.now_ms()
        terms: list[dict[str, object]] = [
            {"time_limit_ms": self.random.choice([60_000, 86_400_000]), "may_lengthen": True},
            {"priority": self.random.choice([-1, 0, 1])},
            {"begin_ms": now_ms + 30_000},
            {"clears_begin": True},
            {"wanted": self.random.choice(list(BookingWanted))},
        ]
        return UpdateJobs(ids, "ana", **self.random.choice(terms))  # type: ignore[arg-type]

    def change_account(self) -> None:
        self.centre.commit(self._account_change())

    def _account_change(self) -> Command[object]:
        pick = self.random.choice
        if self.random.random() < 0.4:
            drains = self.random.random() < 0.3
            return SuspendAccount(pick([*PROJECTS, ACME]), self.random.random() < 0.3, "root", drains)
        id_ = pick([*PROJECTS, ACME, GLOBEX])
        terms: dict[str, object] = {
            "limit": pick([{}, {}, {H200: 2}, {H200: 4}]),
            "running_limit": pick([None, None, None, 2]),
            "user_limit": pick([{}, {}, {H200: 3}]),
            "weight": pick([1, 2]),
            "limit_weight": pick([0, 0, 1]),
            "slowdown_weight": pick([0, 0, 1]),
        }
        if id_ in {ACME, GLOBEX}:
            terms["guarantee"] = pick([{}, {H200: 2}, {H200: 3}])
        return SaveAccount(replace(Account(id_), **terms), id_)  # type: ignore[arg-type]

    def change_nodes(self) -> None:
        self.centre.commit(self._node_change())

    def _node_change(self) -> Command[object]:
        name = self.random.choice(NODES)
        choice = self.random.random()
        if choice < 0.3:
            return SetDrain(NodeName(name), "bad fan", "root")
        if choice < 0.5:
            return SetPool(PoolName("main"), True, "works")
        old = self.inventory[name]
        if choice < 0.8:
            availability = self.random.choice(list(NodeAvailability))
            self.inventory[name] = replace(old, node=replace(old.node, availability=availability, reason="seen"))
        else:
            self.inventory[name] = replace(old, devices=old.devices[1:])
        return SyncInventory(tuple(self.inventory.values()), Evidence.CONTROLLER)

    def heal(self) -> None:
        self.inventory = {name: node(name, gpus=3) for name in NODES}
        self.centre.do(SyncInventory(tuple(self.inventory.values()), Evidence.CONTROLLER))
        self.centre.commit(*[SetDrain(NodeName(name), None, "root") for name in NODES])
        self.centre.do(SetPool(PoolName("main"), False, None))
        for name in (*PROJECTS, ACME):
            self.centre.do(SuspendAccount(name, False, "root"))

    def reserve(self) -> None:
        self.centre.commit(self._reservation())

    def _reservation(self) -> Command[object]:
        standing = sorted(self.centre.state.advance)
        if standing and self.random.random() < 0.6:
            return RemoveReservation(self.random.choice(standing), "root")
        start_ms = self.centre.clock.now_ms() + self.random.choice([0, 1000, 600_000, 3_600_000])
        name, end_ms = f"r{self.random.randint(0, 3)}", start_ms + self.random.choice([5000, 1_000_000])
        account = self.random.choice([None, ACME, NLP])
        nodes = (NodeName(self.random.choice(NODES)),)
        return MakeReservation(name, start_ms, end_ms, nodes, account, "works", "root")

    def crash(self) -> None:
        self.centre.reopen()

    # ---- what is decided ------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        self.decision += 1
        state, now_ms = self.centre.state, self.centre.clock.now_ms()
        made = plan(state, POLICY, now_ms, self.decision)
        state.check()
        state.apply(ReservationsPlanned(now_ms, made.reservations, not made.is_partial))
        state.apply(PreemptionWeighed(now_ms, made.weighed))
        self.last = made
        return made

    def bring(self, made: Plan) -> Applied:
        applied = self.centre.do(ApplyPlan(made))
        self.count(made, applied)
        return applied

    def count(self, made: Plan, applied: Applied) -> None:
        self.tally["started"] += len(applied.started)
        self.tally["claims"] += len(made.claims)
        self.tally["lapses"] += len(made.lapses)
        self.tally["promotions"] += len(applied.promoted)
        self.tally["rejected"] += len(applied.rejected)

    def settle(self) -> None:
        """Plans until there is nothing to do; what the present state lets a plan decide, the store takes."""
        rounds = 0
        while not (made := self.plan()).is_idle:
            rounds += 1
            assert rounds < MOST_ROUNDS, f"the planner never rests: {made}"
            applied = self.bring(made)
            assert not applied.rejected, f"a plan of the present state was refused: {applied.rejected}"
            self.centre.check()
        self.check_limits()
        self.check_reasons()

    def race(self) -> None:
        """Something happens between a plan and its commit."""
        made = self.plan()
        happens = [self._action, self._update, self._account_change, self._node_change, self._reservation]
        if self.random.random() < 0.5:
            # Within one millisecond two things may still come one after the other.
            self.centre.clock.advance(milliseconds=1)
        applied = values(self.centre.commit(self.random.choice(happens)(), ApplyPlan(made)))[1]
        assert isinstance(applied, Applied)
        self.count(made, applied)

    # ---- what holds -----------------------------------------------------------------------------------------------

    def check_limits(self) -> None:
        state, held = self.centre.state, Counter[str]()
        for gang in state.allocations.values():
            for grant in gang.grants:
                held.update(dict.fromkeys(grant.devices, grant.units))
        assert all(units <= GPU_UNITS for units in held.values()), held
        active = Counter(job.array for job in state.jobs.values() if job.state in ACTIVE and job.array_cap is not None)
        for job in state.jobs.values():
            assert job.array_cap is None or active[job.array] <= job.array_cap, f"array {job.array} runs too many"

    def check_reasons(self) -> None:
        state, made = self.centre.state, self.last
        for job in state.jobs.values():
            if job.state is JobState.PENDING:
                found = explain(state, made, job.id)
                assert found.reasons, f"job {job.id} waits for nothing"
                self.check_reason(job, found.reasons[0].code)
                self.tally[f"why {found.reasons[0].code}"] += 1

    def check_reason(self, job: Job, code: ReasonCode) -> None:
        state, now_ms = self.centre.state, self.last.now_ms
        assert code is not ReasonCode.ORDER, f"nothing keeps job {job.id} from starting, and it does not"
        suspended = any(state.accounts[step].is_suspended for step in lineage(job.account))
        truths = {
            ReasonCode.DEPENDENCY: bool(job.waits_for),
            ReasonCode.BEGIN_TIME: job.begin_ms is not None and job.begin_ms > now_ms and not job.is_backing_off,
            ReasonCode.BACKOFF: job.begin_ms is not None and job.begin_ms > now_ms and job.is_backing_off,
            ReasonCode.PREEMPTING: job.id in state.claims.by_job,
        }
        for each, is_true in truths.items():
            if code is each:
                assert is_true, f"job {job.id} is told {code}"
        early = {ReasonCode.DEPENDENCY, ReasonCode.BEGIN_TIME, ReasonCode.BACKOFF, ReasonCode.ARRAY_LIMIT}
        if code is ReasonCode.SUSPENDED:
            assert suspended
        elif suspended:
            assert code in early, f"job {job.id} of a suspended account is told {code}"
        if code is ReasonCode.QUOTA_TENANT or code is ReasonCode.QUOTA_PROJECT:
            assert any(state.accounts[step].is_limited for step in lineage(job.account))
        if code is ReasonCode.GUARANTEE:
            assert job.wanted is BookingWanted.GUARANTEED


def _owed(state: ClusterState, at_ms: int) -> dict[AccountId, tuple[int, int, int]]:
    """What accounts owe, and owed when the epoch began; use that took no time leaves a debt of nothing in memory."""
    debts = state.usage.debts
    found = {
        name: (debts.credits(name, at_ms), debts.epoch_credits(name, at_ms), debts.charge(name))
        for name in debts.values
    }
    return {name: owed for name, owed in found.items() if any(owed)}


@pytest.mark.timeout(500)
def test_whatever_happens_plans_are_taken_and_memory_is_what_the_database_holds(
    make_database: Callable[[], Database], dialect: str
) -> None:
    """A plan of the present state is taken whole; planning comes to rest; every reason told is true."""
    tally: Counter[str] = Counter()

    @settings(
        max_examples=12 if dialect == "sqlite" else 3,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(seed=st.integers(0, 1 << 32), steps=st.integers(50, 110))
    def walk(seed: int, steps: int) -> None:
        once(seed, steps)

    def once(seed: int, steps: int) -> None:
        life = Life(make_database(), Random(seed))
        _fill(life)
        for _ in range(steps):
            life.step()
        life.heal()
        life.settle()
        tally.update(life.tally)

    walk()
    # A walk in which little happens would prove little: where chance brought too little, it goes on.
    least = 3 if dialect == "sqlite" else 0
    for seed in range(8):
        if min(tally[kind] for kind in ("started", "ended", "claims", "lapses", "rejected")) >= least:
            break
        once(seed, 110)
    assert min(tally[kind] for kind in ("started", "ended", "claims", "lapses", "rejected")) >= least, tally


def _fill(life: Life) -> None:
    """All GPUs run spot of globex, and have for longer than they must."""
    life.centre.submit(*[draft(1, account=NLP, wanted=BookingWanted.SPOT, time_limit_ms=86_400_000)] * 6)
    life.settle()
    for gang in list(life.centre.state.allocations.values()):
        life.centre.started(gang)
    life.centre.clock.advance(minutes=11)


def _with_claim(life: Life) -> tuple[JobId, Claim]:
    """All GPUs run spot of globex; a job within acme's guarantee claims two of them."""
    centre = life.centre
    _fill(life)
    (job,) = centre.submit(draft(2))
    life.settle()
    return job, centre.state.claims.by_job[job]


def _victims_end(life: Life, claim: Claim) -> None:
    life.centre.clock.advance(seconds=1)
    for victim in claim.victims:
        life.centre.ended(victim, EndReason.EXIT_NONZERO)


@pytest.mark.parametrize("begins_in_ms", [0, 1000, 60_000])
def test_a_reservation_made_over_a_claim_ends_the_claim_and_the_planner_rests(
    make_database: Callable[[], Database], begins_in_ms: int
) -> None:
    life = Life(make_database(), Random(0))
    job, claim = _with_claim(life)
    start_ms = life.centre.clock.now_ms() + begins_in_ms
    nodes = tuple(grant.node for grant in claim.grants)
    life.centre.do(MakeReservation("works", start_ms, start_ms + 600_000, nodes, None, "fans", "root"))
    _victims_end(life, claim)
    life.settle()
    assert claim not in life.centre.state.claims.by_job.values()
    assert life.centre.job_state(job) is JobState.PENDING
    life.check()


@pytest.mark.parametrize(
    "terms",
    [
        {"begin_ms": 1_900_000_000_000},
        {"time_limit_ms": 86_400_000},
        {"wanted": BookingWanted.SPOT},
    ],
)
def test_a_claim_does_not_outlive_a_change_of_what_its_job_asks(
    make_database: Callable[[], Database], terms: dict[str, Any]
) -> None:
    """It was made for the terms of then: to start at once, for so long, under that booking."""
    life = Life(make_database(), Random(0))
    job, claim = _with_claim(life)
    life.centre.do(UpdateJobs((job,), "ana", **terms))
    life.settle()
    assert claim not in life.centre.state.claims.by_job.values()
    _victims_end(life, claim)
    life.settle()
    life.check()


def test_a_plan_that_is_overtaken_by_a_change_of_the_job_stops_nobody_and_starts_nothing(
    make_database: Callable[[], Database],
) -> None:
    life = Life(make_database(), Random(0))
    _with_claim(life)
    (other,) = life.centre.submit(draft(1, account=NLP, wanted=BookingWanted.AUTO))
    life.account(GLOBEX, guarantee={H200: 1})
    made = life.plan()
    assert [claim.job for claim in made.claims] == [other]
    life.centre.do(UpdateJobs((other,), "ana", wanted=BookingWanted.SPOT))
    assert life.bring(made).rejected == ((other, "the job asks for spot"),)
    assert other not in life.centre.state.claims.by_job


def test_a_job_that_a_reservation_keeps_from_its_promise_is_told_so(make_database: Callable[[], Database]) -> None:
    life = Life(make_database(), Random(0))
    now_ms = life.centre.clock.now_ms()
    life.centre.do(MakeReservation("works", now_ms, now_ms + 600_000, (NodeName("n1"),), None, "fans", "root"))
    (job,) = life.centre.submit(draft(1, nodes=2))
    life.settle()
    life.settle()
    assert explain(life.centre.state, life.last, job).reasons[0].code is ReasonCode.RESERVATION


def test_a_job_with_a_claim_waits_beside_the_order(make_database: Callable[[], Database]) -> None:
    life = Life(make_database(), Random(0))
    job, _ = _with_claim(life)
    found = explain(life.centre.state, life.last, job)
    assert found.reasons[0].code is ReasonCode.PREEMPTING
    assert (found.ahead_jobs, found.position) == (0, None)


def test_what_a_gang_is_charged_outlives_a_restart_after_its_node_lost_a_gpu(
    make_database: Callable[[], Database],
) -> None:
    """A job that takes all memory of a node of three GPUs is charged for three, whatever becomes of the node."""
    life = Life(make_database(), Random(0))
    shape = replace(draft().shape, memory_bytes=1 << 40)
    (job,) = life.centre.submit(replace(draft(), shape=shape))
    life.settle()
    (gang,) = [each for each in life.centre.state.allocations.values() if each.job == job]
    life.inventory["n0"] = replace(life.inventory["n0"], devices=life.inventory["n0"].devices[1:])
    life.centre.do(SyncInventory(tuple(life.inventory.values()), Evidence.CONTROLLER))
    life.centre.reopen()
    life.check()
    life.centre.clock.advance(minutes=5)
    life.centre.ended(gang)
    life.check()


def test_a_limit_that_is_lowered_in_the_transaction_of_a_plan_binds_the_plan(
    make_database: Callable[[], Database],
) -> None:
    """Commands that arrive together share a transaction and its instant."""
    life = Life(make_database(), Random(0))
    (job,) = life.centre.submit(draft(3))
    made = life.plan()
    batch = life.centre.commit(SaveAccount(Account(ACME, limit={H200: 1}), "Acme"), ApplyPlan(made))
    applied = values(batch)[1]
    assert isinstance(applied, Applied)
    assert applied.rejected == ((job, "acme has other terms since the plan was made"),)
    life.settle()


def test_a_limit_that_is_lowered_in_the_millisecond_of_a_plan_binds_the_plan(
    make_database: Callable[[], Database],
) -> None:
    """The plan knows terms by their value: a clock that stands still between two transactions hides nothing."""
    life = Life(make_database(), Random(0))
    (job,) = life.centre.submit(draft(3))
    made = life.plan()
    life.centre.do(SaveAccount(Account(ACME, limit={H200: 1}), "Acme"))
    assert life.centre.do(ApplyPlan(made)).rejected == ((job, "acme has other terms since the plan was made"),)
    life.settle()


def test_many_waiters_go_on_or_end_in_one_step_with_few_statements(centre: Centre) -> None:
    """Two thousand elements wait for one job, half of them for a second one besides: no statement for each."""
    first, second = centre.run("n0/0"), centre.run("n0/1")
    after = Dependency(DependencyKind.AFTEROK, first.job)
    count = tuple(range(1000))
    (alone, *_) = centre.submit(draft(array_indexes=count, after=(after,)))
    both = (after, Dependency(DependencyKind.AFTERANY, second.job))
    (paired, *_) = centre.submit(draft(array_indexes=count, after=both))
    statements = 0

    def counts(*_: object) -> None:
        nonlocal statements
        statements += 1

    sa.event.listen(Engine, "before_cursor_execute", counts)
    centre.ended(first)
    sa.event.remove(Engine, "before_cursor_execute", counts)
    assert statements < 60
    assert centre.state.jobs[alone].waits_for == ()
    assert centre.state.jobs[paired].waits_for == both[1:]
    centre.check()
