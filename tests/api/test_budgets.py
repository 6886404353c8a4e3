"""Budgets over HTTP: who sees and sets them, what a submission is told, what the planner does without money."""

from decimal import Decimal
from typing import Any

import pytest

from metering.keeping import KeepBudgets
from metering.ledger import publish
from scheduler.auth import Role
from tests.api.centre import Centre
from tests.api.conftest import Client, People, job_spec
from tests.metering.builders import book

HOURS_4 = {"time_limit_seconds": 4 * 3600, "gpus_per_node": 1, "gpu_classes": ["H100"]}


@pytest.fixture(autouse=True)
def prices(centre: Centre) -> None:
    with centre.database.write() as connection:
        publish(connection, book(), centre.clock.now_ms())


def operator(people: People) -> Client:
    return people.with_role(Role.OPERATOR, "", "ops")


def set_budget(client: Client, account: str, amount: str, **more: Any) -> Any:
    return client.request("PUT", f"/v1/admin/budgets/{account}", json={"limit": {"amount": amount}, **more})


def test_a_budget_is_set_listed_and_seen_by_its_own_only(people: People) -> None:
    assert set_budget(operator(people), "acme", "5000").status_code == 200
    assert set_budget(operator(people), "acme/vision", "1000.50", hard=False).status_code == 200
    [project] = people.user().get("/v1/budgets").json()["items"]
    assert (project["account"], project["left"], project["is_hard"]) == (
        "acme/vision",
        {"amount": "1000.50", "currency": "CNY"},
        False,
    )
    assert project["period_ends_at"] is not None
    admin = people.with_role(Role.TENANT_ADMIN, "acme", "mei")
    assert [each["account"] for each in admin.get("/v1/budgets").json()["items"]] == ["acme", "acme/vision"]
    assert people.user("zoe", "zeta/lab").get("/v1/budgets").json()["items"] == []
    assert people.user("zoe", "zeta/lab").get("/v1/budgets?account=acme").status_code == 404


