"""Cancel, hold, release and requeue, and the one job that an idempotency key makes."""

import asyncio
import time
from typing import Any

import httpx
import pytest

from scheduler.core.model import AccountId, GpuClass, Shape, UserName
from scheduler.executor import LaunchSpec
from scheduler.store.jobs import JobDraft, SubmitJobs
from tests.api.centre import Centre
from tests.api.conftest import Http, People, job_spec

CANCEL_SECONDS = 5.0  # the promise for 50,000 pending jobs in one request


def test_actions_say_what_they_did_to_each_job(centre: Centre, people: People) -> None:
    user = people.user()
    running, ended = user.submit(), user.submit()
    centre.tick()
    centre.ends(ended)
    waiting = user.submit(gpus_per_node=8, nodes=2, gpu_classes=["H100"], begin_at="2099-01-01T00:00:00Z")

    def act(verb: str, *jobs: int) -> list[tuple[str, str]]:
        answer = user.post(f"/v1/jobs/{verb}", json={"ids": [str(job) for job in jobs]})
        assert answer.json()["kind"] == "JobActionList"
        return [(item["did"], item["state"]) for item in answer.json()["items"]]

    assert act("hold", waiting, running) == [("held", "held"), ("unchanged", "running")]
    assert act("release", waiting) == [("released", "pending")]
    assert act("checkpoint", running, waiting) == [("checkpointed", "running"), ("unchanged", "pending")]
    assert act("requeue", running, waiting) == [("requeued", "stopping"), ("unchanged", "pending")]
    assert act("cancel", waiting, running, ended) == [
        ("cancelled", "cancelled"),
        ("stopping", "stopping"),
        ("already_ended", "completed"),
    ]


def test_an_arrays_own_id_means_all_of_its_elements(people: People) -> None:
    user = people.user()
    array = user.submit(array="0-9")
    done = user.post("/v1/jobs/cancel", json={"ids": [f"{array}_7"]}).json()["items"]
    assert done == [{"id": f"{array}_7", "did": "cancelled", "state": "cancelled"}]
    done = user.post("/v1/jobs/cancel", json={"ids": [str(array)]}).json()["items"]
    assert [item["did"] for item in done].count("cancelled") == 9
    assert [item["id"] for item in done] == [f"{array}_{index}" for index in range(10)]


def test_an_unknown_id_is_named_and_nothing_is_done(people: People) -> None:
    user = people.user()
    job = user.submit()
    answer = user.post("/v1/jobs/cancel", json={"ids": [str(job), "999", "998_3"]})
    assert (answer.status_code, answer.json()["detail"]) == (404, "no job 999, 998_3 in tenant acme")
    assert user.get(f"/v1/jobs/{job}").json()["state"] == "pending"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ids": ["1"], "filter": {}},
        {"ids": ["x"]},
        {"ids": [1]},
        {"ids": "1"},
        {"filter": {"stat": ["live"]}},
        {"filter": {"state": ["x"]}},
    ],
)
def test_an_action_without_clear_jobs_is_refused(people: People, body: dict[str, Any]) -> None:
    answer = people.user().post("/v1/jobs/cancel", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


def test_no_ids_change_nothing(people: People) -> None:
    assert people.user().post("/v1/jobs/cancel", json={"ids": []}).json()["items"] == []


def test_fifty_thousand_pending_jobs_are_cancelled_by_one_request_in_time(centre: Centre, people: People) -> None:
    draft = JobDraft(
        AccountId("acme/vision"),
        UserName("ana"),
        "sweep",
        Shape((GpuClass("H100"),), 1, 12_600),
        3_600_000,
        LaunchSpec(("true",), "sweep"),
        array_indexes=tuple(range(50_000)),
    )
    centre.commit(SubmitJobs((draft,), AccountId("acme"), UserName("ana")))
    user = people.user()
    began = time.perf_counter()
    answer = user.post("/v1/jobs/cancel", json={"filter": {"name": "sweep"}})
    took = time.perf_counter() - began
    assert answer.status_code == 200
    assert len(answer.json()["items"]) == 50_000
    assert user.get("/v1/jobs").json()["items"] == []
    # The centre of the tests also brings its state up to date in the same call, which the daemon does beside it.
    assert took < 2 * CANCEL_SECONDS


def test_twenty_requests_at_once_under_one_key_make_one_job(centre: Centre, http: Http, people: People) -> None:
    headers = {**people.user().headers, "Idempotency-Key": "once"}

    async def all_at_once() -> list[httpx.Response]:
        sent = [http.client.post("/v1/jobs", json=job_spec(), headers=headers) for _ in range(20)]
        return await asyncio.gather(*sent)

    answers = http.run(all_at_once())
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["items"][0]["id"] for answer in answers}) == 1
    assert [answer.json()["is_new"] for answer in answers].count(True) == 1
    assert len(people.user().get("/v1/jobs").json()["items"]) == 1


