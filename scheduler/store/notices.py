"""Who wants to be told of what, and what is on its way to them.

Deliveries are made from the durable history of jobs, behind a cursor that only moves on together with them: whatever
dies when, each event is delivered to each of its targets at least once, and made a delivery of exactly once.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from ulid import ULID

from scheduler.core.lifecycle import ENDS
from scheduler.core.model import AccountId, JobState, UserName
from scheduler.notices import (
    Channel,
    NoticeEvent,
    NoticeJob,
    NoticeWhen,
    body_of,
    events_of,
    wait_ms,
)
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.columns import JsonObject
from scheduler.store.database import chunks
from scheduler.store.history_tables import JOB_EVENT
from scheduler.store.tables import DELIVERY, JOB, NOTICE_CURSOR, NOTICE_TARGET
from scheduler.store.transaction import Transaction

EVERYBODY = UserName("")
"""The user of a tenant's own target, which hears of all of its jobs."""
MOST_AT_ONCE = 5000
"""Lines of history that one look goes through."""
_ENDED = sorted(state.value for state in ENDS)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a user (or a whole tenant) wants to be told, and of what by default."""

    tenant: AccountId
    user: UserName
    webhook: str | None
    email: str | None
    events: frozenset[NoticeEvent]
    secret: str | None = None
    """What webhooks are signed with; shown when it is made and never again."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A notice on its way to one target by one channel."""

    id: str
    tenant: AccountId
    user: UserName
    channel: Channel
    event: NoticeEvent
    made_ms: int
    body: Mapping[str, Any]
    tries: int
    address: str | None
    """Where it goes now; None when the target has taken the channel back."""
    secret: str | None


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """What became of a delivery, for its owner."""

    id: str
    channel: str
    event: str
    job: str | None
    made_ms: int
    tries: int
    next_ms: int | None
    done_ms: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class SetTarget:
    """Keeps a target; one without webhook and e-mail is removed."""

    target: Target

    def execute(self, tx: Transaction) -> None:
        """Writes it. The first target of all begins with what happens from now on."""
        target, table = self.target, NOTICE_TARGET
        if tx.connection.execute(sa.select(table.c.tenant).limit(1)).first() is None:
            newest = sa.select(sa.func.coalesce(sa.func.max(JOB_EVENT.c.sequence), 0)).scalar_subquery()
            tx.connection.execute(sa.update(NOTICE_CURSOR).values(sequence=newest))
        mine = sa.and_(table.c.tenant == target.tenant, table.c.user == target.user)
        tx.connection.execute(sa.delete(table).where(mine))
        if target.webhook is None and target.email is None:
            return
        tx.connection.execute(
            sa.insert(table).values(
                tenant=target.tenant,
                user=target.user,
                webhook=target.webhook,
                secret=target.secret,
                email=target.email,
                events=sorted(event.value for event in target.events),
                updated_ms=tx.now_ms,
            )
        )


@dataclass(frozen=True, slots=True)
class TestTarget:
    """Sends a test notice to a target, by each of its channels."""

    __test__ = False  # not pytest's
    tenant: AccountId
    user: UserName

    def execute(self, tx: Transaction) -> tuple[str, ...]:
        """Returns the ids of the deliveries. Refuses where there is no target."""
        target = targets(tx.connection).get((self.tenant, self.user))
        if target is None:
            raise Refused(RefusalCode.NOT_FOUND, "nobody is set up to be told", ("turnstile notify set --webhook URL",))
        body = body_of(NoticeEvent.TEST, tx.now_ms, None, None)
        rows = list(_rows(tx, target, NoticeEvent.TEST, body, f"test:{ULID()}"))
        tx.connection.execute(sa.insert(DELIVERY), rows)
        return tuple(row["id"] for row in rows)


