"""Submitting jobs: what is taken, what is refused and in which words."""

from typing import Any

import pytest

from scheduler.clock import iso_utc
from tests.api.centre import Centre
from tests.api.conftest import People, job_spec
from tests.builders import node


def test_a_job_is_answered_as_the_contract_says(people: People) -> None:
    answer = people.user().post("/v1/jobs", json=job_spec(name="train", env={"KEY": "secret-value"}, nodes=2))
    assert answer.status_code == 201
    document = answer.json()
    assert (document["apiVersion"], document["kind"]) == ("turnstile/v1", "JobList")
    [job] = document["items"]
    wanted = {
        "name": "train",
        "tenant": "acme",
        "project": "vision",
        "user": "ana",
        "state": "pending",
        "gpus_per_node": 1,
        "nodes": 2,
        "gpus_total": 2,
        "time_limit_seconds": 3600,
        "started_at": None,
        "command": ["true"],
        "environment_names": ["KEY"],
        "gpu_classes": ["A100", "H100"][1:],
    }
    assert {key: job[key] for key in wanted} == wanted
    assert "secret-value" not in answer.text


def test_a_job_that_names_no_class_leaves_alone_what_others_name(people: People) -> None:
    """H100 and A100 would do: by name A100 comes first, and last once it is the one that is asked for."""
    user = people.user()
    anything = job_spec(gpu_classes=[], gpus_per_node=1)
    assert user.post("/v1/jobs?dry_run=true", json=anything).json()["items"][0]["gpu_classes"] == ["A100", "H100"]
    for _ in range(2):
        user.submit(gpu_classes=["A100"], gpus_per_node=4)
    [made] = user.post("/v1/jobs", json=anything).json()["items"]
    assert made["gpu_classes"] == ["H100", "A100"]


def test_the_answer_to_a_submission_equals_what_is_shown_later(people: People) -> None:
    user = people.user()
    made = user.post("/v1/jobs", json=job_spec(priority="high", labels={"a": "b"}, hold=True)).json()["items"][0]
    shown = user.get(f"/v1/jobs/{made['id']}").json()
    assert {key: shown[key] for key in made} == made


def test_an_array_answers_its_first_element_and_its_size(people: People) -> None:
    user = people.user()
    document = user.post("/v1/jobs", json=job_spec(array="3,5-7")).json()
    assert document["array_size"] == 4
    [first] = document["items"]
    assert first["id"] == f"{first['array_id']}_3"
    listed = user.get("/v1/jobs", params={"array": first["array_id"]}).json()["items"]
    assert [job["array_index"] for job in listed] == [3, 5, 6, 7]
    assert user.get(f"/v1/jobs/{first['array_id']}_7").json()["array_index"] == 7


def test_a_dry_run_says_what_would_happen_and_stores_nothing(people: People) -> None:
    user = people.user()
    answer = user.post("/v1/jobs?dry_run=true", json=job_spec(total_gpus=16, gpus_per_node=None))
    assert answer.status_code == 200
    [job] = answer.json()["items"]
    assert (job["id"], job["nodes"], job["gpus_per_node"]) == (None, 2, 8)
    assert user.get("/v1/jobs", params={"state": "all"}).json()["items"] == []


def test_a_job_waits_for_those_that_it_names_and_says_for_which(people: People) -> None:
    user = people.user()
    [first] = user.post("/v1/jobs", json=job_spec()).json()["items"]
    [array] = user.post("/v1/jobs", json=job_spec(array="0-2%1")).json()["items"]
    after = [f"{first['id']}", f"any:{array['array_id']}", f"fail:{array['array_id']}_2", "singleton"]
    [waiter] = user.post("/v1/jobs", json=job_spec(name="late", after=after)).json()["items"]
    wanted = [
        f"afterok:{first['id']}",
        f"afterany:{array['array_id']}",
        f"afternotok:{array['array_id']}_2",
    ]
    shown = user.get(f"/v1/jobs/{waiter['id']}").json()
    assert shown["waits_for"] == wanted
    assert (array["array_cap"], shown["array_cap"]) == (1, None)
    user.post("/v1/jobs/cancel", json={"ids": [str(first["id"])]})
    ended = user.get(f"/v1/jobs/{waiter['id']}").json()
    assert (ended["state"], ended["reason"]) == ("cancelled", "dependency")
    refused = user.post("/v1/jobs", json=job_spec(after=[f"ok:{first['id']}"])).json()
    assert refused["code"] == "never_fits"
    assert refused["try"] == [f"--after any:{first['id']}"]


