"""A centre as a file declares it: what differs from what there is, and one transaction that makes it so.

A `Section` is one part of such a file (accounts, users; others may be added) and tells its differences as `Change`s,
each with the command that makes it. What a file leaves out stays as it is, unless it prunes; then only sections that
stand in the file lose what is not in them, and no account that has or had jobs is ever removed.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.model import ROOT_ACCOUNT, Account, AccountId, GpuClass, UserName, lineage
from scheduler.core.terms import check_terms, check_within, with_lock
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.store.accounts import RemoveAccount, SaveAccount, account_tree
from scheduler.store.tables import ACCOUNT, ALLOCATION, JOB
from scheduler.store.tokens import Member, RemoveMember, SaveMember, members
from scheduler.store.transaction import Transaction
from scheduler.store.write import Command

Value = Any  # a JSON value: what people read in a difference


class ChangeKind(StrEnum):
    """What becomes of a thing. `keep`: a prune would remove it, and may not."""

    CREATE = "create"
    CHANGE = "change"
    REMOVE = "remove"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `fields` are (name, before, after); `command` makes it, None where nothing is done."""

    section: str
    kind: ChangeKind
    id: str
    fields: tuple[tuple[str, Value, Value], ...] = ()
    command: Command[object] | None = field(default=None, compare=False)
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A section's differences, and what is wrong with it; with problems nothing is done at all."""

    changes: tuple[Change, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Ground:
    """What a section is compared with. `accounts` are those that there will be once earlier sections are made."""

    connection: Connection
    prunes: bool
    accounts: frozenset[AccountId]


class Section(Protocol):
    """A part of a file. Problems name their place as `section.index.field`, by the entries' order."""

    def differences(self, ground: Ground) -> Found: ...


@dataclass(frozen=True, slots=True)
class ApplyCentre:
    """Makes the centre what the sections declare. `expected` is the digest of the differences that somebody saw."""

    sections: tuple[Section, ...]
    prunes: bool = False
    expected: str | None = None

    def execute(self, tx: Transaction) -> tuple[Change, ...]:
        """Returns what was changed. Refuses, and changes nothing, when anything is wrong or not as it was seen."""
        changes = differences(tx.connection, self.sections, prunes=self.prunes)
        if self.expected is not None and digest(changes) != self.expected:
            raise Refused(RefusalCode.CONFLICT, "the centre has changed since these differences were shown; look again")
        for change in in_order(changes):
            if change.command is not None:
                change.command.execute(tx)
        return changes


def differences(connection: Connection, sections: Sequence[Section], *, prunes: bool) -> tuple[Change, ...]:
    """Returns what differs, section by section. Raises Refused (`invalid`) with all problems of all sections."""
    accounts = {AccountId(name) for name in connection.execute(sa.select(ACCOUNT.c.id)).scalars()}
    changes: list[Change] = []
    problems: list[Problem] = []
    for section in sections:
        found = section.differences(Ground(connection, prunes, frozenset(accounts)))
        for change in found.changes:
            if change.section == ACCOUNTS and change.kind is ChangeKind.CREATE:
                accounts.add(AccountId(change.id))
            elif change.section == ACCOUNTS and change.kind is ChangeKind.REMOVE:
                accounts.discard(AccountId(change.id))
        changes += found.changes
        problems += found.problems
    if problems:
        many = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise Refused(RefusalCode.INVALID, f"what is declared has {many}", problems=tuple(problems))
    return tuple(changes)


def in_order(changes: Iterable[Change]) -> list[Change]:
    """Returns changes in an order in which each can be made: makings as declared, then removals from the end."""
    listed = list(changes)
    made = [each for each in listed if each.kind is not ChangeKind.REMOVE]
    return made + [each for each in reversed(listed) if each.kind is ChangeKind.REMOVE]


def change_values(change: Change) -> dict[str, Value]:
    """Returns a change as JSON."""
    fields = [{"name": name, "before": before, "after": after} for name, before, after in change.fields]
    return {
        "section": change.section,
        "change": change.kind.value,
        "id": change.id,
        "fields": fields,
        "note": change.note,
    }


def digest(changes: Iterable[Change]) -> str:
    """Returns the SHA-256 of the differences, by which a later request says what it means."""
    text = json.dumps([change_values(each) for each in changes], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


# ---- accounts -------------------------------------------------------------------------------------------------------

ACCOUNTS, USERS = "accounts", "users"
_BY_CLASS = ("guarantee", "limit", "user_limit")
_PLAIN = (
    *("weight", "running_limit", "pending_limit", "high_limit", "limit_weight", "service_weight", "slowdown_weight"),
    *("takes_turns", "guaranteed_yields", "is_suspended"),
)


@dataclass(frozen=True, slots=True)
class DeclaredAccount:
    """An account as far as it is declared: `terms` are fields of `Account`; what is left out stays."""

    id: AccountId
    terms: Mapping[str, Value] = field(default_factory=dict)
    display_name: str | None = None


@dataclass(frozen=True, slots=True)
class DeclaredAccounts:
    """The accounts of a file. A prune looks below `root` only; `capacity` as in `terms.check_terms`."""

    entries: tuple[DeclaredAccount, ...]
    root: AccountId
    capacity: Mapping[GpuClass, int] | None
    is_by_tenant: bool = False

    def differences(self, ground: Ground) -> Found:
        """Returns the differences: makings by path, so that parents come first, then what is pruned."""
        before = account_tree(ground.connection)
        rows = ground.connection.execute(sa.select(ACCOUNT.c.id, ACCOUNT.c.display_name))
        names = {row.id: row.display_name for row in rows}
        after = dict(before)
        for entry in self.entries:
            old = before.get(entry.id)
            after[entry.id] = with_lock(
                old, replace(old or Account(entry.id), **entry.terms), is_by_tenant=self.is_by_tenant
            )
        pruned = self._pruned(ground, before) if ground.prunes else ()
        for change in pruned:
            if change.kind is ChangeKind.REMOVE:
                del after[AccountId(change.id)]
        made = (
            _account_change(before.get(entry.id), after[entry.id], names.get(entry.id), entry.display_name)
            for entry in sorted(self.entries, key=lambda each: each.id)
        )
        return Found((*(each for each in made if each is not None), *pruned), self._problems(before, after))

    def _problems(self, before: Mapping[AccountId, Account], after: Mapping[AccountId, Account]) -> tuple[Problem, ...]:
        places = {entry.id: index for index, entry in enumerate(self.entries)}
        found = list(check_terms(before, after, self.capacity))
        if self.is_by_tenant:
            found += check_within(frozenset(places), before, after)
        problems = [Problem(each.message, f"{ACCOUNTS}.{places[each.account]}.{each.field}") for each in found]
        seen: set[AccountId] = set()
        for index, entry in enumerate(self.entries):
            if entry.id in seen:
                problems.append(Problem(f"{entry.id} is declared twice", f"{ACCOUNTS}.{index}.id"))
            seen.add(entry.id)
        return tuple(problems)

    def _pruned(self, ground: Ground, before: Mapping[AccountId, Account]) -> tuple[Change, ...]:
        declared = {entry.id for entry in self.entries}
        stays: set[AccountId] = {step for name in declared for step in lineage(name)}
        found: list[Change] = []
        for name in sorted(before, reverse=True):  # from the leaves up, for whoever stays keeps all above it
            if name in stays or name == ROOT_ACCOUNT or self.root not in {ROOT_ACCOUNT, *lineage(name)[1:]}:
                continue
            note = _past_of(ground.connection, name)
            if note is None:
                found.append(Change(ACCOUNTS, ChangeKind.REMOVE, name, (), RemoveAccount(name)))
            else:
                stays.update(lineage(name))
                found.append(Change(ACCOUNTS, ChangeKind.KEEP, name, note=note))
        return tuple(reversed(found))


def _past_of(connection: Connection, name: AccountId) -> str | None:
    """Returns why an account must stay; None when it never did anything. Whatever stands in the ledger has an
    allocation."""
    for table, what in ((JOB, "it has jobs"), (ALLOCATION, "it stands in the ledger")):
        if connection.execute(sa.select(table.c.id).where(table.c.account == name).limit(1)).first() is not None:
            return what
    return None


def _account_change(
    before: Account | None, after: Account, old_name: str | None, display_name: str | None
) -> Change | None:
    new_name = display_name or old_name or after.id
    old = before or Account(after.id)
    fields = [("display_name", old_name, new_name)] if new_name != (old_name or after.id) else []
    fields += [
        (name, getattr(old, name), getattr(after, name))
        for name in _PLAIN
        if getattr(old, name) != getattr(after, name)
    ]
    for name in _BY_CLASS:
        was, now = getattr(old, name), getattr(after, name)
        fields += [
            (f"{name}.{gpu_class}", was.get(gpu_class), now.get(gpu_class))
            for gpu_class in sorted({*was, *now})
            if was.get(gpu_class) != now.get(gpu_class)
        ]
    if before is not None and not fields:
        return None
    kind = ChangeKind.CREATE if before is None else ChangeKind.CHANGE
    return Change(ACCOUNTS, kind, after.id, tuple(fields), SaveAccount(after, new_name))


# ---- users ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeclaredUser:
    """A user as far as it is declared; None stays as it is."""

    account: AccountId
    user: UserName
    role: str | None = None
    may_use_high: bool | None = None


@dataclass(frozen=True, slots=True)
class DeclaredUsers:
    """The users of a file. A prune looks at `root` and below."""

    entries: tuple[DeclaredUser, ...]
    root: AccountId

    def differences(self, ground: Ground) -> Found:
        """Returns the differences, in order of the file; then those that are pruned."""
        there = {(each.account, each.user): each for each in members(ground.connection, self.root)}
        changes: list[Change] = []
        problems: list[Problem] = []
        seen: set[tuple[AccountId, UserName]] = set()
        for index, entry in enumerate(self.entries):
            place = (entry.account, entry.user)
            if place in seen:
                problems.append(Problem(f"{entry.user} is declared twice in {entry.account}", f"{USERS}.{index}.user"))
            seen.add(place)
            if entry.account not in ground.accounts:
                problems.append(Problem(f"there is no account {entry.account}", f"{USERS}.{index}.account"))
            change = _user_change(there.get(place), entry)
            if change is not None:
                changes.append(change)
        for place, member in there.items() if ground.prunes else ():
            if place not in seen and member.account in ground.accounts:
                changes.append(Change(USERS, ChangeKind.REMOVE, _user_id(member), (), RemoveMember(*place)))
        return Found(tuple(changes), tuple(problems))


def _user_change(before: Member | None, entry: DeclaredUser) -> Change | None:
    old = before or Member(entry.account, entry.user, "user")
    role = old.role if entry.role is None else entry.role
    high = old.may_use_high if entry.may_use_high is None else entry.may_use_high
    after = Member(entry.account, entry.user, role, high)
    if before == after:
        return None
    fields = [
        (name, None if before is None else getattr(before, name), getattr(after, name))
        for name in ("role", "may_use_high")
        if before is None or getattr(before, name) != getattr(after, name)
    ]
    kind = ChangeKind.CREATE if before is None else ChangeKind.CHANGE
    return Change(USERS, kind, _user_id(after), tuple(fields), SaveMember(after))


def _user_id(member: Member) -> str:
    return f"{member.user} in {member.account}"