@dataclass(frozen=True, slots=True)
class GatherNotices:
    """Makes deliveries of what happened since the last look."""

    def execute(self, tx: Transaction) -> int:
        """Returns how many lines of history it went through; MOST_AT_ONCE when there may be more."""
        known = targets(tx.connection)
        after = _cursor(tx.connection)
        lines, last = _lines(tx.connection, after)
        rows: list[JsonObject] = []
        for line in lines:
            rows += _deliveries(tx, line, known)
        _insert_new(tx, rows)
        if last > after:
            tx.connection.execute(sa.update(NOTICE_CURSOR).values(sequence=last))
        return len(lines)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one try came to; `error` is None when the notice arrived."""

    delivery: str
    error: str | None
    is_final: bool = False
    """True for an error that no later try could mend."""


@dataclass(frozen=True, slots=True)
class RecordOutcomes:
    """Keeps what tries came to."""

    outcomes: tuple[Outcome, ...]

    def execute(self, tx: Transaction) -> None:
        """Marks what arrived, and what is given up; says when to try the rest again."""
        for outcome in self.outcomes:
            row = tx.connection.execute(sa.select(DELIVERY.c.tries).where(DELIVERY.c.id == outcome.delivery)).first()
            if row is None:
                continue
            tries = row.tries + 1
            pause = None if outcome.error is None or outcome.is_final else wait_ms(tries)
            values: JsonObject = {"tries": tries, "error": outcome.error}
            values |= {"done_ms": tx.now_ms} if pause is None else {"next_ms": tx.now_ms + pause}
            tx.connection.execute(sa.update(DELIVERY).where(DELIVERY.c.id == outcome.delivery).values(**values))


@dataclass(frozen=True, slots=True)
class ForgetDeliveries:
    """Drops deliveries that were done before an instant."""

    before_ms: int

    def execute(self, tx: Transaction) -> int:
        """Returns how many."""
        return tx.connection.execute(sa.delete(DELIVERY).where(DELIVERY.c.done_ms < self.before_ms)).rowcount


def targets(connection: Connection) -> dict[tuple[AccountId, UserName], Target]:
    """Returns every target, by tenant and user."""
    found = {}
    for row in connection.execute(sa.select(NOTICE_TARGET)):
        key = AccountId(row.tenant), UserName(row.user)
        events = frozenset(NoticeEvent(word) for word in row.events)
        found[key] = Target(*key, row.webhook, row.email, events, row.secret)
    return found


def has_news(connection: Connection) -> bool:
    """Tells whether there is anybody to tell and anything that was not looked at. Costs two looks into indexes."""
    if connection.execute(sa.select(NOTICE_TARGET.c.tenant).limit(1)).first() is None:
        return False
    newest = connection.execute(sa.select(sa.func.max(JOB_EVENT.c.sequence))).scalar()
    return newest is not None and newest > _cursor(connection)


def due_deliveries(connection: Connection, now_ms: int, most: int) -> list[Delivery]:
    """Returns deliveries whose time has come, the longest due first."""
    statement = (
        sa.select(DELIVERY, NOTICE_TARGET.c.webhook, NOTICE_TARGET.c.email, NOTICE_TARGET.c.secret)
        .outerjoin(
            NOTICE_TARGET, sa.and_(NOTICE_TARGET.c.tenant == DELIVERY.c.tenant, NOTICE_TARGET.c.user == DELIVERY.c.user)
        )
        .where(DELIVERY.c.done_ms.is_(None), DELIVERY.c.next_ms <= now_ms)
        .order_by(DELIVERY.c.next_ms, DELIVERY.c.id)
        .limit(most)
    )
    return [
        Delivery(
            row.id,
            AccountId(row.tenant),
            UserName(row.user),
            Channel(row.channel),
            NoticeEvent(row.event),
            row.made_ms,
            row.body,
            row.tries,
            row.webhook if row.channel == Channel.WEBHOOK.value else row.email,
            row.secret,
        )
        for row in connection.execute(statement)
    ]


def deliveries_of(connection: Connection, tenant: AccountId, user: UserName, most: int) -> list[DeliveryRecord]:
    """Returns a target's newest deliveries."""
    statement = (
        sa.select(DELIVERY)
        .where(DELIVERY.c.tenant == tenant, DELIVERY.c.user == user)
        .order_by(DELIVERY.c.id.desc())
        .limit(most)
    )
    return [
        DeliveryRecord(
            row.id,
            row.channel,
            row.event,
            None if row.body.get("job") is None else row.body["job"]["id"],
            row.made_ms,
            row.tries,
            None if row.done_ms is not None else row.next_ms,
            row.done_ms,
            row.error,
        )
        for row in connection.execute(statement)
    ]


@dataclass(frozen=True, slots=True)
class _Line:
    sequence: int
    at_ms: int
    kind: str
    detail: JsonObject
    job: "sa.Row[Any]"


def _cursor(connection: Connection) -> int:
    return int(connection.execute(sa.select(NOTICE_CURSOR.c.sequence)).scalar_one())


