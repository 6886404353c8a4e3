"""The same core driven by a trace, in virtual time and without a store. Deterministic but for its timings.

Time jumps from event to event: an arrival, an end, a begin time. At each instant everything that happens at it is taken
in before one tick plans. What the store does in the daemon (ids, what becomes of a job) is done by the same pure rules;
a start takes no time, and a job obeys a stop at once. A job that was stopped goes on from its last checkpoint. An
elastic gang needs its duration on the fewest nodes that it runs on, and on more the less in proportion.
"""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from scheduler.core.cycle import plan
from scheduler.core.events import (
    AccountChanged,
    AllocationEnded,
    AllocationMade,
    AllocationPromoted,
    ClaimEnded,
    ClaimMade,
    JobChanged,
    JobSubmitted,
    NodeChanged,
    PreemptionWeighed,
    ReservationsPlanned,
)
from scheduler.core.model import (
    Account,
    Allocation,
    AllocationId,
    Booking,
    EndReason,
    Job,
    JobId,
    Phase,
    tenant_of,
)
from scheduler.core.outcome import Verdict, after_end
from scheduler.core.placement import verdict
from scheduler.core.plan import Plan, Start, Surplus
from scheduler.core.policy import Backfill, Policy, Preemption, QueueOrder
from scheduler.core.state import ClusterState
from scheduler.executor import NodeInventory
from scheduler.figures import JobRun, Sample, Totals, summary
from scheduler.scenario import TraceJob
from scheduler.shortest import STOPPING_ORDERS, gangs_to_stop
from scheduler.snapshot import Snapshot

_TICKS_A_COLLECTION = 500
"""Ticks between two looks for garbage among what is young: a deep queue's leave some megabytes of it by then."""

_SAMPLES = 2000
"""Instants of a run that are kept for its plot: what a wide screen shows."""


@dataclass(frozen=True, slots=True)
class AllocationRun:
    """One start of a job, for the schedule file."""

    label: str
    start_ms: int
    end_ms: int
    nodes: tuple[str, ...]
    booking: Booking
    end_reason: str


