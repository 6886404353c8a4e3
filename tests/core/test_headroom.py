"""Whose money a start must fit: every hard budget above it, but of money paid ahead the nearest only."""

from scheduler.core.headroom import Headroom
from scheduler.core.model import AccountId

ACME, VISION, TEAM = AccountId("acme"), AccountId("acme/vision"), AccountId("acme/vision/team")


def test_money_paid_ahead_further_up_is_not_asked_for() -> None:
    headroom = Headroom()
    headroom.change(ACME, 0, is_prepaid=True)
    headroom.change(VISION, 100, is_prepaid=True)
    assert list(headroom.binding(TEAM)) == [VISION]
    assert list(headroom.binding(ACME)) == [ACME]
    headroom.change(VISION, None)
    assert list(headroom.binding(TEAM)) == [ACME]


def test_soft_money_paid_ahead_takes_the_place_of_hard_money_further_up() -> None:
    headroom = Headroom()
    headroom.change(ACME, 0, is_prepaid=True)
    headroom.change(VISION, None, is_prepaid=True)
    assert not headroom.is_limited(TEAM)


def test_limits_of_time_bind_at_every_level_whoever_pays() -> None:
    headroom = Headroom()
    headroom.change(ACME, 5)
    headroom.change(VISION, 100, is_prepaid=True)
    headroom.change(TEAM, 7)
    assert list(headroom.binding(TEAM)) == [TEAM, VISION, ACME]