def test_nobody_waits_for_another_tenants_job_not_even_by_an_operators_hand(people: People) -> None:
    """The refusal is the same as for a job that is not there."""
    [theirs] = people.user("zoe", "zeta/lab").post("/v1/jobs", json=job_spec(project="zeta/lab")).json()["items"]
    answer = people.user().post("/v1/jobs", json=job_spec(after=[str(theirs["id"])]))
    assert (answer.status_code, answer.json()["detail"]) == (404, f"no job {theirs['id']} in tenant acme")
    operator = people.operator().post("/v1/jobs", json=job_spec(project="acme/vision", after=[str(theirs["id"])]))
    assert (operator.status_code, operator.json()["detail"]) == (404, f"no job {theirs['id']}")


def test_a_job_says_after_which_failures_it_starts_again(people: People) -> None:
    [job] = people.user().post("/v1/jobs", json=job_spec(retries=2, retry_on=["oom", "oom"])).json()["items"]
    assert (job["retries_left"], job["retry_on"], job["attempt"]) == (2, ["oom"], 1)


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"gpus_per_node": 16, "gpu_classes": ["H100"]}, "never_fits", "no node has 16 H100 (largest: 8)"),
    ({"gpus_per_node": 8, "nodes": 3, "gpu_classes": ["H100"]}, "never_fits", "there are 2 such nodes"),
    ({"cpus_per_node": 500}, "never_fits", "(largest: 96)"),
    ({"memory_bytes_per_node": 1 << 50}, "never_fits", "1,048,576.00 GiB of memory (largest:"),
    ({"gpus_per_node": 6, "gpu_classes": ["A100"]}, "never_fits", "largest: 4"),
    ({"gpu_classes": ["H10"]}, "invalid", "did you mean 'H100'?"),
    ({"gpu_classes": ["V900"]}, "invalid", "there are A100, H100"),
    ({"gpu_classes": ["H100", "V900"], "gpus_per_node": 8}, "invalid", "no GPU class 'V900'"),
    ({"time_limit_seconds": 31 * 86_400}, "policy", "a time limit of 31d is more than this centre allows: 30d"),
    ({"array": "0-99999999"}, "invalid", "index 99999999 is too large"),
    ({"array": "0-4000000"}, "invalid", "4,000,001 elements are too many for one array"),
    ({"pool": "mian"}, "invalid", "did you mean 'main'?"),
    ({"pool": "old", "gpu_classes": ["H100"]}, "never_fits", "pool old has no H100"),
    ({"constraints": {"rack": "9"}}, "never_fits", "rack=9"),
    ({"gpu_memory_bytes": 81}, "never_fits", "largest: 80"),
    ({"time_limit_seconds": 31 * 86_400}, "policy", "this centre allows: 30d"),
    ({"time_limit_seconds": None}, "invalid", "time_limit_seconds: is required"),
    ({"time_limit_seconds": 0}, "invalid", "time_limit_seconds"),
    ({"time_limit_seconds": "3600"}, "invalid", "whole number"),
    ({"comand": ["x"]}, "invalid", "did you mean 'command'?"),
    ({"command": None}, "invalid", "a command or a script"),
    ({"script": "true"}, "invalid", "a command or a script"),
    ({"command": ["a\x00b"]}, "invalid", "NUL"),
    ({"command": ["x" * 140_000]}, "invalid", "bytes"),
    ({"env": {"A=B": "x"}}, "invalid", "variable's name"),
    ({"gpus_per_node": 0.5}, "policy", "gives out whole GPUs"),
    ({"gpus_per_node": 1.5}, "invalid", "a whole number, or a share of one GPU such as 0.5"),
    ({"gpus_per_node": 0.333}, "invalid", "0.33 or 0.34, not 0.333"),
    ({"gpus_per_node": 0.999}, "invalid", "0.99, not 0.999"),
    ({"gpus_per_node": "1"}, "invalid", "must be a number"),
    ({"gpus_per_node": True}, "invalid", "must be a number"),
    ({"gpus_per_node": 0}, "invalid", "more than 0"),
    ({"gpus_per_node": None}, "invalid", "gpus_per_node or total_gpus"),
    ({"total_gpus": 7, "nodes": 2, "gpus_per_node": None}, "invalid", "evenly"),
    ({"array": "0-99%"}, "invalid", "how many run at once"),
    ({"array": "0-99%0"}, "invalid", "how many run at once"),
    ({"after": ["17"]}, "not_found", "no job 17 in tenant acme"),
    ({"after": ["any:17_3", "18"]}, "not_found", "no job 17_3, 18 in tenant acme"),
    ({"after": ["maybe:17"]}, "invalid", "is not afterok:17"),
    ({"after": ["afterok:x"]}, "invalid", "is not afterok:17"),
    ({"retry_on": ["walltime"]}, "invalid", "no failure that is retried"),
    ({"topology": "near:rack"}, "invalid", "required:LABEL"),
    ({"topology": "required:rak"}, "invalid", "no such node has a label 'rak'"),
    ({"image": "registry.acme.example/train:1"}, "policy", "no images"),
    ({"volumes": ["datasets"]}, "policy", "no volume 'datasets'; this centre offers: none"),
    ({"shm_bytes": 1024}, "policy", "/dev/shm"),
    ({"array": "9-1"}, "invalid", "goes up"),
    ({"array": "x"}, "invalid", "0-99"),
    ({"array": "0-200000"}, "invalid", "too many for one array; at most 100,000"),
    ({"name": "a\nb"}, "invalid", "control characters"),
    ({"name": "x" * 129}, "invalid", "name"),
    ({"labels": {str(number): "" for number in range(33)}}, "invalid", "labels"),
    ({"begin_at": "2026-11-23T12:00:00"}, "invalid", "time zone"),
    ({"deadline_at": "2001-01-01T00:00:00Z"}, "invalid", "passed"),
    ({"only_nodes": ["h1"], "nodes": 2}, "never_fits", "names 1"),
    ({"only_nodes": ["aa1"]}, "invalid", "no node 'aa1', did you mean 'a1'?"),
    ({"only_nodes": ["h1", "zebra"]}, "invalid", "only_nodes: no node 'zebra'"),
    ({"only_nodes": ["a1"], "gpu_classes": ["H100"]}, "never_fits", "none of the nodes named"),
    ({"exclude_nodes": ["h1", "h2"], "gpu_classes": ["H100"]}, "never_fits", "every H100 node is excluded"),
    ({"exclude_nodes": ["h1", "h2", "a1"]}, "never_fits", "every GPU node is excluded"),
    ({"exclude_nodes": ["h1"], "nodes": 2, "gpu_classes": ["H100"]}, "never_fits", "there are 1 such nodes"),
    ({"only_nodes": ["a1"], "gpus_per_node": 8}, "never_fits", "largest: 4"),
    ({"command": [""]}, "invalid", "must not be empty"),
    ({"command": ["", "x"]}, "invalid", "must not be empty"),
    ({"workdir": "data/run"}, "invalid", "workdir: must begin with '/'"),
    ({"retries": -1}, "invalid", "retries: must be at least 0"),
    ({"retries": 101}, "invalid", "retries: must be at most 100"),
    ({"name": ""}, "invalid", "name: must have at least 1 characters"),
    ({"command": []}, "invalid", "command: must have at least 1 entries"),
    ({"priority": "urgent"}, "invalid", "must be one of 'low', 'normal' or 'high'"),
    ({"project": "acme/nlp"}, "not_found", "no project"),
    ({"project": "zeta/lab"}, "not_found", "no project"),
]


