"""The order and the bookings, in scenarios, and the order against a naive one that sorts everything anew each time."""

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import cycle, islice
from math import floor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.debt import CREDIT, EPOCH_MS
from scheduler.core.events import AccountChanged, RatesChanged
from scheduler.core.explain import explain
from scheduler.core.model import (
    GPU_UNITS,
    Account,
    AccountId,
    Booking,
    BookingWanted,
    GpuClass,
    Job,
    JobId,
    JobState,
    lineage,
)
from scheduler.core.policy import Policy
from scheduler.core.reasons import ReasonCode
from scheduler.core.state import ClusterState
from tests.builders import account, job, node
from tests.harness import Centre

H100 = GpuClass("H100")
NO_PROMISES = Policy(promised_jobs=0, promise_after_ms=None)


def _bookings(centre: Centre) -> dict[JobId, Booking]:
    return {allocation.job: allocation.booking for allocation in centre.state.allocations.values()}


def _run_one_by_one(centre: Centre, count: int, *, minutes: int = 60) -> list[JobId]:
    """Runs jobs on a centre with room for one at a time, each for so long; returns them in order of start."""
    order = []
    for _ in range(count):
        centre.tick()
        (runs,) = centre.running()
        order.append(runs)
        centre.advance(minutes=minutes)
        centre.end(runs)
    return order


def test_a_tenant_with_much_past_burst_waits_behind_one_with_none() -> None:
    centre = Centre(node(gpus=1))
    centre.submit(job(project="aaa/x"))
    _run_one_by_one(centre, 1, minutes=600)
    rich = centre.submit(job(project="aaa/x"))
    poor = centre.submit(job(project="zzz/x"))
    centre.tick()
    assert centre.running() == {poor}
    assert centre.why(rich) is ReasonCode.CAPACITY


def test_debt_is_forgotten_in_time() -> None:
    centre = Centre(node(gpus=1))
    centre.submit(job(project="aaa/x"))
    _run_one_by_one(centre, 1, minutes=600)
    centre.advance(minutes=60 * 24 * 60)
    centre.submit(job(project="zzz/x"))
    _run_one_by_one(centre, 1, minutes=1)
    both = [centre.submit(job(project="zzz/x")), centre.submit(job(project="aaa/x"))]
    assert _run_one_by_one(centre, 2, minutes=1) == [both[1], both[0]]


def test_equal_tenants_alternate() -> None:
    centre = Centre(node(gpus=1), policy=NO_PROMISES)
    assert _tenants_in_turn(centre) == list(islice(cycle(["a/x", "b/x"]), 10))


def test_equal_tenants_stay_level_where_starts_are_promised_ahead() -> None:
    order = _tenants_in_turn(Centre(node(gpus=1)))
    for count in range(len(order)):
        assert abs(order[:count].count("a/x") - order[:count].count("b/x")) <= 1


def _tenants_in_turn(centre: Centre) -> list[str]:
    project_of = {}
    for _ in range(5):
        for project in ("a/x", "b/x"):
            project_of[centre.submit(job(project=project))] = project
    return [project_of[each] for each in _run_one_by_one(centre, 10)]


def test_weights_of_three_to_one_give_three_to_one_in_time() -> None:
    centre = Centre(node(gpus=1), accounts=(account("a", weight=3), account("b")))
    tenant_of_job = {}
    for _ in range(40):
        for project in ("a/x", "b/x"):
            tenant_of_job[centre.submit(job(project=project))] = project
    order = [tenant_of_job[each] for each in _run_one_by_one(centre, 40, minutes=5)]
    assert abs(order.count("a/x") - 30) <= 1


def test_fairness_holds_between_projects_of_a_tenant_too() -> None:
    centre = Centre(node(gpus=1), accounts=(account("a/x", weight=2), account("a/y")))
    project_of_job = {}
    for _ in range(12):
        for project in ("a/x", "a/y"):
            project_of_job[centre.submit(job(project=project))] = project
    order = [project_of_job[each] for each in _run_one_by_one(centre, 12, minutes=5)]
    assert abs(order.count("a/x") - 8) <= 1


