"""Proposals to move gangs: each can be carried out as it stands, and leaves the state as it was."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.defrag import Proposal, blocked_by_fragmentation, propose
from scheduler.core.model import BookingWanted, JobId, NodeName
from scheduler.core.placement import Spares, place
from scheduler.core.reasons import ReasonCode
from tests.builders import job, node
from tests.harness import Centre


def only(name: NodeName) -> Spares:
    return lambda room, _: room.node.name == name


def carry_out(centre: Centre, proposal: Proposal) -> None:
    """Does what the proposal says, in the state's own capacity: every gang finds its new node, then the job its own."""
    capacity = centre.state.capacity
    for move in proposal.moves:
        (allocation,) = [each for each in centre.state.allocations.values() if each.job == move.job]
        (old,) = allocation.grants
        assert old.node == move.from_node
        capacity.give_back(old)
        shape = centre.state.jobs[move.job].shape
        grants = place(capacity, shape, allocation.gpu_class, {}, only(move.to_node))
        assert grants is not None, f"{move} finds no place"
        capacity.take(grants[0])
    assert place(capacity, centre.state.jobs[proposal.job].shape, proposal.gpu_class, {}) is not None


def test_a_gang_that_lacks_gpus_and_not_their_shape_is_told_of_no_move() -> None:
    centre = Centre(node("n0"), node("n1"))
    for gpus in (5, 5, 2):
        centre.submit(job(gpus=gpus))
    centre.tick()
    big = centre.submit(job(gpus=8))
    made = centre.tick()
    assert centre.why(big) is ReasonCode.CAPACITY
    assert list(blocked_by_fragmentation(centre.state, set(made.verdicts))) == [big]
    assert propose(centre.state, big, centre.now_ms) is None


def test_a_blocked_gang_is_told_which_move_would_let_it_start() -> None:
    centre = Centre(node("n0"), node("n1"))
    first = centre.submit(job(gpus=6))
    centre.tick()
    second = centre.submit(job(gpus=6))
    centre.tick()
    third = centre.submit(job(gpus=2))
    centre.tick()
    centre.end(first)
    centre.advance(minutes=5)
    assert centre.nodes_of(third) != centre.nodes_of(second)
    big = centre.submit(job(gpus=8))
    centre.tick()
    assert centre.why(big) is ReasonCode.FRAGMENTATION
    before = centre.state.facts()
    proposal = propose(centre.state, big, centre.now_ms)
    assert proposal is not None
    assert [(move.job, move.to_node) for move in proposal.moves] == [(third, centre.nodes_of(second)[0])]
    assert list(proposal.nodes) == centre.nodes_of(third)
    assert proposal.lost_unit_ms == 2 * 12_600 * 5 * 60_000
    assert centre.state.facts() == before
    centre.state.check()


def test_a_gang_that_must_not_be_preempted_is_not_moved() -> None:
    centre = Centre(node("n0"), node("n1"))
    first = centre.submit(job(gpus=6))
    centre.tick()
    centre.submit(job(gpus=6))
    centre.tick()
    kept = centre.submit(job(gpus=2, wanted=BookingWanted.SPOT))
    centre.tick()
    centre.end(first)
    big = centre.submit(job(gpus=8))
    centre.tick()
    assert propose(centre.state, big, centre.now_ms) is not None
    held = centre.state.jobs[kept]
    object.__setattr__(held, "wanted", BookingWanted.GUARANTEED)
    assert propose(centre.state, big, centre.now_ms) is None


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 1 << 32), nodes=st.integers(2, 5), jobs=st.integers(2, 14))
def test_every_proposal_can_be_carried_out_and_changes_nothing_by_itself(seed: int, nodes: int, jobs: int) -> None:
    random = Random(seed)
    centre = Centre(*[node(f"n{number}", gpus=4) for number in range(nodes)])
    live: list[JobId] = []
    for _ in range(jobs):
        live.append(centre.submit(job(gpus=random.randint(1, 4), nodes=random.choice([1, 1, 1, 2]))))
        centre.tick()
        centre.advance(seconds=random.randint(0, 100))
        running = sorted(centre.running())
        if running and random.random() < 0.4:
            centre.end(random.choice(running))
    centre.tick()
    before = centre.state.facts()
    for pending in [each for each in live if each in centre.state.jobs and each not in centre.running()]:
        proposal = propose(centre.state, pending, centre.now_ms)
        assert centre.state.facts() == before
        if proposal is not None:
            assert len({move.job for move in proposal.moves}) == len(proposal.moves)
            assert proposal.moves, "a job that fits needs no proposal"
            carry_out(centre, proposal)
            return
