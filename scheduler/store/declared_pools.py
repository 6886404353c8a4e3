"""The pools of a declared centre: which nodes an admin puts into each, and which take no new jobs.

A pool is there because nodes say so, so a file never removes one, with or without a prune.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from scheduler.core.model import NodeName, PoolName
from scheduler.refusal import Problem
from scheduler.store.centre import PoolRecord, pools
from scheduler.store.declared import Change, ChangeKind, Found, Ground, Value
from scheduler.store.pools import AssignNodes, SetPool
from scheduler.store.tables import NODE
from scheduler.store.transaction import Transaction

POOLS = "pools"


@dataclass(frozen=True, slots=True)
class DeclaredPool:
    """A pool as far as it is declared; None stays as it is. `nodes` are all that an admin has put into it."""

    name: PoolName
    nodes: tuple[NodeName, ...] | None = None
    is_closed: bool | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class SetUpPool:
    """Makes a pool what a file says, after others have taken what was theirs."""

    pool: PoolRecord
    put: tuple[NodeName, ...]
    given_back: tuple[NodeName, ...]

    def execute(self, tx: Transaction) -> None:
        """Changes the pool; jobs that run there go on."""
        SetPool(self.pool.name, self.pool.is_closed, self.pool.reason).execute(tx)
        if self.given_back:
            AssignNodes(self.given_back, None).execute(tx)
        if self.put:
            AssignNodes(self.put, self.pool.name).execute(tx)


@dataclass(frozen=True, slots=True)
class DeclaredPools:
    """The pools of a file."""

    entries: tuple[DeclaredPool, ...]

    def differences(self, ground: Ground) -> Found:
        """Returns the differences, in order of the file."""
        rows = ground.connection.execute(
            sa.select(NODE.c.name, NODE.c.assigned_pool).where(NODE.c.removed_ms.is_(None)).order_by(NODE.c.name)
        )
        assigned = {NodeName(name): None if pool is None else PoolName(pool) for name, pool in rows}
        there = {each.name: each for each in pools(ground.connection)}
        claimed = {node for entry in self.entries for node in entry.nodes or ()}
        changes = (_change(there.get(entry.name), entry, assigned, claimed) for entry in self.entries)
        return Found(tuple(each for each in changes if each is not None), self._problems(there, assigned))

    def _problems(
        self, there: Mapping[PoolName, PoolRecord], assigned: Mapping[NodeName, PoolName | None]
    ) -> tuple[Problem, ...]:
        problems: list[Problem] = []
        seen: set[PoolName] = set()
        owners: dict[NodeName, list[PoolName]] = defaultdict(list)
        for index, entry in enumerate(self.entries):
            if entry.name in seen:
                problems.append(Problem(f"{entry.name} is declared twice", f"{POOLS}.{index}.name"))
            seen.add(entry.name)
            problems += _wrong_nodes(f"{POOLS}.{index}.nodes", entry, assigned, owners)
            known = there.get(entry.name)
            is_closed = entry.is_closed if entry.is_closed is not None else known is not None and known.is_closed
            if entry.reason is not None and not is_closed:
                problems.append(Problem("only a pool that is paused has one", f"{POOLS}.{index}.reason"))
        return tuple(problems)


def _wrong_nodes(
    place: str,
    entry: DeclaredPool,
    assigned: Mapping[NodeName, PoolName | None],
    owners: dict[NodeName, list[PoolName]],
) -> list[Problem]:
    found = []
    for node in entry.nodes or ():
        if node not in assigned:
            found.append(Problem(f"there is no node {node}", place))
        if owners[node]:
            found.append(Problem(f"{node} stands in {owners[node][0]} already", place))
        owners[node].append(entry.name)
    return found


def _change(
    before: PoolRecord | None,
    entry: DeclaredPool,
    assigned: Mapping[NodeName, PoolName | None],
    claimed: set[NodeName],
) -> Change | None:
    old = before or PoolRecord(entry.name, is_closed=False, reason=None)
    is_closed = old.is_closed if entry.is_closed is None else entry.is_closed
    reason = (old.reason if entry.reason is None else entry.reason) if is_closed else None
    had = [name for name, pool in assigned.items() if pool == entry.name]
    wanted = had if entry.nodes is None else sorted(entry.nodes)
    rows: Sequence[tuple[str, Value, Value]] = (
        ("nodes", ", ".join(had) or None, ", ".join(wanted) or None),
        ("is_paused", old.is_closed, is_closed),
        ("reason", old.reason, reason),
    )
    fields = tuple(row for row in rows if row[1] != row[2])
    if before is not None and not fields:
        return None
    put = tuple(name for name in wanted if name not in had)
    given_back = tuple(name for name in had if name not in claimed and name not in wanted)
    command = SetUpPool(PoolRecord(entry.name, is_closed, reason), put, given_back)
    return Change(POOLS, ChangeKind.CREATE if before is None else ChangeKind.CHANGE, entry.name, fields, command)