def test_one_tick_shares_a_whole_cluster_out_by_weight() -> None:
    centre = Centre(*(node(f"n{index}") for index in range(4)), accounts=(account("a", weight=3), account("b")))
    for _ in range(40):
        for project in ("a/x", "b/x"):
            centre.submit(job(project=project))
    centre.tick()
    assert centre.state.held_by(AccountId("a"), H100, Booking.BURST) == 24 * GPU_UNITS
    assert centre.state.held_by(AccountId("b"), H100, Booking.BURST) == 8 * GPU_UNITS


def test_a_dearer_class_makes_more_debt() -> None:
    centre = Centre(node(gpus=2), node("n2", gpus=1, gpu_class="A100"))
    centre.apply(RatesChanged(centre.now_ms, {(H100, Booking.BURST): 4 * CREDIT}))
    h100 = centre.submit(job(project="a/x"))
    a100 = centre.submit(job(project="b/x", like=replace(job().shape, gpu_classes=(GpuClass("A100"),))))
    centre.tick()
    centre.advance(minutes=60)
    centre.end(h100)
    centre.end(a100)
    debts = centre.state.usage.debts
    owed = [debts.credits(AccountId(name), centre.now_ms) for name in ("a", "b")]
    assert abs(owed[0] - 4 * owed[1]) <= 4


def test_what_fits_a_guarantee_goes_before_everything_else() -> None:
    centre = Centre(node(gpus=2), accounts=(account("zzz", guarantee=1),))
    centre.submit(job(project="zzz/x", gpus=2))
    _run_one_by_one(centre, 1, minutes=600)
    cheap = [centre.submit(job(project="aaa/x")) for _ in range(2)]
    bought = centre.submit(job(project="zzz/x"))
    centre.tick()
    assert centre.running() == {bought, cheap[0]}
    assert _bookings(centre)[bought] is Booking.GUARANTEED


def test_use_of_what_was_bought_and_spot_make_no_debt() -> None:
    centre = Centre(node(gpus=2), accounts=(account("a", guarantee=1),))
    for wanted in (BookingWanted.GUARANTEED, BookingWanted.SPOT):
        centre.submit(job(project="a/x", wanted=wanted))
    centre.tick()
    centre.advance(minutes=600)
    assert len(centre.running()) == 2
    assert centre.state.usage.debts.credits(AccountId("a"), centre.now_ms) == 0


def test_spot_comes_last_and_alternates_between_tenants() -> None:
    centre = Centre(node(gpus=4))
    spot = {
        project: [centre.submit(job(project=project, wanted=BookingWanted.SPOT)) for _ in range(3)]
        for project in ("a/x", "b/x")
    }
    burst = [centre.submit(job(project="z/x")) for _ in range(2)]
    centre.tick()
    assert centre.running() == {*burst, spot["a/x"][0], spot["b/x"][0]}


def test_jobs_that_accept_only_a_guarantee_come_first_in_it_and_it_is_kept_for_the_first_of_them() -> None:
    centre = Centre(node(gpus=8), accounts=(account("a", guarantee=4),))
    holder = centre.submit(job(project="a/x", gpus=2))
    centre.tick()
    big = centre.submit(job(project="a/x", gpus=4, wanted=BookingWanted.GUARANTEED))
    small = centre.submit(job(project="a/x", gpus=1))
    centre.tick()
    assert _bookings(centre) == {holder: Booking.GUARANTEED, small: Booking.BURST}
    assert centre.why(big) is ReasonCode.GUARANTEE
    centre.end(holder)
    centre.tick()
    assert _bookings(centre) == {big: Booking.GUARANTEED, small: Booking.BURST}


def test_a_guarantee_is_not_kept_for_a_job_that_it_can_never_hold() -> None:
    centre = Centre(node(gpus=8), accounts=(account("a", guarantee=2),))
    never = centre.submit(job(project="a/x", gpus=4, wanted=BookingWanted.GUARANTEED))
    normal = centre.submit(job(project="a/x", gpus=2))
    centre.tick()
    assert _bookings(centre) == {normal: Booking.GUARANTEED}
    assert centre.why(never) is ReasonCode.GUARANTEE


