"""Limits of accounts: on GPUs, on running jobs, on what each user holds; in the plan, in demand, in why."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.events import AccountChanged
from scheduler.core.explain import explain
from scheduler.core.model import (
    GPU_UNITS,
    Account,
    AccountId,
    BookingWanted,
    GpuClass,
    JobId,
    JobState,
    UserName,
    lineage,
)
from scheduler.core.policy import Policy
from scheduler.core.reasons import Reason, ReasonCode
from scheduler.core.shares import Shares
from scheduler.core.state import ClusterState
from tests.builders import account, job, node
from tests.harness import Centre

H100 = GpuClass("H100")
NAMES = ("x", "x/p", "x/p/deep", "x/q", "y")
PROJECTS = ("x/p", "x/p/deep", "x/q", "y/p")
USERS = ("ana", "bob")


def _why(centre: Centre, job_id: JobId) -> Reason:
    assert centre.last is not None
    return explain(centre.state, centre.last, job_id).reasons[0]


def test_a_user_holds_at_most_its_own_limit_and_others_go_on() -> None:
    centre = Centre(node(gpus=8), accounts=(account("acme", user_limit=3),))
    first = centre.submit(job(project="acme/nlp", user="mei", gpus=2))
    second = centre.submit(job(project="acme/vision", user="mei", gpus=2))
    others = centre.submit(job(project="acme/nlp", user="jon", gpus=2))
    centre.tick()
    assert centre.running() == {first, others}
    assert _why(centre, second) == Reason(ReasonCode.QUOTA_USER, need=2, free=1, detail="mei in acme")
    centre.end(first)
    centre.tick()
    assert second in centre.running()


@pytest.mark.parametrize(("name", "code"), [("acme", ReasonCode.QUOTA_TENANT), ("acme/nlp", ReasonCode.QUOTA_PROJECT)])
def test_no_more_jobs_run_at_once_than_the_limit_whatever_their_size(name: str, code: ReasonCode) -> None:
    centre = Centre(node(gpus=8), accounts=(account(name, running_limit=2),))
    jobs = [centre.submit(job(gpus=size)) for size in (4, 1, 1)]
    centre.tick()
    assert centre.running() == set(jobs[:2])
    assert _why(centre, jobs[2]) == Reason(code, need=1, free=0, unit="jobs", detail=name)
    centre.cancel(jobs[0])
    centre.tick()
    assert jobs[2] in centre.running()


def test_the_nearest_limit_of_a_deep_tree_is_told() -> None:
    deep = "acme/nlp/team/one/two"
    centre = Centre(node(gpus=8), accounts=(account("acme", limit=2), account("acme/nlp/team", limit=1)))
    waits = centre.submit(job(project=deep, gpus=2))
    centre.tick()
    assert _why(centre, waits) == Reason(ReasonCode.QUOTA_PROJECT, need=2, free=1, detail="acme/nlp/team")


def test_a_limit_per_user_that_comes_and_goes_regroups_what_waits() -> None:
    centre = Centre(node(gpus=2))
    jobs = [centre.submit(job(user=user)) for user in ("mei", "jon", "mei", "jon")]
    assert len(list(centre.state.pending_groups())) == 1
    centre.apply(AccountChanged(centre.now_ms, account("acme", user_limit=1)))
    assert len(list(centre.state.pending_groups())) == 2
    centre.tick()
    assert centre.running() == set(jobs[:2])
    centre.apply(AccountChanged(centre.now_ms, account("acme")))
    assert len(list(centre.state.pending_groups())) == 1


def test_demand_counts_no_more_than_limits_let_start() -> None:
    centre = Centre(
        node(gpus=8),
        accounts=(account("a", running_limit=2), account("b", user_limit=1), account("c/x", running_limit=0)),
    )
    for size in (1, 1, 2):
        centre.submit(job(project="a/x", gpus=size))
    for user in ("mei", "mei", "jon"):
        centre.submit(job(project="b/x", user=user))
    centre.submit(job(project="c/x"))
    shares = Shares(centre.state, centre.now_ms)
    found = {name: shares.demand(AccountId(name), H100) // GPU_UNITS for name in ("a", "b", "c")}
    assert found == {"a": 3, "b": 2, "c": 0}


limits = st.one_of(st.none(), st.integers(0, 5))
terms = st.lists(
    st.tuples(st.sampled_from(NAMES), limits, limits, limits, st.integers(0, 3), st.booleans()), max_size=4
)
actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"),
            st.sampled_from(PROJECTS),
            st.sampled_from(USERS),
            st.integers(1, 3),
            st.sampled_from(BookingWanted),
        ),
        st.tuples(st.just("end"), st.integers(0, 99), st.none(), st.none(), st.none()),
        st.tuples(st.just("cancel"), st.integers(0, 99), st.none(), st.none(), st.none()),
    ),
    max_size=25,
)


def _account(made: tuple[str, int | None, int | None, int | None, int, bool]) -> Account:
    name, limit, user_limit, running_limit, guarantee, suspended = made
    found = account(name, limit=limit, user_limit=user_limit, running_limit=running_limit, guarantee=guarantee)
    return replace(found, is_suspended=suspended)


def _lived(made: list[tuple[str, int | None, int | None, int | None, int, bool]], history: list[tuple]) -> Centre:  # type: ignore[type-arg]  # what Hypothesis draws
    policy = Policy(promised_jobs=0, promise_after_ms=None)
    centre = Centre(node("n1", gpus=4), node("n2", gpus=4), accounts=tuple(map(_account, made)), policy=policy)
    for kind, what, user, size, wanted in history:
        live, running = sorted(centre.state.jobs), sorted(centre.running())
        if kind == "submit":
            centre.submit(job(project=what, user=user, gpus=size, wanted=wanted))
        elif kind == "end" and running:
            centre.end(running[what % len(running)])
        elif kind == "cancel" and live:
            centre.cancel(live[what % len(live)])
        centre.advance(seconds=30)
        centre.tick()  # the harness holds every limit against what is held, after every tick
    return centre


def _naive_block(state: ClusterState, project: AccountId, user: UserName, units: int) -> bool:
    """Whether a limit or a suspension stands in the way, counted from the live allocations by hand."""
    for name in lineage(project):
        known = state.accounts.get(name)
        if known is None:
            continue
        inside = [each for each in state.allocations.values() if name in lineage(each.account)]
        held = sum(each.total_units for each in inside)
        own = sum(each.total_units for each in inside if each.user == user)
        if known.is_suspended or (known.running_limit is not None and len(inside) >= known.running_limit):
            return True
        if held + units > known.limit.get(H100, 10**6) * GPU_UNITS:
            return True
        if own + units > known.user_limit.get(H100, 10**6) * GPU_UNITS:
            return True
    return False


@settings(max_examples=100, deadline=None)
@given(terms, actions)
def test_what_waits_is_blocked_by_a_limit_exactly_where_counting_by_hand_says_so(
    made: list[tuple[str, int | None, int | None, int | None, int, bool]],
    history: list[tuple],  # type: ignore[type-arg]  # what Hypothesis draws
) -> None:
    centre = _lived(made, history)
    quota = {ReasonCode.QUOTA_TENANT, ReasonCode.QUOTA_PROJECT, ReasonCode.QUOTA_USER, ReasonCode.SUSPENDED}
    for waiting in centre.state.jobs.values():
        if waiting.state is not JobState.PENDING:
            continue
        is_blocked = _naive_block(centre.state, waiting.account, waiting.user, waiting.shape.total_units)
        assert (_why(centre, waiting.id).code in quota) == is_blocked
        free = centre.state.capacity_units(H100) - sum(a.total_units for a in centre.state.allocations.values())
        if free == 8 * GPU_UNITS and waiting.wanted is not BookingWanted.GUARANTEED:
            assert is_blocked, "nothing runs and nothing forbids it"


@settings(max_examples=60, deadline=None)
@given(terms, actions, st.sampled_from(NAMES), st.integers(1, 3))
def test_more_weight_or_guarantee_never_lowers_an_accounts_target_under_any_limits(
    made: list[tuple[str, int | None, int | None, int | None, int, bool]],
    history: list[tuple],  # type: ignore[type-arg]  # what Hypothesis draws
    name: str,
    more: int,
) -> None:
    centre = _lived([(*each[:4], 0, each[5]) for each in made], history)
    found = AccountId(name)
    before = Shares(centre.state, centre.now_ms).target(found, H100)
    known = centre.state.accounts.get(found) or account(name)
    centre.apply(AccountChanged(centre.now_ms, replace(known, weight=known.weight + more)))
    assert Shares(centre.state, centre.now_ms).target(found, H100) >= before - GPU_UNITS
    known = centre.state.accounts[found]
    centre.apply(AccountChanged(centre.now_ms, replace(known, guarantee={H100: more})))
    assert Shares(centre.state, centre.now_ms).target(found, H100) >= before - GPU_UNITS
