"""Elastic gangs over HTTP: what is refused and why, what they may cost at least and at most, what they hold and pay."""

from decimal import Decimal
from typing import Any

import pytest

from scheduler.clock import iso_utc
from scheduler.core.model import EndReason
from scheduler.core.plan import Plan, Stop
from scheduler.executor import Shrunk
from scheduler.store.allocations import ApplyPlan
from scheduler.store.observations import RecordObservations
from tests.api.centre import Centre
from tests.api.conftest import People, job_spec
from tests.api.test_shares import PRICES
from tests.builders import node

WHOLE: dict[str, Any] = {"gpu_classes": ["H100"], "gpus_per_node": 8}


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"nodes": 8, "nodes_max": 2}, "nodes_max", "8-2 is written 2-8"),
        ({"nodes_max": 2}, "nodes", "how many nodes it needs at least"),
        ({"nodes": 1, "nodes_max": 2, "booking": "guaranteed"}, "booking", "ask for 1 nodes"),
        ({"nodes": 1, "nodes_max": 2, "gpus_per_node": None, "total_gpus": 8}, "total_gpus", "GPUs per node"),
        ({"nodes": 1, "nodes_max": 2, "gpus_per_node": 0.5}, "gpus_per_node", "whole GPUs"),
        ({"nodes": 1, "nodes_max": 2, "terminal": True}, "terminal", "on one node"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused_in_words(
    people: People, changes: dict[str, Any], field: str, words: str
) -> None:
    answer = people.user().post("/v1/jobs", json=job_spec(**{**WHOLE, **changes}))
    assert answer.status_code == 422, answer.text
    problems = {each["field"]: each["message"] for each in answer.json()["problems"]}
    assert words in problems[field]


def test_the_least_must_fit_the_centre(people: People) -> None:
    never = people.user().post("/v1/jobs", json=job_spec(**WHOLE, nodes=3, nodes_max=4)).json()
    assert (never["code"], never["try"]) == ("never_fits", ["-g H100:8 -N 2"])


def test_a_dry_run_tells_the_cost_at_the_least_and_at_the_most(people: People) -> None:
    assert people.operator().post("/v1/admin/prices", json=PRICES).status_code == 201
    answer = people.user().post("/v1/jobs?dry_run=true", json=job_spec(**WHOLE, nodes=1, nodes_max=2))
    (job,) = answer.json()["items"]
    assert (job["nodes"], job["nodes_min"], job["nodes_max"], job["gpus_total"]) == (1, 1, 2, 8)
    assert (job["max_cost"]["amount"], job["max_cost_at_nodes_min"]["amount"]) == ("160.00", "80.00")
    plain = people.user().post("/v1/jobs?dry_run=true", json=job_spec(**WHOLE, nodes=2)).json()["items"][0]
    assert (plain["nodes_min"], plain["nodes_max"], plain["max_cost_at_nodes_min"]) == (None, None, None)


def test_what_it_holds_is_told_and_billed_node_by_node_and_the_ledger_holds(people: People, centre: Centre) -> None:
    operator, user = people.operator(), people.user()
    assert operator.post("/v1/admin/prices", json=PRICES).status_code == 201
    centre.has_nodes(*(node(name) for name in ("h1", "h2", "h3", "h4")))
    start_ms = centre.clock.now_ms()
    job = user.submit(**WHOLE, nodes=1, nodes_max=3)
    centre.tick()
    shown = user.get(f"/v1/jobs/{job}").json()
    assert (shown["nodes"], shown["gpus_total"], len(shown["node_names"])) == (3, 24, 3)
    starts = user.get(f"/v1/jobs/{job}/allocations").json()["items"]
    assert [(each["surplus_of"] is not None, len(each["nodes"])) for each in starts] == [(True, 2), (False, 1)]
    centre.clock.advance(hours=1)
    surplus, gang = (each["id"] for each in starts)
    centre.commit(ApplyPlan(Plan(0, centre.clock.now_ms(), stops=(Stop(surplus, EndReason.PREEMPTED),))))
    centre.commit(RecordObservations((Shrunk(gang, centre.clock.now_ms(), 1),)))
    shown = user.get(f"/v1/jobs/{job}").json()
    assert (shown["state"], shown["nodes"], shown["gpus_total"], len(shown["node_names"])) == ("running", 1, 8, 1)
    centre.clock.advance(hours=1)
    centre.ends(job)
    centre.clock.advance(minutes=1)
    span = {"from": iso_utc(start_ms), "to": iso_utc(centre.clock.now_ms())}
    (total,) = operator.get("/v1/usage", params=span).json()["totals"]
    # Three nodes for an hour, one for another: 8 * (3 + 1) GPU-hours.
    assert (Decimal(total["gpu_hours"]), Decimal(total["cost"]["amount"])) == (Decimal(32), Decimal(320))
    report = user.get(f"/v1/jobs/{job}/report").json()
    assert report["ran_seconds"] == 7200
    assert Decimal(report["gpu"]["held_gpu_hours"]) == 32
    verified = operator.get("/v1/admin/ledger/verify").json()
    assert verified["is_sound"], verified["failures"]