def test_a_burst_gang_is_promoted_when_guarantee_frees_and_stops_making_debt() -> None:
    centre = Centre(node(gpus=8), accounts=(account("a", guarantee=2),))
    first, second = centre.submit(job(project="a/x", gpus=2)), centre.submit(job(project="a/x", gpus=2))
    centre.tick()
    assert _bookings(centre) == {first: Booking.GUARANTEED, second: Booking.BURST}
    centre.advance(minutes=60)
    centre.end(first)
    assert len(centre.tick().promotions) == 1
    assert _bookings(centre) == {second: Booking.GUARANTEED}
    assert centre.state.usage.debts.charge(AccountId("a")) == 0
    owed = centre.state.usage.debts.credits(AccountId("a"), centre.now_ms)
    centre.advance(minutes=60)
    assert centre.state.usage.debts.credits(AccountId("a"), centre.now_ms) < owed


def test_freed_guarantee_goes_by_submit_time_to_pending_jobs_and_running_gangs_alike() -> None:
    centre = Centre(node(gpus=8), accounts=(account("a", guarantee=2, limit=4),))
    holder = centre.submit(job(project="a/x", gpus=2))
    centre.tick()
    pending = centre.submit(job(project="a/x", gpus=3))
    centre.advance(minutes=1)
    burst = centre.submit(job(project="a/x", gpus=1))
    later = centre.submit(job(project="a/x", gpus=1))
    centre.tick()
    assert centre.running() == {holder, burst, later}
    centre.end(holder)
    made = centre.tick()
    assert len(made.promotions) == 2
    assert _bookings(centre) == {burst: Booking.GUARANTEED, later: Booking.GUARANTEED}
    assert centre.why(pending) is ReasonCode.QUOTA_TENANT


def test_a_projects_part_of_the_guarantee_binds_it() -> None:
    centre = Centre(node(gpus=8), accounts=(account("a", guarantee=4), account("a/x", guarantee=1)))
    jobs = [centre.submit(job(project="a/x")) for _ in range(2)]
    other = centre.submit(job(project="a/y", gpus=3))
    centre.tick()
    assert _bookings(centre) == {
        jobs[0]: Booking.GUARANTEED,
        jobs[1]: Booking.BURST,
        other: Booking.GUARANTEED,
    }


def test_guarantees_beyond_what_is_left_shrink_for_new_starts_and_demote_nobody() -> None:
    lost = node("n2", gpus=4)
    centre = Centre(node("n1", gpus=4), lost, accounts=(account("a", guarantee=4), account("b", guarantee=4)))
    runs = centre.submit(job(project="a/x", gpus=4))
    centre.tick()
    assert centre.nodes_of(runs) == ["n1"]
    centre.down(lost)
    centre.tick()
    assert _bookings(centre) == {runs: Booking.GUARANTEED}
    centre.end(runs)
    wide = centre.submit(job(project="a/x", gpus=3))
    centre.tick()
    assert _bookings(centre) == {wide: Booking.BURST}


def test_a_project_may_choose_its_shortest_limits_first_and_long_ones_still_come_up() -> None:
    centre = Centre(node(gpus=1), accounts=(Account(AccountId("a/x"), limit_weight=2),))
    blocker = centre.submit(job(project="a/x", limit_ms=1000))
    centre.tick()
    long = centre.submit(job(project="a/x", limit_ms=3_600_000))
    short = centre.submit(job(project="a/x", limit_ms=60_000))
    centre.advance(minutes=90)
    fresh = centre.submit(job(project="a/x", limit_ms=60_000))
    late = centre.now_ms + 40 * 60_000
    centre.end(blocker)
    assert _run_one_by_one(centre, 2, minutes=1) == [short, fresh]
    centre.now_ms = late
    after = centre.submit(job(project="a/x", limit_ms=60_000))
    assert _run_one_by_one(centre, 2, minutes=1) == [long, after]


