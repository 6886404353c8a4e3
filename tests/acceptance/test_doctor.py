"""`turnstile doctor` with an operator's token says what is wrong with the daemon, and nothing of one that is well."""

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from tests.acceptance.daemons import Daemon, until

pytestmark = pytest.mark.acceptance
CHECKS = (
    "lease",
    "database",
    "agreement",
    "planner",
    "disk",
    "clock",
    "agents",
    "gpus",
    "ledger",
    "notices",
)


def found(daemon: Daemon) -> dict[str, Any]:
    items = daemon.get("/v1/admin/health")["items"]
    return {each["check"]: each for each in items}


def test_doctor_finds_a_daemon_well_and_names_what_was_changed_behind_its_back(daemon: Daemon) -> None:
    job = daemon.submit("sleep", "600", time_limit_seconds=900)["id"]
    daemon.wait_for(job, "running")
    until(
        lambda: found(daemon).get("ledger", {}).get("is_ok") and "billing" in found(daemon), "every part was looked at"
    )
    well = found(daemon)
    wrong = {name: each for name, each in well.items() if each["is_ok"] is not True and name != "disk"}
    assert (tuple(name for name in well if name != "billing"), wrong) == (CHECKS, {})
    assert "1 live jobs, 1 allocations" in well["agreement"]["detail"]
    told = daemon.turnstile("doctor", code=None)
    assert "daemon: agreement" in told.out
    assert "memory and database agree" in told.out
    assert "daemon:" not in daemon.turnstile("doctor", who="mei").out, "a user learns nothing of the centre's nodes"

    with closing(sqlite3.connect(daemon.database)) as connection, connection:
        connection.execute("UPDATE job SET priority = 1 WHERE id = ?", [job])
    daemon.request("POST", "/v1/admin/nodes/h200-02/drain", {"reason": "a fan is loud"})
    until(lambda: "nodes" in found(daemon), "the drain is seen")
    ill = found(daemon)
    assert (ill["agreement"]["is_ok"], ill["agreement"]["detail"]) == (False, "memory and database differ in jobs")
    assert ill["nodes"]["detail"] == "1 out of use: h200-02 draining: a fan is loud"
    told = daemon.turnstile("doctor", "-o", "json", code=6)
    (line,) = [each for each in told.json["items"] if each["check"] == "daemon: agreement"]
    assert (line["is_ok"], "restart the daemon" in line["try"]) == (False, True)