@dataclass(slots=True)
class _Pace:
    """How far an elastic gang has come: the work of one node in a millisecond is counted as one."""

    least: int
    nodes: int
    since_ms: int
    """Since when it runs on `nodes` nodes; later than now while it still loads its checkpoint."""
    worked: int = 0
    ends_ms: int = 0

    def move_to(self, now_ms: int) -> None:
        """Counts what was done until now."""
        self.worked += self.nodes * max(0, now_ms - self.since_ms)
        self.since_ms = max(self.since_ms, now_ms)

    def done_at(self, work_ms: int) -> int:
        """Returns when it will have done work that takes so long on the fewest nodes."""
        return self.since_ms + -(-max(0, work_ms * self.least - self.worked) // self.nodes)


class Replay:
    """One run of a trace on a cluster."""

    def __init__(
        self,
        nodes: Sequence[NodeInventory],
        trace: Sequence[TraceJob],
        policy: Policy,
        restart_cost_ms: int = 0,
        accounts: Sequence[Account] = (),
    ) -> None:
        self._policy = replace(policy, default_grace_ms=0)  # nothing outlives its limit here
        self._stops_the_longest = policy.order in STOPPING_ORDERS and policy.preemption is not Preemption.OFF
        if self._stops_the_longest:
            self._policy = replace(self._policy, preemption=Preemption.OFF)  # it has rules of its own
        self._restart_cost_ms = restart_cost_ms
        self._state = ClusterState(policy.debt_half_life_ms)
        for inventory in nodes:
            self._state.apply(NodeChanged(0, inventory.node, inventory.devices))
        for account in accounts:
            self._state.apply(AccountChanged(0, account))
        self.origin_ms = self._now_ms = 0
        self._ends: list[tuple[int, int, AllocationId]] = []
        """(when, which start it was, id): gangs that end together end in the order in which they started."""
        self._arrived = self._started = 0
        self._last_plan = Plan(0, 0)
        self.runs = [JobRun(job) for job in trace]
        self._first_id = 1
        self._paces: dict[AllocationId, _Pace] = {}
        """Of elastic gangs with surplus nodes, or that had some."""
        self._live: dict[JobId, JobRun] = {}
        """Jobs that were there when the replay began."""
        self.schedule: list[AllocationRun] = []
        self.samples: list[Sample] = []
        self._sample_every_ms = max((job.submit_ms for job in trace), default=0) // _SAMPLES + 1
        self.totals = Totals(sum(device.units for inventory in nodes for device in inventory.devices))
        self.tick_seconds: list[float] = []
        self.wall_seconds = 0.0

    @classmethod
    def of_state(
        cls, snapshot: Snapshot, trace: Sequence[TraceJob], policy: Policy, restart_cost_ms: int, used_percent: int
    ) -> "Replay":
        """Returns a replay that begins with a live state; the trace's times count from its instant on.

        How long live jobs take is not known: each is taken to need `used_percent` of its time limit, and what runs
        longer than that already to end at once. What live jobs wait for (other jobs, a begin time aside) is taken as
        come.
        """
        free = tuple(replace(job, waits_for=()) for job in snapshot.parts.jobs)
        later = [replace(job, submit_ms=job.submit_ms + snapshot.at_ms) for job in trace]
        made = cls((), later, policy, restart_cost_ms)
        state = made._state = replace(snapshot, parts=replace(snapshot.parts, jobs=free)).state()
        made.origin_ms = made._now_ms = snapshot.at_ms
        made._last_plan = Plan(0, snapshot.at_ms)
        made._first_id = max((each for job in free for each in (job.id, job.array or 0)), default=0) + 1
        made.totals = Totals(sum(device.units for _, devices in snapshot.parts.nodes for device in devices))
        for job in free:
            made._live[job.id] = JobRun(_as_trace(job, used_percent))
        for allocation in sorted(state.allocations.values(), key=lambda each: (each.decided_ms, each.id)):
            run = made._live[allocation.job]
            made.totals.held(tenant_of(allocation.account), allocation.total_units)
            if allocation.surplus_of is not None:
                continue
            run.start_ms = allocation.decided_ms
            need_ms = min(run.trace.duration_ms, allocation.time_limit_ms)
            made._started += 1
            end_ms = max(snapshot.at_ms, allocation.decided_ms + need_ms)
            heappush(made._ends, (end_ms, made._started, allocation.id))
            made._keep_pace(allocation, end_ms)
        longest_ms = max((job.time_limit_ms for job in free), default=0)
        last_ms = max((job.submit_ms for job in trace), default=0)
        made._sample_every_ms = max(longest_ms, last_ms) // _SAMPLES + 1
        return made

    def _keep_pace(self, gang: Allocation, end_ms: int) -> None:
        """Takes what a live gang with surplus nodes needs as what it needs on all of them."""
        surplus = self._state.usage.surplus.get(gang.id)
        if surplus is None:
            return
        least, run = len(gang.grants), self._live[gang.job]
        nodes = least + len(self._state.allocations[surplus].grants)
        run.trace = replace(run.trace, duration_ms=run.trace.duration_ms * nodes // least)
        self._paces[gang.id] = _Pace(least, nodes, gang.decided_ms, ends_ms=end_ms)

    def run(self) -> "Replay":
        """Plays the trace to its end: until nothing runs and nothing that could run waits."""
        began = time.perf_counter()
        # A replay keeps millions of objects, and to look at all of them again and again costs a third of it. The cycles
        # that its ticks leave behind are found among what is young.
        was_collecting = gc.isenabled()
        gc.disable()
        try:
            self._play()
        finally:
            if was_collecting:
                gc.enable()
        self.wall_seconds = time.perf_counter() - began
        return self

    def _play(self) -> None:
        runs, ends, collected = self.runs, self._ends, 0
        # RLScheduler's simulator decides between two things that happen at one instant, arrivals first.
        most = 1 if self._policy.backfill is Backfill.EASY_BEFORE else len(runs) + 1
        while True:
            moments = [] if self._last_plan.wake_at_ms is None else [self._last_plan.wake_at_ms]
            if ends:
                moments.append(ends[0][0])
            if self._arrived < len(runs):
                moments.append(runs[self._arrived].trace.submit_ms)
            if not moments:
                break
            now_ms = max(self._now_ms, min(moments))
            self.totals.pass_time(now_ms - self._now_ms, self._state)
            self._now_ms = now_ms
            self._happen(now_ms, most)
            self._tick()
            if len(self.tick_seconds) - collected >= _TICKS_A_COLLECTION:
                collected = len(self.tick_seconds)
                gc.collect(0)
            since_ms = now_ms - self.origin_ms
            if not self.samples or since_ms >= self.samples[-1].at_ms + self._sample_every_ms:
                self.samples.append(self.totals.sample(since_ms, self._state))

    def _happen(self, now_ms: int, left: int) -> None:
        """Takes in what happens by now, so many things at most."""
        runs, ends = self.runs, self._ends
        while left and self._arrived < len(runs) and runs[self._arrived].trace.submit_ms <= now_ms:
            self._submit(self._arrived)
            self._arrived += 1
            left -= 1
        while left and ends and ends[0][0] <= now_ms:
            self._end(heappop(ends)[2], None)
            left -= 1

    def _submit(self, index: int) -> None:
        trace, state = self.runs[index].trace, self._state
        known = state.structures.get(trace.shape)
        if known is None or known[0] != state.capacity.inventory_version:
            verdict(state.capacity, trace.shape, state.closed_pools, state.structures)
            known = state.structures[trace.shape]
        if known[1].capable < trace.shape.nodes:
            self.totals.unplaced += 1
            return
        job = Job(
            JobId(self._first_id + index),
            trace.account,
            trace.user,
            trace.shape,
            trace.time_limit_ms,
            self._now_ms,
            trace.wanted,
            trace.priority,
            deadline_ms=self._deadline_ms(trace),
        )
        state.apply(JobSubmitted(self._now_ms, job))

    def _deadline_ms(self, trace: TraceJob) -> int | None:
        """What the order `finish-time` goes by: a job that is stopped keeps the one that it came with."""
        if self._policy.order is not QueueOrder.FINISH_TIME:
            return None
        return self._now_ms + self._policy.finish_stretch * trace.time_limit_ms

    def _end(self, allocation_id: AllocationId, stopped: EndReason | None) -> None:
        """Ends an allocation: by itself, at its time limit, or because it was stopped."""
        state, now_ms = self._state, self._now_ms
        allocation = state.allocations.get(allocation_id)
        if allocation is None:
            return  # it was stopped before
        job = state.jobs[allocation.job]
        run = self._run_of(job.id)
        if allocation.surplus_of is not None:
            self._shrink(allocation, stopped)
            return
        pace = self._paces.get(allocation_id)
        if pace is not None and stopped is None and now_ms < pace.ends_ms:
            return  # it lost nodes, and takes longer than it would have
        surplus = state.usage.surplus.get(allocation_id)
        if surplus is not None:
            self._shrink(state.allocations[surplus], stopped)
        held_ms = now_ms - allocation.decided_ms
        if pace is not None:
            pace.move_to(now_ms)
            held_ms = pace.worked // pace.least + (self._restart_cost_ms if run.done_ms else 0)
            del self._paces[allocation_id]
        reason = stopped or (EndReason.WALLTIME if held_ms < run.need_ms(self._restart_cost_ms) else None)
        after, fate = after_end(job, reason, now_ms, self._policy)
        state.apply(AllocationEnded(now_ms, allocation_id, reason, after))
        self.totals.released(tenant_of(allocation.account), allocation.total_units)
        nodes = tuple(grant.node for grant in allocation.grants)
        ended_as = "completed" if reason is None else reason.value
        self.schedule.append(
            AllocationRun(run.trace.label, allocation.decided_ms, now_ms, nodes, allocation.booking, ended_as)
        )
        if fate is Verdict.ENDED:
            run.end_ms = now_ms
        else:
            self.totals.preemptions += reason is EndReason.PREEMPTED
            lost_ms = run.stop_after(held_ms, self._restart_cost_ms)
            self.totals.lost_unit_ms += allocation.total_units * lost_ms
            if self._stops_the_longest:
                rest_ms = run.trace.time_limit_ms - run.done_ms + (self._restart_cost_ms if run.done_ms else 0)
                state.apply(JobChanged(now_ms, replace(after, time_limit_ms=max(1, rest_ms))))

    def _shrink(self, surplus: Allocation, reason: EndReason | None) -> None:
        """Takes its surplus nodes from a gang, which goes on more slowly."""
        state, now_ms, gang = self._state, self._now_ms, surplus.surplus_of
        assert gang is not None, "only surplus leaves a gang"
        run, job = self._run_of(surplus.job), state.jobs[surplus.job]
        state.apply(AllocationEnded(now_ms, surplus.id, reason, job))
        self.totals.released(tenant_of(surplus.account), surplus.total_units)
        run.surplus_unit_ms += surplus.total_units * (now_ms - surplus.decided_ms)
        nodes = tuple(grant.node for grant in surplus.grants)
        ended_as = "completed" if reason is None else reason.value
        self.schedule.append(
            AllocationRun(run.trace.label, surplus.decided_ms, now_ms, nodes, surplus.booking, ended_as)
        )
        pace = self._paces[gang]
        pace.move_to(now_ms)
        pace.nodes = pace.least
        self._set_end(gang, pace, run)

    def _set_end(self, gang: AllocationId, pace: _Pace, run: JobRun) -> None:
        allocation = self._state.allocations[gang]
        work_ms = run.trace.duration_ms - run.done_ms
        pace.ends_ms = min(pace.done_at(work_ms), allocation.decided_ms + allocation.time_limit_ms)
        self._started += 1
        heappush(self._ends, (pace.ends_ms, self._started, gang))

    def _tick(self) -> None:
        now_ms = self._now_ms
        if self._stops_the_longest:
            for allocation in gangs_to_stop(self._state, self._policy, now_ms):
                self._end(allocation, EndReason.PREEMPTED)
        while True:
            began = time.perf_counter()
            made = plan(self._state, self._policy, now_ms, self._last_plan.decision + 1, is_bare=True)
            self.tick_seconds.append(time.perf_counter() - began)
            self._last_plan = made
            if made.reservations or self._state.reservations:
                self._state.apply(ReservationsPlanned(now_ms, made.reservations, not made.is_partial))
            for promotion in made.promotions:
                segment = self._state.allocations[promotion.allocation].segment + 1
                self._state.apply(AllocationPromoted(now_ms, promotion.allocation, promotion.booking, segment))
            if made.weighed:
                self._state.apply(PreemptionWeighed(now_ms, made.weighed))
            for lapse in made.lapses:
                self._state.apply(ClaimEnded(now_ms, lapse.job))
            for claim in made.claims:
                self._state.apply(ClaimMade(now_ms, claim))
            for stop in made.stops:
                self._end(stop.allocation, stop.reason)
            for start in made.starts:
                self._start(start)
            if not made.is_partial and not made.stops and not made.lapses:
                return

    def _start(self, start: Start) -> None:
        now_ms = self._now_ms
        job = self._state.jobs[start.job]
        attempt = job.attempt + 1
        allocation = Allocation(
            AllocationId(f"{job.id}.{attempt}"),
            job.id,
            job.account,
            job.user,
            start.gpu_class,
            start.booking,
            start.grants,
            now_ms,
            attempt,
            job.time_limit_ms,
            phase=Phase.RUNNING,
            started_ms=now_ms,
        )
        run = self._run_of(job.id)
        if run.start_ms is None:
            run.start_ms = now_ms
        self.totals.held(tenant_of(job.account), job.shape.total_units)
        self._state.apply(AllocationMade(now_ms, allocation))
        if start.surplus is not None:
            self._start_surplus(allocation, start.surplus, run)
            return
        runs_ms = min(run.need_ms(self._restart_cost_ms), job.time_limit_ms)
        self._started += 1
        heappush(self._ends, (now_ms + runs_ms, self._started, allocation.id))

    def _start_surplus(self, gang: Allocation, surplus: Surplus, run: JobRun) -> None:
        own = AllocationId(f"{gang.id}+")
        beside = replace(gang, id=own, booking=surplus.booking, grants=surplus.grants, surplus_of=gang.id)
        self.totals.held(tenant_of(gang.account), beside.total_units)
        self._state.apply(AllocationMade(self._now_ms, beside))
        least = len(gang.grants)
        begins_ms = self._now_ms + (self._restart_cost_ms if run.done_ms else 0)
        pace = self._paces[gang.id] = _Pace(least, least + len(surplus.grants), begins_ms)
        self._set_end(gang.id, pace, run)

    def _run_of(self, job_id: JobId) -> JobRun:
        return self._live.get(job_id) or self.runs[job_id - self._first_id]

    def report(self) -> dict[str, object]:
        """Returns the run in figures: seconds, ratios between 0 and 1, None for a mean of nothing."""
        return {
            **self.totals.report([*self._live.values(), *self.runs], self.origin_ms),
            "ticks": len(self.tick_seconds),
            "tick_seconds": {name: summary(self.tick_seconds)[name] for name in ("p50", "p99", "max")},
            "wall_seconds": self.wall_seconds,
        }


def _as_trace(job: Job, used_percent: int) -> TraceJob:
    """Returns a live job as a trace has jobs, with what it is taken to need."""
    return TraceJob(
        label=str(job.id) if job.array is None else f"{job.array}_{job.array_index}",
        submit_ms=job.submitted_ms,
        duration_ms=max(1, job.time_limit_ms * used_percent // 100),
        time_limit_ms=job.time_limit_ms,
        account=job.account,
        user=job.user,
        shape=job.shape,
        wanted=job.wanted,
        priority=job.priority,
        labels={},
        checkpoint_ms=None,
    )
