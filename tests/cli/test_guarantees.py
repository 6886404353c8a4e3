"""Guarantees that exceed what is left are said once, and once when they are whole again."""

import logging

import pytest

from cli.daemon.guarantees import GuaranteeWatch, missing_units
from scheduler.core.model import GPU_UNITS, GpuClass
from scheduler.core.plan import Plan
from tests.builders import START_MS, account, node
from tests.harness import Centre


def test_shrunk_guarantees_are_told_when_it_begins_changes_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    lost, kept = node("n1"), node("n2")
    centre = Centre(lost, kept, accounts=(account("a", guarantee=9), account("b", guarantee=5)))
    watch, plan = GuaranteeWatch(), Plan(0, START_MS)
    with caplog.at_level(logging.INFO, "cli.daemon.guarantees"):
        watch.note(missing_units(centre.state, plan))
        assert caplog.messages == []
        centre.down(lost)
        assert missing_units(centre.state, plan) == {GpuClass("H100"): 6 * GPU_UNITS}
        watch.note(missing_units(centre.state, plan))
        watch.note(missing_units(centre.state, plan))
        centre.node(lost)
        watch.note(missing_units(centre.state, plan))
    assert caplog.messages == [
        "guarantees shrunk: 6 H100 are guaranteed beyond what is left; cut pro rata for new starts",
        "guarantees of H100 are whole again",
    ]
