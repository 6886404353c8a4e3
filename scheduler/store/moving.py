"""Another name or another project for jobs that wait.

What a submission to that project would meet is met here too: its people, its limits, its budgets, its secrets. An array
is moved as a whole, because its elements share name and project.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.admission import CostQuestion, Submission
from scheduler.core.lifecycle import ENDS, WAITING
from scheduler.core.model import Account, AccountId, Job, JobId, lineage, tenant_of
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.codec import launch_json, launch_of
from scheduler.store.database import chunks
from scheduler.store.dependencies import Alike, let_go_on
from scheduler.store.jobs import check_account
from scheduler.store.quotas import Ask, check_quotas
from scheduler.store.secrets import check_secrets
from scheduler.store.tables import CLAIM, JOB, JOB_DEPENDENCY
from scheduler.store.transaction import Transaction

Pricing = Callable[[Job], tuple[CostQuestion, ...]]

_ENDED = sorted(state.value for state in ENDS)
_WAITING = sorted(state.value for state in WAITING)
_SET_NAME = sa.update(JOB).where(JOB.c.id == sa.bindparam("at_id"))


@dataclass(frozen=True, slots=True)
class Move:
    """The name and the project that jobs shall have; None leaves it. `price` says what a job may cost.

    `keeps_secrets` where jobs get their secrets from the store, so that another project must have those that they name.
    """

    name: str | None = None
    account: AccountId | None = None
    price: Pricing = lambda _: ()
    keeps_secrets: bool = True


@dataclass(frozen=True, slots=True)
class _Entered:
    """Terms of the accounts that jobs come into; those that have them already are not asked again."""

    terms: Transaction
    left: AccountId

    @property
    def connection(self) -> Connection:
        return self.terms.connection

    def account(self, account: AccountId) -> Account | None:
        return None if account in lineage(self.left) else self.terms.account(account)


def check_movable(tx: Transaction, ids: Sequence[JobId]) -> None:
    """Raises Refused (`wrong_state`, all or none) for jobs that do not wait, and for parts of arrays."""
    _check_arrays(tx, ids)
    for part in chunks(ids):
        rows = tx.connection.execute(sa.select(JOB.c.id, JOB.c.state).where(JOB.c.id.in_(part)).order_by(JOB.c.id))
        for id_, state in rows:
            if state not in _WAITING and state not in _ENDED:
                raise _refused(f"job {id_} is {state}: its name and its project stay as they are")
        taken = sa.select(CLAIM.c.job_id).where(CLAIM.c.job_id.in_(part), CLAIM.c.ended_ms.is_(None)).limit(1)
        if (about := tx.connection.execute(taken).scalar()) is not None:
            raise _refused(f"job {about} is about to start: others are being stopped for it")
        single = sa.select(JOB_DEPENDENCY.c.job_id).where(
            JOB_DEPENDENCY.c.job_id.in_(part), JOB_DEPENDENCY.c.on_job.is_(None), JOB_DEPENDENCY.c.on_array.is_(None)
        )
        if (alone := tx.connection.execute(single.limit(1)).scalar()) is not None:
            raise _refused(f"job {alone} waits for the others of its name and project (singleton), so it keeps both")


def _check_arrays(tx: Transaction, ids: Sequence[JobId]) -> None:
    named, arrays = set(ids), set[int]()
    for part in chunks(ids):
        asked = sa.select(JOB.c.array_id).where(JOB.c.id.in_(part), JOB.c.array_id.is_not(None)).distinct()
        arrays.update(tx.connection.execute(asked).scalars())
    for some in chunks(sorted(arrays)):
        whole = sa.select(JOB.c.id, JOB.c.array_id, JOB.c.array_index)
        live = whole.where(JOB.c.array_id.in_(some), JOB.c.state.not_in(_ENDED)).order_by(JOB.c.id)
        for id_, array, index in tx.connection.execute(live):
            if id_ not in named:
                raise _refused(
                    f"the elements of array {array} share name and project, and {array}_{index} is not named",
                    f"turnstile update {array}",
                )


def move(tx: Transaction, jobs: Mapping[JobId, Job], asked: Move) -> set[JobId]:
    """Gives waiting jobs their name and project; returns those that had others. `jobs` are as they will be.

    Raises Refused for all: `not_found` and `policy` for the account, `over_quota`, `over_budget`, `invalid` for secrets
    that the account has not, and `policy` for another tenant's account and for pods that their users made themselves.
    """
    kinds: dict[JobId, Alike] = {}
    left: dict[AccountId, list[JobId]] = {}
    names: list[dict[str, object]] = []
    secrets: set[str] = set()
    columns = (JOB.c.id, JOB.c.account, JOB.c.user, JOB.c.name, JOB.c.launch)
    for part in chunks(list(jobs)):
        for id_, account, user, name, launch in tx.connection.execute(sa.select(*columns).where(JOB.c.id.in_(part))):
            spec = launch_of(launch)
            if spec.adopts:
                raise Refused(RefusalCode.POLICY, f"job {id_} is a pod of its user's own, which says whose it is")
            if asked.account not in (None, account):
                left.setdefault(AccountId(account), []).append(JobId(id_))
                secrets.update(spec.secrets)
                kinds[JobId(id_)] = (account, user, name)
            if asked.name not in (None, name):
                renamed = launch_json(replace(spec, name=asked.name))
                names.append({"at_id": id_, "name": asked.name, "launch": renamed})
                kinds[JobId(id_)] = (account, user, name)
    for account, ids in sorted(left.items()):
        assert asked.account is not None, "jobs leave an account for another"
        _admit(tx, [replace(jobs[id_], account=asked.account) for id_ in sorted(ids)], account, asked.price)
        for part in chunks(ids):
            # At once, so that the jobs that come from elsewhere are counted beside these.
            tx.connection.execute(sa.update(JOB).where(JOB.c.id.in_(part)).values(account=asked.account))
    if asked.account is not None and asked.keeps_secrets:
        check_secrets(tx.connection, asked.account, sorted(secrets))
    if names:
        tx.connection.execute(_SET_NAME, names)
    let_go_on(tx, set(kinds.values()))
    return set(kinds)


def _admit(tx: Transaction, jobs: Sequence[Job], left: AccountId, price: Pricing) -> None:
    account = jobs[0].account
    if tenant_of(account) != tenant_of(left):
        raise Refused(RefusalCode.POLICY, f"a job stays with its tenant, {tenant_of(left)}", ("submit it anew",))
    check_account(tx, account)
    asks: dict[Ask, int] = {}
    costs: dict[tuple[CostQuestion, ...], int] = {}
    for job in jobs:
        ask = Ask(account, job.user, job.shape, 1, job.priority > 0)
        asks[ask] = asks.get(ask, 0) + 1
        questions = price(job)
        costs[questions] = costs.get(questions, 0) + 1
    check_quotas(_Entered(tx, left), [replace(ask, count=count) for ask, count in asks.items()])
    for questions, count in costs.items():
        warnings = tx.admission.admit(tx.reading, Submission(questions, count), tx.now_ms) if questions else ()
        for warning in warnings:
            tx.note(jobs[0].id, "budget", tx.now_ms, warning=warning)


def _refused(what: str, *tries: str) -> Refused:
    return Refused(RefusalCode.WRONG_STATE, what, tries=tries)