@pytest.mark.parametrize(("changes", "code", "words"), REFUSALS)
def test_what_cannot_be_is_refused_with_its_reason(
    people: People, changes: dict[str, Any], code: str, words: str
) -> None:
    answer = people.user().post("/v1/jobs", json=job_spec(**changes))
    document = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["code"] == code, document
    assert words in str([document["detail"], document["problems"]])
    assert answer.status_code == document["status"] == {"not_found": 404}.get(code, 422)
    assert document["request_id"] == answer.headers["x-request-id"]


def test_a_gang_too_large_for_a_node_is_told_how_it_would_fit(people: People) -> None:
    document = people.user().post("/v1/jobs", json=job_spec(gpus_per_node=16, gpu_classes=["H100"])).json()
    assert document["detail"] == "no node has 16 H100 (largest: 8), so this job could never start"
    assert document["try"] == ["-g H100:8 -N 2"]


def test_all_problems_of_a_request_are_told_at_once(people: People) -> None:
    broken = {"comand": ["x"], "nodes": "two", "env": {"A": 5}, "retries": -1, "time_limit_seconds": 60}
    document = people.user().post("/v1/jobs", json=broken).json()
    assert {problem["field"] for problem in document["problems"]} == {"comand", "nodes", "env.A", "retries"}


def test_of_many_problems_the_first_twenty_are_told_and_how_many_more_there_are(people: People) -> None:
    document = people.user().post("/v1/jobs", json=job_spec(env={f"V{n}": n for n in range(100)})).json()
    assert document["detail"].startswith("the request has 100 problems; first: env.V0")
    assert len(document["problems"]) == 21
    assert document["problems"][-1] == {"field": None, "message": "and 80 more"}


