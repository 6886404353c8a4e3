"""Forgets what was only observed, when it is old: GPU windows, which GPUs allocations were seen with, machines' events.

None of it is billed by. What a period that is not closed yet may still show in its files stays, however old it is; the
sealed files of closed ones have what they need. The ledger, the journal and their evidence are never forgotten.
"""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from metering.core.period import PeriodStatus
from metering.periods import periods
from metering.tables import DEVICE_WITNESS, GPU_WINDOW
from scheduler.store.history_tables import NODE_EVENT
from scheduler.store.transaction import Transaction

MOST_ROWS = 20_000
"""Rows of a table that one command removes: some tenths of a second, for nobody's write may wait for all of them."""
_OBSERVED = (
    (GPU_WINDOW, GPU_WINDOW.c.to_ms),
    (DEVICE_WITNESS, DEVICE_WITNESS.c.to_ms),
    (NODE_EVENT, NODE_EVENT.c.at_ms),
)


@dataclass(frozen=True, slots=True)
class PruneObserved:
    """Removes the oldest of what was observed longer ago than `keep_ms`, a bounded part at a time."""

    keep_ms: int
    zone: str
    most_rows: int = MOST_ROWS

    def execute(self, tx: Transaction) -> int:
        """Returns how many rows went; 0 when nothing is too old any more."""
        before_ms = _kept_from_ms(tx.connection, self.zone, tx.now_ms, self.keep_ms)
        return sum(self._remove(tx.connection, table, column, before_ms) for table, column in _OBSERVED)

    def _remove(self, connection: Connection, table: sa.Table, column: "sa.Column[int]", before_ms: int) -> int:
        key = sa.tuple_(*table.primary_key)
        old = sa.select(*table.primary_key).where(column < before_ms).order_by(column).limit(self.most_rows)
        return connection.execute(sa.delete(table).where(key.in_(old))).rowcount


def _kept_from_ms(connection: Connection, zone: str, now_ms: int, keep_ms: int) -> int:
    known = periods(connection, zone, now_ms)
    unsealed = next((each.period.from_ms for each in known if each.status is not PeriodStatus.CLOSED), now_ms)
    return min(now_ms - keep_ms, unsealed)