@pytest.mark.parametrize("weight", ["limit_weight", "service_weight", "slowdown_weight"])
def test_a_projects_new_order_moves_the_jobs_that_wait(weight: str) -> None:
    centre = Centre(node(gpus=1))
    blocker = centre.submit(job(project="a/x"))
    centre.tick()
    long, short = centre.submit(job(project="a/x")), centre.submit(job(project="a/x", limit_ms=1000))
    terms: dict[str, Any] = {weight: 1}
    centre.apply(AccountChanged(centre.now_ms, Account(AccountId("a/x"), **terms)))
    centre.end(blocker)
    assert _run_one_by_one(centre, 2) == [short, long]


sized = st.tuples(st.integers(1, 4), st.sampled_from([0.5, 1, 2, 7]), st.integers(1, 9), st.integers(0, 1))


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.sampled_from([0, 1, 24])] * 3), st.lists(sized, max_size=9))
def test_a_projects_jobs_go_by_when_they_came_and_by_their_size(
    weights: tuple[int, int, int], wanted: list[tuple[int, float, int, int]]
) -> None:
    """Everything fits, so the order is what the plan starts one after the other; sizes are worked out as decimals."""
    limit, service, slowdown = weights
    terms = Account(AccountId("a/x"), limit_weight=limit, service_weight=service, slowdown_weight=slowdown)
    centre = Centre(*[node(f"n{number}", gpus=8) for number in range(36)], accounts=(terms,))
    naive = []
    for nodes, gpus, hours, priority in wanted:
        limit_ms = hours * 3_600_000 + 1
        asked = job(project="a/x", limit_ms=limit_ms, priority=priority)
        asked = replace(asked, shape=replace(asked.shape, nodes=nodes, gpu_units=int(gpus * GPU_UNITS)))
        total, each_ms = Decimal(nodes) * Decimal(gpus), Decimal(limit_ms)
        size = limit * each_ms + service * each_ms * total + slowdown * floor(each_ms * total.sqrt())
        rank = centre.now_ms + floor(size)
        naive.append((-priority, rank, centre.submit(asked)))
        centre.advance(minutes=30)
    assert [start.job for start in centre.tick().starts] == [job_id for *_, job_id in sorted(naive)]


def test_however_large_a_job_is_it_waits_for_those_alone_that_came_before_its_size_was_worth() -> None:
    """8 GPU hours count as 8 hours of waiting: the two small jobs of each of its first 8 hours pass it."""
    centre = Centre(
        node(gpus=8), accounts=(Account(AccountId("a/x"), service_weight=1),), policy=Policy(promised_jobs=0)
    )
    large = centre.submit(job(project="a/x", gpus=8, limit_ms=3_600_000))
    passed = 0
    while large not in centre.running():
        pair = [centre.submit(job(project="a/x", gpus=5, limit_ms=1)) for _ in range(2)]
        for _ in pair:
            centre.tick()
            (runs,) = centre.running()
            if runs == large:
                break
            passed += 1
            centre.end(runs)
        centre.advance(minutes=60)
    assert passed == 16


def test_a_project_with_an_order_of_its_own_is_served_of_its_tenants_guarantee_as_others_are() -> None:
    sized = Account(AccountId("a/x"), service_weight=24)
    centre = Centre(node(gpus=1), accounts=(account("a", guarantee=1), sized))
    blocker = centre.submit(job(project="b/y"))
    centre.tick()
    long, short = (centre.submit(job(project="a/x", limit_ms=hours * 3_600_000)) for hours in (9, 3))
    centre.advance(minutes=1)
    other = centre.submit(job(project="a/y"))
    centre.end(blocker)
    assert _run_one_by_one(centre, 3) == [short, long, other]


