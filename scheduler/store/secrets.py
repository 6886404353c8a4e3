"""Tenants' secrets: kept by name for an account, given to jobs that name them, and shown to nobody.

A job's secrets are looked up when it starts and travel with its start order only. An account's jobs may use its own
secrets and those of the accounts above it up to its tenant; the nearest of a name counts. Values lie in the database as
environments do: whoever can read the database can read them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.model import AccountId, lineage
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.store.tables import SECRET
from scheduler.store.transaction import Transaction

MOST_PER_ACCOUNT = 1000
"""Names of one account: what a person can keep in order, and no way to fill a disk."""


@dataclass(frozen=True, slots=True)
class SecretRecord:
    """A secret without its value."""

    account: AccountId
    name: str
    updated_ms: int
    updated_by: str


@dataclass(frozen=True, slots=True)
class SetSecret:
    """Keeps a value under a name, instead of the one before."""

    account: AccountId
    name: str
    value: str
    actor: str

    def __repr__(self) -> str:
        """The value is nobody's to read."""
        return f"SetSecret({self.account!r}, {self.name!r})"

    def execute(self, tx: Transaction) -> bool:
        """Returns whether the name is new. Refuses an unknown account, and too many names."""
        if tx.is_suspended(self.account) is None:
            raise Refused(RefusalCode.NOT_FOUND, f"there is no project {self.account}")
        mine = SECRET.c.account == self.account
        known = tx.connection.execute(sa.select(sa.func.count()).where(mine)).scalar_one()
        there = tx.connection.execute(sa.delete(SECRET).where(mine, SECRET.c.name == self.name)).rowcount
        if not there and known >= MOST_PER_ACCOUNT:
            raise Refused(RefusalCode.TOO_MANY, f"{self.account} has {known} secrets already; remove some")
        tx.connection.execute(
            sa.insert(SECRET).values(
                account=self.account, name=self.name, value=self.value, updated_ms=tx.now_ms, updated_by=self.actor
            )
        )
        return not there


@dataclass(frozen=True, slots=True)
class RemoveSecret:
    """Forgets a secret. Jobs that run keep what they were given."""

    account: AccountId
    name: str

    def execute(self, tx: Transaction) -> None:
        """Refuses a name that the account has not."""
        mine = sa.and_(SECRET.c.account == self.account, SECRET.c.name == self.name)
        if not tx.connection.execute(sa.delete(SECRET).where(mine)).rowcount:
            raise Refused(RefusalCode.NOT_FOUND, f"there is no secret {self.name} of {self.account}")


def secrets_of(connection: Connection, account: AccountId) -> list[SecretRecord]:
    """Returns what the account's jobs may name, nearest account first, then by name."""
    found = []
    for step in lineage(account):
        columns = (SECRET.c.account, SECRET.c.name, SECRET.c.updated_ms, SECRET.c.updated_by)
        statement = sa.select(*columns).where(SECRET.c.account == step).order_by(SECRET.c.name)
        found += [SecretRecord(AccountId(row[0]), *row[1:]) for row in connection.execute(statement)]
    return found


def unknown_secrets(connection: Connection, account: AccountId, names: Sequence[str]) -> list[str]:
    """Returns those of the names that no secret of the account's jobs has, in order."""
    known = {each.name for each in secrets_of(connection, account)} if names else set()
    return [name for name in names if name not in known]


def check_secrets(connection: Connection, account: AccountId, names: Sequence[str]) -> None:
    """Raises Refused (`invalid`) where an account's job names secrets that are not there for it."""
    missing = unknown_secrets(connection, account, names)
    if missing:
        problems = tuple(Problem(f"there is no secret {name} for {account}", "secrets") for name in missing)
        raise Refused(
            RefusalCode.INVALID, problems[0].message, (f"turnstile secret set {missing[0]} < FILE",), problems
        )


def resolve(connection: Connection, account: AccountId, names: Sequence[str]) -> Mapping[str, str]:
    """Returns the values of those of the names that there are."""
    found: dict[str, str] = {}
    if names:
        for step in reversed(lineage(account)):
            statement = sa.select(SECRET.c.name, SECRET.c.value).where(
                SECRET.c.account == step, SECRET.c.name.in_(list(names))
            )
            found |= {str(row.name): str(row.value) for row in connection.execute(statement)}
    return found
