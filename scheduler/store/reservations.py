"""Commands on advance reservations: nodes that an admin keeps free for maintenance, or for one account's jobs.

A reservation is made for a time to come; the planner lets no job run into it that is not its own. When its time comes
(`TurnReservations`) the GPUs of its nodes that nobody holds rest as `reserved_unused` in the ledger, until it is over.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.events import ReservationMade, ReservationRemoved
from scheduler.core.model import AccountId, GpuClass, JobId, NodeAvailability, NodeName, PoolName
from scheduler.core.occupancy import Evidence
from scheduler.core.stretch import AdvanceReservation, ReservationId
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.store.codec import grants_of
from scheduler.store.database import chunks
from scheduler.store.inventory import settle
from scheduler.store.nodes import KnownNode, load_nodes
from scheduler.store.tables import ALLOCATION, NODE, RESERVATION
from scheduler.store.transaction import Transaction

_LIVE = RESERVATION.c.ended_ms.is_(None)


@dataclass(frozen=True, slots=True)
class ReservationRecord:
    """A reservation as it is stored. `ended_ms` is when it was over or taken back; None while it stands."""

    reservation: AdvanceReservation
    created_ms: int
    created_by: str
    is_in_force: bool
    ended_ms: int | None


@dataclass(frozen=True, slots=True)
class Reserved:
    """A reservation that was made, and the jobs whose time limits reach into it: they are not stopped for it."""

    reservation: AdvanceReservation
    overrunning: tuple[JobId, ...]


@dataclass(frozen=True, slots=True)
class NodesWanted:
    """So many whole nodes of a class (and pool), for the caller to choose: those that are free of work the soonest."""

    gpu_class: GpuClass
    count: int
    pool: PoolName | None = None


@dataclass(frozen=True, slots=True)
class MakeReservation:
    """Keeps nodes from `start_ms` until `end_ms`. With an account only its jobs run there then, else nobody's."""

    name: str
    start_ms: int
    end_ms: int
    nodes: tuple[NodeName, ...] | NodesWanted
    account: AccountId | None
    reason: str | None
    actor: str

    def execute(self, tx: Transaction) -> Reserved:
        """Returns what was reserved. Refuses a time that is over, unknown nodes or accounts, and overlaps."""
        standing = live_reservations(tx.connection)
        known = load_nodes(tx.connection)
        holds = _limits(tx.connection)
        start_ms = max(self.start_ms, tx.now_ms)
        problems = [*self._time_problems(tx.now_ms), *self._account_problems(tx)]
        if any(each.id == self.name for each in standing):
            raise Refused(RefusalCode.WRONG_STATE, f"there is a reservation {self.name} already; cancel it first")
        if problems:
            raise Refused(RefusalCode.INVALID, problems[0].message, problems=tuple(problems))
        clashing = _clashing(standing, start_ms, self.end_ms)
        if isinstance(self.nodes, NodesWanted):
            names = _chosen(self.nodes, known, clashing, holds)
        else:
            names = _named(self.nodes, known, clashing)
        made = AdvanceReservation(
            ReservationId(self.name), start_ms, self.end_ms, tuple(sorted(names)), self.account, self.reason
        )
        tx.connection.execute(
            sa.insert(RESERVATION).values(
                name=made.id,
                start_ms=made.start_ms,
                end_ms=made.end_ms,
                nodes=list(made.nodes),
                account=made.account,
                reason=made.reason,
                created_ms=tx.now_ms,
                created_by=self.actor,
                is_in_force=False,
            )
        )
        tx.emit(ReservationMade(tx.now_ms, made))
        if start_ms <= tx.now_ms:
            _turn(tx, [made], made.id)
        late = {job for name in made.nodes for end_ms, job in holds.get(name, ()) if end_ms > start_ms}
        return Reserved(made, tuple(sorted(late)))

    def _time_problems(self, now_ms: int) -> list[Problem]:
        if self.end_ms <= self.start_ms:
            return [Problem("the reservation must end after it starts", "end")]
        if self.end_ms <= now_ms:
            return [Problem("the reservation would be over already", "end")]
        return []

    def _account_problems(self, tx: Transaction) -> list[Problem]:
        if self.account is None or tx.is_suspended(self.account) is not None:
            return []
        return [Problem(f"there is no account {self.account}", "account")]


@dataclass(frozen=True, slots=True)
class RemoveReservation:
    """Takes a reservation back, before its time or during it."""

    name: str
    actor: str

    def execute(self, tx: Transaction) -> AdvanceReservation:
        """Returns what is not reserved any more. Refuses a name that no live reservation has."""
        for each in live_reservations(tx.connection):
            if each.id == self.name:
                _end(tx, [each], self.actor)
                return each
        raise Refused(RefusalCode.NOT_FOUND, f"there is no reservation {self.name}")


@dataclass(frozen=True, slots=True)
class TurnReservations:
    """Puts reservations in force whose time has come, and ends those whose time is over."""

    def execute(self, tx: Transaction) -> tuple[ReservationId, ...]:
        """Returns those that turned, in order of name."""
        due = due_reservations(tx.connection, tx.now_ms)
        over = [each for each in due if each.end_ms <= tx.now_ms]
        _end(tx, over, None)
        for each in due:
            if each.end_ms > tx.now_ms:
                _turn(tx, [each], each.id)
        return tuple(each.id for each in due)


def live_reservations(connection: Connection) -> tuple[AdvanceReservation, ...]:
    """Returns the reservations that stand, present and to come, in order of name."""
    rows = connection.execute(sa.select(RESERVATION).where(_LIVE).order_by(RESERVATION.c.name))
    return tuple(_reservation(row) for row in rows)


