"""Commands on accounts and tokens."""

from dataclasses import dataclass

import sqlalchemy as sa

from scheduler.core.events import AccountChanged, AccountRemoved
from scheduler.core.lifecycle import ENDS
from scheduler.core.model import ROOT_ACCOUNT, Account, AccountId, UserName
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.codec import ACCOUNT_COLUMNS, account_of, terms_json
from scheduler.store.tables import ACCOUNT, ACCOUNT_NAME, JOB, TOKEN
from scheduler.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class SaveAccount:
    """Makes an account, or gives it new terms."""

    account: Account
    display_name: str

    def execute(self, tx: Transaction) -> bool:
        """Returns whether anything changed. Refuses an account whose parent does not exist."""
        account = self.account
        if account.parent not in {None, ROOT_ACCOUNT} and not _exists(tx, account.parent):
            raise Refused(
                RefusalCode.NOT_FOUND, f"account {account.id} needs its parent {account.parent}, which does not exist"
            )
        terms = {
            "display_name": self.display_name,
            "weight": account.weight,
            "guarantee": dict(account.guarantee),
            "limit": dict(account.limit),
            "is_suspended": account.is_suspended,
            "terms": terms_json(account),
            "changed_ms": tx.now_ms,
        }
        is_row = ACCOUNT.c.id == account.id
        row = tx.connection.execute(sa.select(*ACCOUNT_COLUMNS, ACCOUNT.c.display_name).where(is_row)).one_or_none()
        if row is None:
            tx.connection.execute(sa.insert(ACCOUNT).values(id=account.id, created_ms=tx.now_ms, **terms))
        elif (account_of(row[:-1]), row.display_name) == (account, self.display_name):
            return False
        else:
            tx.connection.execute(sa.update(ACCOUNT).where(is_row).values(**terms))
        if row is None or row.display_name != self.display_name:
            named = {"account": account.id, "from_ms": tx.now_ms, "name": self.display_name}
            tx.connection.execute(sa.insert(ACCOUNT_NAME).values(**named))
        tx.forget_accounts()
        if row is None or account_of(row[:-1]) != account:
            tx.emit(AccountChanged(tx.now_ms, account))
        return True


@dataclass(frozen=True, slots=True)
class RemoveAccount:
    """Removes an account that has no children and no live jobs. Its past stays in the ledger and in its jobs."""

    account: AccountId

    def execute(self, tx: Transaction) -> None:
        """Refuses what is unknown or still in use."""
        if self.account == ROOT_ACCOUNT or not _exists(tx, self.account):
            raise Refused(RefusalCode.NOT_FOUND, f"there is no account {self.account or 'without a name'} to remove")
        child = tx.connection.execute(
            sa.select(sa.func.min(ACCOUNT.c.id)).where(ACCOUNT.c.id.startswith(f"{self.account}/", autoescape=True))
        ).scalar_one()
        if child is not None:
            raise Refused(RefusalCode.WRONG_STATE, f"{self.account} has accounts below it; remove {child} first")
        live = sa.select(sa.func.count()).where(
            JOB.c.account == self.account, JOB.c.state.not_in([state.value for state in ENDS])
        )
        count = tx.connection.execute(live).scalar_one()
        if count:
            raise Refused(
                RefusalCode.WRONG_STATE, f"{self.account} has {count} jobs that are not over; cancel them first"
            )
        tx.connection.execute(sa.delete(ACCOUNT).where(ACCOUNT.c.id == self.account))
        tx.forget_accounts()
        tx.emit(AccountRemoved(tx.now_ms, self.account))


@dataclass(frozen=True, slots=True)
class SaveToken:
    """Keeps a token by the hash of its secret; the secret itself is never stored."""

    id: str
    secret_hash: str
    role: str
    account: AccountId
    user: UserName
    expires_ms: int | None = None

    def execute(self, tx: Transaction) -> None:
        """Refuses an id or secret that is taken, or an account that does not exist."""
        if self.account != ROOT_ACCOUNT and not _exists(tx, self.account):
            raise Refused(RefusalCode.NOT_FOUND, f"there is no account {self.account}")
        taken = sa.select(TOKEN.c.id).where(sa.or_(TOKEN.c.id == self.id, TOKEN.c.secret_hash == self.secret_hash))
        if tx.connection.execute(taken).first() is not None:
            raise Refused(RefusalCode.CONFLICT, f"token {self.id} is known already")
        tx.connection.execute(
            sa.insert(TOKEN).values(
                id=self.id,
                secret_hash=self.secret_hash,
                role=self.role,
                account=self.account,
                user=self.user,
                created_ms=tx.now_ms,
                expires_ms=self.expires_ms,
            )
        )


@dataclass(frozen=True, slots=True)
class RevokeToken:
    """Ends a token from now on."""

    id: str

    def execute(self, tx: Transaction) -> bool:
        """Returns False when it was revoked before. Refuses an unknown id."""
        row = tx.connection.execute(sa.select(TOKEN.c.revoked_ms).where(TOKEN.c.id == self.id)).one_or_none()
        if row is None:
            raise Refused(RefusalCode.NOT_FOUND, f"there is no token {self.id}")
        if row.revoked_ms is not None:
            return False
        tx.connection.execute(sa.update(TOKEN).where(TOKEN.c.id == self.id).values(revoked_ms=tx.now_ms))
        return True


def _exists(tx: Transaction, account: AccountId | None) -> bool:
    return tx.connection.execute(sa.select(ACCOUNT.c.id).where(ACCOUNT.c.id == account)).first() is not None