def test_an_excluded_node_and_nodes_that_are_named_leave_a_job_that_fits(people: People) -> None:
    user = people.user()
    job = user.submit(only_nodes=["h1", "h2"], exclude_nodes=["h2", "gone"], gpu_classes=["H100"])
    assert user.get(f"/v1/jobs/{job}").json()["state"] == "pending"


def test_the_words_for_a_query_that_is_malformed_are_ours(people: People) -> None:
    document = people.user().get("/v1/jobs", params={"limit": "many"}).json()
    assert document["detail"] == "limit: must be a whole number"


def test_no_value_of_the_environment_stands_in_an_error(people: People) -> None:
    answer = people.user().post("/v1/jobs", json=job_spec(env={"TOKEN": ["hunter2"], "OTHER": "hunter2\x00"}))
    assert answer.status_code == 422
    assert "hunter2" not in answer.text


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"name": "\\ud800"}'])
def test_a_body_that_is_no_job_is_refused_in_words(people: People, body: bytes) -> None:
    answer = people.user().post("/v1/jobs", content=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


def test_no_class_named_means_every_class_that_holds_it_in_name_order(people: People) -> None:
    user = people.user()
    small = user.get(f"/v1/jobs/{user.submit()}").json()
    large = user.get(f"/v1/jobs/{user.submit(gpus_per_node=5)}").json()
    assert (small["gpu_classes"], large["gpu_classes"]) == (["A100", "H100"], ["H100"])


def test_projects_are_named_from_the_tokens_own_account(people: People) -> None:
    tenant = people.user(account="acme")
    jobs = [tenant.get(f"/v1/jobs/{tenant.submit(project=name)}").json() for name in ("nlp", "acme/nlp", None)]
    assert [job["project"] for job in jobs] == ["nlp", "nlp", None]
    operator = people.operator().post("/v1/jobs", json=job_spec(project=None))
    assert (operator.status_code, operator.json()["code"]) == (422, "invalid")


@pytest.mark.parametrize(
    "name", ["=cmd|' /C calc'!A0", "../../etc/passwd", "训练任务", "<script>alert(1)</script>", "💥 job"]
)
def test_hostile_and_foreign_names_come_back_as_they_were_sent(people: People, name: str) -> None:
    user = people.user()
    job = user.submit(name=name)
    assert user.get(f"/v1/jobs/{job}").json()["name"] == name
    assert user.get("/v1/jobs", params={"name": name}).json()["items"][0]["id"] == job


def test_a_dry_run_says_what_would_keep_it_waiting_its_place_and_when_it_would_start(
    centre: Centre, people: People
) -> None:
    user = people.user()
    asked = {"gpus_per_node": 8, "gpu_classes": ["H100"], "time_limit_seconds": 3600}
    before = user.post("/v1/jobs?dry_run=true", json=job_spec(**asked)).json()["items"][0]
    assert before["reasons"] == []
    assert before["start_estimate"]["p50"] == iso_utc(centre.clock.now_ms())
    for _ in range(3):
        user.submit(**asked)
    centre.tick()
    item = user.post("/v1/jobs?dry_run=true", json=job_spec(**asked)).json()["items"][0]
    assert [each["code"] for each in item["reasons"]][:1] == ["capacity"]
    assert item["position"] == 2
    assert item["start_estimate"]["p90"] == iso_utc(centre.clock.now_ms() + 3_600_000)
    assert len(user.get("/v1/jobs").json()["items"]) == 3


def test_whole_nodes_hold_all_their_gpus_and_are_refused_where_their_size_is_in_doubt(
    people: People, centre: Centre
) -> None:
    user = people.user()
    job = user.submit(gpus_per_node=None, exclusive=True, gpu_classes=["H100"], nodes=2)
    centre.tick()
    assert [len(grant.devices) for grant in centre.grants_of(job)] == [8, 8]
    unsaid = user.post("/v1/jobs", json=job_spec(gpus_per_node=None, exclusive=True))
    assert (unsaid.status_code, unsaid.json()["code"]) == (422, "invalid"), unsaid.text
    assert "not of one size: they have 8 or 4 GPUs" in unsaid.json()["detail"]
    assert unsaid.json()["try"] == ["-g H100 --exclusive", "-g A100 --exclusive"]
    centre.has_nodes(node("h1"), node("h2"), node("h9", gpus=4))
    mixed = user.post("/v1/jobs", json=job_spec(gpus_per_node=None, exclusive=True, gpu_classes=["H100"]))
    assert mixed.json()["try"] == ["-g H100:8", "-g H100:4"]
    counted = user.post("/v1/jobs", json=job_spec(gpus_per_node=8, exclusive=True))
    assert counted.json()["problems"][0]["field"] == "exclusive"
