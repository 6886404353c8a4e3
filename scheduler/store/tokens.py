"""Commands on tokens and on members: who belongs to an account, as what, and what opens the door for them.

A member is a user's place in an account; its role is that of its tokens there. Whoever gets a token of an account is a
member of it; whoever is removed from it loses its tokens in the same transaction.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.model import ROOT_ACCOUNT, AccountId, UserName
from scheduler.core.stretch import is_within
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.tables import MEMBER, TOKEN
from scheduler.store.transaction import Transaction

MEMBER_ROLES = ("user", "tenant_admin", "billing")
"""What a member can be: the other roles are the centre's own."""


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token without its secret."""

    id: str
    role: str
    account: AccountId
    user: UserName
    created_ms: int
    expires_ms: int | None
    revoked_ms: int | None


TOKEN_COLUMNS = (
    TOKEN.c.id, TOKEN.c.role, TOKEN.c.account, TOKEN.c.user, TOKEN.c.created_ms, TOKEN.c.expires_ms, TOKEN.c.revoked_ms,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """A user of an account. `may_use_high`: its jobs may be `high` whatever limit the account has on those."""

    account: AccountId
    user: UserName
    role: str
    may_use_high: bool = False


@dataclass(frozen=True, slots=True)
class SaveToken:
    """Keeps a token by the hash of its secret, never the secret itself. Makes its user a member of the account."""

    id: str
    secret_hash: str
    role: str
    account: AccountId
    user: UserName
    expires_ms: int | None = None

    def execute(self, tx: Transaction) -> None:
        """Refuses an id or secret that is taken, or an account that does not exist."""
        if self.account != ROOT_ACCOUNT and tx.account(self.account) is None:
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
        if self.account != ROOT_ACCOUNT and self.role in MEMBER_ROLES and member(tx.connection, *self.place) is None:
            tx.connection.execute(sa.insert(MEMBER).values(**member_values(Member(*self.place, self.role), tx.now_ms)))

    @property
    def place(self) -> tuple[AccountId, UserName]:
        """Where its user belongs."""
        return self.account, self.user


@dataclass(frozen=True, slots=True)
class SaveOwnToken:
    """Keeps a token that somebody made for itself with another one, `made_with`: it can do and last no more than that.

    What the other one is now decides, not what it was when the request came: a revoked token leaves none behind.
    """

    made_with: str
    id: str
    secret_hash: str
    expires_ms: int | None

    def execute(self, tx: Transaction) -> TokenRecord:
        """Returns the token. Refuses one that would outlive the other, and another that is no longer valid."""
        row = tx.connection.execute(sa.select(*TOKEN_COLUMNS).where(TOKEN.c.id == self.made_with)).one_or_none()
        if row is None or row.revoked_ms is not None or (row.expires_ms is not None and row.expires_ms <= tx.now_ms):
            raise Refused(RefusalCode.NOT_LOGGED_IN, "the token is not valid any more", tries=("turnstile login",))
        old = TokenRecord(*row)
        if old.expires_ms is not None and (self.expires_ms is None or self.expires_ms > old.expires_ms):
            left_seconds = (old.expires_ms - tx.now_ms) // 1000
            raise Refused(
                RefusalCode.POLICY,
                "a token lives no longer than the one that it was made with, which has "
                f"{left_seconds} s left; name a shorter time, or ask an admin",
            )
        place = (old.account, old.user)
        SaveToken(self.id, self.secret_hash, old.role, *place, self.expires_ms).execute(tx)
        return TokenRecord(self.id, old.role, *place, tx.now_ms, self.expires_ms, None)


@dataclass(frozen=True, slots=True)
class RevokeToken:
    """Ends a token from now on. One that is not `within` the account, or not `user`'s there, is as if it were not."""

    id: str
    within: AccountId = ROOT_ACCOUNT
    user: UserName | None = None
    """Whose it must be, in that very account; None for anybody's there or below."""

    def execute(self, tx: Transaction) -> bool:
        """Returns False when it was revoked before. Refuses an unknown id."""
        row = tx.connection.execute(
            sa.select(TOKEN.c.revoked_ms, TOKEN.c.account, TOKEN.c.user).where(TOKEN.c.id == self.id)
        ).one_or_none()
        is_meant = row is not None and (
            _is_seen(row.account, self.within)
            if self.user is None
            else (row.account, row.user) == (self.within, self.user)
        )
        if row is None or not is_meant:
            raise Refused(RefusalCode.NOT_FOUND, f"there is no token {self.id}")
        if row.revoked_ms is not None:
            return False
        tx.connection.execute(sa.update(TOKEN).where(TOKEN.c.id == self.id).values(revoked_ms=tx.now_ms))
        return True


