"""Promised starts, and who may start now without delaying one: backfill.

`Promises` is a tick's view of what is booked ahead. A promise is the earliest time at which a gang fits on named nodes
if everything that runs takes its whole time limit; another job starts now only on nodes that can spare what it needs
until its own limit. A promise that was made is kept or moved to an earlier time, one after the other while the others
stand, so no backfill and no change of the order delays it. Only what an admin does, the loss of a node or a start
within a guarantee can; then it is sought anew.
"""

from collections.abc import Iterator, Set
from dataclasses import replace
from heapq import merge
from itertools import islice

from scheduler.core.capacity import NodeRoom
from scheduler.core.future import NEVER_MS, Asker, Future, Wanted
from scheduler.core.model import (
    AccountId,
    Booking,
    DeviceId,
    GpuClass,
    Grant,
    Job,
    JobId,
    NodeName,
    PoolName,
    Shape,
)
from scheduler.core.placement import Spares, is_named, open_pools
from scheduler.core.policy import Backfill, Policy
from scheduler.core.state import ClusterState
from scheduler.core.stretch import GIVES_WAY, GUARANTEED, Need, Rank, Reservation, is_within

Terms = tuple[Rank, Set[NodeName] | None]
"""How strongly a job asks, and the nodes that it must stay within, if any."""
Options = list[tuple[GpuClass, Booking]]
"""The classes that a job may start in, as it prefers them, and how it would be booked in each."""


def strength_of(booking: Booking) -> int:
    """Returns how much a promise to a job binds that would be booked like this."""
    return GUARANTEED if booking is Booking.GUARANTEED else GIVES_WAY


def wanted_of(shape: Shape) -> Wanted:
    """Returns what a shape asks of each node."""
    return Wanted(shape.gpus_per_node, shape.gpu_units, shape.cpu_millicores, shape.memory_bytes)


def _most_promises(policy: Policy) -> int:
    """Returns how many of the first jobs of the order are promised a start in each class."""
    return {
        Backfill.NONE: 0,
        Backfill.EASY: policy.promised_jobs,
        Backfill.EASY_BEFORE: 1,
        Backfill.CONSERVATIVE: policy.most_promises,
    }[policy.backfill]


