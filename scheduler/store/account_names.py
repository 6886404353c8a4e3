"""What accounts were called, and when: who reads about the past is told the names of that time."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.model import AccountId
from scheduler.store.ledger_tables import ACCOUNT_NAME
from scheduler.store.tables import ACCOUNT


@dataclass(frozen=True, slots=True)
class AccountNames:
    """Every account's names for people, by time; removed accounts keep theirs."""

    _known: Mapping[AccountId, tuple[tuple[int, ...], tuple[str, ...]]]
    """Since when, ascending, and the name from then on."""
    _until_ms: int

    def __contains__(self, account: AccountId) -> bool:
        """Tells whether there is, or was, such an account."""
        return account in self._known

    def at(self, account: AccountId, at_ms: int) -> str:
        """Returns what the account was called then: its first name before it was made, empty if it never was."""
        since_ms, names = self._known.get(account, ((0,), ("",)))
        return names[max(0, bisect_right(since_ms, at_ms) - 1)]

    def last(self, account: AccountId) -> str:
        """Returns what the account was called just before the end of the time that these names are for."""
        return self.at(account, self._until_ms - 1)


def load_account_names(connection: Connection, until_ms: int) -> AccountNames:
    """Returns all names there ever were, for a reader of the time up to `until_ms`.

    They are a row an account, and one more each time that it was renamed.
    """
    rows: dict[AccountId, list[tuple[int, str]]] = {}
    order = (ACCOUNT_NAME.c.account, ACCOUNT_NAME.c.from_ms, ACCOUNT_NAME.c.sequence)
    for row in connection.execute(sa.select(ACCOUNT_NAME).order_by(*order)):
        rows.setdefault(AccountId(row.account), []).append((row.from_ms, row.name))
    return AccountNames(
        {
            account: (tuple(since_ms for since_ms, _ in named), tuple(name for _, name in named))
            for account, named in rows.items()
        },
        until_ms,
    )


def present_names(connection: Connection) -> dict[AccountId, str]:
    """Returns what every account that exists is called now, by its id."""
    rows = connection.execute(sa.select(ACCOUNT.c.id, ACCOUNT.c.display_name))
    return {AccountId(account): name for account, name in rows}
