"""Every blocker is named: out of the way, all of them, the job starts in the next tick; with one left, it does not.

The naive side takes out of the way exactly what is named, by the events that a person's command would make, and knows
nothing of how blockers are found.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduler.core import events
from scheduler.core.explain import explain
from scheduler.core.model import (
    GPU_UNITS,
    AccountId,
    Booking,
    BookingWanted,
    Dependency,
    DependencyKind,
    EndReason,
    GpuClass,
    HoldKind,
    Job,
    JobId,
    JobState,
    NodeAvailability,
    NodeName,
)
from scheduler.core.policy import Policy, Preemption
from scheduler.core.reasons import Reason, ReasonCode
from scheduler.core.stretch import AdvanceReservation, ReservationId
from scheduler.executor import NodeInventory
from tests.builders import HOUR_MS, account, job, node, shape
from tests.harness import Centre

H100, A100 = GpuClass("H100"), GpuClass("A100")
POLICY = Policy(preemption=Preemption.OFF, promise_after_ms=None)
ARRAY = JobId(900)
X, OWN = AccountId("x"), AccountId("x/p")
UNIT_NAMES = ("x", "x/p", "x/q", "y", "y/r")


@dataclass(frozen=True)
class Scene:
    """What is there before the job, the job, and what is then put in its way."""

    nodes: int
    before: tuple[tuple[str, int, int, BookingWanted], ...]
    gpus: int
    count: int
    wanted: BookingWanted
    classes: int
    limit_hours: int
    is_choosy: bool
    guarantee: int
    in_the_way: tuple[str, ...]


BLOCKS = (
    *("hold", "admin hold", "begin", "dependency", "array", "suspended tenant", "suspended project"),
    *("tenant limit", "project limit", "running limit", "user limit", "budget", "tenant budget"),
    *("closed pool", "down node", "drained node", "reservation"),
)
scenes = st.builds(
    Scene,
    st.integers(1, 3),
    st.lists(
        st.tuples(
            st.sampled_from(("x/p", "x/q", "y/r")),
            st.integers(1, 8),
            st.integers(1, 3),
            st.sampled_from(list(BookingWanted)),
        ),
        max_size=7,
    ).map(tuple),
    st.integers(1, 8),
    st.integers(1, 2),
    st.sampled_from(list(BookingWanted)),
    st.integers(1, 2),
    st.sampled_from((1, 5)),
    st.booleans(),
    st.sampled_from((0, 0, 8)),
    st.lists(st.sampled_from(BLOCKS), max_size=5, unique=True).map(tuple),
)


class Way:
    """A scene played on the real state and planner, and the naive ways of taking blockers out of it."""

    def __init__(self, scene: Scene) -> None:
        self.inventory = [node(f"n{i}", pool="a", labels={"zone": "1"} if i else {}) for i in range(scene.nodes)]
        self.inventory += [node("o0", gpu_class="A100", pool="b")]
        terms = tuple(account(name, guarantee=scene.guarantee if name == "x" else 0) for name in UNIT_NAMES)
        self.centre = Centre(*self.inventory, accounts=terms, policy=POLICY)
        for project, gpus, count, wanted in scene.before:
            self.centre.submit(job(gpus=gpus, nodes=count, project=project, wanted=wanted, user="li"))
            self.centre.tick()
        asked = shape(gpus=scene.gpus, nodes=scene.count)
        if scene.classes == 2:
            asked = replace(asked, gpu_classes=(H100, A100))
        if scene.is_choosy:
            asked = replace(asked, constraints=(("zone", "1"),))
        is_capped = "array" in scene.in_the_way
        capped: dict[str, Any] = {"array": ARRAY, "array_index": 5, "array_cap": 1} if is_capped else {}
        plain = job(like=asked, project=OWN, wanted=scene.wanted, limit_ms=scene.limit_hours * HOUR_MS)
        if capped:
            for index in range(2):
                sibling = replace(plain, **{**capped, "array_index": index})
                self.centre.submit(sibling)
        self.job = self.centre.submit(replace(plain, **capped))
        for block in scene.in_the_way:
            self._put(block)
        self.centre.tick()

    @property
    def has_started(self) -> bool:
        return self.centre.state.jobs[self.job].allocation is not None

    def named(self) -> tuple[Reason, ...]:
        assert self.centre.last is not None
        return explain(self.centre.state, self.centre.last, self.job).reasons

    # ---- what is put in its way ------------------------------------------------------------------------------------

    def _put(self, block: str) -> None:
        centre, now_ms, own = self.centre, self.centre.now_ms, OWN if "project" in block or block == "budget" else X
        ways: dict[str, Callable[[], None]] = {
            "hold": lambda: centre.hold(self.job),
            "admin hold": lambda: centre.hold(self.job, HoldKind.ADMIN),
            "begin": lambda: self._change(begin_ms=now_ms + HOUR_MS),
            "dependency": lambda: self._change(waits_for=(Dependency(DependencyKind.AFTEROK, JobId(500)),)),
            "array": lambda: None,
            "suspended tenant": lambda: self._terms(own, is_suspended=True),
            "suspended project": lambda: self._terms(own, is_suspended=True),
            "tenant limit": lambda: self._limit(own),
            "project limit": lambda: self._limit(own),
            "running limit": lambda: self._terms(own, running_limit=centre.state.usage.gangs[X]),
            "user limit": self._limit_users,
            "budget": lambda: self._spend(own),
            "tenant budget": lambda: self._spend(own),
            "closed pool": lambda: centre.pool("a", closed=True),
            "down node": lambda: centre.down(self.inventory[0]),
            "drained node": lambda: self._set_node(self.inventory[0], NodeAvailability.DRAINING),
            "reservation": self._reserve,
        }
        ways[block]()

    def _limit(self, name: AccountId) -> None:
        held = {each: self.centre.state.held_by(name, each, *Booking) // GPU_UNITS for each in (H100, A100)}
        self._terms(name, limit={H100: held[H100] + 2, A100: held[A100]})

    def _limit_users(self) -> None:
        gangs = [each for each in self.centre.state.allocations.values() if each.account == OWN]
        held = {h: sum(a.total_units for a in gangs if a.gpu_class == h) // GPU_UNITS for h in (H100, A100)}
        self._terms(OWN, user_limit={H100: held[H100] + 1, A100: held[A100]})
        self._price()  # its line is another now

    def _spend(self, name: AccountId) -> None:
        self.centre.apply(events.HeadroomChanged(self.centre.now_ms, name, 5))
        self._price()

    def _price(self) -> None:
        """What the store says when a start is tried that there is no money for."""
        for gpu_class in self.centre.state.jobs[self.job].shape.gpu_classes:
            for booking in Booking:
                self.centre.apply(events.HoldPriced(self.centre.now_ms, self.job, gpu_class, booking, 10))

    def _reserve(self) -> None:
        soon_ms = self.centre.now_ms + 2 * HOUR_MS
        kept = AdvanceReservation(ReservationId("kept"), soon_ms, soon_ms + HOUR_MS, (NodeName("n0"),))
        self.centre.apply(events.ReservationMade(self.centre.now_ms, kept))

    def _set_node(self, found: NodeInventory, availability: NodeAvailability) -> None:
        self.centre.node(replace(found, node=replace(found.node, availability=availability)))

    def _change(self, **changes: Any) -> None:
        changed = replace(self.centre.state.jobs[self.job], **changes)
        self.centre.apply(events.JobChanged(self.centre.now_ms, changed))

    def _terms(self, name: str, **changes: Any) -> None:
        changed = replace(self.centre.state.accounts[AccountId(name)], **changes)
        self.centre.apply(events.AccountChanged(self.centre.now_ms, changed))

    # ---- what takes it out of the way ------------------------------------------------------------------------------

    def remove(self, reason: Reason) -> None:
        code, centre, whose = reason.code, self.centre, AccountId(str(reason.detail))
        free_limit: dict[str, Any] = {"running_limit": None} if reason.unit == "jobs" else {"limit": {}}
        ways: dict[ReasonCode, Callable[[], None]] = {
            ReasonCode.HELD_USER: lambda: centre.release(self.job),
            ReasonCode.HELD_ADMIN: lambda: centre.release(self.job),
            ReasonCode.BEGIN_TIME: lambda: self._change(begin_ms=None),
            ReasonCode.BACKOFF: lambda: self._change(begin_ms=None),
            ReasonCode.DEPENDENCY: lambda: self._change(waits_for=()),
            ReasonCode.ARRAY_LIMIT: lambda: self._cancel(lambda other: other.array == ARRAY),
            ReasonCode.SUSPENDED: lambda: self._terms(whose, is_suspended=False),
            ReasonCode.QUOTA_TENANT: lambda: self._terms(whose, **free_limit),
            ReasonCode.QUOTA_PROJECT: lambda: self._terms(whose, **free_limit),
            ReasonCode.QUOTA_USER: lambda: self._free_users(whose.partition(" in ")[2]),
            ReasonCode.BUDGET: lambda: centre.apply(events.HeadroomChanged(centre.now_ms, whose, None)),
            ReasonCode.GUARANTEE: self._buy,
            ReasonCode.POOL_CLOSED: lambda: centre.pool("a", closed=False),
            ReasonCode.NODES_DOWN: self._raise_nodes,
            ReasonCode.CONSTRAINT: self._add_nodes,
            ReasonCode.CAPACITY: self._end_all,
            ReasonCode.FRAGMENTATION: self._end_all,
            ReasonCode.RESERVATION: self._free_promises,
            ReasonCode.ORDER: lambda: self._cancel(lambda other: other.state is JobState.PENDING),
        }
        ways[code]()

    def _free_users(self, name: str) -> None:
        self._terms(name, user_limit={})
        self._price()

    def _buy(self) -> None:
        whole = {each: self.centre.state.capacity_units(each) // GPU_UNITS for each in (H100, A100)}
        self._terms(X, guarantee=whole)

    def _end_all(self) -> None:
        for allocation in list(self.centre.state.allocations.values()):
            self.centre.end(allocation.job, EndReason.CANCELLED)

    def _free_promises(self) -> None:
        for kept in list(self.centre.state.advance):
            self.centre.apply(events.ReservationRemoved(self.centre.now_ms, kept))
        self._cancel(lambda other: other.id in self.centre.state.reservations)

    def _raise_nodes(self) -> None:
        for found in self.inventory:
            self._set_node(found, NodeAvailability.UP)
        self._add_nodes()

    def _add_nodes(self) -> None:
        """Brings nodes that the job can use, where there are not as many as it asks for."""
        asked = self.centre.state.jobs[self.job].shape
        matching = [each.node for each in self.inventory if not asked.constraints or each.node.labels]
        for index in range(asked.nodes - sum(each.gpu_class == H100 for each in matching)):
            self.centre.node(node(f"z{index}", pool="a", labels={"zone": "1"}))

    def _cancel(self, is_meant: Callable[[Job], bool]) -> None:
        for other in list(self.centre.state.jobs.values()):
            if other.id != self.job and is_meant(other):
                self.centre.cancel(other.id)


@settings(max_examples=70, deadline=None)
@given(scenes)
@example(  # a limit per user keeps another of its project, until the gang ends that counts against it and is in its way
    Scene(
        1,
        (("x/p", 8, 1, BookingWanted.SPOT), ("x/p", 8, 1, BookingWanted.AUTO)),
        8,
        1,
        BookingWanted.AUTO,
        1,
        5,
        False,
        0,
        ("user limit", "hold"),
    )
)
def test_with_all_named_blockers_out_of_the_way_the_job_starts_in_the_next_tick(scene: Scene) -> None:
    way = Way(scene)
    if way.has_started:
        return
    named = way.named()
    assert named, "a job that waits has a reason"
    for reason in named:
        way.remove(reason)
    way.centre.tick()
    assert way.has_started, f"{[str(each.code) for each in named]} are gone, and it waits: {way.named()}"


_NO_ROOM = {ReasonCode.CAPACITY, ReasonCode.FRAGMENTATION}
_SHARED = {ReasonCode.ORDER, ReasonCode.RESERVATION, ReasonCode.ARRAY_LIMIT, ReasonCode.GUARANTEE}
"""What others bring about who are out of the way when something else is: alone they need not hold."""


@settings(max_examples=40, deadline=None)
@given(scenes, st.integers(0, 20))
@example(Scene(1, (), 5, 1, BookingWanted.AUTO, 1, 1, False, 0, ("array",)), 1)
def test_each_named_blocker_alone_would_keep_the_job_waiting(scene: Scene, spared: int) -> None:
    way = Way(replace(scene, classes=1))
    if way.has_started:
        return
    named = list(way.named())
    kept = named[spared % len(named)]
    # Gangs that end to make room count no more against a limit either.
    is_freed = kept.code.startswith("quota") and any(each.code in _NO_ROOM for each in named)
    # And elements of its array that are out of the way leave their GPUs.
    is_freed |= kept.code in _NO_ROOM and any(each.code is ReasonCode.ARRAY_LIMIT for each in named)
    if kept.code in _SHARED or is_freed:
        return
    for reason in named:
        if reason is not kept:
            way.remove(reason)
    way.centre.tick()
    assert not way.has_started, f"{kept.code} was named beside {[str(each.code) for each in named]} and stops nothing"
    codes = {each.code for each in way.named()}
    assert kept.code in codes or (kept.code in _NO_ROOM and codes & _NO_ROOM)
