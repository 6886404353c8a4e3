"""Guaranteed gangs give way to higher priority of their own project where their tenant says so, and nowhere else."""

from dataclasses import replace
from itertools import combinations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduler.core import events
from scheduler.core.cycle import plan
from scheduler.core.model import (
    GPU_UNITS,
    Account,
    AccountId,
    Allocation,
    AllocationId,
    Booking,
    BookingWanted,
    GpuClass,
    Job,
    JobId,
    lineage,
)
from scheduler.core.openings import Openings
from scheduler.core.policy import Policy, Preemption
from scheduler.core.reasons import ReasonCode
from scheduler.core.stretch import Claim
from tests.builders import account, job, node
from tests.harness import Centre

H100 = GpuClass("H100")
ONLY = BookingWanted.GUARANTEED


def _yielding(name: str, guarantee: int = 0, limit: int | None = None) -> Account:
    return replace(account(name, guarantee=guarantee, limit=limit), guaranteed_yields=True)


def _full_of_low(*terms: Account, policy: Policy | None = None) -> tuple[Centre, JobId]:
    """A node whose eight GPUs a guaranteed gang of low priority has held for longer than the minimum run time."""
    centre = Centre(node("n1"), accounts=terms, policy=policy)
    low = centre.submit(job(gpus=8, project="red/a", priority=-1))
    centre.tick()
    centre.advance(minutes=11)
    return centre, low


def test_the_guarantee_goes_over_with_the_place_and_never_comes_back_by_force() -> None:
    for wanted in (BookingWanted.AUTO, ONLY):
        centre, low = _full_of_low(_yielding("red", guarantee=8, limit=8))
        high = centre.submit(job(gpus=8, project="red/a", wanted=wanted))
        [stop] = centre.tick().stops
        assert centre.state.allocations[stop.allocation].job == low
        assert centre.why(high) is ReasonCode.PREEMPTING
        centre.settle()
        assert centre.running() == {high}
        assert centre.state.held_by(AccountId("red"), H100, Booking.GUARANTEED) == 8 * GPU_UNITS
        centre.advance(minutes=11)
        centre.settle()
        assert centre.running() == {high}, "the victim does not take its place back"
        centre.end(high)
        centre.settle()
        assert centre.running() == {low}


def test_a_project_says_it_for_itself_and_what_is_said_above_holds_for_all_below() -> None:
    for project, stops in (("red/a", 1), ("red/b", 0)):
        centre, _ = _full_of_low(account("red", guarantee=8), _yielding("red/a"))
        centre.submit(job(gpus=8, project=project, wanted=ONLY))
        assert len(centre.tick().stops) == stops, "another project's priority counts for nothing"
    centre, _ = _full_of_low(account("red", guarantee=8))
    centre.submit(job(gpus=8, project="red/a", priority=1, wanted=ONLY))
    assert not centre.tick().stops, "nobody said so"
    assert centre.why(JobId(2)) is ReasonCode.GUARANTEE


def test_the_guards_of_priority_bind_it() -> None:
    for minutes, policy, stops in (
        (0, Policy(), 1),
        (0, Policy(preemption=Preemption.GUARANTEE), 0),
        (0, Policy(min_run_ms=3_600_000), 0),
        (0, Policy(most_evictions=0), 0),
    ):
        centre, _ = _full_of_low(_yielding("red", guarantee=8), policy=policy)
        centre.advance(minutes=minutes)
        centre.submit(job(gpus=8, project="red/a"))
        assert len(centre.tick().stops) == stops


def test_a_gang_larger_than_its_guarantee_takes_no_guaranteed_place() -> None:
    centre = Centre(node("n1"), accounts=(_yielding("red", guarantee=4),))
    centre.submit(job(gpus=4, project="red/a", priority=-1, wanted=ONLY))
    centre.tick()
    centre.advance(minutes=11)
    centre.submit(job(gpus=8, project="red/a", priority=1))
    assert not centre.tick().stops


