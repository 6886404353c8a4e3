"""Claims in the store: made with the stops that free them or not at all, kept for their job, the same after a crash."""

from scheduler.core.model import GPU_UNITS, Allocation, Booking, DeviceId, EndReason, Grant, JobId, JobState, NodeName
from scheduler.core.occupancy import OccupancyState
from scheduler.core.plan import Lapse, Plan, Start, Stop
from scheduler.core.stretch import Claim
from scheduler.executor import Checkpointed, Started
from scheduler.store.actions import CancelJobs
from scheduler.store.allocations import Applied, ApplyPlan
from scheduler.store.inventory import SetDrain
from tests.store.harness import ANA, H200, PROJECT, Centre, draft, start


def _claim(centre: Centre, job: JobId, victims: tuple[Allocation, ...], *devices: str) -> Claim:
    grants = start(job, *devices).grants
    now_ms = centre.clock.now_ms()
    ids = tuple(victim.id for victim in victims)
    times = (now_ms, now_ms + 30_000, now_ms + 3_630_000, now_ms + 600_000)
    return Claim(job, PROJECT, ANA, H200, Booking.BURST, grants, ids, len(ids), *times)


def _make(centre: Centre, claim: Claim) -> Applied:
    stops = tuple(Stop(victim, EndReason.PREEMPTED, claim.job) for victim in claim.victims)
    return centre.do(
        ApplyPlan(Plan(1, centre.clock.now_ms(), stops=stops, claims=(claim,), terms=dict(centre.state.accounts)))
    )


def _rests(centre: Centre, device: str) -> tuple[OccupancyState, str | None]:
    (cursor,) = centre.cursors(device)
    return cursor.occupant.state, cursor.occupant.cause


def test_a_claim_stops_its_victims_keeps_what_they_leave_and_becomes_a_start(centre: Centre) -> None:
    victim = centre.run("n0/0", "n0/1")
    centre.started(victim)
    centre.clock.advance(milliseconds=60_000)
    (job,) = centre.submit(draft(3))
    applied = _make(centre, _claim(centre, job, (victim,), "n0/0", "n0/1", "n0/2"))
    assert [gang.stop_reason for gang in applied.stopped] == [EndReason.PREEMPTED]
    assert _rests(centre, "n0/2") == (OccupancyState.RESERVED_UNUSED, "claim")
    centre.check()
    centre.reopen()
    centre.clock.advance(milliseconds=5_000)
    centre.ended(victim, EndReason.EXIT_NONZERO)
    assert centre.job_state(victim.job) is JobState.PENDING
    assert _rests(centre, "n0/0") == (OccupancyState.RESERVED_UNUSED, "claim")
    centre.check()
    (other,) = centre.submit()
    assert centre.apply(start(other, "n0/0")).rejected == ((other, "device n0/0 is kept for another job"),)
    centre.reopen()
    started = centre.apply(start(job, "n0/0", "n0/1", "n0/2"))
    assert [order.allocation.job for order in started.started] == [job]
    assert not centre.rebuilt().claims.by_job
    assert len(centre.rebuilt().claims.recent) == 1, "the rate limit remembers"
    centre.check()


def test_a_claim_on_what_another_got_meanwhile_stops_nobody(centre: Centre) -> None:
    victim = centre.run("n0/0")
    (job,) = centre.submit(draft(2))
    claim = _claim(centre, job, (victim,), "n0/0", "n0/1")
    centre.run("n0/1")
    assert _make(centre, claim).rejected == ((job, "device n0/1 is taken"),)
    assert centre.job_state(victim.job) is JobState.STARTING
    assert not centre.state.claims.by_job
    centre.check()


def test_a_claim_for_a_job_that_was_cancelled_meanwhile_stops_nobody(centre: Centre) -> None:
    victim = centre.run("n0/0")
    (job,) = centre.submit()
    claim = _claim(centre, job, (victim,), "n0/0")
    centre.do(CancelJobs((job,), "ana"))
    assert _make(centre, claim).rejected == ((job, "the job is cancelled"),)
    assert centre.job_state(victim.job) is JobState.STARTING
    centre.check()


def test_a_claim_that_is_given_up_leaves_everything_idle(centre: Centre) -> None:
    victim = centre.run("n0/0")
    (job,) = centre.submit(draft(2))
    _make(centre, _claim(centre, job, (victim,), "n0/0", "n0/1"))
    centre.do(CancelJobs((job,), "ana"))
    centre.check()
    centre.do(ApplyPlan(Plan(2, centre.clock.now_ms(), lapses=(Lapse(job, "the job waits no more"),))))
    assert _rests(centre, "n0/1") == (OccupancyState.IDLE, None)
    centre.ended(victim, EndReason.EXIT_NONZERO)
    assert _rests(centre, "n0/0") == (OccupancyState.IDLE, None)
    assert not centre.rebuilt().claims.by_job
    centre.check()


def test_a_drain_shows_on_claimed_gpus_and_the_claim_is_given_up_without_ado(centre: Centre) -> None:
    victim = centre.run("n0/0")
    (job,) = centre.submit(draft(2))
    _make(centre, _claim(centre, job, (victim,), "n0/0", "n0/1"))
    centre.do(SetDrain(NodeName("n0"), "fan", "operator"))
    assert _rests(centre, "n0/1")[0] is OccupancyState.DRAINING
    centre.do(ApplyPlan(Plan(2, centre.clock.now_ms(), lapses=(Lapse(job, "the node is drained"),))))
    assert _rests(centre, "n0/1")[0] is OccupancyState.DRAINING
    centre.check()


def test_a_share_is_claimed_beside_other_shares(centre: Centre) -> None:
    half = GPU_UNITS // 2
    stays, victim = (centre.run("n0/0", units=half) for _ in range(2))
    (job,) = centre.submit(draft(units=half))
    grant = Grant(NodeName("n0"), (DeviceId("n0/0"),), half, 10, 1024)
    claim = _claim(centre, job, (victim,), "n0/0")
    claim = Claim(job, PROJECT, ANA, H200, Booking.BURST, (grant,), claim.victims, 1, *_times(claim))
    assert _make(centre, claim).rejected == ()
    centre.ended(victim, EndReason.EXIT_NONZERO)
    centre.check()
    assert centre.apply(Start(job, H200, Booking.BURST, (grant,), PROJECT, 3_600_000)).rejected == ()
    assert {cursor.occupant.allocation for cursor in centre.cursors("n0/0")} >= {stays.id}
    centre.check()


def _times(claim: Claim) -> tuple[int, int, int, int]:
    return claim.made_ms, claim.free_ms, claim.end_ms, claim.until_ms


def test_a_checkpoint_is_remembered_and_an_older_one_changes_nothing(centre: Centre) -> None:
    run = centre.run("n0/0")
    centre.observe(Checkpointed(run.id, centre.clock.now_ms()))
    assert centre.state.allocations[run.id].checkpointed_ms is None, "nothing is saved before it runs"
    begun_ms = centre.clock.now_ms()
    centre.observe(Checkpointed(run.id, begun_ms - 3), Started(run.id, begun_ms))
    assert centre.state.allocations[run.id].checkpointed_ms == begun_ms, "a file's clock lags behind"
    centre.clock.advance(milliseconds=10_000)
    saved_ms = centre.clock.now_ms()
    centre.observe(Checkpointed(run.id, saved_ms + 999))
    centre.observe(Checkpointed(run.id, saved_ms - 5_000))
    assert centre.state.allocations[run.id].checkpointed_ms == saved_ms, "and never in the future"
    centre.check()
