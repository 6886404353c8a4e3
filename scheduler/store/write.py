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

from sqlalchemy.engine import Connection

from scheduler.admission import Admission
from scheduler.clock import Clock
from scheduler.core.events import Event
from scheduler.core.policy import Policy
from scheduler.refusal import Refused
from scheduler.store.database import Database
from scheduler.store.lease import LeaderLease
from scheduler.store.read import latest_known_ms
from scheduler.store.transaction import Transaction

LONG_MS = 2000
"""A transaction that took longer extends the lease before it commits, as often as a leader renews it otherwise: nobody
could meanwhile, and a daemon that waits must not find it expired between two transactions."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


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
    """Commits commands. One thread at a time; `epoch` None writes without a lease (offline tools only).

    Without an `admission` nothing costs anything. `lease` is the one that `epoch` is of, kept through long writes.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        policy: Policy,
        epoch: int | None,
        admission: Admission | None = None,
        *,
        lease: LeaderLease | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._policy = policy
        self._epoch = epoch
        self._admission = admission
        self._lease = lease
        self._floor_ms: int | None = None

    def commit(self, commands: Sequence[Command[object]]) -> Batch:
        """Carries out all commands in one transaction. Raises Fenced, StoreUnavailable, StoreCorrupt: then none was."""
        with self._database.write() as connection:
            began_ms = self._clock.now_ms()
            if self._epoch is not None:
                LeaderLease.check(connection, self._epoch)
            tx = Transaction(connection, self._now_ms(connection), self._policy, self._admission)
            outcomes = [_run(tx, command) for command in commands]
            tx.flush()
            now_ms = self._clock.now_ms()
            if self._lease is not None and now_ms - began_ms > LONG_MS:
                self._lease.extend(connection, now_ms)
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
    tx.begin_command()
    try:
        value = command.execute(tx)
    except Refused as refused:
        tx.undo_command()
        return refused
    tx.end_command()
    return Done(value)