def test_whoever_is_no_longer_allowed_to_gives_its_claim_up_only_with_its_guarantee() -> None:
    centre, low = _full_of_low(_yielding("red", guarantee=8))
    high = centre.submit(job(gpus=8, project="red/a"))
    centre.tick()
    assert not centre.tick().lapses, "the victim still holds the guarantee, and gives it up"
    centre.apply(events.AccountChanged(centre.now_ms, _yielding("red", guarantee=4)))
    assert [lapse.job for lapse in centre.tick().lapses] == [high]
    assert low in centre.state.jobs


# ---- properties ----------------------------------------------------------------------------------------------------

PROJECTS = ("red/a", "red/b", "blue/a")
wanteds = st.sampled_from((BookingWanted.AUTO, BookingWanted.AUTO, ONLY, BookingWanted.SPOT))
often_red = st.sampled_from(("red/a", "red/a", "red/a", *PROJECTS))
gangs = st.tuples(often_red, st.integers(1, 3), st.integers(1, 2), wanteds, st.sampled_from((-1, 0, 0, 1)))
asks = st.tuples(often_red, st.integers(1, 4), st.integers(1, 2), wanteds, st.sampled_from((1, 1, 0)))
sizes = st.lists(st.integers(2, 4), min_size=1, max_size=3)
Gang = tuple[str, int, int, BookingWanted, int]
kinds = st.sampled_from(("red", "red/a", "blue/a"))


def _centre(gpus: list[int], running: list[Gang], whose: str, bought: int, limit: int | None) -> Centre:
    terms = {
        "red": account("red", guarantee=min(bought, sum(gpus)), limit=None if limit is None else bought + limit),
        "red/a": account("red/a"),
        "blue": account("blue", guarantee=min(2, max(0, sum(gpus) - bought))),
        "blue/a": account("blue/a"),
    }
    if whose in terms:
        terms[whose] = replace(terms[whose], guaranteed_yields=True)
    centre = Centre(*(node(f"n{i}", gpus=count) for i, count in enumerate(gpus)), accounts=tuple(terms.values()))
    for project, size, count, wanted, priority in running:
        centre.submit(job(gpus=size, nodes=count, project=project, wanted=wanted, priority=priority))
    centre.tick()
    for each in list(centre.state.jobs.values()):
        if each.allocation is None:
            centre.cancel(each.id)
    centre.advance(minutes=11)
    return centre


def _yields(centre: Centre, project: AccountId) -> bool:
    known = centre.state.accounts
    return any(name in known and known[name].guaranteed_yields for name in lineage(project))


def _check_rule(centre: Centre, claim: Claim, gangs: dict[AllocationId, Allocation]) -> None:
    jobs = centre.state.jobs
    for gang in (gangs[each] for each in claim.victims):
        if gang.booking is Booking.GUARANTEED:
            assert _yields(centre, claim.account), "nobody said that guaranteed gangs give way"
            assert gang.account == claim.account
            assert jobs[gang.job].priority < jobs[claim.job].priority
            assert claim.booking is Booking.GUARANTEED, "the guarantee goes over"


def _guarantee_free(centre: Centre, gone: list[Allocation]) -> int:
    """Units of red's guarantee that are free with some gangs gone, counted by hand."""
    ids = {each.id for each in gone}
    held = sum(
        gang.total_units
        for gang in centre.state.allocations.values()
        if gang.booking is Booking.GUARANTEED and "red" in lineage(gang.account) and gang.id not in ids
    )
    return centre.state.accounts[AccountId("red")].guarantee.get(H100, 0) * GPU_UNITS - held


def _would_do(centre: Centre, asked: Job, gone: list[Allocation]) -> bool:
    openings = Openings(centre.state, asked.shape, H100, lambda _room, _device: True)
    for gang in gone:
        openings.evict(gang)
    limit = centre.state.accounts[AccountId("red")].limit.get(H100)
    ids = {each.id for each in gone}
    held = sum(
        gang.total_units
        for gang in centre.state.allocations.values()
        if "red" in lineage(gang.account) and gang.id not in ids
    )
    is_within = limit is None or held + asked.shape.total_units <= limit * GPU_UNITS
    return is_within and openings.has_room() and _guarantee_free(centre, gone) >= asked.shape.total_units


