"""Commands on accounts: make and change them, by the rules of the tree; suspend them; remove them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.events import AccountChanged, AccountRemoved
from scheduler.core.lifecycle import ENDS
from scheduler.core.model import ROOT_ACCOUNT, Account, AccountId, GpuClass, JobId, JobState, tenant_of
from scheduler.core.terms import check_terms, check_within, with_lock
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.store.actions import RequeueJobs
from scheduler.store.codec import ACCOUNT_COLUMNS, account_of, terms_json
from scheduler.store.ledger_tables import ACCOUNT_NAME
from scheduler.store.tables import ACCOUNT, JOB, MEMBER, TOKEN
from scheduler.store.tokens import revoke_tokens
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
    """Removes an account that has no children and no live jobs, with its members, and revokes its tokens.

    Its past stays in the ledger and in its jobs.
    """

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
        tx.connection.execute(sa.delete(MEMBER).where(MEMBER.c.account == self.account))
        revoke_tokens(tx, TOKEN.c.account == self.account)
        tx.forget_accounts()
        tx.emit(AccountRemoved(tx.now_ms, self.account))


@dataclass(frozen=True, slots=True)
class PutAccount:
    """Makes or changes an account, if the tree's terms can be kept then.

    `capacity` None lets more be guaranteed than there is. `is_by_tenant`: the change comes from inside the tenant,
    which may not raise a limit beyond its own.
    """

    account: Account
    display_name: str
    capacity: Mapping[GpuClass, int] | None
    is_by_tenant: bool = False
    version: str | None = None
    """The version (`version_of`) that the change was made from; None: whatever it is now."""

    def execute(self, tx: Transaction) -> bool:
        """Returns whether anything changed. Refuses, with all problems at once, terms that cannot be kept, and a change
        that was made from other terms than there are (`conflict`)."""
        before = account_tree(tx.connection)
        old = before.get(self.account.id)
        account = with_lock(old, self.account, is_by_tenant=self.is_by_tenant)
        self._refuse_stale(tx, old, account)
        refuse_terms(before, {**before, account.id: account}, self.capacity, is_by_tenant=self.is_by_tenant)
        return SaveAccount(account, self.display_name).execute(tx)

    def _refuse_stale(self, tx: Transaction, old: Account | None, new: Account) -> None:
        if self.version is None:
            return
        name = sa.select(ACCOUNT.c.display_name).where(ACCOUNT.c.id == self.account.id)
        display_name = tx.connection.execute(name).scalar_one_or_none()
        found = NEVER_MADE if old is None or display_name is None else version_of(old, display_name)
        is_done = (old, display_name) == (new, self.display_name)  # a request that is repeated as its answer was lost
        if found != self.version and not is_done:
            what = "is not there any more" if old is None else "was changed by somebody else since it was read"
            what = "was made by somebody else in the meantime" if self.version == NEVER_MADE else what
            raise Refused(
                RefusalCode.CONFLICT,
                f"{self.account.id} {what}; nothing was changed",
                (f"turnstile admin tenant show {self.account.id}",),
            )


NEVER_MADE = "none"
"""The version of an account that does not exist."""


def version_of(account: Account, display_name: str) -> str:
    """Returns a short word for an account's terms as they are: equal terms, equal words."""
    terms = {
        **terms_json(account),
        "weight": account.weight,
        "guarantee": dict(account.guarantee),
        "limit": dict(account.limit),
        "is_suspended": account.is_suspended,
        "display_name": display_name,
    }
    text = json.dumps(terms, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def account_tree(connection: Connection) -> dict[AccountId, Account]:
    """Returns every account by its path."""
    found = (account_of(row) for row in connection.execute(sa.select(*ACCOUNT_COLUMNS).order_by(ACCOUNT.c.id)))
    return {each.id: each for each in found}


def refuse_terms(
    before: Mapping[AccountId, Account],
    after: Mapping[AccountId, Account],
    capacity: Mapping[GpuClass, int] | None,
    *,
    is_by_tenant: bool,
) -> None:
    """Raises Refused when the change from one tree to the other cannot be kept: `not_found` for a parent that is not
    there, `policy` with all problems otherwise."""
    found = list(check_terms(before, after, capacity))
    if is_by_tenant:
        found += check_within(frozenset(each for each in after if before.get(each) != after[each]), before, after)
    if not found:
        return
    can_be_forced = not is_by_tenant and not check_terms(before, after, None)
    code = RefusalCode.NOT_FOUND if found[0].field == "id" else RefusalCode.POLICY
    problems = tuple(Problem(each.message, f"{each.account}.{each.field}") for each in found)
    raise Refused(code, found[0].message, ("--force",) if can_be_forced else (), problems)


@dataclass(frozen=True, slots=True)
class SuspendAccount:
    """Lets an account, and all below it, start nothing new, or lets it start again.

    With `drains`, what runs is asked to stop and waits again, in its old place.
    """

    account: AccountId
    is_suspended: bool
    actor: str
    drains: bool = False
    is_by_tenant: bool = False

    def execute(self, tx: Transaction) -> int:
        """Returns how many jobs were asked to stop. Refuses an unknown account, and a tenant that would resume what the
        centre has suspended."""
        name = sa.select(ACCOUNT.c.display_name).where(ACCOUNT.c.id == self.account)
        display_name = tx.connection.execute(name).scalar_one_or_none()
        known = tx.account(self.account)
        if known is None or display_name is None or self.account == ROOT_ACCOUNT:
            raise Refused(RefusalCode.NOT_FOUND, f"there is no account {self.account or 'without a name'}")
        changed = with_lock(None, replace(known, is_suspended=self.is_suspended), is_by_tenant=self.is_by_tenant)
        if self.is_suspended and known.is_locked:
            changed = replace(changed, is_locked=True)
        if self.is_by_tenant:
            before = account_tree(tx.connection)
            refuse_terms(before, {**before, self.account: changed}, None, is_by_tenant=True)
        SaveAccount(changed, display_name).execute(tx)
        if not self.drains:
            return 0
        is_inside = sa.or_(JOB.c.account == self.account, JOB.c.account.startswith(f"{self.account}/", autoescape=True))
        active = sa.select(JOB.c.id).where(
            JOB.c.tenant == tenant_of(self.account),
            is_inside,
            JOB.c.state.in_([JobState.STARTING.value, JobState.RUNNING.value]),
        )
        ids = tuple(JobId(each) for each in tx.connection.execute(active.order_by(JOB.c.id)).scalars())
        if ids:
            RequeueJobs(ids, self.actor).execute(tx)
        return len(ids)


def _exists(tx: Transaction, account: AccountId | None) -> bool:
    return tx.connection.execute(sa.select(ACCOUNT.c.id).where(ACCOUNT.c.id == account)).first() is not None
