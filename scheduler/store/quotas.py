"""Limits that a submission meets: on jobs that wait, on jobs of priority `high`, and on the size of one gang.

What keeps a job from starting is the planner's (`core.booking`); here is what is refused at the door, with the numbers.
Costs a look at the terms of the path; jobs are counted only where they are limited, and never beyond the limit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.lifecycle import ENDS, WAITING
from scheduler.core.model import (
    GPU_UNITS,
    ROOT_ACCOUNT,
    Account,
    AccountId,
    GpuClass,
    Shape,
    UserName,
    lineage,
    tenant_of,
)
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.store.codec import ACCOUNT_COLUMNS, account_of
from scheduler.store.tables import ACCOUNT, JOB, MEMBER

_WAITING = sorted(state.value for state in WAITING)
_LIVE = JOB.c.state.not_in(sorted(state.value for state in ENDS))


class Terms(Protocol):
    """What the check reads: a transaction has it, and so has a `Reading`."""

    @property
    def connection(self) -> Connection: ...

    def account(self, account: AccountId) -> Account | None: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """Terms as a snapshot has them, for a submission that is only tried."""

    connection: Connection

    def account(self, account: AccountId) -> Account | None:
        """Returns an account's terms; None when there is no such account."""
        row = self.connection.execute(sa.select(*ACCOUNT_COLUMNS).where(ACCOUNT.c.id == account)).one_or_none()
        return None if row is None else account_of(row)


@dataclass(frozen=True, slots=True)
class Ask:
    """Jobs alike that somebody wants to submit."""

    account: AccountId
    user: UserName
    shape: Shape
    count: int
    is_high: bool


def check_quotas(terms: Terms, asks: Sequence[Ask]) -> None:
    """Raises Refused (`over_quota`) with every limit that the jobs together would break."""
    found = [*_gangs_too_large(terms, asks), *_too_many(terms, asks)]
    if not found:
        return
    problems = tuple(problem for problem, _ in found)
    tries = tuple(dict.fromkeys(proposal for _, proposal in found if proposal))
    raise Refused(RefusalCode.OVER_QUOTA, problems[0].message, tries, problems)


def check_high(terms: Terms, asks: Sequence[Ask]) -> None:
    """Raises Refused (`over_quota`) when jobs that wait already may not be made `high`."""
    for name in dict.fromkeys(step for ask in asks for step in lineage(ask.account)):
        known = terms.account(name)
        if known is not None and known.high_limit is not None:
            inside = [ask for ask in asks if name in lineage(ask.account)]
            for problem, proposal in _high(terms.connection, name, known.high_limit, inside):
                raise Refused(RefusalCode.OVER_QUOTA, problem.message, (proposal,), (problem,))


def may_use_high(connection: Connection, account: AccountId, user: UserName) -> bool:
    """Tells whether the user has the permission for `high` in the account, from a place in it or above it."""
    member = sa.select(MEMBER.c.user).where(
        MEMBER.c.user == user,
        MEMBER.c.account.in_(lineage(account)),
        sa.or_(MEMBER.c.may_use_high, MEMBER.c.role == "tenant_admin"),
    )
    return connection.execute(member.limit(1)).first() is not None


Found = tuple[Problem, str]
"""A problem, and what to try instead; the text is empty where nothing would help."""


def _gangs_too_large(terms: Terms, asks: Sequence[Ask]) -> Iterator[Found]:
    """Yields gangs that no class named can hold under the limits: they would wait for ever."""
    for ask in dict.fromkeys(asks):
        shape, known = ask.shape, [each for each in map(terms.account, lineage(ask.account)) if each is not None]
        over: list[tuple[GpuClass, str, int]] = []
        for gpu_class in shape.gpu_classes:
            limits = [(each.limit[gpu_class], each.id) for each in known if gpu_class in each.limit]
            own = [(each.user_limit[gpu_class], each.id) for each in known if gpu_class in each.user_limit]
            most, whose = min([*((most, f"{name}") for most, name in limits), *_per_user(own)], default=(None, ""))
            if most is None or shape.total_units <= most * GPU_UNITS:
                break
            over.append((gpu_class, whose, most))
        else:
            gpu_class, whose, most = over[0]
            asked = -(-shape.total_units // GPU_UNITS)
            message = f"{whose} may hold {most} {gpu_class} at once, and this job asks for {asked}"
            yield Problem(message, "gpus_per_node"), _smaller(shape, gpu_class, most)


def _per_user(own: Sequence[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    return ((most, f"a user of {name}") for most, name in own)


def _smaller(shape: Shape, gpu_class: str, most: int) -> str:
    per_node = shape.gpus_per_node
    if most < 1 or shape.is_share:
        return "" if most < 1 else f"-N {most * GPU_UNITS // shape.gpu_units}"
    if most >= per_node:
        return f"-g {gpu_class}:{per_node} -N {most // per_node}"
    return f"-g {gpu_class}:{most}"


def _too_many(terms: Terms, asks: Sequence[Ask]) -> Iterator[Found]:
    for name in dict.fromkeys(step for ask in asks for step in lineage(ask.account)):
        known = terms.account(name)
        if known is None:
            continue
        inside = [ask for ask in asks if name in lineage(ask.account)]
        if known.pending_limit is not None:
            more = sum(ask.count for ask in inside)
            yield from _waiting(terms.connection, name, known.pending_limit, more)
        if known.high_limit is not None and any(ask.is_high for ask in inside):
            yield from _high(terms.connection, name, known.high_limit, inside)


def _waiting(connection: Connection, name: AccountId, most: int, more: int) -> Iterator[Found]:
    there = _count(connection, name, JOB.c.state.in_(_WAITING), most)
    room = max(0, most - there)
    if more > room:
        message = f"{name} has {there} jobs waiting and may have {most}, and this submission adds {more}"
        proposal = f"-a 0-{room - 1}" if room and more > 1 else "turnstile queue -s pending"
        yield Problem(message, "array" if more > 1 else None), proposal


def _high(connection: Connection, name: AccountId, most: int, asks: Sequence[Ask]) -> Iterator[Found]:
    more = sum(ask.count for ask in asks if ask.is_high and not may_use_high(connection, ask.account, ask.user))
    there = _count(connection, name, sa.and_(_LIVE, JOB.c.priority > 0), most)
    if more and there + more > most:
        message = (
            f"{name} may have {most} jobs of priority high at once besides those of users with the permission; "
            f"it has {there}, and this adds {more}"
        )
        yield Problem(message, "priority"), "--priority normal"


def _count(connection: Connection, name: AccountId, which: "sa.ColumnElement[bool]", most: int) -> int:
    """Returns how many jobs of the account and all below it there are, counted up to one more than `most`."""
    wanted = sa.select(sa.literal(1)).where(JOB.c.tenant == tenant_of(name), which)
    if name not in {ROOT_ACCOUNT, tenant_of(name)}:
        is_below = JOB.c.account.startswith(f"{name}/", autoescape=True)
        wanted = wanted.where(sa.or_(JOB.c.account == name, is_below))
    found = wanted.limit(most + 1).subquery()
    return int(connection.execute(sa.select(sa.func.count()).select_from(found)).scalar_one())