def due_reservations(connection: Connection, now_ms: int) -> tuple[AdvanceReservation, ...]:
    """Returns the reservations whose time has come and that are not in force, and those that are over and stand."""
    has_begun = sa.and_(RESERVATION.c.start_ms <= now_ms, RESERVATION.c.is_in_force.is_(False))
    statement = sa.select(RESERVATION).where(_LIVE, sa.or_(has_begun, RESERVATION.c.end_ms <= now_ms))
    return tuple(_reservation(row) for row in connection.execute(statement.order_by(RESERVATION.c.name)))


def reservations(connection: Connection, *, with_ended: bool = False) -> list[ReservationRecord]:
    """Returns the reservations that stand by time of start; with `with_ended` those before them too."""
    statement = sa.select(RESERVATION).order_by(RESERVATION.c.start_ms, RESERVATION.c.sequence)
    rows = connection.execute(statement if with_ended else statement.where(_LIVE))
    return [
        ReservationRecord(_reservation(row), row.created_ms, row.created_by, bool(row.is_in_force), row.ended_ms)
        for row in rows
    ]


def _reservation(row: sa.Row[tuple[object, ...]]) -> AdvanceReservation:
    nodes = tuple(NodeName(name) for name in row.nodes)
    account = None if row.account is None else AccountId(row.account)
    return AdvanceReservation(ReservationId(row.name), row.start_ms, row.end_ms, nodes, account, row.reason)


def _limits(connection: Connection) -> dict[NodeName, list[tuple[int, JobId]]]:
    """Returns, by node, when the jobs there end at the latest."""
    columns = (ALLOCATION.c.job_id, ALLOCATION.c.grants, ALLOCATION.c.started_ms, ALLOCATION.c.decided_ms)
    live = sa.select(*columns, ALLOCATION.c.time_limit_ms).where(ALLOCATION.c.ended_ms.is_(None))
    found: dict[NodeName, list[tuple[int, JobId]]] = {}
    for job, grants, started_ms, decided_ms, limit_ms in connection.execute(live):
        end_ms = (decided_ms if started_ms is None else started_ms) + limit_ms
        for grant in grants_of(grants):
            found.setdefault(grant.node, []).append((end_ms, JobId(job)))
    return found


def _clashing(standing: Sequence[AdvanceReservation], start_ms: int, end_ms: int) -> dict[NodeName, AdvanceReservation]:
    return {name: each for each in standing if each.start_ms < end_ms and start_ms < each.end_ms for name in each.nodes}


def _named(
    names: Collection[NodeName], known: dict[NodeName, KnownNode], clashing: dict[NodeName, AdvanceReservation]
) -> list[NodeName]:
    unknown = sorted(set(names) - set(known))
    problems = [Problem(f"there is no node {name}", "nodes") for name in unknown]
    problems += [
        Problem(f"node {name} is kept by reservation {clashing[name].id} in that time", "nodes")
        for name in sorted(set(names) & set(clashing))
    ]
    if not names:
        problems.append(Problem("name at least one node", "nodes"))
    if problems:
        raise Refused(RefusalCode.INVALID, problems[0].message, problems=tuple(problems))
    return sorted(set(names))


def _chosen(
    wanted: NodesWanted,
    known: dict[NodeName, KnownNode],
    clashing: dict[NodeName, AdvanceReservation],
    holds: dict[NodeName, list[tuple[int, JobId]]],
) -> list[NodeName]:
    fit = [
        name
        for name, each in known.items()
        if each.effective.gpu_class == wanted.gpu_class
        and wanted.pool in {None, each.effective.pool}
        and each.effective.availability is NodeAvailability.UP
        and name not in clashing
    ]
    if len(fit) < wanted.count:
        where = "" if wanted.pool is None else f" in pool {wanted.pool}"
        raise Refused(
            RefusalCode.NEVER_FITS,
            f"only {len(fit)} {wanted.gpu_class} nodes{where} are up and not reserved in that time, not {wanted.count}",
        )
    fit.sort(key=lambda name: (max((end_ms for end_ms, _ in holds.get(name, ())), default=0), name))
    return fit[: wanted.count]


def _turn(tx: Transaction, those: Sequence[AdvanceReservation], kept_by: ReservationId | None) -> None:
    """Marks the nodes of reservations as kept, or as kept no more, and lets their free GPUs rest so."""
    names = [name for each in those for name in each.nodes]
    stored = load_nodes(tx.connection, names)
    changes = {name: replace(known, kept_by=kept_by) for name, known in stored.items()}
    for part in chunks(names):
        tx.connection.execute(sa.update(NODE).where(NODE.c.name.in_(part)).values(kept_by=kept_by))
    if kept_by is not None:
        tx.connection.execute(
            sa.update(RESERVATION).where(_LIVE, RESERVATION.c.name == kept_by).values(is_in_force=True)
        )
    settle(tx, changes, stored, Evidence.OPERATOR)


def _end(tx: Transaction, those: Sequence[AdvanceReservation], actor: str | None) -> None:
    for each in those:
        values = {"ended_ms": tx.now_ms, "ended_by": actor, "is_in_force": False}
        tx.connection.execute(sa.update(RESERVATION).where(_LIVE, RESERVATION.c.name == each.id).values(**values))
        in_force = sa.select(NODE.c.name).where(NODE.c.kept_by == each.id)
        if tx.connection.execute(in_force).first() is not None:
            _turn(tx, [each], None)
        tx.emit(ReservationRemoved(tx.now_ms, each.id))
