"""Elastic gangs: the least is booked, ordered and promised; what is over is given last, and taken first."""

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.model import (
    GPU_UNITS,
    AccountId,
    AllocationId,
    Booking,
    BookingWanted,
    EndReason,
    GpuClass,
    JobId,
    JobState,
    Phase,
)
from scheduler.core.policy import Policy
from scheduler.core.shares import Shares
from tests.builders import HOUR_MS, account, job, node
from tests.harness import Centre

H100 = GpuClass("H100")


def _centre(nodes: int, *accounts: object, policy: Policy | None = None, racks: int = 0) -> Centre:
    labels = [{"rack": f"r{number % racks}"} if racks else None for number in range(nodes)]
    named = [node(f"n{number}", labels=each) for number, each in enumerate(labels)]
    return Centre(*named, accounts=tuple(accounts), policy=policy)  # type: ignore[arg-type] # accounts, by name


def test_a_gang_gets_as_many_nodes_as_are_free_and_no_more_than_it_may_have() -> None:
    for free, got in ((1, 0), (2, 2), (3, 3), (4, 4), (6, 4)):
        centre = _centre(free)
        elastic = centre.submit(job(gpus=8, nodes=2, most_nodes=4))
        centre.tick()
        assert len(centre.nodes_of(elastic) if elastic in centre.running() else []) == got