def test_who_is_ahead_is_counted_in_the_order_of_starts() -> None:
    centre = Centre(node(gpus=1), accounts=(account("a", weight=3), account("b")))
    centre.submit(job(project="a/x"))
    centre.tick()
    mine = [centre.submit(job(project="b/x")) for _ in range(2)]
    for _ in range(8):
        centre.submit(job(project="a/x", gpus=1))
    centre.tick()
    assert centre.last is not None
    ahead = [explain(centre.state, centre.last, each) for each in mine]
    assert [each.ahead_jobs for each in ahead] == [2, 6]
    assert [each.position for each in ahead] == [3, 7]
    assert ahead[1].ahead_gpus == 6


jobs_wanted = st.lists(
    st.tuples(
        st.sampled_from(["a/x", "a/y", "b/x", "b/y/u", "b/y/v", "b", "c/x"]),
        st.integers(1, 4),
        st.integers(-1, 1),
        st.integers(0, 3),
        st.integers(0, 9),
    ),
    max_size=30,
)
past = st.lists(st.tuples(st.sampled_from(["a/x", "a/y", "b/x", "b/y/u", "b", "c/x"]), st.integers(1, 99)), max_size=6)


def _naive_order(state: ClusterState, weights: dict[str, int], now_ms: int) -> list[JobId]:
    """The definition, read aloud: at each step weigh every account that has pending jobs, with its next job."""
    debts = state.usage.debts
    pending = [each for each in state.jobs.values() if each.state is JobState.PENDING]
    charged: dict[str, int] = {}
    order: list[JobId] = []

    def owed(name: str) -> int:
        known = AccountId(name)
        return debts.credits(known, now_ms) * GPU_UNITS + (debts.charge(known) + charged.get(name, 0)) * (
            EPOCH_MS // 1000
        )

    def first(name: str, jobs: list[Job]) -> Job:
        below: dict[tuple[str, bool], list[Job]] = {}
        for each in jobs:
            path = [*reversed(lineage(each.account))]
            depth = path.index(AccountId(name)) + 1 if name else 0
            key = (name, True) if depth == len(path) else (str(path[depth]), False)
            below.setdefault(key, []).append(each)
        if list(below) == [(name, True)]:
            return min(jobs, key=lambda each: (-each.priority, each.submitted_ms, each.id))
        ranked = []
        for (child, is_own), theirs in below.items():
            if is_own:
                best = min(theirs, key=lambda each: (-each.priority, each.submitted_ms, each.id))
                others = {str(each) for each in (*debts.values, *charged) if lineage(AccountId(each))[1:2] == (child,)}
                debt = owed(child) - sum(owed(other) for other in others)
            else:
                best, debt = first(child, theirs), owed(child)
            debt += best.shape.total_units * CREDIT * (EPOCH_MS // 1000)
            weight = 1 if is_own else weights.get(child, 1)
            ranked.append((Fraction(debt << 20, weight) // 1, child, is_own, best.id))
        return state.jobs[min(ranked)[3]]

    while pending:
        best = first("", pending)
        pending.remove(best)
        order.append(best.id)
        for name in lineage(best.account):
            charged[name] = charged.get(name, 0) + best.shape.total_units * CREDIT
    return order


@settings(max_examples=100, deadline=None)
@given(past, jobs_wanted, st.dictionaries(st.sampled_from(["a", "b", "a/x", "b/y", "b/y/u"]), st.integers(1, 5)))
def test_the_order_is_what_weighing_everything_anew_each_time_gives(
    used: list[tuple[str, int]], wanted: list[tuple[str, int, int, int, int]], weights: dict[str, int]
) -> None:
    accounts = tuple(Account(AccountId(name), weight) for name, weight in weights.items())
    centre = Centre(*(node(f"n{index:02}", gpus=4) for index in range(36)), accounts=accounts)
    for project, minutes in used:
        runs = centre.submit(job(project=project))
        centre.tick()
        centre.advance(minutes=minutes)
        if minutes % 3:
            centre.end(runs)
    for project, gpus, priority, seconds, _ in wanted:
        centre.advance(seconds=seconds)
        centre.submit(job(project=project, gpus=gpus, priority=priority))
    expected = _naive_order(centre.state, weights, centre.now_ms)
    made = centre.tick()
    assert [start.job for start in made.starts] == expected
