"""Who may write: a lease in the database, with an epoch that rises at each takeover and that each write checks.

Leases expire by the clocks of those who want them, so a takeover may come early where clocks differ; that costs the
leader its lead, never the ledger its truth, because every write transaction compares the epoch: on SQLite under the
one write lock, on PostgreSQL with the row locked FOR SHARE until the transaction's end, so a takeover waits for it.
"""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.store.database import Database, Fenced, StoreCorrupt
from scheduler.store.tables import LEADER_LEASE

_ROW = LEADER_LEASE.c.id == 1
_FOR_SHARE = sa.select(LEADER_LEASE.c.epoch, LEADER_LEASE.c.holder).where(_ROW).with_for_update(read=True)
_FOR_UPDATE = sa.select(LEADER_LEASE).where(_ROW).with_for_update()


@dataclass(frozen=True, slots=True)
class Leader:
    """The daemon that leads, or led last: `url` is where its API answers."""

    holder: str
    url: str
    epoch: int
    expires_ms: int


class LeaderLease:
    """One daemon's claim to lead.

    `holder` names the daemon so that no two can run under one name at once (its host and data directory, say): a
    daemon that starts again under its own name takes its old lease over without waiting for it to expire.
    """

    def __init__(self, database: Database, holder: str, url: str, ttl_ms: int) -> None:
        assert holder, "a lease without a holder is a free one"
        assert ttl_ms > 0, "a lease lasts"
        self._database = database
        self._holder = holder
        self._url = url
        self._ttl_ms = ttl_ms
        self._epoch: int | None = None

    def acquire(self, now_ms: int) -> int | None:
        """Takes the lease if it is free, expired or this holder's; returns the new epoch, None when another leads."""
        with self._database.write() as connection:
            row = connection.execute(_FOR_UPDATE).one_or_none()
            if row is None:
                raise StoreCorrupt("the table leader_lease has lost its row; restore a backup")
            if row.holder not in {"", self._holder} and row.expires_ms > now_ms:
                return None
            epoch = int(row.epoch) + 1
            connection.execute(
                sa.update(LEADER_LEASE)
                .where(_ROW)
                .values(holder=self._holder, url=self._url, epoch=epoch, expires_ms=now_ms + self._ttl_ms)
            )
        self._epoch = epoch
        return epoch

    def renew(self, now_ms: int) -> None:
        """Extends the lease from now. Raises Fenced when another daemon took it, StoreBusy when a write takes long."""
        with self._database.write() as connection:
            self.extend(connection, now_ms)

    def extend(self, connection: Connection, now_ms: int) -> None:
        """Does what `renew` does, in a write transaction that is open. Raises Fenced."""
        result = connection.execute(
            sa.update(LEADER_LEASE).where(_ROW, self._is_ours()).values(expires_ms=now_ms + self._ttl_ms)
        )
        if result.rowcount != 1:
            raise Fenced(_fenced_text(connection))

    def release(self) -> None:
        """Gives the lease back, so that another may lead at once. Does nothing when another already does."""
        with self._database.write() as connection:
            connection.execute(sa.update(LEADER_LEASE).where(_ROW, self._is_ours()).values(holder="", expires_ms=0))
        self._epoch = None

    def leader(self) -> Leader | None:
        """Returns who holds the lease, expired or not; None when nobody does."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(LEADER_LEASE).where(_ROW)).one_or_none()
        if row is None or row.holder == "":
            return None
        return Leader(row.holder, row.url, row.epoch, row.expires_ms)

    @staticmethod
    def check(connection: Connection, epoch: int) -> None:
        """Makes sure, until the transaction's end, that `epoch` leads. Raises Fenced."""
        row = connection.execute(_FOR_SHARE).one_or_none()
        if row is None or row.epoch != epoch or row.holder == "":
            raise Fenced(_fenced_text(connection))

    def _is_ours(self) -> sa.ColumnElement[bool]:
        # -1 is no epoch: without an acquired lease nothing is ours.
        return sa.and_(
            LEADER_LEASE.c.holder == self._holder,
            LEADER_LEASE.c.epoch == (-1 if self._epoch is None else self._epoch),
        )


def _fenced_text(connection: Connection) -> str:
    holder = connection.execute(sa.select(LEADER_LEASE.c.holder).where(_ROW)).scalar_one_or_none()
    return f"{holder} leads now; this daemon must not write" if holder else "no daemon leads; acquire the lease first"