def _lines(connection: Connection, after: int) -> tuple[list[_Line], int]:
    """Returns the next lines of history with their jobs as they are now, and how far that goes."""
    statement = sa.select(JOB_EVENT).where(JOB_EVENT.c.sequence > after).order_by(JOB_EVENT.c.sequence)
    events = connection.execute(statement.limit(MOST_AT_ONCE)).all()
    jobs: dict[int, Any] = {}
    columns = (JOB.c.id, JOB.c.tenant, JOB.c.account, JOB.c.user, JOB.c.name, JOB.c.state, JOB.c.reason)
    times = (JOB.c.exit_code, JOB.c.submitted_ms, JOB.c.started_ms, JOB.c.ended_ms)
    array = (JOB.c.array_id, JOB.c.array_index, JOB.c.notify)
    for part in chunks(sorted({event.job_id for event in events})):
        for row in connection.execute(sa.select(*columns, *times, *array).where(JOB.c.id.in_(part))):
            jobs[row.id] = row
    lines = [
        _Line(event.sequence, event.at_ms, event.kind, event.detail, jobs[event.job_id])
        for event in events
        if event.job_id in jobs
    ]
    return lines, events[-1].sequence if events else after


def _deliveries(
    tx: Transaction, line: _Line, known: Mapping[tuple[AccountId, UserName], Target]
) -> Iterator[JsonObject]:
    events, job = events_of(line.kind, line.detail), line.job
    if not events:
        return
    asked = job.notify or {}
    own_words = frozenset(NoticeEvent(word) for word in asked["events"]) if "events" in asked else None
    counts: dict[str, int] | None = None
    cause, ref = f"line:{line.sequence}", None
    if asked.get("when") == NoticeWhen.LAST.value and job.array_id is not None:
        counts = _array_outcome(tx.connection, job.array_id) if NoticeEvent.END in events else None
        if counts is None:
            return
        has_failed = bool(set(counts) - {JobState.COMPLETED.value})
        events = (NoticeEvent.FAIL, NoticeEvent.END) if has_failed else (NoticeEvent.END,)
        cause, ref = f"array:{job.array_id}", str(job.array_id)
    tenant = AccountId(job.tenant)
    for user, words in ((UserName(job.user), own_words), (EVERYBODY, None)):
        target = known.get((tenant, user))
        if target is None:
            continue
        wanted = target.events if words is None else words
        event = next((each for each in events if each in wanted), None)
        if event is not None:
            yield from _rows(tx, target, event, body_of(event, line.at_ms, _job(job, ref), counts), cause)


def _rows(
    tx: Transaction, target: Target, event: NoticeEvent, body: Mapping[str, Any], cause: str
) -> Iterator[JsonObject]:
    for channel, address in ((Channel.WEBHOOK, target.webhook), (Channel.EMAIL, target.email)):
        if address is not None:
            yield {
                "id": str(ULID.from_timestamp(tx.now_ms / 1000)),
                "tenant": target.tenant,
                "user": target.user,
                "channel": channel.value,
                "event": event.value,
                "cause": f"{cause}:{channel.value}:{target.user}",
                "made_ms": tx.now_ms,
                "body": dict(body),
                "tries": 0,
                "next_ms": tx.now_ms,
                "done_ms": None,
                "error": None,
            }


def _insert_new(tx: Transaction, rows: Iterable[JsonObject]) -> None:
    """Inserts those whose cause made no delivery yet."""
    by_cause = {row["cause"]: row for row in reversed(list(rows))}
    for part in chunks(sorted(by_cause)):
        there = sa.select(DELIVERY.c.cause).where(DELIVERY.c.cause.in_(part))
        for cause in tx.connection.execute(there).scalars():
            del by_cause[cause]
    if by_cause:
        tx.connection.execute(sa.insert(DELIVERY), sorted(by_cause.values(), key=lambda row: str(row["id"])))


def _array_outcome(connection: Connection, array_id: int) -> dict[str, int] | None:
    """Returns an array's elements by state; None while one of them has not ended."""
    rows = connection.execute(
        sa.select(JOB.c.state, sa.func.count()).where(JOB.c.array_id == array_id).group_by(JOB.c.state)
    )
    counts = Counter({state: int(count) for state, count in rows})
    return None if set(counts) - set(_ENDED) else dict(counts)


def _job(row: "sa.Row[Any]", ref: str | None = None) -> NoticeJob:
    own = str(row.id) if row.array_id is None else f"{row.array_id}_{row.array_index}"
    state, reason, exit_code = (row.state, row.reason, row.exit_code) if ref is None else ("ended", None, None)
    return NoticeJob(
        ref or own,
        row.name,
        row.account,
        row.user,
        state,
        reason,
        exit_code,
        row.submitted_ms,
        row.started_ms,
        row.ended_ms,
    )
