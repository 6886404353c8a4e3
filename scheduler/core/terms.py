"""Whether accounts' terms can be kept: guarantees against capacity and against each other, limits against guarantees.

`check_terms` compares a tree with the one before it and speaks only of what was changed for the worse: a node that died
makes no later change impossible. Ids are paths, so the tree has no cycles by construction.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

from scheduler.core.model import ROOT_ACCOUNT, Account, AccountId, GpuClass, lineage, tenant_of

Tree = Mapping[AccountId, Account]
Capacity = Mapping[GpuClass, int] | None
"""Whole GPUs of each class that the centre has, healthy or not. None: whoever asks sells more on purpose."""


@dataclass(frozen=True, slots=True)
class TermsProblem:
    """One thing that is wrong with an account's terms; `field` is the term, as in `guarantee.H100`."""

    account: AccountId
    field: str
    message: str


def check_terms(before: Tree, after: Tree, capacity: Capacity) -> tuple[TermsProblem, ...]:
    """Returns every problem that the change from one tree to the other brings, by account; empty when it is sound."""
    found: list[TermsProblem] = []
    for name in sorted(after):
        old, new = before.get(name, Account(name)), after[name]
        if name == ROOT_ACCOUNT or (name in before and old == new):
            continue
        if new.parent not in {None, ROOT_ACCOUNT, *after}:
            found.append(TermsProblem(name, "id", f"{name} needs its parent {new.parent}, which does not exist"))
        if new.weight < 1:
            found.append(TermsProblem(name, "weight", f"a weight must be at least 1, and {new.weight} is not"))
        found += _unknown_classes(old, new, capacity)
        found += _beyond_limits(old, new, after)
        found += _beyond_guarantees(old, new, after, capacity)
    return tuple(found)


def with_lock(old: Account | None, new: Account, *, is_by_tenant: bool) -> Account:
    """Returns new terms with who has suspended the account: the centre's word stands until it is taken back."""
    if not new.is_suspended:
        return replace(new, is_locked=False)
    is_kept = old is not None and old.is_suspended
    return replace(new, is_locked=old.is_locked if old is not None and is_kept else not is_by_tenant)


def check_within(names: frozenset[AccountId], before: Tree, after: Tree) -> tuple[TermsProblem, ...]:
    """Returns what a tenant may not do to the accounts named: raise a limit beyond one above them, or let start again
    what the centre has suspended."""
    found = []
    for name in sorted(names):
        old, new = before.get(name, Account(name)), after[name]
        if old.is_locked and not new.is_suspended:
            message = f"{name} was suspended by the centre, and the centre alone can resume it"
            found.append(TermsProblem(name, "suspended", message))
        for gpu_class, most in sorted(new.limit.items()):
            above = [(each.limit[gpu_class], each.id) for each in _above(after, name) if gpu_class in each.limit]
            least, whose = min(above, default=(most, name))
            if most > least and most > old.limit.get(gpu_class, 0):
                message = f"a limit of {most} {gpu_class} is more than {whose} itself may hold ({least})"
                found.append(TermsProblem(name, f"limit.{gpu_class}", message))
    return tuple(found)


def _unknown_classes(old: Account, new: Account, capacity: Capacity) -> Iterator[TermsProblem]:
    if capacity is None:
        return
    for term, was, now in (
        ("guarantee", old.guarantee, new.guarantee),
        ("limit", old.limit, new.limit),
        ("user_limit", old.user_limit, new.user_limit),
    ):
        for gpu_class in sorted(set(now) - set(was) - set(capacity)):
            near = get_close_matches(gpu_class, list(capacity), n=1)
            there = f"there are {', '.join(sorted(capacity))}" if capacity else "no node has registered yet"
            hint = f", did you mean {near[0]!r}?" if near else f"; {there}"
            yield TermsProblem(new.id, f"{term}.{gpu_class}", f"no GPU class {gpu_class!r}{hint}")


