"""Secrets by name: the nearest account's counts, a start carries the values, and no text shows them."""

from dataclasses import replace

import pytest

from scheduler.core.model import AccountId
from scheduler.executor import LaunchSpec
from scheduler.refusal import Refused
from scheduler.store.read import live_orders
from scheduler.store.secrets import RemoveSecret, SetSecret, resolve, secrets_of, unknown_secrets
from tests.store.harness import ACME, PROJECT, Centre, draft, start


def test_the_nearest_accounts_value_counts(centre: Centre) -> None:
    assert centre.do(SetSecret(ACME, "KEY", "tenant's", "mei"))
    assert centre.do(SetSecret(PROJECT, "KEY", "project's", "mei"))
    assert not centre.do(SetSecret(PROJECT, "KEY", "project's own", "mei"))
    centre.do(SetSecret(ACME, "OTHER", "x", "mei"))
    with centre.database.read() as connection:
        assert resolve(connection, PROJECT, ("KEY", "OTHER", "NONE")) == {"KEY": "project's own", "OTHER": "x"}
        assert resolve(connection, ACME, ("KEY",)) == {"KEY": "tenant's"}
        assert unknown_secrets(connection, PROJECT, ("NONE", "KEY")) == ["NONE"]
        assert [(each.account, each.name) for each in secrets_of(connection, PROJECT)] == [
            (PROJECT, "KEY"),
            (ACME, "KEY"),
            (ACME, "OTHER"),
        ]
        assert secrets_of(connection, AccountId("zeta/lab")) == []


def test_a_start_carries_the_values_and_a_restart_finds_them_again(centre: Centre) -> None:
    centre.do(SetSecret(PROJECT, "KEY", "s3cret", "mei"))
    (job,) = centre.submit(replace(draft(), launch=LaunchSpec(("true",), "train", secrets=("KEY",))))
    (order,) = centre.apply(start(job, "n0/0")).started
    with centre.database.read() as connection:
        (again,) = live_orders(connection)
    for each in (order, again):
        assert each.secrets == {"KEY": "s3cret"}
        assert "s3cret" not in repr(each)
    assert "s3cret" not in repr(SetSecret(PROJECT, "KEY", "s3cret", "mei"))


def test_what_is_not_there_is_refused(centre: Centre) -> None:
    with pytest.raises(Refused, match="no project nobody"):
        centre.do(SetSecret(AccountId("nobody"), "KEY", "x", "mei"))
    with pytest.raises(Refused, match="no secret KEY of acme/vision"):
        centre.do(RemoveSecret(PROJECT, "KEY"))
