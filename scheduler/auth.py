"""Who asks, and what they may see and do: the one place that decides it.

A token is a secret that stands in the answer to its making once; the store keeps its SHA-256 and nothing else. A
`Caller` is what a valid token says; its `Rights` answer every question that routes have. Routes never compare accounts
or roles themselves. What a caller may not see is not found, as if it did not exist.

Roles: a `user` sees the jobs of its account's subtree and acts on its own; a `tenant_admin` acts on all of them
and keeps the accounts below its own, their users and their tokens; an
`operator` sees and does everything; `billing` reads usage, prices and the ledger, and jobs without their commands and
logs; an `agent` delivers samples of its node and reads nothing of tenants.
"""

import base64
import hashlib
import secrets
from dataclasses import dataclass
from enum import StrEnum

from scheduler.core.model import ROOT_ACCOUNT, AccountId, NodeName, UserName, tenant_of
from scheduler.refusal import RefusalCode, Refused

TOKEN_PREFIX = "tst_"  # noqa: S105  (a mark that secret scanners can look for, not a secret)
_SECRET_BYTES = 32  # 256 bits: beyond guessing, so that a plain SHA-256 is a sound way to keep it
_LONGEST_TOKEN = 128


class Role(StrEnum):
    """What a token is for. One token has one role."""

    USER = "user"
    TENANT_ADMIN = "tenant_admin"
    BILLING = "billing"
    OPERATOR = "operator"
    AGENT = "agent"


ANYBODY = frozenset(Role)
"""Every role: the route only asks for a valid token."""

READS_JOBS = frozenset({Role.USER, Role.TENANT_ADMIN, Role.BILLING, Role.OPERATOR})
READS_LOGS = frozenset({Role.USER, Role.TENANT_ADMIN, Role.OPERATOR})
RUNS_JOBS = frozenset({Role.USER, Role.TENANT_ADMIN, Role.OPERATOR})
ENTERS_JOBS = frozenset({Role.USER, Role.TENANT_ADMIN})
"""Who goes into running jobs and reaches their ports. Operators end tenants' jobs and never look inside."""
READS_MONEY = frozenset({Role.BILLING, Role.OPERATOR})
READS_STATEMENTS = frozenset({Role.TENANT_ADMIN, Role.BILLING, Role.OPERATOR})
SETS_BUDGETS = frozenset({Role.TENANT_ADMIN, Role.BILLING, Role.OPERATOR})
OPERATES = frozenset({Role.OPERATOR})
DELIVERS = frozenset({Role.AGENT})
ANY_NODE = UserName("any-node")
"""The user of an agent's token that speaks for every node: one Secret for the agents of a whole cluster."""
KEEPS_TOKENS = READS_JOBS
"""Who may make tokens for itself; an agent's is its node's."""
OF_THE_CENTRE = frozenset({Role.OPERATOR, Role.AGENT})
"""Roles that no account bounds: a token that has one is the centre's own."""
ADMINISTERS = frozenset({Role.TENANT_ADMIN, Role.OPERATOR})
GIVEN_BY_TENANTS = frozenset({Role.USER, Role.TENANT_ADMIN, Role.BILLING})
"""What a tenant's own admin may make others; the rest are the centre's."""
DELIVERS_EVIDENCE = frozenset({Role.AGENT, Role.OPERATOR})


def new_secret() -> str:
    """Returns a fresh token: `tst_` and 43 characters of base64url, 256 random bits."""
    return TOKEN_PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(_SECRET_BYTES)).rstrip(b"=").decode()


def secret_hash(secret: str) -> str:
    """Returns what the store keeps of a token: its SHA-256 in hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


def bearer_secret(authorization: str | None) -> str:
    """Returns the token of an `Authorization` header. Raises Refused (`not_logged_in`) when there is none."""
    scheme, _, secret = (authorization or "").partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise Refused(
            RefusalCode.NOT_LOGGED_IN,
            "this request has no token",
            tries=("turnstile login", "the header 'Authorization: Bearer tst_…'"),
        )
    if len(secret) > _LONGEST_TOKEN or not secret.isascii():
        raise unknown_token()
    return secret


def unknown_token() -> Refused:
    """Returns the refusal of a token that is wrong, revoked or past its time: which of them is not told."""
    return Refused(
        RefusalCode.NOT_LOGGED_IN, "the token is not valid (unknown, revoked or expired)", tries=("turnstile login",)
    )


def is_within(account: AccountId, root: AccountId) -> bool:
    """True when `account` is `root` or stands below it in the tree."""
    return root in (ROOT_ACCOUNT, account) or account.startswith(f"{root}/")


@dataclass(frozen=True, slots=True)
class Caller:
    """What a valid token says about who asks. `account` is the root `""` for the centre's own people."""

    token_id: str
    role: Role
    account: AccountId
    user: UserName
    expires_ms: int | None = None
    suspended: AccountId | None = None
    """The account of its path that is suspended, if one is: such a caller may look and end jobs, no more."""

    @property
    def tenant(self) -> AccountId | None:
        """The tenant that the caller belongs to; None for the centre's own people."""
        return None if self.account == ROOT_ACCOUNT else tenant_of(self.account)


