"""A declared centre: its differences, one transaction, twice the same as once, and the same as one by one."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.core.model import Account, AccountId, GpuClass, UserName
from scheduler.core.terms import check_terms, with_lock
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.accounts import PutAccount, SaveAccount, account_tree
from scheduler.store.centre import accounts
from scheduler.store.declared import (
    ApplyCentre,
    ChangeKind,
    DeclaredAccount,
    DeclaredAccounts,
    DeclaredUser,
    DeclaredUsers,
    differences,
    digest,
)
from scheduler.store.tokens import Member, SaveMember, SaveToken, members
from tests.store.harness import Centre

ROOT, ACME, VISION = AccountId(""), AccountId("acme"), AccountId("acme/vision")
H100, A100 = GpuClass("H100"), GpuClass("A100")
CAPACITY = {H100: 64, A100: 8}
MEI = UserName("mei")


def declared(*entries: DeclaredAccount) -> DeclaredAccounts:
    return DeclaredAccounts(entries, ROOT, CAPACITY)


def acme(**terms: Any) -> DeclaredAccount:
    return DeclaredAccount(ACME, terms)


def test_what_is_applied_twice_changes_nothing_the_second_time(centre: Centre) -> None:
    file = (
        declared(acme(weight=2, guarantee={H100: 8}), DeclaredAccount(VISION, {"running_limit": 4}, "Vision")),
        DeclaredUsers((DeclaredUser(VISION, MEI, "tenant_admin"),), ROOT),
    )
    first = centre.do(ApplyCentre(file))
    assert [(each.kind, each.id) for each in first] == [
        (ChangeKind.CHANGE, "acme"),
        (ChangeKind.CHANGE, "acme/vision"),
        (ChangeKind.CREATE, "mei in acme/vision"),
    ]
    assert centre.do(ApplyCentre(file)) == ()
    centre.check()


def test_what_a_file_leaves_out_stays_as_it_is(centre: Centre) -> None:
    centre.do(SaveAccount(Account(ACME, weight=5, limit={H100: 9}, pending_limit=7), "Acme Ltd"))
    centre.do(ApplyCentre((declared(acme(weight=6, pending_limit=None)),)))
    with centre.database.read() as connection:
        tree = account_tree(connection)
        names = {each.account.id: each.display_name for each in accounts(connection)}
    assert tree[ACME] == Account(ACME, weight=6, limit={H100: 9})
    assert names[ACME] == "Acme Ltd"
    assert VISION in tree


def test_all_problems_are_told_at_once_and_nothing_is_done(centre: Centre) -> None:
    zeta = AccountId("zeta")
    file = (
        declared(
            acme(guarantee={H100: 60}, limit={H100: 32}),
            DeclaredAccount(zeta, {"guarantee": {H100: 60}, "limit": {GpuClass("H10"): 1}}),
            DeclaredAccount(AccountId("nobody/lab")),
        ),
        DeclaredUsers((DeclaredUser(AccountId("absent"), MEI),), ROOT),
    )
    with pytest.raises(Refused) as raised:
        centre.do(ApplyCentre(file))
    places = [each.field for each in raised.value.problems]
    assert places == [
        "accounts.0.guarantee.H100",
        "accounts.0.guarantee.H100",
        "accounts.2.id",
        "accounts.1.limit.H10",
        "accounts.1.guarantee.H100",
        "users.0.account",
    ]
    with centre.database.read() as connection:
        assert zeta not in account_tree(connection)


def test_guarantees_move_between_tenants_in_one_step_that_no_single_change_allows(centre: Centre) -> None:
    zeta = AccountId("zeta")
    centre.do(ApplyCentre((declared(acme(guarantee={H100: 64}), DeclaredAccount(zeta)),)))
    with pytest.raises(Refused):
        centre.do(PutAccount(Account(zeta, guarantee={H100: 64}), "zeta", CAPACITY))
    swapped = declared(acme(guarantee={}), DeclaredAccount(zeta, {"guarantee": {H100: 64}}))
    assert len(centre.do(ApplyCentre((swapped,)))) == 2
    centre.check()


def test_differences_that_somebody_saw_are_made_only_while_they_are_those(centre: Centre) -> None:
    file = (declared(acme(weight=4)),)
    with centre.database.read() as connection:
        seen = digest(differences(connection, file, prunes=False))
    centre.do(SaveAccount(Account(ACME, weight=3), "Acme"))
    with pytest.raises(Refused) as raised:
        centre.do(ApplyCentre(file, expected=seen))
    assert raised.value.code is RefusalCode.CONFLICT
    with centre.database.read() as connection:
        seen = digest(differences(connection, file, prunes=False))
    assert len(centre.do(ApplyCentre(file, expected=seen))) == 1


def test_a_prune_removes_what_never_did_anything_and_keeps_what_did(centre: Centre) -> None:
    centre.submit()
    for name in ("old", "old/team", "spare"):
        centre.do(SaveAccount(Account(AccountId(name)), name))
    centre.do(SaveToken("01T", "hash", "user", AccountId("old/team"), MEI))
    changes = centre.do(ApplyCentre((declared(DeclaredAccount(AccountId("spare"))),), prunes=True))
    assert {(each.id, each.kind) for each in changes} == {
        ("acme/vision", ChangeKind.KEEP),
        ("old", ChangeKind.REMOVE),
        ("old/team", ChangeKind.REMOVE),
    }
    with centre.database.read() as connection:
        assert set(account_tree(connection)) == {ACME, VISION, "spare"}
        assert members(connection) == []
    again = centre.do(ApplyCentre((declared(DeclaredAccount(AccountId("spare"))),), prunes=True))
    assert [each.kind for each in again] == [ChangeKind.KEEP]
    centre.check()


def test_only_sections_that_stand_in_a_file_are_pruned(centre: Centre) -> None:
    centre.do(SaveMember(Member(ACME, MEI, "billing")))
    centre.do(ApplyCentre((declared(acme(), DeclaredAccount(VISION)),), prunes=True))
    with centre.database.read() as connection:
        assert [each.user for each in members(connection)] == [MEI]
    centre.do(ApplyCentre((DeclaredUsers((), ROOT),), prunes=True))
    with centre.database.read() as connection:
        assert members(connection) == []


counts = st.integers(0, 12)
terms = st.fixed_dictionaries(
    {},
    optional={
        "weight": st.integers(1, 5),
        "guarantee": st.dictionaries(st.sampled_from([H100, A100]), st.integers(1, 12), max_size=2),
        "limit": st.dictionaries(st.sampled_from([H100, A100]), counts, max_size=2),
        "user_limit": st.dictionaries(st.sampled_from([H100, A100]), counts, max_size=1),
        "running_limit": st.one_of(st.none(), counts),
        "pending_limit": st.one_of(st.none(), counts),
        "is_suspended": st.booleans(),
    },
)
files = st.dictionaries(st.sampled_from(["acme", "acme/vision", "acme/vision/deep", "zeta", "zeta/lab"]), terms)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files)
def test_a_file_applied_is_the_same_as_its_changes_one_by_one_and_a_second_time_none(
    centre: Centre, file: dict[str, dict[str, Any]]
) -> None:
    centre.do(SaveAccount(Account(ACME), "Acme"))
    entries = [DeclaredAccount(AccountId(name), said) for name, said in file.items()]
    section = declared(*entries)
    with centre.database.read() as connection:
        before = account_tree(connection)
    one_by_one = dict(before)
    for entry in sorted(entries, key=lambda each: each.id):
        old = one_by_one.get(entry.id)
        changed = replace(old or Account(entry.id), **entry.terms)
        one_by_one[entry.id] = with_lock(old, changed, is_by_tenant=False)
    if check_terms(before, one_by_one, CAPACITY):
        with pytest.raises(Refused, match="what is declared has"):
            centre.do(ApplyCentre((section,)))
        with centre.database.read() as connection:
            assert account_tree(connection) == before, "a refused file changes nothing"
        return
    centre.do(ApplyCentre((section,)))
    with centre.database.read() as connection:
        assert account_tree(connection) == one_by_one
    assert centre.do(ApplyCentre((section,))) == ()
    centre.check()  # the state that lived through the events is the one that the database makes