class Promises:
    """The promises of one tick. What it books and unbooks is undone by `restore`, but for the values in `kept`."""

    def __init__(self, state: ClusterState, policy: Policy, now_ms: int) -> None:
        self._state = state
        self._policy = policy
        self._now_ms = now_ms
        self.kept: dict[JobId, Reservation] = dict(state.reservations)
        has_old = policy.backfill is Backfill.EASY and policy.promise_after_ms is not None
        self._old_before_ms = now_ms - (policy.promise_after_ms or 0) if has_old else -1
        self._slots: dict[GpuClass, int] | None = None
        self._most = _most_promises(policy)
        state.future.move_to(now_ms, policy.default_grace_ms)

    @property
    def now_ms(self) -> int:
        """The tick's time."""
        return self._now_ms

    @property
    def has_changed(self) -> bool:
        """True when what is promised now is not what the state holds."""
        return self.kept != self._state.reservations

    def in_order(self) -> list[Reservation]:
        """Returns the promises by their time of start, then by job."""
        return sorted(self.kept.values(), key=lambda each: (each.start_ms, each.job))

    def is_settled(self, reservation: Reservation, shape: Shape) -> bool:
        """True when nothing that has become free since the promise was sought could make it an earlier one."""
        state = self._state
        if reservation.start_ms <= self._now_ms or state.promised_version != state.promises_version:
            return False
        wanted = wanted_of(shape)
        return not any(
            state.future.has_improved((gpu_class, pool), wanted, state.promised_serial, reservation.start_ms)
            for gpu_class in shape.gpu_classes
            for pool in open_pools(state.capacity, shape, gpu_class, state.closed_pools)
        )

    def is_kept(self, job: Job) -> bool:
        """Tells whether a promise outlives the tick that made it."""
        return self._policy.keeps_first_promises or job.submitted_ms < self._old_before_ms

    def old_jobs(self) -> Iterator[Job]:
        """Yields the jobs that waited longer than the policy lets pass, the oldest first; a bounded number of them."""
        if self._policy.backfill is not Backfill.EASY:
            return
        looks = 4 * self._policy.promised_old_jobs  # some may be stopped by a limit, and those get no promise
        for _, job_id in islice(self._state.waiting.ages.irange(maximum=(self._old_before_ms, JobId(0))), looks):
            yield self._state.jobs[job_id]

    def has_slot(self, shape: Shape) -> bool:
        """Tells whether a job of the shape would be promised a start, were it the next in order that fits nowhere."""
        return any(self._slots_left(gpu_class) > 0 for gpu_class in shape.gpu_classes)

    def make_if_slot(self, job: Job, options: Options) -> bool:
        """Promises the job a start if it is among the first of the order in a class; tells whether it did."""
        made = self.make(job, [option for option in options if self._slots_left(option[0]) > 0])
        if made is None:
            return False
        assert self._slots is not None, "slots were counted just now"
        self._slots[made.gpu_class] -= 1
        return True

    def is_host(self, account: AccountId) -> bool:
        """Tells whether an admin keeps nodes for the account's jobs."""
        hosts = (each.account for each in self._state.advance.values())
        return any(host is not None and is_within(account, host) for host in hosts)

    def forbids(self, shape: Shape, until_ms: int) -> bool:
        """Tells whether a job must not start because it would not end before the first promise, wherever it ran."""
        if self._policy.backfill is not Backfill.EASY_BEFORE:
            return False
        first_ms = self.first_start_ms(shape)
        return first_ms is not None and until_ms >= first_ms

    def first_start_ms(self, shape: Shape) -> int | None:
        """Returns the soonest promised start in the shape's classes; None if none is promised."""
        starts = [each.start_ms for each in self.kept.values() if each.gpu_class in shape.gpu_classes]
        return min(starts, default=None)

    def next_advance_ms(self) -> int | None:
        """Returns when the next admin's reservation begins or ends."""
        moments = [moment for each in self._state.advance.values() for moment in (each.start_ms, each.end_ms)]
        return min((moment for moment in moments if moment > self._now_ms), default=None)

    def _slots_left(self, gpu_class: GpuClass) -> int:
        if self._slots is None:
            self._slots = {}
            jobs = self._state.jobs
            for each in self.kept.values():
                if jobs[each.job].submitted_ms >= self._old_before_ms:
                    self._slots[each.gpu_class] = self._slots.get(each.gpu_class, 0) - 1
        if self._policy.backfill is Backfill.NONE:
            return 0
        return self._most + self._slots.setdefault(gpu_class, 0)

    def spares(self, shape: Shape, limit_ms: int, asker: Asker) -> Spares:
        """Returns the question whether a node can spare a part of such a job, from now until its limit."""
        return spares_until(self._state.future, shape, (self._now_ms, self._now_ms + limit_ms), asker)

    def are_spare(self, grants: tuple[Grant, ...], spares: Spares) -> bool:
        """Tells whether grants that fit now leave every promise whole."""
        state = self._state
        if not state.future.booked:
            return True
        for grant in grants:
            if grant.node in state.future.booked:
                room = state.capacity.rooms[grant.node]
                beside = grant.devices[0] if grant.devices[0] in room.held_units else None
                if not spares(room, beside):
                    return False
        return True

    def make(self, job: Job, options: Options) -> Reservation | None:
        """Promises the job its earliest start in one of the classes; None if it could never start in any."""
        best: Reservation | None = None
        for gpu_class, booking in options:
            found = self._earliest(job, gpu_class, rank_of(job.account, booking))
            if found is not None and (best is None or found.start_ms < best.start_ms):
                best = found
        if best is not None:
            self.kept[job.id] = best
            self._state.future.promise(best)
        return best

    def empty_for(self, job_id: JobId) -> None:
        """Has the nodes promised to a job emptied for it, for it has waited too long by now."""
        old = self.kept[job_id]
        if old.kept_from_ms == old.start_ms > self._now_ms:
            self.lift(old)
            self.kept[job_id] = self._emptying(old)
            self._state.future.promise(self.kept[job_id])

    def lift(self, reservation: Reservation) -> None:
        """Takes a promise back, for the job starts now or may not start at all."""
        del self.kept[reservation.job]
        self._state.future.unpromise(reservation)

    def seek_again(self, old: Reservation, job: Job, options: Options, *, is_settled: bool) -> None:
        """Promises an earlier start than a promise just lifted, if there is one, and else the same if it still stands.

        A job that could start as early on other nodes stays where it was: moves without gain would never end.
        """
        booking = next((booking for gpu_class, booking in options if gpu_class == old.gpu_class), None)
        is_as_strong = booking is not None and strength_of(booking) == old.strength
        if not (is_settled and is_as_strong):
            made = self.make(job, options)
            if made is None or made.start_ms < old.start_ms or made == old:
                return
            self.lift(made)
            if booking is None or not is_as_strong or not self._stands(old, rank_of(job.account, booking)):
                old = made
        self.kept[job.id] = old
        self._state.future.promise(old)

    def disturbed_by(self, grants: tuple[Grant, ...]) -> list[Reservation]:
        """Returns the promises on the nodes that a start within a guarantee has just taken, weaker than it."""
        booked = self._state.future.booked
        names = {grant.node for grant in grants if grant.node in booked}
        if not names:
            return []
        return [
            each
            for each in self.in_order()
            if each.strength < GUARANTEED and any(node in names for node, _ in each.parts)
        ]

    def restore(self) -> None:
        """Books in the future again what the state holds, as it was before the tick."""
        state = self._state
        for job_id, reservation in self.kept.items():
            if state.reservations.get(job_id) is not reservation:
                state.future.unpromise(reservation)
        for job_id, reservation in state.reservations.items():
            if self.kept.get(job_id) is not reservation:
                state.future.promise(reservation)

    def _stands(self, reservation: Reservation, rank: Rank) -> bool:
        future, rooms = self._state.future, self._state.capacity.rooms
        length_ms = reservation.end_ms - reservation.start_ms
        for node, need in reservation.parts:
            room = rooms.get(node)
            if room is None:
                return False
            spans = future.starts(room, need, self._now_ms, length_ms, Asker(rank, is_promised=True))
            if not any(first_ms <= reservation.start_ms <= last_ms for first_ms, last_ms in spans):
                return False
        return True

    def _earliest(self, job: Job, gpu_class: GpuClass, rank: Rank) -> Reservation | None:
        """A gang stays inside one pool where one can hold it, as when it is placed, and in one domain if it must."""
        pools = open_pools(self._state.capacity, job.shape, gpu_class, self._state.closed_pools)
        level = job.shape.required_level
        best: tuple[int, list[NodeName]] | None = None
        for pool in pools:
            if level is None:
                scopes: list[Set[NodeName] | None] = [None]
            else:
                members = self._state.domains.members((gpu_class, pool), level)
                scopes = [members[domain] for domain in sorted(members) if len(members[domain]) >= job.shape.nodes]
            for scope in scopes:
                found = self._search(job, gpu_class, [pool], (rank, scope))
                if found is not None and (best is None or found[0] < best[0]):
                    best = found
        if best is None and level is None and len(pools) > 1 and job.shape.nodes > 1:
            best = self._search(job, gpu_class, pools, (rank, None))
        if best is None:
            return None
        start_ms, names = best
        wanted, rooms = wanted_of(job.shape), self._state.capacity.rooms
        parts = tuple((name, wanted.on(rooms[name])) for name in sorted(names))
        made = Reservation(
            job.id, job.account, gpu_class, start_ms, start_ms + job.time_limit_ms, rank.strength, start_ms, parts
        )
        return self._emptying(made) if job.submitted_ms < self._old_before_ms else made

    def _emptying(self, reservation: Reservation) -> Reservation:
        """Returns the promise with its nodes emptied from when what runs there is expected to have ended."""
        used_permille = self._state.used_permille.get(reservation.gpu_class, 1000)
        ahead_ms = (reservation.start_ms - self._now_ms) * used_permille // 1000
        return replace(reservation, kept_from_ms=self._now_ms + ahead_ms)

    def _search(
        self, job: Job, gpu_class: GpuClass, pools: list[PoolName], terms: Terms
    ) -> tuple[int, list[NodeName]] | None:
        """Sweeps through time over nodes that come free and nodes that are booked, until enough are open at once."""
        count = job.shape.nodes
        changes = self._changes(job, gpu_class, pools, terms)
        coming = self._coming(job.shape, gpu_class, pools, terms[1])
        upcoming = next(coming, None)
        is_open: dict[NodeName, None] = {}
        index = 0
        while upcoming is not None or index < len(changes):
            free_ms = NEVER_MS if upcoming is None else max(upcoming[0], self._now_ms)
            change_ms = changes[index][0] if index < len(changes) else NEVER_MS
            at_ms = min(free_ms, change_ms)
            while index < len(changes) and changes[index][0] == at_ms:
                _, opens, name = changes[index]
                if opens:
                    is_open[name] = None
                else:
                    del is_open[name]
                index += 1
            while upcoming is not None and len(is_open) < count and max(upcoming[0], self._now_ms) == at_ms:
                is_open[upcoming[1]] = None
                upcoming = next(coming, None)
            if len(is_open) >= count:
                # The nodes that opened last: what was free before stays free for others until then.
                return at_ms, list(is_open)[-count:]
        return None

    def _changes(
        self, job: Job, gpu_class: GpuClass, pools: list[PoolName], terms: Terms
    ) -> list[tuple[int, bool, NodeName]]:
        """Returns when each booked node opens for the job and closes again, closings first."""
        future, rooms, wanted = self._state.future, self._state.capacity.rooms, wanted_of(job.shape)
        rank, scope = terms
        asker = Asker(rank, is_promised=False)
        changes: list[tuple[int, bool, NodeName]] = []
        for name in future.booked:
            room = rooms.get(name)
            if room is None or room.node.gpu_class != gpu_class or room.node.pool not in pools:
                continue
            if is_named(room, job.shape) and (scope is None or name in scope):
                for first_ms, last_ms in future.starts(room, wanted.on(room), self._now_ms, job.time_limit_ms, asker):
                    changes.append((first_ms, True, name))
                    if last_ms < NEVER_MS:
                        changes.append((last_ms + 1, False, name))
        changes.sort()
        return changes

    def _coming(
        self, shape: Shape, gpu_class: GpuClass, pools: list[PoolName], scope: Set[NodeName] | None
    ) -> Iterator[tuple[int, NodeName]]:
        future, rooms, wanted = self._state.future, self._state.capacity.rooms, wanted_of(shape)
        streams = [future.by_time((gpu_class, pool), wanted) for pool in pools]
        for at_ms, name in streams[0] if len(streams) == 1 else merge(*streams):
            if name not in future.booked and is_named(rooms[name], shape) and (scope is None or name in scope):
                yield at_ms, name


def spares_until(future: Future, shape: Shape, span_ms: tuple[int, int], asker: Asker) -> Spares:
    """Returns the question whether a node can spare a part of a job of the shape from an instant until another."""
    booked, wanted = future.booked, wanted_of(shape)
    now_ms, until_ms = span_ms

    def is_spare(room: NodeRoom, device: DeviceId | None) -> bool:
        if room.node.name not in booked:
            return True
        need = wanted.on(room)
        if device is None:
            return future.is_clear(room, need, now_ms, until_ms, asker)
        # Beside other shares it takes no whole GPU until they end; from then on it alone keeps the device.
        beside = Need(0, need.cpu_millicores, need.memory_bytes)
        alone_ms = future.whole_ms(room, device)
        return future.is_clear(room, beside, now_ms, until_ms, asker) and (
            alone_ms >= until_ms or future.is_clear(room, need, alone_ms, until_ms, asker)
        )

    return is_spare


def rank_of(account: AccountId, booking: Booking) -> Rank:
    """Returns how strongly a job of the account asks that would be booked like this."""
    return Rank(strength_of(booking), account)