def test_a_tenant_admin_divides_the_tenants_budget_and_gives_itself_nothing(people: People) -> None:
    admin = people.with_role(Role.TENANT_ADMIN, "acme", "mei")
    assert set_budget(admin, "acme/nlp", "10").status_code == 200
    for account, more in (
        ("acme", {}),
        ("acme/nlp", {"overdraft": {"amount": "5"}}),
    ):
        refused = set_budget(admin, account, "10", **more)
        assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed"), account
    assert set_budget(admin, "zeta", "10").status_code == 404
    prepaid = operator(people).request("PUT", "/v1/admin/budgets/acme/vision", json={"period": "prepaid"})
    assert prepaid.status_code == 200
    assert set_budget(admin, "acme/vision", "10").status_code == 403
    assert admin.request("DELETE", "/v1/admin/budgets/acme/vision").status_code == 403
    assert admin.request("DELETE", "/v1/admin/budgets/acme/nlp").status_code == 200
    top_up = {"amount": {"amount": "10"}, "reason": "mine"}
    assert admin.post("/v1/admin/budgets/acme/vision/topup", json=top_up).status_code == 403


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "limit"),
        ({"period": "prepaid", "limit": {"amount": "5"}}, "limit"),
        ({"period": "fixed", "limit": {"amount": "5"}}, "from_at"),
        ({"limit": {"amount": "-5"}}, "limit.amount"),
        ({"limit": {"amount": "5", "currency": "USD"}}, "limit.currency"),
        ({"limit": {"amount": "NaN"}}, "limit.amount"),
        ({"limit": {"amount": 5}}, "limit.amount"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused_with_its_field(people: People, body: Any, field: str) -> None:
    refused = operator(people).request("PUT", "/v1/admin/budgets/acme", json=body)
    assert refused.status_code == 422
    assert field in [problem["field"] for problem in refused.json()["problems"]]


def test_a_submission_over_the_budget_is_refused_and_a_preview_says_so(people: People) -> None:
    set_budget(operator(people), "acme", "50")
    mei = people.user()
    refused = mei.post("/v1/jobs", json=job_spec(**HOURS_4))
    assert (refused.status_code, refused.json()["code"]) == (422, "over_budget")
    assert refused.json()["detail"].startswith("may cost 72.00 CNY, but tenant acme has 50.00 left until 1 ")
    assert refused.json()["try"][0] == "-t 166m (49.80)"
    preview = mei.post("/v1/jobs?dry_run=true", json=job_spec(**HOURS_4)).json()
    assert (preview["budget"]["fits"], preview["budget"]["account"]) == (False, "acme")
    fitting = mei.post("/v1/jobs", json=job_spec(**{**HOURS_4, "time_limit_seconds": 3600}))
    assert fitting.status_code == 201
    assert fitting.json()["budget"]["left"] == {"amount": "50.00", "currency": "CNY"}


def test_max_cost_is_kept_by_the_server(people: People) -> None:
    refused = people.user().post("/v1/jobs", json=job_spec(**HOURS_4, max_cost={"amount": "71.99"}))
    assert (refused.status_code, refused.json()["code"]) == (422, "over_budget")
    assert people.user().post("/v1/jobs", json=job_spec(**HOURS_4, max_cost={"amount": "72"})).status_code == 201
    other = people.user().post("/v1/jobs", json=job_spec(**HOURS_4, max_cost={"amount": "72", "currency": "USD"}))
    assert (other.status_code, other.json()["code"]) == (422, "invalid")


def test_a_top_up_that_is_sent_twice_is_added_once(people: People) -> None:
    ops = operator(people)
    ops.request("PUT", "/v1/admin/budgets/acme", json={"period": "prepaid"})
    set_budget(ops, "zeta", "10")
    for account, left in (("acme", "25.00"), ("zeta", "35.00")):
        body = {"amount": {"amount": "25"}, "reason": "order 7"}
        for _ in range(2):
            answer = ops.post(f"/v1/admin/budgets/{account}/topup", json=body, headers={"Idempotency-Key": "k1"})
            assert answer.status_code == 201
            assert answer.json()["left"]["amount"] == left
        other = {"amount": {"amount": "26"}, "reason": "order 7"}
        again = ops.post(f"/v1/admin/budgets/{account}/topup", json=other, headers={"Idempotency-Key": "k1"})
        assert again.status_code == 409
    missing = ops.post("/v1/admin/budgets/acme/nlp/topup", json={"amount": {"amount": "1"}, "reason": "x"})
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


def test_jobs_for_which_there_is_no_money_wait_with_that_reason_until_there_is(centre: Centre, people: People) -> None:
    ops, mei = operator(people), people.user()
    set_budget(ops, "acme", "80")
    jobs = [mei.submit(**HOURS_4) for _ in range(6)]
    for _ in range(3):
        centre.tick()
    states = [mei.get(f"/v1/jobs/{job}").json()["state"] for job in jobs]
    assert states == ["running"] * 4 + ["pending"] * 2
    why = mei.get(f"/v1/jobs/{jobs[4]}/why").json()
    assert [(reason["code"], reason["detail"]) for reason in why["reasons"]] == [("budget", "acme")]
    zoe = people.user("zoe", "zeta/lab")
    other = zoe.submit(**HOURS_4, project="zeta/lab")
    centre.tick()
    assert zoe.get(f"/v1/jobs/{other}").json()["state"] == "running"
    ops.post("/v1/admin/budgets/acme/topup", json={"amount": {"amount": "20"}, "reason": "more"})
    for _ in range(3):
        centre.tick()
    assert [mei.get(f"/v1/jobs/{job}").json()["state"] for job in jobs] == ["running"] * 5 + ["pending"]
    ops.request("DELETE", "/v1/admin/budgets/acme")
    centre.tick()
    assert mei.get(f"/v1/jobs/{jobs[5]}").json()["state"] == "running"


def test_a_job_that_waits_moves_only_where_there_is_money_for_it(people: People) -> None:
    set_budget(people.operator(), "acme/nlp", "71.99")
    job = people.admin().submit(**HOURS_4, hold=True)
    change = {"ids": [str(job)], "project": "acme/nlp"}
    refused = people.admin().post("/v1/jobs/update", json=change)
    assert (refused.status_code, refused.json()["code"]) == (422, "over_budget"), refused.text
    assert people.admin().get(f"/v1/jobs/{job}").json()["project"] == "vision"
    set_budget(people.operator(), "acme/nlp", "72")
    assert people.admin().post("/v1/jobs/update", json=change).json()["items"][0]["did"] == "changed"


def test_an_echo_takes_the_cost_of_a_job_that_starts_at_once_off_what_was_left_before_it(
    centre: Centre, people: People
) -> None:
    set_budget(operator(people), "acme", "100")
    mei, starts = people.user(), [centre.tick]
    forget = centre.on_change(lambda: starts.pop()() if starts else None)
    told = mei.post("/v1/jobs", json=job_spec(**{**HOURS_4, "time_limit_seconds": 3600})).json()
    forget()
    assert mei.get(f"/v1/jobs/{told['items'][0]['id']}").json()["state"] == "running"
    assert told["budget"]["left"] == {"amount": "100.00", "currency": "CNY"}


def test_an_echo_tells_a_budget_that_was_topped_up_a_moment_ago(people: People) -> None:
    set_budget(operator(people), "acme", "20")
    hour = job_spec(**{**HOURS_4, "time_limit_seconds": 3600})
    assert people.user().post("/v1/jobs", json=hour).json()["budget"]["left"]["amount"] == "20.00"
    set_budget(operator(people), "acme", "40")
    two = {**hour, "time_limit_seconds": 7200}
    assert people.user().post("/v1/jobs", json=two).json()["budget"]["left"]["amount"] == "40.00"


def test_what_would_start_a_job_without_money_sooner_is_what_its_budget_can_pay(centre: Centre, people: People) -> None:
    set_budget(operator(people), "acme", "25")
    hour = {**HOURS_4, "time_limit_seconds": 3600}
    first, waits = (people.user().submit(**hour) for _ in range(2))
    centre.tick()
    centre.tick()
    why = people.user().get(f"/v1/jobs/{waits}/why?sooner=true").json()
    assert (why["reasons"][0]["code"], people.user().get(f"/v1/jobs/{first}").json()["state"]) == ("budget", "running")
    # Beside 18.00 and the grace, 15 minutes for 4.50 fit into 25.00, and 30 for 9.00 do not; A100 have no price.
    assert [" ".join(each["flags"]) for each in why["sooner"]] == ["-t 15m", "--booking spot", "-g A100:1"]


def test_what_a_budget_tells_adds_up_to_the_cent(centre: Centre, people: People) -> None:
    set_budget(operator(people), "acme", "100")
    job = people.user().submit(**{**HOURS_4, "time_limit_seconds": 3600})
    centre.tick()
    centre.clock.advance(milliseconds=7001)
    centre.commit(KeepBudgets(centre.admission, is_whole=True))
    running = people.operator().get("/v1/budgets").json()["items"][0]
    centre.ends(job)
    centre.commit(KeepBudgets(centre.admission))
    ended = people.operator().get("/v1/budgets").json()["items"][0]
    assert ended["used"]["amount"] == "0.04", "0.035005 was used"
    assert ended["left"]["amount"] == "99.96"
    for told in (running, ended):
        assert sum(Decimal(told[part]["amount"]) for part in ("used", "held", "left")) == 100, told