@dataclass(frozen=True, slots=True)
class Rights:
    """Answers what one caller may see and do. Never raises but in `require…`; costs nothing."""

    caller: Caller

    def require(self, roles: frozenset[Role]) -> None:
        """Raises Refused (`not_allowed`) unless the caller has one of the roles, those of the centre in the centre."""
        if self.caller.role in OF_THE_CENTRE:
            self.require_centre()
        if self.caller.role not in roles:
            wanted = " or ".join(sorted(roles))
            raise Refused(
                RefusalCode.NOT_ALLOWED, f"a token with the role {self.caller.role} may not do this; it needs {wanted}"
            )

    def require_centre(self) -> None:
        """Raises Refused (`not_allowed`) unless the token is of the centre itself and not of a tenant."""
        if self.caller.account != ROOT_ACCOUNT:
            raise Refused(
                RefusalCode.NOT_ALLOWED, f"this is the centre's to ask, and this token is for {self.caller.account}"
            )

    def require_node(self, node: NodeName) -> None:
        """Raises Refused (`not_allowed`) unless the token is an agent's of the centre that speaks for the node.

        A token speaks for the node that its user is called after; that of `any-node` for all.
        """
        self.require_centre()
        if self.caller.user not in (node, ANY_NODE):
            raise Refused(
                RefusalCode.NOT_ALLOWED,
                f"this token speaks for node {self.caller.user}, not for {node}",
                tries=(
                    f"turnstile agent --node {self.caller.user}",
                    f"turnstile admin token create --role agent -u {node}",
                ),
            )

    def require_unsuspended(self) -> None:
        """Raises Refused (`policy`) when the caller's account is suspended."""
        if self.caller.suspended is not None:
            raise Refused(
                RefusalCode.POLICY,
                f"{self.caller.suspended} is suspended: its people may look and end jobs, and do nothing else",
                tries=("ask the operator",),
            )

    def require_terms_of(self, account: AccountId) -> None:
        """Raises Refused unless the caller may set the account's terms: an operator any, a tenant's admin what lies
        below its own account. `not_found` for what it may not see, `not_allowed` for its own."""
        if self.is_operator:
            return
        self.require_people_of(account)
        if account == self.caller.account:
            raise Refused(RefusalCode.NOT_ALLOWED, f"the terms of {account} itself are set by who is above it")

    def require_people_of(self, account: AccountId) -> None:
        """Raises Refused unless the caller may say who belongs to the account: an operator any, a tenant's admin its
        own and those below it."""
        self.require(ADMINISTERS)
        if not is_within(account, self.caller.account):
            raise Refused(RefusalCode.NOT_FOUND, f"no account {account or 'of the centre'!r} that this token may see")

    def require_giving(self, role: Role, account: AccountId) -> None:
        """Raises Refused unless the caller may give others the role there: `not_allowed`, or `invalid` for a role of
        the centre in a tenant, where nothing would bound it."""
        if self.is_operator and role in OF_THE_CENTRE and account != ROOT_ACCOUNT:
            raise Refused(
                RefusalCode.INVALID,
                f"a token with the role {role} is for the whole centre, and {account} is one of its accounts",
                tries=("leave -A out", "--role tenant_admin"),
            )
        if not self.is_operator and role not in GIVEN_BY_TENANTS:
            raise Refused(RefusalCode.NOT_ALLOWED, f"a token with the role {role} is the centre's to make")

    @property
    def visible_root(self) -> AccountId:
        """The account whose subtree bounds every query of the caller's."""
        return self.caller.account

    @property
    def is_operator(self) -> bool:
        """True for the centre's operators, who also see which tenant does what."""
        return self.caller.role is Role.OPERATOR

    @property
    def acts_on_user(self) -> UserName | None:
        """The user whose jobs alone the caller may change; None when all that it sees."""
        return self.caller.user if self.caller.role is Role.USER else None

    def may_see_account(self, account: AccountId) -> bool:
        """True when the account lies in what the caller may see."""
        return self.caller.role in READS_JOBS and is_within(account, self.caller.account)

    def may_see_reservation(self, account: AccountId | None) -> bool:
        """True when the caller may see nodes reserved for an account (None: for nobody, as for maintenance)."""
        if self.is_operator:
            return True
        if account is None or self.caller.role not in READS_JOBS:
            return False
        return is_within(account, self.caller.account) or is_within(self.caller.account, account)

    def may_see_node_jobs(self) -> bool:
        """True when the caller may know whose jobs run on a node."""
        return self.is_operator

    def may_see_command(self, account: AccountId, user: UserName) -> bool:
        """True when the job's command and its environment's names are the caller's project's, or its own."""
        caller = self.caller
        if not self.may_see_account(account) or caller.role is Role.BILLING:
            return False
        return caller.account != ROOT_ACCOUNT or caller.user == user

    def may_read_logs(self, account: AccountId) -> bool:
        """True when the caller may read what a job of the account wrote."""
        return self.caller.role in READS_LOGS and self.may_see_account(account)

    def may_act_on_job(self, account: AccountId, user: UserName) -> bool:
        """True when the caller may cancel, hold, release or requeue a job of this account and user."""
        if self.caller.role not in RUNS_JOBS or not self.may_see_account(account):
            return False
        return self.acts_on_user is None or user == self.acts_on_user

    def may_enter_job(self, account: AccountId, user: UserName) -> bool:
        """True when the caller may run programs inside a job of this account and user, and reach its ports."""
        return self.caller.role in ENTERS_JOBS and self.may_act_on_job(account, user)

    def ledger_tenant(self, asked: str | None) -> AccountId | None:
        """Returns the tenant whose part of the ledger the caller gets when it asks for `asked`; None for all of it.

        The centre's own people may have any or all, a tenant's billing its own. Raises Refused: `not_found` for
        another's, `not_allowed` for a token of a project, because the ledger is kept per tenant.
        """
        own = self.caller.account
        if own == ROOT_ACCOUNT:
            return None if asked is None else AccountId(asked)
        if asked is not None and asked != tenant_of(own):
            raise Refused(RefusalCode.NOT_FOUND, f"no tenant {asked!r} that this token may see")
        if own != tenant_of(own):
            raise Refused(RefusalCode.NOT_ALLOWED, f"the ledger is kept per tenant, and this token is for {own}")
        return own

    def bill_tenant(self, asked: str | None) -> AccountId | None:
        """Returns whose bill the caller gets when it asks for `asked`; None when it is of the centre and asks for none.

        Raises Refused (`not_found`) for another tenant's, and for a token of a project, which has no bill of its own.
        """
        own = self.caller.account
        if own not in (ROOT_ACCOUNT, tenant_of(own)):
            raise Refused(RefusalCode.NOT_FOUND, f"bills are made per tenant, and this token is for {own}")
        return self.ledger_tenant(asked)

    def require_budget(self, account: AccountId, *, is_money: bool) -> None:
        """Raises Refused (`not_allowed`) unless the caller may change the budget of an account that it sees.

        The centre's operators and billing may change all. A tenant's admin may divide the tenant's budget among what
        stands below its own account; `is_money`, an overdraft or money paid ahead, is the centre's to give.
        """
        caller = self.caller
        if caller.account == ROOT_ACCOUNT and caller.role in {Role.BILLING, Role.OPERATOR}:
            return
        if caller.role is not Role.TENANT_ADMIN or account == caller.account or is_money:
            what = "an overdraft and money paid ahead" if is_money else f"the budget of {account}"
            raise Refused(RefusalCode.NOT_ALLOWED, f"{what} is the centre's to set; ask its billing or operator")

    def submission_account(self, project: str | None) -> AccountId:
        """Returns the account that a submission is for, from what the caller typed.

        A path from the caller's own account (`vision`), or the whole path (`acme/vision`); without one the caller's
        own account. Raises Refused: `invalid` when the centre's own people name none, `not_found` for what is not
        the caller's. That the account exists is the store's to check.
        """
        own = self.caller.account
        if project is None:
            if own == ROOT_ACCOUNT:
                raise Refused(RefusalCode.INVALID, "name the project that the job is for", tries=("-A TENANT/PROJECT",))
            return own
        if own == ROOT_ACCOUNT:
            return AccountId(project)
        whole = AccountId(project)
        if is_within(whole, own):
            return whole
        inside_tenant = AccountId(f"{tenant_of(own)}/{project}")
        if is_within(inside_tenant, own):
            return inside_tenant
        raise Refused(
            RefusalCode.NOT_FOUND,
            f"no project {project!r} that this token may submit to (it is for {own})",
            tries=(f"-A {own}",),
        )


class TokenCache:
    """Remembers valid tokens for a moment, so that a busy client costs one look-up per `life_ms` and not per request.

    Half a second by default: a revocation is promised to be seen within one. Bounded; not for several threads.
    """

    def __init__(self, life_ms: int = 500, most: int = 10_000) -> None:
        self._life_ms = life_ms
        self._most = most
        self._known: dict[str, tuple[Caller, int]] = {}

    def get(self, hashed: str, now_ms: int) -> Caller | None:
        """Returns the caller of a token looked up less than `life_ms` ago."""
        found = self._known.get(hashed)
        if found is None or now_ms - found[1] >= self._life_ms:
            return None
        return found[0]

    def put(self, hashed: str, caller: Caller, looked_up_ms: int) -> None:
        """Remembers a caller from the time that its look-up began."""
        if len(self._known) >= self._most:
            self._known.clear()
        self._known[hashed] = (caller, looked_up_ms)

    def forget(self) -> None:
        """Drops everything: a token was revoked here."""
        self._known.clear()