@dataclass(frozen=True, slots=True)
class SaveMember:
    """Makes a user a member of an account, or changes what it may; its valid tokens there get its role."""

    member: Member

    def execute(self, tx: Transaction) -> bool:
        """Returns whether anything changed. Refuses an unknown account or role."""
        new = self.member
        if new.account == ROOT_ACCOUNT or tx.account(new.account) is None:
            raise Refused(RefusalCode.NOT_FOUND, f"there is no account {new.account or 'without a name'}")
        if new.role not in MEMBER_ROLES:
            raise Refused(RefusalCode.INVALID, f"a member is one of {', '.join(MEMBER_ROLES)}, and {new.role!r} is not")
        old = member(tx.connection, new.account, new.user)
        if old == new:
            return False
        if old is None:
            tx.connection.execute(sa.insert(MEMBER).values(**member_values(new, tx.now_ms)))
        else:
            changed = {"role": new.role, "may_use_high": new.may_use_high}
            tx.connection.execute(sa.update(MEMBER).where(_is_place(new.account, new.user)).values(**changed))
        is_theirs = sa.and_(TOKEN.c.account == new.account, TOKEN.c.user == new.user, TOKEN.c.role.in_(MEMBER_ROLES))
        tx.connection.execute(sa.update(TOKEN).where(is_theirs, TOKEN.c.revoked_ms.is_(None)).values(role=new.role))
        return True


@dataclass(frozen=True, slots=True)
class RemoveMember:
    """Ends a user's place in an account, and its tokens there. Its jobs stay."""

    account: AccountId
    user: UserName

    def execute(self, tx: Transaction) -> int:
        """Returns how many tokens were revoked. Refuses somebody who is no member."""
        done = tx.connection.execute(sa.delete(MEMBER).where(_is_place(self.account, self.user)))
        if not done.rowcount:
            raise Refused(RefusalCode.NOT_FOUND, f"there is no user {self.user!r} in {self.account or 'the centre'}")
        return revoke_tokens(tx, sa.and_(TOKEN.c.account == self.account, TOKEN.c.user == self.user))


def revoke_tokens(tx: Transaction, which: "sa.ColumnElement[bool]") -> int:
    """Ends tokens from now on; returns how many were valid until then."""
    valid = sa.update(TOKEN).where(which, TOKEN.c.revoked_ms.is_(None))
    return tx.connection.execute(valid.values(revoked_ms=tx.now_ms)).rowcount


def member(connection: Connection, account: AccountId, user: UserName) -> Member | None:
    """Returns a user's place in an account; None when it has none."""
    columns = (MEMBER.c.account, MEMBER.c.user, MEMBER.c.role, MEMBER.c.may_use_high)
    row = connection.execute(sa.select(*columns).where(_is_place(account, user))).one_or_none()
    return None if row is None else Member(*row)


def members(connection: Connection, within: AccountId = ROOT_ACCOUNT) -> list[Member]:
    """Returns the members of an account and of all below it, by account and name."""
    columns = (MEMBER.c.account, MEMBER.c.user, MEMBER.c.role, MEMBER.c.may_use_high)
    rows = connection.execute(sa.select(*columns).order_by(MEMBER.c.account, MEMBER.c.user))
    return [Member(*row) for row in rows if _is_seen(row.account, within)]


def member_values(made: Member, now_ms: int) -> Mapping[str, object]:
    """Returns a new member's row."""
    return {
        "account": made.account,
        "user": made.user,
        "role": made.role,
        "may_use_high": made.may_use_high,
        "created_ms": now_ms,
    }


def _is_seen(account: str, within: AccountId) -> bool:
    return within == ROOT_ACCOUNT or is_within(AccountId(account), within)


def _is_place(account: AccountId, user: UserName) -> "sa.ColumnElement[bool]":
    return sa.and_(MEMBER.c.account == account, MEMBER.c.user == user)