def test_a_repeated_key_is_answered_with_the_job_as_it_is_now(centre: Centre, people: People) -> None:
    user = people.user()
    first = user.post("/v1/jobs", json=job_spec(), headers={"Idempotency-Key": "k"}).json()["items"][0]
    centre.tick()
    again = user.post("/v1/jobs", json=job_spec(), headers={"Idempotency-Key": "k"}).json()
    assert (again["items"][0]["id"], again["items"][0]["state"], again["is_new"]) == (first["id"], "running", False)


def test_a_key_used_for_another_request_is_a_conflict(people: People) -> None:
    user = people.user()
    user.post("/v1/jobs", json=job_spec(), headers={"Idempotency-Key": "k"})
    answer = user.post("/v1/jobs", json=job_spec(nodes=2), headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


def test_another_tenants_key_is_another_key(people: People) -> None:
    body = job_spec(project=None)
    mine = people.user().post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"}).json()["items"][0]
    theirs = people.user("ana", "zeta/lab").post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"}).json()
    assert theirs["is_new"] is True
    assert theirs["items"][0]["id"] != mine["id"]


@pytest.mark.parametrize("key", ["", "x" * 129, "a\tb"])
def test_a_key_that_is_no_short_line_is_refused(people: People, key: str) -> None:
    answer = people.user().post("/v1/jobs", json=job_spec(), headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["problems"][0]["field"]) == (422, "Idempotency-Key")


def test_a_waiting_job_gets_other_terms_and_keeps_the_rest(people: People) -> None:
    user = people.user()
    [job] = user.post("/v1/jobs", json=job_spec(hold=True, priority="low")).json()["items"]
    terms = {"time_limit_seconds": 7200, "booking": "spot", "deadline_at": "2099-01-01T00:00:00.000Z"}
    [done] = user.post("/v1/jobs/update", json={"ids": [str(job["id"])], **terms}).json()["items"]
    assert done == {"id": job["id"], "did": "changed", "state": "held"}
    shown = user.get(f"/v1/jobs/{job['id']}").json()
    assert {key: shown[key] for key in terms} == terms
    assert shown["priority"] == "low"
    kinds = [line["kind"] for line in user.get(f"/v1/jobs/{job['id']}/events").json()["items"]]
    assert kinds == ["submitted", "changed"]


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({}, "invalid"),
        ({"time_limit_seconds": 31 * 86_400}, "policy"),
        ({"deadline_at": "2001-01-01T00:00:00Z"}, "invalid"),
        ({"begin_at": "2099-01-02T00:00:00Z", "deadline_at": "2099-01-01T00:00:00Z"}, "invalid"),
        ({"begin_at": "2099-01-02T00:00:00Z", "begins_at_once": True}, "invalid"),
        ({"nodes": 2}, "invalid"),
    ],
)
def test_terms_that_cannot_be_are_refused_and_nothing_changes(people: People, terms: dict[str, Any], code: str) -> None:
    user = people.user()
    [job] = user.post("/v1/jobs", json=job_spec(hold=True)).json()["items"]
    answer = user.post("/v1/jobs/update", json={"ids": [str(job["id"])], **terms})
    assert answer.json()["code"] == code
    shown = user.get(f"/v1/jobs/{job['id']}").json()
    assert [shown[key] for key in _TERMS] == [job[key] for key in _TERMS]


_TERMS = ("time_limit_seconds", "booking", "begin_at", "deadline_at", "priority")


def test_an_operator_gives_a_running_job_more_time_and_its_owner_only_less(centre: Centre, people: People) -> None:
    user, operator = people.user(), people.operator()
    job = user.submit()
    centre.tick()
    change = {"ids": [str(job)], "time_limit_seconds": 8 * 3600}
    refused = user.post("/v1/jobs/update", json=change)
    assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed")
    assert operator.post("/v1/jobs/update", json=change).json()["items"][0]["did"] == "changed"
    assert user.get(f"/v1/jobs/{job}").json()["time_limit_seconds"] == 8 * 3600
    shorter = {"ids": [str(job)], "time_limit_seconds": 1800}
    assert user.post("/v1/jobs/update", json=shorter).json()["items"][0]["did"] == "changed"
    assert user.get(f"/v1/jobs/{job}").json()["time_limit_seconds"] == 1800


