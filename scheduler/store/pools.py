"""Commands on pools: closing them to new starts, and putting nodes into them."""

from dataclasses import dataclass, replace

import sqlalchemy as sa

from scheduler.core.events import NodeChanged, PoolChanged
from scheduler.core.model import NodeName, PoolName
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.store.database import chunks
from scheduler.store.nodes import load_nodes
from scheduler.store.tables import NODE, POOL
from scheduler.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class SetPool:
    """Closes a pool to new starts, or opens it. A pool without nodes yet may be closed beforehand."""

    name: PoolName
    is_closed: bool
    reason: str | None

    def execute(self, tx: Transaction) -> bool:
        """Returns whether anything changed."""
        reason = self.reason if self.is_closed else None
        row = tx.connection.execute(sa.select(POOL).where(POOL.c.name == self.name)).one_or_none()
        values = {"is_closed": self.is_closed, "reason": reason}
        if row is None:
            tx.connection.execute(sa.insert(POOL).values(name=self.name, **values))
        elif (row.is_closed, row.reason) == (self.is_closed, reason):
            return False
        else:
            tx.connection.execute(sa.update(POOL).where(POOL.c.name == self.name).values(**values))
        if row is not None or self.is_closed:
            tx.emit(PoolChanged(tx.now_ms, self.name, self.is_closed, reason))
        return True


@dataclass(frozen=True, slots=True)
class PausePools:
    """Closes pools to new starts (jobs that run go on), or with `is_closed` false opens them: all that are named."""

    names: tuple[PoolName, ...] | None
    """None: every pool that there is."""
    is_closed: bool
    reason: str | None

    def execute(self, tx: Transaction) -> tuple[PoolName, ...]:
        """Returns the pools that changed. Refuses a pool that does not exist, and then changes none."""
        there = sorted(PoolName(name) for name in tx.connection.execute(sa.select(POOL.c.name)).scalars())
        unknown = sorted(set(self.names or ()) - set(there))
        if unknown:
            raise Refused(
                RefusalCode.NOT_FOUND, f"there is no pool {unknown[0]}; there are {', '.join(there) or 'none'}"
            )
        wanted = there if self.names is None else sorted(set(self.names))
        return tuple(name for name in wanted if SetPool(name, self.is_closed, self.reason).execute(tx))


@dataclass(frozen=True, slots=True)
class AssignNodes:
    """Puts nodes into a pool, whatever the executor says of them; with `pool` None gives them back to its word."""

    nodes: tuple[NodeName, ...]
    pool: PoolName | None

    def execute(self, tx: Transaction) -> tuple[NodeName, ...]:
        """Returns the nodes that changed their pool. Refuses unknown nodes. Jobs that run there go on."""
        stored = load_nodes(tx.connection, self.nodes)
        unknown = sorted(set(self.nodes) - set(stored))
        if unknown:
            problems = tuple(Problem(f"there is no node {name}", "nodes") for name in unknown)
            raise Refused(RefusalCode.NOT_FOUND, problems[0].message, problems=problems)
        if self.pool is not None:
            known = sa.select(POOL.c.name).where(POOL.c.name == self.pool)
            if tx.connection.execute(known).first() is None:
                tx.connection.execute(sa.insert(POOL).values(name=self.pool, is_closed=False, reason=None))
        for part in chunks(sorted(stored)):
            tx.connection.execute(sa.update(NODE).where(NODE.c.name.in_(part)).values(assigned_pool=self.pool))
        moved = []
        for name, old in stored.items():
            new = replace(old, assigned_pool=self.pool)
            if new.effective != old.effective:
                tx.emit(NodeChanged(tx.now_ms, new.effective, new.devices))
                moved.append(name)
        return tuple(moved)
