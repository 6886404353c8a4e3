"""The only door through which anything changes: commands in, one durable transaction, outcomes and events out.

A command is a frozen dataclass that says what to do; its `execute` reads, checks and writes inside the transaction.
Many commands share one transaction (group commit), each in a savepoint of its own: a `Refused` undoes that command and
the others go on; any other exception undoes all. Nothing is returned before the commit is durable, so whoever applies
`Batch.events` to a state holds what the database holds. When `commit` raises StoreUnavailable, the commit itself may
have been what was cut off: reload the state before going on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.clock import Clock
from scheduler.core.events import Event
from scheduler.core.model import AccountId, JobId
from scheduler.core.policy import Policy
from scheduler.refusal import Refused
from scheduler.store.database import Database
from scheduler.store.lease import LeaderLease
from scheduler.store.partition import Chain, ChainMark, Lanes
from scheduler.store.read import latest_known_ms
from scheduler.store.tables import ACCOUNT, JOB_EVENT, JsonObject

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_INSERT_JOB_EVENT = sa.insert(JOB_EVENT)
_SELECT_SUSPENDED = sa.select(ACCOUNT.c.is_suspended).where(ACCOUNT.c.id == sa.bindparam("id"))
_LAST_ID_SQLITE = sa.text("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'job'")
_LAST_ID_POSTGRES = sa.text("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM job_id_seq")
_SET_ID_POSTGRES = sa.text("SELECT setval('job_id_seq', :last)")


@dataclass(frozen=True, slots=True)
class _Mark:
    events: int
    history: int
    chain: ChainMark | None


class Transaction:
    """What a command works with. `now_ms` is one instant for all of a transaction, never before the ledger's last."""

    def __init__(self, connection: Connection, now_ms: int, policy: Policy) -> None:
        self.connection = connection
        self.now_ms = now_ms
        self.policy = policy
        self.events: list[Event] = []
        self._history: list[JsonObject] = []
        self._chain: Chain | None = None
        self._suspended: dict[AccountId, bool | None] = {}
        self._next_job_id: int | None = None

    def emit(self, event: Event) -> None:
        """Says what happened; the caller of `commit` learns of it when it is durable."""
        self.events.append(event)

    def note(self, job: JobId, kind: str, at_ms: int, **detail: str | int | None) -> None:
        """Adds a line to a job's history, as its owner sees it. Details that are None are left out."""
        facts = {name: value for name, value in detail.items() if value is not None}
        self._history.append({"at_ms": at_ms, "job_id": job, "kind": kind, "detail": facts})

    def is_suspended(self, account: AccountId) -> bool | None:
        """Tells whether the account itself is suspended; None when there is no such account."""
        if account not in self._suspended:
            self._suspended[account] = self.connection.execute(_SELECT_SUSPENDED, {"id": account}).scalar_one_or_none()
        return self._suspended[account]

    def forget_accounts(self) -> None:
        """Says that accounts changed in this transaction."""
        self._suspended.clear()

    def reserve_job_ids(self, count: int) -> JobId:
        """Returns the first of `count` consecutive job ids that were never given before and never will be again."""
        if self._next_job_id is None:
            statement = _LAST_ID_SQLITE if self.connection.dialect.name == "sqlite" else _LAST_ID_POSTGRES
            self._next_job_id = int(self.connection.execute(statement).scalar_one()) + 1
        first = self._next_job_id
        self._next_job_id += count
        if self.connection.dialect.name == "postgresql":
            # SQLite counts ids that are given explicitly; a sequence must be told.
            self.connection.execute(_SET_ID_POSTGRES, {"last": self._next_job_id - 1})
        return JobId(first)

    def lanes(self) -> Lanes:
        """Returns an empty working set of cursors; the command flushes it when it is done."""
        if self._chain is None:
            self._chain = Chain(self.connection, self.now_ms)
        return Lanes(self.connection, self._chain)

    def mark(self) -> _Mark:
        """Returns the present point, for `rewind`."""
        chain = None if self._chain is None else self._chain.mark()
        return _Mark(len(self.events), len(self._history), chain)

    def rewind(self, mark: _Mark) -> None:
        """Forgets what was said since the mark; the rows are undone by the savepoint."""
        self.forget_accounts()
        del self.events[mark.events :]
        del self._history[mark.history :]
        if mark.chain is None:
            self._chain = None
        elif self._chain is not None:
            self._chain.rewind(mark.chain)

    def flush(self) -> None:
        """Writes history and ledger rows, which no command reads, once for all commands."""
        if self._chain is not None:
            self._chain.flush()
        if self._history:
            self.connection.execute(_INSERT_JOB_EVENT, self._history)


class Command(Protocol[T_co]):
    """Something to do, as a value."""

    def execute(self, tx: Transaction) -> T_co:
        """Does it inside the transaction. Raises Refused; then nothing of it stays."""
        ...


@dataclass(frozen=True, slots=True)
class Done(Generic[T_co]):
    """A command was carried out; `value` is its answer."""

    value: T_co


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of each command, in order, and the events of all, in commit order."""

    outcomes: tuple[Done[object] | Refused, ...]
    events: tuple[Event, ...]


class Writer:
    """Commits commands. One thread at a time; `epoch` None writes without a lease (offline tools only)."""

    def __init__(self, database: Database, clock: Clock, policy: Policy, epoch: int | None) -> None:
        self._database = database
        self._clock = clock
        self._policy = policy
        self._epoch = epoch
        self._floor_ms: int | None = None

    def commit(self, commands: Sequence[Command[object]]) -> Batch:
        """Carries out all commands in one transaction. Raises Fenced, StoreUnavailable, StoreCorrupt: then none was."""
        with self._database.write() as connection:
            if self._epoch is not None:
                LeaderLease.check(connection, self._epoch)
            tx = Transaction(connection, self._now_ms(connection), self._policy)
            outcomes = [_run(tx, command) for command in commands]
            tx.flush()
        self._floor_ms = tx.now_ms
        return Batch(tuple(outcomes), tuple(tx.events))

    def run(self, command: Command[T]) -> tuple[T, tuple[Event, ...]]:
        """Commits one command; returns its answer and events. Raises Refused besides what `commit` raises."""
        batch = self.commit([command])
        outcome = batch.outcomes[0]
        if isinstance(outcome, Refused):
            raise outcome
        # The outcome of a Command[T] is a Done[T]; the batch forgets which is which.
        value: T = outcome.value  # type: ignore[assignment]
        return value, batch.events

    def _now_ms(self, connection: Connection) -> int:
        # A daemon that takes over on a machine whose clock is behind starts where the ledger ended.
        floor_ms = latest_known_ms(connection) if self._floor_ms is None else self._floor_ms
        return max(self._clock.now_ms(), floor_ms)


def _run(tx: Transaction, command: Command[object]) -> Done[object] | Refused:
    mark = tx.mark()
    tx.connection.exec_driver_sql("SAVEPOINT command")
    try:
        value = command.execute(tx)
    except Refused as refused:
        tx.connection.exec_driver_sql("ROLLBACK TO SAVEPOINT command")
        tx.connection.exec_driver_sql("RELEASE SAVEPOINT command")
        tx.rewind(mark)
        return refused
    tx.connection.exec_driver_sql("RELEASE SAVEPOINT command")
    return Done(value)