def test_a_waiting_job_gets_another_name_and_project_and_is_billed_there(people: People, centre: Centre) -> None:
    boss = people.admin()
    job = boss.submit(hold=True, name="old")
    change = {"ids": [str(job)], "name": "new", "project": "acme/nlp"}
    assert boss.post("/v1/jobs/update", json=change).json()["items"][0]["did"] == "changed"
    assert boss.post("/v1/jobs/release", json={"ids": [str(job)]}).status_code == 200
    shown = boss.get(f"/v1/jobs/{job}").json()
    assert (shown["name"], shown["project"]) == ("new", "nlp")
    line = boss.get(f"/v1/jobs/{job}/events").json()["items"][1]
    assert line["kind"] == "changed"
    assert "acme/nlp" in str(line)
    centre.tick()
    held = boss.get("/v1/jobs", params={"project": "nlp"}).json()["items"]
    assert [(each["id"], each["state"]) for each in held] == [(job, "running")]
    refused = boss.post("/v1/jobs/update", json=change)
    assert (refused.status_code, refused.json()["code"]) == (409, "wrong_state"), refused.text
    assert "its name and its project stay as they are" in refused.json()["detail"]


def test_a_job_moves_where_its_people_and_the_limits_let_it(people: People, centre: Centre) -> None:
    own, boss, operator = people.user("ana", "acme/vision"), people.admin(), people.operator()
    job = own.submit(hold=True)
    other = own.post("/v1/jobs/update", json={"ids": [str(job)], "project": "acme/nlp"})
    assert other.json()["code"] == "not_found", other.text
    centre.has_account("acme/nlp", pending_limit=1)
    moved = [boss.submit(hold=True), boss.submit(hold=True)]
    both: dict[str, Any] = {"ids": [str(each) for each in moved], "project": "acme/nlp"}
    full = boss.post("/v1/jobs/update", json=both)
    assert full.json()["code"] == "over_quota", full.text
    assert {boss.get(f"/v1/jobs/{each}").json()["project"] for each in moved} == {"vision"}
    assert boss.post("/v1/jobs/update", json={**both, "ids": both["ids"][:1]}).status_code == 200
    away = operator.post("/v1/jobs/update", json={"ids": [str(job)], "project": "zeta/lab"})
    assert (away.json()["code"], "stays with its tenant" in away.json()["detail"]) == ("policy", True)


def test_a_job_moves_only_where_its_secrets_are_as_at_its_submission(people: People) -> None:
    boss = people.admin()
    for name, project in (("KEY", "acme/vision"), ("SHARED", "acme")):
        assert boss.request("PUT", f"/v1/secrets/{name}?project={project}", json={"value": "x"}).status_code == 200
    job = boss.submit(hold=True, secrets=["KEY", "SHARED"])
    change = {"ids": [str(job)], "project": "acme/nlp"}
    refused = boss.post("/v1/jobs/update", json=change).json()
    assert (refused["code"], refused["detail"]) == ("invalid", "there is no secret KEY for acme/nlp")
    assert refused["try"] == ["turnstile secret set KEY < FILE"]
    assert [each["field"] for each in refused["problems"]] == ["secrets"]
    assert boss.get(f"/v1/jobs/{job}").json()["project"] == "vision"
    assert boss.request("PUT", "/v1/secrets/KEY?project=acme/nlp", json={"value": "y"}).status_code == 200
    assert boss.post("/v1/jobs/update", json=change).json()["items"][0]["did"] == "changed"
    assert boss.get(f"/v1/jobs/{job}").json()["project"] == "nlp"


def test_an_array_is_renamed_as_a_whole_and_singletons_go_on_without_who_left(people: People) -> None:
    user = people.user()
    array = user.submit(array="0-2", hold=True, name="sweep")
    part = user.post("/v1/jobs/update", json={"ids": [f"{array}_1"], "name": "other"})
    assert (part.json()["code"], part.json()["try"]) == ("wrong_state", [f"turnstile update {array}"])
    alone = user.submit(name="sweep", after=["singleton"])
    waits = user.post("/v1/jobs/update", json={"ids": [str(alone)], "name": "other"})
    assert "singleton" in waits.json()["detail"]
    done = user.post("/v1/jobs/update", json={"ids": [str(array)], "name": "other"}).json()["items"]
    assert [each["did"] for each in done] == ["changed"] * 3
    kinds = [line["kind"] for line in user.get(f"/v1/jobs/{alone}/events").json()["items"]]
    assert kinds == ["submitted", "dependencies_met"]
