"""Who is stopped for whom: scenarios, then the rules as properties with every smaller set tried beside them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduler.core import events
from scheduler.core.booking import Bookings
from scheduler.core.cycle import plan
from scheduler.core.eviction import Mode, Preemptor, Rule, Standings
from scheduler.core.model import (
    GPU_UNITS,
    AccountId,
    Allocation,
    AllocationId,
    Booking,
    BookingWanted,
    EndReason,
    GpuClass,
    JobId,
    NodeName,
    Phase,
    lineage,
)
from scheduler.core.plan import Plan
from scheduler.core.policy import Policy, Preemption
from scheduler.core.reasons import ReasonCode
from scheduler.core.reservation import strength_of
from scheduler.core.shares import Shares
from scheduler.core.stretch import Claim, Reservation
from tests.builders import account, job, node, shape
from tests.harness import Centre

H100 = GpuClass("H100")


def _jobs_of(centre: Centre, plan: Plan) -> set[JobId]:
    return {centre.state.allocations[stop.allocation].job for stop in plan.stops}


def _old(centre: Centre) -> None:
    centre.advance(minutes=11)


# ---- guarantees (R1) -----------------------------------------------------------------------------------------------


def test_a_guarantee_takes_the_place_of_spot_before_burst_and_starts_when_they_are_gone() -> None:
    centre = Centre(node("n1"), accounts=(account("vip", guarantee=4),))
    burst = centre.submit(job(gpus=4, project="red/a"))
    spot = centre.submit(job(gpus=4, project="red/a", wanted=BookingWanted.SPOT))
    centre.tick()
    bought = centre.submit(job(gpus=4, project="vip/p"))
    made = centre.tick()
    assert _jobs_of(centre, made) == {spot}
    assert centre.why(bought) is ReasonCode.PREEMPTING
    assert centre.state.jobs[bought].allocation is None, "nothing is started on what is not free yet"
    centre.settle()
    assert centre.running() == {burst, bought}
    assert not centre.state.claims.by_job


def test_guaranteed_jobs_take_places_beside_each_other_on_one_node_at_once() -> None:
    centre = Centre(node("n1"), accounts=(account("vip", guarantee=8),))
    for _ in range(4):
        centre.submit(job(gpus=2, project="red/a"))
    centre.tick()
    bought = [centre.submit(job(gpus=2, project="vip/p")) for _ in range(4)]
    made = centre.tick()
    assert [claim.job for claim in made.claims] == bought
    assert len({stop.allocation for stop in made.stops}) == 4
    centre.settle()
    assert centre.running() == set(bought)


def test_a_guarantee_need_not_wait_for_the_minimum_run_time_unless_the_policy_says_so() -> None:
    for overrides, victims in ((True, 1), (False, 0)):
        policy = Policy(guarantee_overrides_min_run=overrides)
        centre = Centre(node("n1"), accounts=(account("vip", guarantee=8),), policy=policy)
        centre.submit(job(gpus=8, project="red/a"))
        centre.tick()
        centre.submit(job(gpus=8, project="vip/p"))
        assert len(centre.tick().stops) == victims


def test_nobody_is_stopped_for_a_gang_that_would_not_fit_even_then() -> None:
    centre = Centre(node("n1"), node("n2"), accounts=(account("vip", guarantee=12), account("owner", guarantee=4)))
    centre.submit(job(gpus=4, project="owner/p", wanted=BookingWanted.GUARANTEED))
    centre.tick()
    centre.submit(job(gpus=4, project="red/a"))
    centre.submit(job(gpus=8, project="red/a"))
    centre.tick()
    centre.submit(job(gpus=6, nodes=2, project="vip/p"))
    assert not centre.tick().stops


def test_preemption_that_is_off_stops_nobody() -> None:
    centre = Centre(node("n1"), accounts=(account("vip", guarantee=8),), policy=Policy(preemption=Preemption.OFF))
    centre.submit(job(gpus=8, project="red/a"))
    centre.tick()
    bought = centre.submit(job(gpus=8, project="vip/p"))
    assert not centre.tick().stops
    assert centre.why(bought) is ReasonCode.CAPACITY


# ---- claims --------------------------------------------------------------------------------------------------------


def test_what_was_freed_for_a_job_goes_to_nobody_else() -> None:
    centre = Centre(node("n1"), accounts=(account("vip", guarantee=8),))
    victims = [centre.submit(job(gpus=4, project="red/a")) for _ in range(2)]
    centre.tick()
    bought = centre.submit(job(gpus=8, project="vip/p"))
    assert _jobs_of(centre, centre.tick()) == set(victims)
    others = [centre.submit(job(gpus=1, project="blue/b")) for _ in range(3)]
    centre.end(victims[0], EndReason.PREEMPTED)
    assert not centre.tick().starts, "four GPUs are free, and kept"
    assert centre.state.held_by(account("vip").id, H100, *Booking) == 8 * GPU_UNITS, "what is claimed is held"
    centre.end(victims[1], EndReason.PREEMPTED)
    centre.tick()
    assert centre.running() == {bought}
    assert all(centre.why(other) is ReasonCode.CAPACITY for other in others)


def test_a_claim_of_a_job_that_is_cancelled_frees_what_it_kept() -> None:
    centre = Centre(node("n1"), accounts=(account("vip", guarantee=8),))
    victim = centre.submit(job(gpus=4, project="red/a"))
    centre.tick()
    bought = centre.submit(job(gpus=8, project="vip/p"))
    centre.tick()
    centre.cancel(bought)
    other = centre.submit(job(gpus=4, project="blue/b"))
    centre.settle()
    assert centre.running() == {victim, other}


def test_a_claim_is_given_up_when_its_node_dies_or_its_time_is_over() -> None:
    for dies in (True, False):
        centre = Centre(node("n1"), node("n2", gpus=4), accounts=(account("vip", guarantee=8),))
        centre.submit(job(gpus=4, project="red/a", like=replace(shape(gpus=4), only_nodes=(node("n1").node.name,))))
        centre.tick()
        bought = centre.submit(job(gpus=8, project="vip/p"))
        assert centre.tick().claims
        if dies:
            centre.down(node("n1"))
        else:
            centre.advance(minutes=10)
        assert [lapse.job for lapse in centre.tick().lapses] == [bought]
        assert not centre.state.claims.by_job


def test_a_victim_goes_back_to_its_old_place_and_its_retries_are_untouched() -> None:
    centre = Centre(node("n1"), accounts=(account("vip", guarantee=8),))
    victim = centre.submit(job(gpus=8, project="red/a", retries=1))
    centre.tick()
    bought = centre.submit(job(gpus=8, project="vip/p"))
    centre.advance(minutes=1)
    centre.settle()
    later = centre.submit(job(gpus=8, project="red/a"))
    again = centre.state.jobs[victim]
    assert (again.retries_left, again.begin_ms) == (1, None)
    centre.end(bought)
    centre.tick()
    assert victim in centre.running()
    assert later not in centre.running()


# ---- fair share (R2) and priority (R0) -------------------------------------------------------------------------------


def test_a_burst_job_within_its_share_takes_from_who_is_over_it_and_stops_there() -> None:
    centre = Centre(node("n1"))
    running = [centre.submit(job(gpus=1, project="red/a")) for _ in range(8)]
    centre.tick()
    _old(centre)
    for _ in range(8):
        centre.submit(job(gpus=1, project="blue/b"))
    for _ in range(10):
        centre.settle()
        centre.advance(seconds=10)
    shares = Shares(centre.state, centre.now_ms)
    red, blue = AccountId("red"), AccountId("blue")
    assert shares.held(red, H100) - shares.target(red, H100) == GPU_UNITS, "the last step would be within the margin"
    assert 0 < shares.held(blue, H100) <= shares.target(blue, H100)
    assert shares.held(red, H100) == GPU_UNITS * len([each for each in running if each in centre.running()])


def test_what_has_not_run_for_the_minimum_time_is_left_alone() -> None:
    centre = Centre(node("n1"))
    for _ in range(8):
        centre.submit(job(gpus=1, project="red/a"))
    centre.tick()
    centre.advance(minutes=9)
    for _ in range(2):
        centre.submit(job(gpus=1, project="blue/b"))
    assert not centre.tick().stops
    centre.advance(minutes=2)
    assert len(centre.tick().stops) == 1


def test_what_may_be_lost_is_found_on_one_node_though_the_order_spreads_it_over_two() -> None:
    centre = Centre(node("n1"), node("n2"))
    for _ in range(8):
        for name in ("n1", "n2"):
            like = replace(shape(), only_nodes=(node(name).node.name,))
            centre.submit(job(project="red/a", like=like))
        centre.tick()
        centre.advance(seconds=1)
    _old(centre)
    gang, _ = (centre.submit(job(gpus=7, project="blue/b")) for _ in range(2))
    made = centre.tick()
    assert len(made.stops) == 7
    assert len({centre.nodes_of(each)[0] for each in _jobs_of(centre, made)}) == 1
    centre.settle()
    assert gang in centre.running()


def test_within_a_project_higher_priority_takes_from_lower_but_not_from_its_own_or_from_guaranteed() -> None:
    centre = Centre(node("n1", gpus=3), accounts=(account("red", guarantee=1),))
    kept = centre.submit(job(project="red/a", wanted=BookingWanted.GUARANTEED, priority=-1))
    equal = centre.submit(job(project="red/a", priority=1))
    low = centre.submit(job(project="red/a", priority=0))
    centre.tick()
    _old(centre)
    high = centre.submit(job(project="red/a", priority=1))
    assert _jobs_of(centre, centre.tick()) == {low}
    centre.settle()
    assert centre.running() == {kept, equal, high}


def test_spot_takes_nothing() -> None:
    centre = Centre(node("n1"), accounts=(account("blue", guarantee=8),))
    centre.submit(job(gpus=8, project="red/a"))
    centre.tick()
    _old(centre)
    centre.submit(job(gpus=1, project="blue/b", wanted=BookingWanted.SPOT))
    assert not centre.tick().stops


def test_the_gang_that_saved_its_work_last_is_stopped_first() -> None:
    centre = Centre(node("n1"), accounts=(account("vip", guarantee=4),))
    first, second = (centre.submit(job(gpus=4, project="red/a")) for _ in range(2))
    centre.tick()
    centre.advance(minutes=30)
    saved = centre.state.jobs[first].allocation
    assert saved is not None
    centre.apply(events.AllocationCheckpointed(centre.now_ms, saved))
    centre.submit(job(gpus=4, project="vip/p"))
    assert _jobs_of(centre, centre.tick()) == {first}
    assert second in centre.running()


def test_no_more_gangs_are_stopped_in_a_window_than_the_policy_allows() -> None:
    policy = Policy(most_evictions=2, preemption_attempts=8)
    centre = Centre(node("n1"), node("n2"), policy=policy)
    for _ in range(16):
        centre.submit(job(project="red/a"))
    centre.tick()
    _old(centre)
    for _ in range(8):
        centre.submit(job(project="blue/b"))
    stopped = 0
    for _ in range(20):
        stopped += len(centre.tick().stops)
        centre.advance(seconds=10)
    assert stopped == 2


# ---- properties ----------------------------------------------------------------------------------------------------

projects = st.sampled_from(["red/a", "red/b", "blue/a", "blue/b", "vip/a"])
runs = st.lists(
    st.tuples(projects, st.integers(1, 4), st.integers(1, 2), st.booleans(), st.integers(-1, 1)),
    min_size=1,
    max_size=7,
)
asks = st.tuples(projects, st.integers(1, 4), st.integers(1, 3), st.integers(-1, 1))


class Trial:
    """A small centre with something running for long, and one job that may take its place."""

    def __init__(self, gpus: list[int], running: list[tuple[str, int, int, bool, int]], pending: int) -> None:
        nodes = [node(f"n{index}", gpus=count) for index, count in enumerate(gpus)]
        self.sizes = {each.node.name: len(each.devices) for each in nodes}
        self.centre = Centre(*nodes, accounts=(account("vip", guarantee=min(4, sum(gpus))),))
        for project, size, count, is_spot, priority in running:
            wanted = BookingWanted.SPOT if is_spot else BookingWanted.AUTO
            self.centre.submit(job(gpus=size, nodes=count, project=project, wanted=wanted, priority=priority))
        self.centre.tick()
        for each in list(self.centre.state.jobs.values()):
            if each.allocation is None:
                self.centre.cancel(each.id)
        self.centre.advance(minutes=11)
        for _ in range(pending):
            self.centre.submit(job(project="blue/a"))

    def rule_for(self, asking: JobId, booking: Booking, *, is_hasty: bool = True) -> Rule:
        state = self.centre.state
        standings = Standings(state, Bookings(state), lambda: Shares(state, self.centre.now_ms), Counter())
        preemptor = Preemptor(state.jobs[asking], H100, booking)
        return Rule(standings, preemptor, lambda _: True, Mode(is_fair=True, is_hasty=is_hasty))

    def fits(self, asking: JobId, gangs: Sequence[Allocation], promises: Sequence[Reservation] = ()) -> bool:
        """Tells whether the job would fit with these gangs gone, by counting GPUs node by node, moment by moment.

        It stays from now until its limit, a victim's grace later, and leaves what is promised to others.
        """
        asked, now_ms = self.centre.state.jobs[asking], self.centre.now_ms
        until_ms = now_ms + self.centre.policy.default_grace_ms + asked.time_limit_ms
        moments = {now_ms} | {each.start_ms for each in promises if now_ms < each.start_ms < until_ms}
        left = {name: min(self._free(name, at, gangs, promises) for at in moments) for name in self.sizes}
        return sum(free >= asked.shape.gpus_per_node for free in left.values()) >= asked.shape.nodes

    def _free(self, node: NodeName, at_ms: int, gone: Sequence[Allocation], promises: Sequence[Reservation]) -> int:
        """Returns the GPUs of a node that are neither held nor promised at a moment."""
        free = self.sizes[node]
        for gang in self.centre.state.allocations.values():
            if gang not in gone and gang.decided_ms + gang.time_limit_ms > at_ms:
                free -= sum(len(grant.devices) for grant in gang.grants if grant.node == node)
        for each in promises:
            if each.start_ms <= at_ms < each.end_ms:
                free -= sum(need.gpus for name, need in each.parts if name == node)
        return free

    def overage(self, gone: set[AllocationId], added: Claim) -> int:
        """Φ: units held beyond the targets, over all accounts, with some gangs gone and one more held."""
        state = self.centre.state
        targets = Shares(state, self.centre.now_ms).targets(H100)
        held: Counter[AccountId] = Counter()
        for gang in state.allocations.values():
            if gang.id not in gone and gang.booking is not Booking.SPOT:
                for name in lineage(gang.account):
                    held[name] += gang.total_units
        if added.victims and gone:
            for name in lineage(added.account):
                held[name] += added.total_units
        return sum(max(0, units - targets.get(name, 0)) for name, units in held.items())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), runs, asks, st.integers(0, 3))
@example([1, 2, 2], [("blue/b", 2, 2, False, 0)], ("red/a", 1, 2, 0), 1)  # what is free is promised to another
def test_victims_are_within_the_rule_and_no_part_of_them_would_do(
    gpus: list[int], running: list[tuple[str, int, int, bool, int]], asked: tuple[str, int, int, int], pending: int
) -> None:
    """I2, I4, I5, I6, and that the overage falls strictly with every eviction of burst by share."""
    trial = Trial(gpus, running, pending)
    centre, (project, size, count, priority) = trial.centre, asked
    asking = centre.submit(job(gpus=size, nodes=count, project=project, priority=priority))
    state = centre.state
    before = {gang.id: gang for gang in state.allocations.values()}
    made = plan(state, centre.policy, centre.now_ms)
    for claim in made.claims:
        rule = trial.rule_for(claim.job, claim.booking)
        victims = [before[each] for each in claim.victims]
        assert victims, "nobody is stopped for what fits"
        if len(made.claims) == 1 and not made.starts and not made.promotions:
            # What was promised behind it in the order takes room only from sets of victims that would not do anyway.
            binding = [each for each in made.reservations if each.strength >= strength_of(claim.booking)]
            assert rule.holds(victims)
            assert trial.fits(claim.job, victims, binding), "a promise is delayed"
            for part in range(len(victims)):
                for fewer in combinations(victims, part):
                    assert not (trial.fits(claim.job, fewer, binding) and rule.holds(fewer)), "fewer victims would do"
            by_share = [gang for gang in victims if gang.booking is Booking.BURST and gang.account != claim.account]
            if claim.booking is Booking.BURST and by_share:
                assert trial.overage(set(claim.victims), claim) < trial.overage(set(), claim)
    if not made.claims and not any(start.job == asking for start in made.starts):
        _check_nothing_was_missed(trial, asking)
    centre.settle()
    for claim in made.claims:
        assert claim.job in centre.running(), "who was made room for runs"


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    runs,
    asks,
    st.sampled_from([Booking.BURST, Booking.GUARANTEED]),
    st.randoms(use_true_random=False),
)
def test_what_the_search_leaves_out_is_never_permitted_whatever_was_taken_before(
    gpus: list[int],
    running: list[tuple[str, int, int, bool, int]],
    asked: tuple[str, int, int, int],
    booking: Booking,
    random: Random,
) -> None:
    trial = Trial(gpus, running, 0)
    centre, (project, size, count, priority) = trial.centre, asked
    asking = centre.submit(job(gpus=size, nodes=count, project=project, priority=priority))
    rule = trial.rule_for(asking, booking, is_hasty=False)
    found = list(rule.candidates(centre.state.evictable.get(H100, {})))
    left_out = [gang for gang in centre.state.allocations.values() if gang not in found]
    random.shuffle(found)
    for gang in [None, *found]:
        if gang is not None and rule.permits(gang):
            rule.take(gang)
        assert not any(rule.permits(other) for other in left_out)


def _check_nothing_was_missed(trial: Trial, asking: JobId) -> None:
    """I8: a job that fits its guarantee is refused only when burst and spot cannot yield its shape."""
    state = trial.centre.state
    asked = state.jobs[asking]
    bookings = Bookings(state)
    if asked.shape.total_units > bookings.guarantee_left(asked.account, H100):
        return
    yields = [gang for gang in state.allocations.values() if gang.booking is not Booking.GUARANTEED]
    assert not trial.fits(asking, yields), "its guarantee could have been had"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), runs, st.lists(asks, max_size=6), st.data())
def test_preemption_comes_to_an_end_and_every_claim_to_its_job(
    gpus: list[int],
    running: list[tuple[str, int, int, bool, int]],
    asked: list[tuple[str, int, int, int]],
    data: st.DataObject,
) -> None:
    """I3 and I4, with victims that end in any order while other jobs are submitted and cancelled."""
    trial = Trial(gpus, running, 0)
    centre = trial.centre
    for project, size, count, priority in asked:
        centre.submit(job(gpus=size, nodes=count, project=project, priority=priority))
        centre.tick()
        stopping = sorted(each.job for each in centre.state.allocations.values() if each.phase is Phase.STOPPING)
        if stopping:
            centre.end(data.draw(st.sampled_from(stopping)), EndReason.PREEMPTED)
        claimed = sorted(centre.state.claims.by_job)
        if claimed and data.draw(st.integers(0, 4)) == 0:
            centre.cancel(claimed[0])
        centre.advance(seconds=10)
    ticks = 0
    while True:
        made = centre.tick()
        leaving = [each for each in centre.state.allocations.values() if each.phase is Phase.STOPPING]
        for gang in leaving:
            centre.end(gang.job, gang.stop_reason)
        centre.advance(seconds=10)
        ticks += 1
        if made.is_idle and not leaving:
            break
        assert ticks < 60, "gangs take each other's place for ever"
    assert not centre.state.claims.by_job