@settings(max_examples=100, deadline=None)
@given(
    sizes, st.lists(gangs, min_size=1, max_size=7), kinds, st.integers(2, 8), st.sampled_from((None, None, 0, 2)), asks
)
@example([4], [("red/a", 4, 1, BookingWanted.AUTO, 0)], "red", 4, 0, ("red/a", 2, 1, BookingWanted.AUTO, 1))
@example(
    [4, 4],
    [("red/a", 2, 2, BookingWanted.AUTO, 0), ("blue/a", 2, 2, BookingWanted.AUTO, 0)],
    "red",
    4,
    None,
    ("red/a", 4, 1, ONLY, 1),
)
@example(  # the lowest gives up too little, and is spared for the one whose place does
    [2, 2],
    [("red/a", 1, 1, BookingWanted.AUTO, -1), ("red/a", 2, 1, BookingWanted.AUTO, 0)],
    "red",
    3,
    None,
    ("red/a", 2, 1, BookingWanted.AUTO, 1),
)
@example(  # the lowest gives up enough, and the place is another's
    [2, 3],
    [
        ("red/a", 1, 1, BookingWanted.AUTO, -1),
        ("blue/a", 1, 1, ONLY, 0),
        ("red/a", 2, 1, BookingWanted.AUTO, 0),
    ],
    "red",
    4,
    None,
    ("red/a", 2, 1, BookingWanted.AUTO, 1),
)
def test_guaranteed_gangs_are_stopped_only_where_their_tenant_says_so_and_no_part_of_the_victims_would_do(
    gpus: list[int], running: list[Gang], whose: str, bought: int, limit: int | None, asked: Gang
) -> None:
    centre = _centre(gpus, running, whose, bought, limit)
    project, size, count, wanted, priority = asked
    asking = centre.submit(job(gpus=size, nodes=count, project=project, wanted=wanted, priority=priority))
    state = centre.state
    before = dict(state.allocations)
    made = plan(state, centre.policy, centre.now_ms)
    for claim in made.claims:
        _check_rule(centre, claim, before)
        victims = [before[each] for each in claim.victims]
        if any(gang.booking is Booking.GUARANTEED for gang in victims) and not made.promotions and project == "red/a":
            assert not made.reservations, "one job asks, and it has its claim"
            job_ = state.jobs[claim.job]
            assert _would_do(centre, job_, victims)
            for part in range(len(victims)):
                for fewer in combinations(victims, part):
                    assert not _would_do(centre, job_, list(fewer)), "fewer victims would do"
    is_off = any(start.job == asking for start in made.starts) or made.claims
    if not is_off and project == "red/a" and _yields(centre, AccountId(project)) and wanted is not BookingWanted.SPOT:
        low = [
            gang
            for gang in before.values()
            if gang.booking is not Booking.GUARANTEED
            or (gang.account == project and state.jobs[gang.job].priority < priority)
        ]
        # What burst gangs of its tenant hold under a limit, the rule leaves them: see `short_of_guarantee`.
        if limit is None:
            assert not _would_do(centre, state.jobs[asking], low), "it could have had its guarantee"
    centre.settle()
    for claim in made.claims:
        assert claim.job in centre.running(), "who was made room for runs"
    assert _guarantee_free(centre, []) >= 0, "no more is guaranteed than was bought"


@settings(max_examples=60, deadline=None)
@given(sizes, st.lists(gangs, min_size=1, max_size=7), st.integers(2, 8), st.lists(asks, min_size=1, max_size=6))
def test_priority_that_takes_guaranteed_places_comes_to_an_end(
    gpus: list[int], running: list[Gang], bought: int, asked: list[Gang]
) -> None:
    centre = _centre(gpus, running, "red", bought, None)
    for project, size, count, wanted, priority in asked:
        centre.submit(job(gpus=size, nodes=count, project=project, wanted=wanted, priority=priority))
    for _ in range(60):
        gangs_before = dict(centre.state.allocations)
        made = centre.settle()
        for claim in made.claims:
            _check_rule(centre, claim, gangs_before)
        assert _guarantee_free(centre, []) >= 0
        centre.advance(minutes=11)
        if centre.tick().is_idle:
            return
        centre.settle()
    raise AssertionError("gangs take each other's place for ever")