def _beyond_limits(old: Account, new: Account, after: Tree) -> Iterator[TermsProblem]:
    """Yields guarantees that a limit on the path makes void, from both sides: either may have moved."""
    path = [new, *_above(after, new.id)]
    for gpu_class, bought in sorted(new.guarantee.items()):
        least, whose = min(
            ((each.limit[gpu_class], each.id) for each in path if gpu_class in each.limit), default=(bought, new.id)
        )
        has_moved = bought > old.guarantee.get(gpu_class, 0) or new.limit.get(gpu_class) != old.limit.get(gpu_class)
        if bought > least and has_moved:
            message = f"a guarantee of {bought} {gpu_class} is more than the limit of {whose} ({least})"
            yield TermsProblem(new.id, f"guarantee.{gpu_class}", message)
    for gpu_class, most in sorted(new.limit.items()):
        if most >= old.limit.get(gpu_class, most + 1):
            continue
        for name, each in sorted(after.items()):
            bought = each.guarantee.get(gpu_class, 0)
            if name != new.id and bought > most and new.id in lineage(name):
                message = f"a limit of {most} {gpu_class} is less than the guarantee of {name} ({bought})"
                yield TermsProblem(new.id, f"limit.{gpu_class}", message)


def _beyond_guarantees(old: Account, new: Account, after: Tree, capacity: Capacity) -> Iterator[TermsProblem]:
    for gpu_class in sorted({*old.guarantee, *new.guarantee}):
        was, now = old.guarantee.get(gpu_class, 0), new.guarantee.get(gpu_class, 0)
        field = f"guarantee.{gpu_class}"
        giver, available = _giver(new.id, gpu_class, after, capacity)
        if now > was and available is not None:
            others = sum(part for name, part in _parts(giver, gpu_class, after) if name != new.id)
            if now + others > available:
                message = (
                    f"{now} {gpu_class} are more than is left: the centre has {available}, and {others} are "
                    "guaranteed to others"
                    if giver == ROOT_ACCOUNT
                    else f"{now} {gpu_class} are more than is left of the guarantee of {giver}: it has {available}, "
                    f"and {others} are given to others of its projects"
                )
                yield TermsProblem(new.id, field, message)
        if now < was and (now or new.id == tenant_of(new.id)):
            parts = _parts(new.id, gpu_class, after)
            total = sum(part for _, part in parts)
            if total > now:
                told = ", ".join(f"{name} {part}" for name, part in parts)
                yield TermsProblem(
                    new.id, field, f"{now} {gpu_class} are less than the {total} that its projects are given ({told})"
                )


def _giver(name: AccountId, gpu_class: GpuClass, after: Tree, capacity: Capacity) -> tuple[AccountId, int | None]:
    """Returns whose guarantee an account's is a part of, with its GPUs; the centre's capacity for a tenant.

    None where there is nothing to compare with: the class is unknown, or capacity is not asked about.
    """
    if capacity is not None and gpu_class not in capacity:
        return tenant_of(name), None
    if name == tenant_of(name):
        return ROOT_ACCOUNT, None if capacity is None else capacity[gpu_class]
    for above in lineage(name)[1:]:
        known = after.get(above)
        if known is not None and gpu_class in known.guarantee:
            return above, known.guarantee[gpu_class]
    return tenant_of(name), 0


def _parts(name: AccountId, gpu_class: GpuClass, after: Tree) -> list[tuple[AccountId, int]]:
    """Returns the guarantees that one is divided into: the topmost below it; all tenants' for the centre."""
    having = [each for each in sorted(after) if gpu_class in after[each].guarantee]
    if name == ROOT_ACCOUNT:
        top = [each for each in having if each != ROOT_ACCOUNT and each == tenant_of(each)]
    else:
        below = {each: lineage(each)[1:] for each in having if name in lineage(each)[1:]}
        top = [each for each, above in below.items() if below.keys().isdisjoint(above[: above.index(name)])]
    return [(each, after[each].guarantee[gpu_class]) for each in top]


def _above(tree: Tree, name: AccountId) -> list[Account]:
    return [tree[step] for step in lineage(name)[1:] if step in tree]
