"""Targets: conserved at every level, monotone, and by the book in small cases."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.events import AccountChanged
from scheduler.core.model import (
    GPU_UNITS,
    ROOT_ACCOUNT,
    Account,
    AccountId,
    Booking,
    BookingWanted,
    GpuClass,
    Job,
    JobState,
    NodeAvailability,
    lineage,
)
from scheduler.core.shares import Shares
from scheduler.core.state import ClusterState
from tests.builders import account, job, node, shape
from tests.harness import Centre

H100 = GpuClass("H100")


def _targets(centre: Centre) -> dict[str, float]:
    shares = Shares(centre.state, centre.now_ms)
    return {name: units / GPU_UNITS for name, units in shares.targets(H100).items()}


def _submit(centre: Centre, project: str, count: int, wanted: BookingWanted = BookingWanted.AUTO) -> None:
    for _ in range(count):
        centre.submit(job(project=project, wanted=wanted))


def test_a_target_is_the_guarantee_and_a_weighted_part_of_the_rest() -> None:
    centre = Centre(node(gpus=10), accounts=(account("a", guarantee=4), account("b", weight=2)))
    _submit(centre, "a/x", 20)
    _submit(centre, "b/x", 20)
    assert _targets(centre) == {"a": 6, "a/x": 6, "b": 4, "b/x": 4}


def test_who_wants_less_than_its_part_leaves_the_rest_to_the_others() -> None:
    centre = Centre(node(gpus=10), accounts=(account("a", limit=2),))
    _submit(centre, "a/x", 20)
    _submit(centre, "b/x", 1)
    _submit(centre, "c/x", 20)
    assert _targets(centre) == {"a": 2, "a/x": 2, "b": 1, "b/x": 1, "c": 7, "c/x": 7}


def test_projects_divide_their_tenants_target_and_its_guarantee() -> None:
    centre = Centre(node(gpus=12), accounts=(account("a", guarantee=6), account("a/x", guarantee=4)))
    for project in ("a/x", "a/y", "b/x"):
        _submit(centre, project, 20)
    assert _targets(centre) == {"a": 9, "a/x": 7, "a/y": 2, "b": 3, "b/x": 3}


def test_debt_lowers_a_target() -> None:
    centre = Centre(*(node(f"n{index}") for index in range(4)))
    runs = centre.submit(job(project="a/x", gpus=8, nodes=4))
    centre.tick()
    centre.advance(minutes=600)
    centre.end(runs)
    centre.advance(minutes=10)
    _submit(centre, "a/x", 40)
    _submit(centre, "b/x", 40)
    owing = _targets(centre)
    assert owing["a"] == 6  # at twice the mean: a quarter of its weight against a whole one
    for name in ("c/x", "d/x", "e/x", "f/x", "g/x", "h/x"):
        _submit(centre, name, 40)
    assert _targets(centre)["a"] == 0  # at eight times the mean: a sixteenth of its weight against seven whole ones
    assert _targets(centre)["b"] == 5


def test_what_nothing_could_start_is_no_demand() -> None:
    centre = Centre(node(gpus=4), accounts=(account("suspended"), account("bought", guarantee=1)))
    centre.apply(AccountChanged(centre.now_ms, Account(AccountId("suspended"), is_suspended=True)))
    _submit(centre, "suspended/x", 3)
    centre.submit(job(project="absent/x", like=shape(gpu_class="B200")))
    centre.submit(job(project="wide/x", gpus=8))
    centre.submit(job(project="early/x", begin_ms=centre.now_ms + 1))
    centre.submit(job(project="spot/x", wanted=BookingWanted.SPOT))
    held = centre.submit(job(project="held/x"))
    centre.hold(held)
    _submit(centre, "bought/x", 3, wanted=BookingWanted.GUARANTEED)
    shares = Shares(centre.state, centre.now_ms)
    assert {name for name in shares.targets(H100) if shares.demand(name, H100)} == {"bought", "bought/x"}
    assert _targets(centre)["bought"] == 1


def test_demand_comes_and_goes_with_the_nodes_that_could_serve_it() -> None:
    large = node("large", gpus=8)
    centre = Centre(node("small", gpus=2), large)
    centre.submit(job(project="a/x", gpus=8))
    both = replace(shape(), gpu_classes=(GpuClass("B200"), H100))
    centre.submit(job(project="b/x", like=both))
    assert _targets(centre) == {"a": 8, "a/x": 8, "b": 1, "b/x": 1}
    centre.down(large)
    assert _targets(centre) == {"b": 1, "b/x": 1}
    centre.node(node("new", gpus=1, gpu_class="B200"))
    assert _targets(centre) == {}


def test_draining_gpus_that_a_job_still_holds_are_capacity_until_it_ends() -> None:
    draining = node("n1", gpus=4)
    centre = Centre(draining, node("n2", gpus=4))
    runs = centre.submit(job(project="a/x", gpus=3))
    centre.tick()
    assert centre.nodes_of(runs) == ["n1"]
    leaving = replace(draining, node=replace(draining.node, availability=NodeAvailability.DRAINING))
    centre.node(leaving)
    assert centre.state.capacity_units(H100) == 7 * GPU_UNITS
    centre.end(runs)
    assert centre.state.capacity_units(H100) == 4 * GPU_UNITS


def test_shares_of_a_gpu_are_divided_to_the_unit() -> None:
    centre = Centre(node(gpus=1))
    for project in ("a/x", "b/x"):
        centre.submit(job(project=project, like=shape(share=75)))
    targets = Shares(centre.state, centre.now_ms).targets(H100)
    parts = [targets[AccountId(name)] for name in ("a", "b")]
    assert sum(parts) == GPU_UNITS
    assert max(parts) <= GPU_UNITS * 3 // 4


def test_standings_say_what_the_shares_say() -> None:
    centre = Centre(node(gpus=4), accounts=(account("a", guarantee=1, limit=3),))
    _submit(centre, "a/x", 5)
    centre.tick()
    _submit(centre, "b/x", 5)
    shares = Shares(centre.state, centre.now_ms)
    found = {each.account: each for each in shares.standings()}
    assert (found[AccountId("a")].guarantee, found[AccountId("a")].limit) == (GPU_UNITS, 3 * GPU_UNITS)
    assert found[AccountId("a")].held == 3 * GPU_UNITS
    for name, standing in found.items():
        assert standing.target == shares.target(name, H100)
        assert standing.is_over_target == shares.is_over(name, H100)


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"),
            st.sampled_from(["x/p", "x/q", "y/p", "y", "z/p/u", "z/p/v"]),
            st.integers(1, 4),
            st.sampled_from([BookingWanted.AUTO, BookingWanted.AUTO, BookingWanted.GUARANTEED, BookingWanted.SPOT]),
        ),
        st.tuples(st.just("share"), st.sampled_from(["x/p", "y/p"]), st.integers(1, 99), st.none()),
        st.tuples(st.just("end"), st.just(""), st.integers(0, 9), st.none()),
        st.tuples(st.just("lose"), st.just(""), st.integers(0, 2), st.none()),
        st.tuples(st.just("mend"), st.just(""), st.integers(0, 2), st.none()),
        st.tuples(st.just("suspend"), st.sampled_from(["x/q", "z"]), st.just(0), st.none()),
    ),
    max_size=25,
)
Steps = list[tuple[str, str, int, BookingWanted | None]]


def _play(history: Steps, *, is_checked: bool = False) -> Centre:
    inventory = [node("n0", gpus=4), node("n1", gpus=3), node("n2", gpus=2)]
    accounts = (
        account("x", weight=2, guarantee=3, limit=6),
        account("x/p", guarantee=2, limit=5),
        account("y", guarantee=2),
        account("z", limit=4),
    )
    centre = Centre(*inventory, accounts=accounts)
    for kind, project, number, wanted in history:
        running = sorted(centre.running())
        if kind == "submit" and wanted is not None:
            centre.submit(job(project=project, gpus=number, wanted=wanted))
        elif kind == "share":
            centre.submit(job(project=project, like=shape(share=number)))
        elif kind == "end" and running:
            centre.end(running[number % len(running)])
        elif kind == "lose":
            centre.down(inventory[number])
        elif kind == "mend":
            centre.node(inventory[number])
        elif kind == "suspend":
            terms = centre.state.accounts.get(AccountId(project)) or Account(AccountId(project))
            centre.apply(AccountChanged(centre.now_ms, replace(terms, is_suspended=not terms.is_suspended)))
        centre.advance(minutes=7)
        if is_checked:
            _tick_checked(centre)
        else:
            centre.tick()
    return centre


@settings(max_examples=80, deadline=None)
@given(steps)
def test_targets_sum_to_what_there_is_or_is_wanted_at_every_level(history: Steps) -> None:
    centre = _play(history)
    shares = Shares(centre.state, centre.now_ms)
    targets = shares.targets(H100)
    levels: dict[AccountId, list[AccountId]] = {}
    for name in targets:
        path = lineage(name)
        levels.setdefault(path[1] if len(path) > 1 else ROOT_ACCOUNT, []).append(name)
    for parent, names in levels.items():
        total = sum(targets[name] for name in names)
        wanted = sum(shares.demand(name, H100) for name in names)
        if parent == ROOT_ACCOUNT:
            assert total == min(centre.state.capacity_units(H100), wanted)
        else:
            own = targets[parent] - total  # what jobs of the account itself get, beside those below it
            assert own >= 0
            assert own == 0 or parent == AccountId("y")
        for name in names:
            assert 0 <= targets[name] <= shares.demand(name, H100)


@settings(max_examples=60, deadline=None)
@given(steps, st.sampled_from(["x", "y", "z", "x/p"]), st.sampled_from(["weight", "guarantee"]))
def test_more_weight_or_guarantee_never_lowers_an_accounts_own_target(history: Steps, name: str, what: str) -> None:
    centre = _play(history)
    account_id = AccountId(name)
    before = Shares(centre.state, centre.now_ms).target(account_id, H100)
    terms = centre.state.accounts[account_id]
    if what == "weight":
        more = replace(terms, weight=terms.weight + 2)
    else:
        more = replace(terms, guarantee={H100: terms.guarantee.get(H100, 0) + 2})
    centre.apply(AccountChanged(centre.now_ms, more))
    assert Shares(centre.state, centre.now_ms).target(account_id, H100) >= before - GPU_UNITS


@settings(max_examples=60, deadline=None)
@given(steps, st.sampled_from(["x", "y", "z"]))
def test_less_debt_never_lowers_an_accounts_own_target(history: Steps, name: str) -> None:
    centre = _play(history)
    account_id = AccountId(name)
    before = Shares(centre.state, centre.now_ms).target(account_id, H100)
    centre.state.usage.debts.values.pop(account_id, None)
    assert Shares(centre.state, centre.now_ms).target(account_id, H100) >= before - GPU_UNITS


def _tick_checked(centre: Centre) -> None:
    """One tick with guarantees checked before and after: nobody demoted, nothing beyond, nothing withheld."""
    guaranteed = {each.id for each in centre.state.allocations.values() if each.booking is Booking.GUARANTEED}
    held_before = {name: _guaranteed_units(centre.state, name) for name in ("x", "y", "x/p")}
    centre.tick()
    for each in guaranteed:
        assert centre.state.allocations[each].booking is Booking.GUARANTEED, "a guaranteed gang is never demoted"
    for name, before in held_before.items():
        bought = centre.state.accounts[AccountId(name)].guarantee[H100] * GPU_UNITS
        held = _guaranteed_units(centre.state, name)
        assert held <= max(bought, before), "a start or a promotion goes beyond its guarantee"
    for waiting in centre.state.jobs.values():
        assert not _is_withheld(centre, waiting), f"{waiting} fits its guarantee and free GPUs, and waits"


def _guaranteed_units(state: ClusterState, name: str) -> int:
    return state.held_by(AccountId(name), H100, Booking.GUARANTEED)


def _is_withheld(centre: Centre, waiting: Job) -> bool:
    """Whether a pending job fits the guarantee that is left, beside what is kept for stricter ones, and a free node."""
    state = centre.state
    if waiting.state is not JobState.PENDING or waiting.wanted is BookingWanted.SPOT or waiting.shape.is_share:
        return False
    if (waiting.begin_ms or 0) > centre.now_ms:
        return False
    path = lineage(waiting.account)
    terms = [state.accounts[name] for name in path if name in state.accounts]
    units = waiting.shape.total_units
    if any(each.is_suspended for each in terms) or not terms or H100 not in terms[-1].guarantee:
        return False
    others = [
        each.shape.total_units
        for each in state.jobs.values()
        if each.state is JobState.PENDING and each.wanted is BookingWanted.GUARANTEED and each.id != waiting.id
    ]
    kept = sum(others)  # no more than this can be kept for jobs that are stricter
    shrunk = sum(bought for bought in state.guarantees[H100].values()) > state.capacity_units(H100)
    for each in terms:
        total = state.held_by(each.id, H100, *Booking)
        if H100 in each.limit and total + units > each.limit[H100] * GPU_UNITS:
            return False
        if H100 in each.guarantee:
            left = each.guarantee[H100] * GPU_UNITS - _guaranteed_units(state, each.id) - kept
            if shrunk or units > left:
                return False
    return any(len(room.free) >= waiting.shape.gpus_per_node for room in state.capacity.rooms.values())


@settings(max_examples=80, deadline=None)
@given(steps)
def test_guarantees_are_safe_and_live_without_preemption(history: Steps) -> None:
    _play(history, is_checked=True)


def test_lost_capacity_never_ends_with_a_target_beyond_it() -> None:
    lost = node("n1", gpus=4)
    centre = Centre(node("n0", gpus=4), lost, accounts=(account("a", guarantee=4), account("b", guarantee=4)))
    for project in ("a/x", "b/x"):
        _submit(centre, project, 4)
    centre.tick()
    assert _targets(centre)["a"] == _targets(centre)["b"] == 4
    centre.down(lost)
    for each in sorted(centre.running()):
        assert centre.state.jobs[each].state is JobState.RUNNING
    centre.advance(minutes=30)
    centre.tick()
    targets = _targets(centre)
    assert targets["a"] + targets["b"] == 4
    over = Shares(centre.state, centre.now_ms)
    assert sum(over.is_over(AccountId(name), H100) for name in ("a", "b")) == 1
