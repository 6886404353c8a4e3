"""A centre in memory for scenarios: the real state and planner, driven by hand, checked after every step.

    centre = Centre(node("n1"), node("n2"))
    a = centre.submit(job(gpus=8)); centre.tick(); assert centre.running() == {a}

What the store does in the product (give ids, decide what becomes of a job) is done here by the same pure rules.
"""

from dataclasses import replace

from scheduler.core import events
from scheduler.core.cycle import plan
from scheduler.core.explain import explain
from scheduler.core.model import (
    GPU_UNITS,
    Account,
    Allocation,
    AllocationId,
    DeviceId,
    EndReason,
    HoldKind,
    Job,
    JobId,
    JobState,
    NodeAvailability,
    Phase,
    PoolName,
)
from scheduler.core.outcome import after_end
from scheduler.core.plan import Plan
from scheduler.core.policy import Policy
from scheduler.core.reasons import ReasonCode
from scheduler.core.state import ClusterState, lineage
from scheduler.executor import NodeInventory
from tests.builders import START_MS


class Centre:
    """Nodes, accounts and jobs, with a clock that moves when told."""

    def __init__(self, *nodes: NodeInventory, accounts: tuple[Account, ...] = (), policy: Policy | None = None) -> None:
        self.policy = policy or Policy()
        self.state = ClusterState(self.policy.debt_half_life_ms)
        self.now_ms = START_MS
        self.ended: dict[JobId, JobState] = {}
        self.last: Plan | None = None
        self.log: list[events.Event] = []
        self._next_job = 1
        self._decisions = 0
        for inventory in nodes:
            self.node(inventory)
        for account in accounts:
            self.apply(events.AccountChanged(self.now_ms, account))

    def apply(self, event: events.Event) -> None:
        self.log.append(event)
        self.state.apply(event)
        self.state.check()

    def advance(self, *, minutes: int = 0, seconds: int = 0) -> None:
        self.now_ms += (minutes * 60 + seconds) * 1000

    def node(self, inventory: NodeInventory) -> None:
        self.apply(events.NodeChanged(self.now_ms, inventory.node, inventory.devices))

    def down(self, inventory: NodeInventory) -> None:
        """The node dies: its jobs are lost."""
        self.node(replace(inventory, node=replace(inventory.node, availability=NodeAvailability.DOWN)))
        for allocation in list(self.state.allocations.values()):
            if any(grant.node == inventory.node.name for grant in allocation.grants):
                self.end(allocation.job, EndReason.NODE_LOST)

    def submit(self, job: Job) -> JobId:
        job = replace(job, id=JobId(self._next_job), submitted_ms=self.now_ms)
        self._next_job += 1
        self.apply(events.JobSubmitted(self.now_ms, job))
        return job.id

    def tick(self) -> Plan:
        self._decisions += 1
        made = plan(self.state, self.policy, self.now_ms, self._decisions)
        self.state.check()
        assert made == plan(self.state, self.policy, self.now_ms, self._decisions), "a plan changes the state"
        self.last = made
        for promotion in made.promotions:
            segment = self.state.allocations[promotion.allocation].segment + 1
            self.apply(events.AllocationPromoted(self.now_ms, promotion.allocation, promotion.booking, segment))
        for lapse in made.lapses:
            self.apply(events.ClaimEnded(self.now_ms, lapse.job))
        for stop in made.stops:
            self._stop(stop.allocation, stop.reason)
        for claim in made.claims:
            self.apply(events.ClaimMade(self.now_ms, claim))
        self.apply(events.PreemptionWeighed(self.now_ms, made.weighed))
        self.apply(events.ReservationsPlanned(self.now_ms, made.reservations, not made.is_partial))
        for start in made.starts:
            job = self.state.jobs[start.job]
            allocation = Allocation(
                AllocationId(f"{start.job}.{job.attempt + 1}"),
                job.id,
                job.account,
                job.user,
                start.gpu_class,
                start.booking,
                start.grants,
                self.now_ms,
                job.attempt + 1,
                job.time_limit_ms,
            )
            self.apply(events.AllocationMade(self.now_ms, allocation))
            self.apply(events.AllocationStarted(self.now_ms, allocation.id))
            if start.surplus is not None:
                booking, grants = start.surplus.booking, start.surplus.grants
                own = AllocationId(f"{allocation.id}+")
                beside = replace(allocation, id=own, booking=booking, grants=grants, surplus_of=allocation.id)
                self.apply(events.AllocationMade(self.now_ms, beside))
                self.apply(events.AllocationStarted(self.now_ms, own))
        self._check_invariants()
        return made

    def end(self, job_id: JobId, reason: EndReason | None = None) -> JobState:
        job = self.state.jobs[job_id]
        assert job.allocation is not None
        self.shrink(job_id)
        after, _ = after_end(job, reason, self.now_ms, self.policy)
        self.apply(events.AllocationEnded(self.now_ms, job.allocation, reason, after))
        if job_id not in self.state.jobs:
            self.ended[job_id] = after.state
        return after.state

    def shrink(self, job_id: JobId) -> None:
        """The surplus nodes of the job's gang are gone, if it had any."""
        job = self.state.jobs[job_id]
        surplus = None if job.allocation is None else self.state.usage.surplus.get(job.allocation)
        if surplus is not None:
            reason = self.state.allocations[surplus].stop_reason
            self.apply(events.AllocationEnded(self.now_ms, surplus, reason, job))

    def _stop(self, allocation: AllocationId, reason: EndReason) -> None:
        """Asks a gang and its surplus to end, or surplus nodes alone."""
        found = self.state.allocations[allocation]
        surplus = self.state.usage.surplus.get(allocation)
        for each in (found, None if surplus is None else self.state.allocations[surplus]):
            if each is not None and each.phase is not Phase.STOPPING:
                self.apply(events.AllocationStopping(self.now_ms, each.id, reason, found.surplus_of))

    def settle(self) -> Plan:
        """Lets what was asked to end do so, and plans again, until nothing is left to happen at this instant."""
        while True:
            made = self.tick()
            leaving = [each for each in self.state.allocations.values() if each.phase is Phase.STOPPING]
            for allocation in leaving:
                if allocation.id not in self.state.allocations:
                    continue  # its gang has just ended
                if allocation.surplus_of is None:
                    self.end(allocation.job, allocation.stop_reason)
                else:
                    self.shrink(allocation.job)
            if made.is_idle and not leaving:
                return made

    def cancel(self, job_id: JobId) -> None:
        job = self.state.jobs[job_id]
        if job.allocation is None:
            self.apply(events.JobEnded(self.now_ms, job_id, JobState.CANCELLED, EndReason.CANCELLED))
            self.ended[job_id] = JobState.CANCELLED
        else:
            if job.state is not JobState.STOPPING:
                self._stop(job.allocation, EndReason.CANCELLED)
            self.end(job_id, EndReason.CANCELLED)

    def hold(self, job_id: JobId, kind: HoldKind = HoldKind.USER) -> None:
        self.apply(events.JobHeld(self.now_ms, job_id, kind))

    def release(self, job_id: JobId) -> None:
        self.apply(events.JobReleased(self.now_ms, job_id))

    def pool(self, name: str, *, closed: bool) -> None:
        self.apply(events.PoolChanged(self.now_ms, PoolName(name), closed, "maintenance" if closed else None))

    def running(self) -> set[JobId]:
        return {job.id for job in self.state.jobs.values() if job.state is JobState.RUNNING}

    def nodes_of(self, job_id: JobId) -> list[str]:
        allocation = self.state.jobs[job_id].allocation
        assert allocation is not None
        surplus = self.state.usage.surplus.get(allocation)
        parts = [allocation] if surplus is None else [allocation, surplus]
        return [grant.node for each in parts for grant in self.state.allocations[each].grants]

    def why(self, job_id: JobId) -> ReasonCode:
        assert self.last is not None
        return explain(self.state, self.last, job_id).reasons[0].code

    def _check_invariants(self) -> None:
        """Gangs are whole (checked by the state itself), no device holds too much, no limit is exceeded."""
        state = self.state
        held: dict[DeviceId, int] = {}
        for allocation in state.allocations.values():
            names = [grant.node for grant in allocation.grants]
            assert len(set(names)) == len(names), "a gang takes a node once"
            for grant in allocation.grants:
                for device in grant.devices:
                    held[device] = held.get(device, 0) + grant.units
        for device, units in held.items():
            found = state.capacity.find(device)
            assert found is None or units <= found.units, f"{device} holds {units}"
        self._check_claims()
        for account in state.accounts.values():
            for gpu_class, limit in account.limit.items():
                total = sum(
                    allocation.total_units
                    for allocation in state.allocations.values()
                    if allocation.gpu_class == gpu_class and account.id in lineage(allocation.account)
                )
                assert total <= limit * 12_600, f"{account.id} holds more than its limit"
            inside = [each for each in state.allocations.values() if account.id in lineage(each.account)]
            if account.running_limit is not None:
                gangs = [each for each in inside if each.surplus_of is None]
                assert len(gangs) <= account.running_limit, f"{account.id} runs more jobs than it may"
            for gpu_class, most in account.user_limit.items():
                for user in {each.user for each in inside}:
                    its = sum(a.total_units for a in inside if a.user == user and a.gpu_class == gpu_class)
                    assert its <= most * 12_600, f"{user} holds more than a user of {account.id} may"

    def _check_claims(self) -> None:
        """What is claimed belongs to its victims or to nobody (I3)."""
        for claim in self.state.claims.by_job.values():
            whole = {device for grant in claim.grants if grant.units == GPU_UNITS for device in grant.devices}
            for allocation in self.state.allocations.values():
                if allocation.id not in claim.victims:
                    got = {device for grant in allocation.grants for device in grant.devices}
                    assert not whole & got, f"job {allocation.job} got what is claimed for job {claim.job}"
