"""Answers about the centre: accounts, tokens, nodes, pools, and who holds which device.

Each function takes the connection of a `Database.read()` transaction. Who may see what is decided by the caller.
"""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.model import (
    ROOT_ACCOUNT,
    Account,
    AccountId,
    Booking,
    Device,
    GpuClass,
    Node,
    PoolName,
    UserName,
    lineage,
)
from scheduler.core.occupancy import OccupancyState
from scheduler.store.codec import ACCOUNT_COLUMNS, account_of
from scheduler.store.ledger_tables import DEVICE_CURSOR
from scheduler.store.nodes import load_nodes
from scheduler.store.tables import ACCOUNT, NODE, POOL, TOKEN
from scheduler.store.tokens import TOKEN_COLUMNS, TokenRecord


@dataclass(frozen=True, slots=True)
class AccountRecord:
    """An account with its name for people."""

    account: Account
    display_name: str
    created_ms: int


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node as the planner sees it, with the admin's drain and when it was last seen."""

    node: Node
    devices: tuple[Device, ...]
    drain_reason: str | None
    seen_ms: int


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """A pool."""

    name: PoolName
    is_closed: bool
    reason: str | None


def units_held(connection: Connection) -> dict[tuple[AccountId, GpuClass, Booking], int]:
    """Returns the capacity units held now, by project, class and booking."""
    columns = (DEVICE_CURSOR.c.holder, DEVICE_CURSOR.c.gpu_class, DEVICE_CURSOR.c.booking)
    statement = (
        sa.select(*columns, sa.func.sum(DEVICE_CURSOR.c.units))
        .where(DEVICE_CURSOR.c.state == OccupancyState.ALLOCATED.value)
        .group_by(*columns)
    )
    return {
        (AccountId(holder), GpuClass(gpu_class), Booking(booking)): int(units)
        for holder, gpu_class, booking, units in connection.execute(statement)
    }


def accounts(connection: Connection) -> list[AccountRecord]:
    """Returns every account, in order of path."""
    statement = sa.select(*ACCOUNT_COLUMNS, ACCOUNT.c.display_name, ACCOUNT.c.created_ms).order_by(ACCOUNT.c.id)
    return [AccountRecord(account_of(row[:-2]), row[-2], row[-1]) for row in connection.execute(statement)]


def token_by_hash(connection: Connection, secret_hash: str) -> tuple[TokenRecord, AccountId | None] | None:
    """Returns the token whose secret has this hash, expired and revoked ones too, and what of its path is suspended.

    None if there is no such token, or if its account is gone.
    """
    row = connection.execute(sa.select(*TOKEN_COLUMNS).where(TOKEN.c.secret_hash == secret_hash)).one_or_none()
    if row is None:
        return None
    found = TokenRecord(*row)
    if found.account == ROOT_ACCOUNT:
        return found, None
    path = lineage(found.account)
    rows = connection.execute(sa.select(ACCOUNT.c.id, ACCOUNT.c.is_suspended).where(ACCOUNT.c.id.in_(path)))
    known = {AccountId(name): is_suspended for name, is_suspended in rows}
    if found.account not in known:
        return None
    return found, next((name for name in path if known.get(name)), None)


def tokens(connection: Connection) -> list[TokenRecord]:
    """Returns every token, oldest first."""
    return [TokenRecord(*row) for row in connection.execute(sa.select(*TOKEN_COLUMNS).order_by(TOKEN.c.id))]


def tokens_of(connection: Connection, account: AccountId, user: UserName) -> list[TokenRecord]:
    """Returns a user's tokens of an account, oldest first."""
    statement = sa.select(*TOKEN_COLUMNS).where(TOKEN.c.account == account, TOKEN.c.user == user).order_by(TOKEN.c.id)
    return [TokenRecord(*row) for row in connection.execute(statement)]


def nodes(connection: Connection) -> list[NodeRecord]:
    """Returns the nodes there are, in order of name."""
    seen = {row.name: row.seen_ms for row in connection.execute(sa.select(NODE.c.name, NODE.c.seen_ms))}
    return [
        NodeRecord(known.effective, known.devices, known.drain_reason, seen[name])
        for name, known in load_nodes(connection).items()
    ]


def pools(connection: Connection) -> list[PoolRecord]:
    """Returns the pools, in order of name."""
    statement = sa.select(POOL.c.name, POOL.c.is_closed, POOL.c.reason).order_by(POOL.c.name)
    return [PoolRecord(*row) for row in connection.execute(statement)]