def test_the_least_is_held_within_the_guarantee_and_what_is_over_as_burst() -> None:
    centre = _centre(4, account("acme", guarantee=16))
    centre.submit(job(gpus=8, nodes=2, most_nodes=4))
    centre.tick()
    assert [(each.booking, each.total_units // GPU_UNITS) for each in centre.state.allocations.values()] == [
        (Booking.GUARANTEED, 16),
        (Booking.BURST, 16),
    ]
    assert centre.state.usage.gangs["acme"] == 1  # type: ignore[index] # an id by its text


def test_surplus_is_given_when_every_waiting_job_had_its_turn() -> None:
    centre = _centre(4)
    elastic = centre.submit(job(gpus=8, nodes=1, most_nodes=4))
    later = [centre.submit(job(gpus=8, nodes=1, project="red/a")) for _ in range(2)]
    centre.tick()
    assert centre.running() == {elastic, *later}
    assert len(centre.nodes_of(elastic)) == 2


def test_where_others_wait_a_gang_takes_no_more_than_its_share() -> None:
    centre = _centre(4)
    elastic = centre.submit(job(gpus=8, nodes=1, most_nodes=4))
    large = centre.submit(job(gpus=8, nodes=4, project="red/a"))
    centre.tick()
    assert centre.running() == {elastic}
    assert len(centre.nodes_of(elastic)) == 2, "half of four nodes"
    assert large in centre.state.reservations


def test_surplus_delays_no_promised_start() -> None:
    centre = _centre(4)
    first = centre.submit(job(gpus=8, nodes=2, limit_ms=HOUR_MS))
    centre.tick()
    large = centre.submit(job(gpus=8, nodes=4, project="red/a"))
    centre.tick()
    promised = centre.state.reservations[large]
    elastic = centre.submit(job(gpus=8, nodes=1, most_nodes=2, project="blue/a", limit_ms=HOUR_MS // 2))
    long = centre.submit(job(gpus=8, nodes=1, most_nodes=2, project="blue/a", limit_ms=3 * HOUR_MS))
    centre.tick()
    assert centre.running() == {first, elastic}
    assert centre.state.reservations[large] == promised
    assert long not in centre.running()


def test_limits_bind_surplus_too() -> None:
    centre = _centre(4, account("acme", limit=24), account("acme/nlp", user_limit=20))
    elastic = centre.submit(job(gpus=8, nodes=1, most_nodes=4))
    centre.tick()
    assert len(centre.nodes_of(elastic)) == 2


def test_surplus_lies_near_its_gang_and_where_it_must_nowhere_else() -> None:
    for is_required, most in ((True, 2), (False, 4)):
        centre = _centre(4, racks=2, policy=Policy(topology_labels=("rack",)))
        plain = job(gpus=8, nodes=1, most_nodes=4)
        shape = replace(plain.shape, nodes=2 if is_required else 1, topology=("rack", is_required))
        elastic = centre.submit(replace(plain, shape=shape))
        centre.tick()
        names = centre.nodes_of(elastic)
        assert len(names) == most
        assert {int(name[1:]) % 2 for name in names[:2]} == {int(names[0][1:]) % 2}


def test_surplus_goes_before_whole_gangs_and_its_gang_runs_on() -> None:
    centre = _centre(4, account("vip", guarantee=16))
    whole = centre.submit(job(gpus=8, nodes=1, wanted=BookingWanted.SPOT))
    elastic = centre.submit(job(gpus=8, nodes=1, most_nodes=3, project="red/a"))
    centre.tick()
    assert len(centre.nodes_of(elastic)) == 3
    bought = centre.submit(job(gpus=8, nodes=2, project="vip/p"))
    made = centre.tick()
    victims = [centre.state.allocations[stop.allocation] for stop in made.stops]
    assert [victim.surplus_of for victim in victims] == [centre.state.jobs[elastic].allocation]
    assert centre.state.jobs[elastic].state is JobState.RUNNING, "what stays goes on"
    centre.settle()
    assert centre.running() == {whole, elastic, bought}
    assert len(centre.nodes_of(elastic)) == 1


def test_a_gang_that_must_go_goes_with_its_surplus_and_comes_back_smaller() -> None:
    centre = _centre(2, account("vip", guarantee=8))
    elastic = centre.submit(job(gpus=4, nodes=1, most_nodes=2, project="red/a"))
    centre.tick()
    assert len(centre.nodes_of(elastic)) == 2
    held = centre.submit(job(gpus=4, nodes=1, project="blue/a"))
    centre.tick()
    bought = centre.submit(job(gpus=8, nodes=1, project="vip/p"))
    centre.settle()
    assert bought in centre.running()
    assert {held, elastic} & centre.running()
    assert all(each.phase is Phase.RUNNING for each in centre.state.allocations.values())


def test_a_cut_tick_gives_no_surplus() -> None:
    centre = _centre(3, policy=Policy(most_starts_per_tick=1))
    elastic = centre.submit(job(gpus=8, nodes=1, most_nodes=3))
    other = centre.submit(job(gpus=8, nodes=1))
    centre.tick()
    centre.tick()
    assert centre.running() == {elastic, other}
    assert len(centre.nodes_of(elastic)) == 1


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_sizes_stay_in_range_and_shares_and_surplus_keeps_nothing_from_starting(data: st.DataObject) -> None:
    """The harness checks after each step that devices, limits and every index hold; plans are made twice."""
    count = data.draw(st.integers(2, 6))
    buys = data.draw(st.integers(0, count * 8))
    centre = _centre(count, account("vip", guarantee=buys), account("red", limit=data.draw(st.integers(8, 64))))
    for _ in range(data.draw(st.integers(4, 12))):
        match data.draw(st.sampled_from(["submit", "submit", "submit", "end", "cancel", "wait"])):
            case "submit":
                least = data.draw(st.integers(1, count))
                centre.submit(
                    job(
                        project=data.draw(st.sampled_from(["vip/a", "red/a", "red/b", "blue/a"])),
                        gpus=data.draw(st.sampled_from([4, 8])),
                        nodes=least,
                        most_nodes=data.draw(st.one_of(st.none(), st.integers(least, count))),
                        wanted=data.draw(st.sampled_from([BookingWanted.AUTO, BookingWanted.SPOT])),
                        limit_ms=data.draw(st.sampled_from([HOUR_MS // 2, 4 * HOUR_MS])),
                    )
                )
            case "wait":
                centre.advance(minutes=data.draw(st.sampled_from([1, 11])))
            case action if running := sorted(centre.running()):
                chosen = data.draw(st.sampled_from(running))
                if action == "end":
                    centre.end(chosen)
                else:
                    centre.cancel(chosen)
        targets = dict(Shares(centre.state, centre.now_ms).targets(H100))
        before = set(centre.state.allocations)
        made = centre.tick()
        _check_sizes(centre)
        if any(each.state is JobState.PENDING for each in centre.state.jobs.values()) and not made.blocks:
            _check_shares(centre, before, targets)
        for start in made.starts:
            assert start.surplus is None or start.surplus.booking is not Booking.GUARANTEED
        centre.settle()


def _check_sizes(centre: Centre) -> None:
    for each in centre.state.jobs.values():
        if each.allocation is None:
            continue
        size = len(centre.nodes_of(each.id))
        most = max(each.shape.nodes, each.shape.most_nodes or 0)
        assert each.shape.nodes <= size <= most, f"job {each.id} runs on {size}"


def _check_shares(centre: Centre, before: set[AllocationId], targets: dict[AccountId, int]) -> None:
    """An account that got burst surplus just now is not over its target by it."""
    state = centre.state
    for each in state.allocations.values():
        if each.id in before or each.surplus_of is None or each.booking is Booking.SPOT:
            continue
        held = state.held_by(each.account, H100, Booking.GUARANTEED, Booking.BURST)
        assert held <= targets[each.account], f"{each.account} holds {held} of {targets[each.account]}"


def test_two_histories_of_the_same_jobs_give_the_same_sizes() -> None:
    def sizes() -> Counter[tuple[JobId, int]]:
        centre = _centre(7)
        for number in range(4):
            centre.submit(job(gpus=8, nodes=1, most_nodes=3, project=f"t{number}/a"))
        centre.tick()
        return Counter((each, len(centre.nodes_of(each))) for each in centre.running())

    first = sizes()
    assert first == sizes()
    assert sum(size for _, size in first) == 7


def test_a_surplus_that_is_gone_leaves_its_gang_to_end_by_itself() -> None:
    centre = _centre(3)
    elastic = centre.submit(job(gpus=8, nodes=1, most_nodes=3))
    centre.tick()
    centre.shrink(elastic)
    assert len(centre.nodes_of(elastic)) == 1
    assert centre.end(elastic) is JobState.COMPLETED
    assert not centre.state.allocations
    centre.submit(job(gpus=8, nodes=1, most_nodes=3))
    centre.tick()
    centre.end(JobId(2), EndReason.PREEMPTED)
    assert centre.state.jobs[JobId(2)].state is JobState.PENDING
