"""What a tenant's own admin may do, and that it ends where its tenant ends; members, tokens, suspension, limits."""

from typing import Any

import pytest

from scheduler.auth import Role
from scheduler.core.model import GpuClass
from tests.api.centre import Centre
from tests.api.conftest import Client, Http, People, job_spec

H100 = GpuClass("H100")


def put(client: Client, path: str, **terms: Any) -> tuple[int, dict[str, Any]]:
    answer = client.request("PUT", f"/v1/admin/accounts/{path}", json=terms)
    return answer.status_code, answer.json()


def test_an_admin_keeps_the_projects_of_its_tenant_at_any_depth(people: People) -> None:
    admin = people.admin()
    deep = "acme/vision/team/one/two/three"
    for count in range(3, 7):
        assert put(admin, "/".join(deep.split("/")[:count]), weight=2)[0] == 200
    assert {each["id"].partition("/")[0] for each in admin.get("/v1/admin/accounts").json()["items"]} == {"acme"}
    job = admin.submit(project=deep)
    assert admin.get(f"/v1/jobs/{job}").json()["project"] == "vision/team/one/two/three"
    assert admin.request("DELETE", "/v1/admin/accounts/acme/vision/team").json()["code"] == "wrong_state"


@pytest.mark.parametrize(
    ("path", "code"),
    [("acme", "not_allowed"), ("zeta", "not_found"), ("zeta/lab", "not_found"), ("acme-two", "not_found")],
)
def test_an_admin_sets_no_terms_of_its_own_account_and_sees_no_other(people: People, path: str, code: str) -> None:
    assert put(people.admin(), path, weight=9)[1]["code"] == code
    for verb in ("suspend", "resume"):
        assert people.admin().post(f"/v1/admin/accounts/{path}/{verb}", json={}).json()["code"] == code
    assert people.admin().request("DELETE", f"/v1/admin/accounts/{path}").json()["code"] == code


def test_an_admin_gives_its_projects_no_more_than_its_tenant_has_and_is_told_all_at_once(people: People) -> None:
    put(people.operator(), "acme", guarantee={"H100": 8}, limit={"H100": 12})
    assert put(people.admin(), "acme/nlp", guarantee={"H100": 6})[0] == 200
    status, refused = put(people.admin(), "acme/vision", guarantee={"H100": 4, "H1000": 1}, limit={"H100": 16})
    assert (status, refused["code"]) == (422, "policy")
    told = {each["field"]: each["message"] for each in refused["problems"]}
    assert "it has 8, and 6 are given to others" in told["acme/vision.guarantee.H100"]
    assert "did you mean 'H100'" in told["acme/vision.guarantee.H1000"]
    assert "more than acme itself may hold (12)" in told["acme/vision.limit.H100"]
    forced = people.admin().request("PUT", "/v1/admin/accounts/acme/vision?force=true", json={"limit": {"H100": 16}})
    assert forced.json()["code"] == "policy"


def test_an_admin_says_whether_guaranteed_jobs_give_way_to_priority(people: People) -> None:
    admin, place = people.admin(), "/v1/admin/accounts/acme/vision"
    assert admin.request("PUT", place, json={}).json()["guaranteed_yields"] is False
    before = admin.get("/v1/admin/accounts").json()["items"][-1]["version"]
    assert admin.request("PUT", place, json={"guaranteed_yields": True}).json()["version"] != before
    listed = {each["id"]: each["guaranteed_yields"] for each in admin.get("/v1/admin/accounts").json()["items"]}
    assert listed["acme/vision"]
    assert not listed["acme"], "what a project says binds nothing above it"


def test_what_the_centre_suspended_only_the_centre_resumes(people: People) -> None:
    operator, admin = people.operator(), people.admin()
    place = "/v1/admin/accounts/acme/vision"
    assert operator.post(f"{place}/suspend", json={}).json()["is_suspended_by_centre"]
    for answer in (admin.post(f"{place}/resume", json={}), admin.request("PUT", place, json={"weight": 2})):
        assert (answer.status_code, answer.json()["code"]) == (422, "policy")
        assert "the centre alone can resume it" in answer.json()["detail"]
    kept = admin.request("PUT", place, json={"weight": 2, "is_suspended": True}).json()
    assert (kept["weight"], kept["is_suspended_by_centre"]) == (2, True), "its other terms are still the tenant's"
    assert not operator.post(f"{place}/resume", json={}).json()["is_suspended"]
    assert not admin.post(f"{place}/suspend", json={}).json()["is_suspended_by_centre"]
    assert not admin.post(f"{place}/resume", json={}).json()["is_suspended"], "its own word it may take back"


def test_a_change_from_terms_that_somebody_else_has_changed_is_refused(people: People) -> None:
    operator, path = people.operator(), "acme?version="
    version = put(operator, "acme", weight=2)[1]["version"]
    status, changed = put(operator, path + version, weight=3)
    assert (status, changed["did_change"]) == (200, True)
    status, refused = put(operator, path + version, weight=2, limit={"H100": 8})
    assert (status, refused["code"]) == (409, "conflict")
    assert "was changed by somebody else" in refused["detail"]
    assert put(operator, path + changed["version"], weight=3, limit={"H100": 8})[0] == 200
    assert "made by somebody else" in put(operator, path + "none")[1]["detail"]
    assert put(operator, "newco?version=none")[0] == 200


def test_a_guarantee_is_not_lowered_under_what_was_divided_nor_set_beyond_a_limit(people: People) -> None:
    operator = people.operator()
    put(operator, "acme", guarantee={"H100": 8})
    put(operator, "acme/nlp", guarantee={"H100": 6})
    assert "less than the 6 that its projects are given" in put(operator, "acme", guarantee={"H100": 4})[1]["detail"]
    wrong = put(operator, "zeta", guarantee={"H100": 4}, limit={"H100": 2})[1]
    assert wrong["detail"] == "a guarantee of 4 H100 is more than the limit of zeta (2)"
    problems = put(operator, "acme", guarantee={}, limit={"H100": 5})[1]["problems"]
    assert [each["message"] for each in problems] == [
        "a limit of 5 H100 is less than the guarantee of acme/nlp (6)",
        "0 H100 are less than the 6 that its projects are given (acme/nlp 6)",
    ]


def test_an_admin_makes_tokens_for_its_own_people_and_for_nobody_else(people: People, http: Http) -> None:
    admin = people.admin()
    made = admin.post("/v1/admin/tokens", json={"role": "user", "account": "acme/nlp", "user": "new"}).json()
    assert Client(http, made["secret"]).get("/v1/whoami").json()["user"] == "new"
    for role, account, code in (
        ("operator", "acme", "not_allowed"),
        ("agent", "acme", "not_allowed"),
        ("user", "zeta", "not_found"),
        ("user", "", "not_found"),
    ):
        refused = admin.post("/v1/admin/tokens", json={"role": role, "account": account, "user": "x"})
        assert refused.json()["code"] == code
    theirs = people.operator().post("/v1/admin/tokens", json={"role": "user", "account": "zeta", "user": "zoe"}).json()
    assert admin.request("DELETE", f"/v1/admin/tokens/{theirs['id']}").status_code == 404
    assert theirs["id"] not in admin.get("/v1/admin/tokens").text
    assert admin.request("DELETE", f"/v1/admin/tokens/{made['id']}").json()["was_valid"] is True


def test_a_user_is_made_changed_and_removed_with_its_tokens(people: People, http: Http) -> None:
    admin = people.admin()
    body = {"account": "acme/nlp", "user": "jon", "role": "user"}
    assert admin.request("PUT", "/v1/admin/users", json=body).json()["did_change"] is True
    assert admin.request("PUT", "/v1/admin/users", json=body).json()["did_change"] is False
    token = admin.post("/v1/admin/tokens", json=body).json()["secret"]
    jon = Client(http, token)
    admin.request("PUT", "/v1/admin/users", json={**body, "role": "billing"})
    assert jon.get("/v1/whoami").json()["role"] == "billing"
    listed = admin.get("/v1/admin/users?account=acme/nlp").json()["items"]
    assert {"user": "jon", "account": "acme/nlp", "role": "billing", "may_use_high": False} in listed
    gone = admin.request("DELETE", "/v1/admin/users?account=acme/nlp&user=jon").json()
    assert gone["tokens_revoked"] == 1
    assert jon.get("/v1/whoami").status_code == 401
    assert admin.request("DELETE", "/v1/admin/users?account=acme/nlp&user=jon").status_code == 404
    assert admin.request("PUT", "/v1/admin/users", json={**body, "account": "zeta"}).json()["code"] == "not_found"
    assert admin.get("/v1/admin/users?account=zeta").status_code == 404
    assert admin.request("PUT", "/v1/admin/users", json={**body, "role": "operator"}).json()["code"] == "invalid"


def test_whoever_gets_a_token_of_an_account_is_its_member(people: People) -> None:
    people.user("bob", "acme/vision").get("/v1/whoami")
    members = {(each["account"], each["user"]) for each in people.operator().get("/v1/admin/users").json()["items"]}
    assert ("acme/vision", "bob") in members
    assert not any(account == "" for account, _ in members)


def test_the_tokens_of_a_removed_account_open_nothing_not_even_when_it_comes_back(people: People) -> None:
    operator = people.operator()
    put(operator, "newco")
    holder = people.user("ned", "newco")
    assert holder.get("/v1/whoami").status_code == 200
    assert operator.request("DELETE", "/v1/admin/accounts/newco").status_code == 200
    assert holder.get("/v1/whoami").status_code == 401
    put(operator, "newco")
    assert holder.get("/v1/whoami").status_code == 401


def test_people_of_a_suspended_account_may_look_and_end_jobs_and_nothing_else(centre: Centre, people: People) -> None:
    user, admin, operator = people.user(), people.admin(), people.operator()
    runs = user.submit(gpu_classes=["H100"], gpus_per_node=8, nodes=2)
    waits = user.submit(gpu_classes=["H100"], gpus_per_node=8)
    centre.tick()
    assert operator.post("/v1/admin/accounts/acme/suspend", json={}).json()["jobs_stopped"] == 0
    centre.tick()
    assert user.get(f"/v1/jobs/{runs}").json()["state"] == "running"
    assert user.get(f"/v1/jobs/{waits}/why").json()["reasons"][0]["code"] == "suspended"
    for refused in (
        user.post("/v1/jobs", json=job_spec()),
        user.post("/v1/jobs/requeue", json={"ids": [str(runs)]}),
        admin.post("/v1/admin/tokens", json={"role": "user", "account": "acme", "user": "new"}),
        admin.request("PUT", "/v1/admin/accounts/acme/nlp", json={}),
    ):
        assert (refused.status_code, refused.json()["code"]) == (422, "policy")
        assert "acme is suspended" in refused.json()["detail"]
    assert user.post("/v1/jobs/cancel", json={"ids": [str(waits)]}).status_code == 200
    drained = operator.post("/v1/admin/accounts/acme/suspend", json={"drain": True}).json()
    assert (drained["jobs_stopped"], drained["is_suspended"]) == (1, True)
    centre.ends(runs)
    centre.tick()
    assert user.get(f"/v1/jobs/{runs}").json()["state"] == "pending"
    assert operator.post("/v1/admin/accounts/acme/resume").json()["is_suspended"] is False
    centre.tick()
    assert user.get(f"/v1/jobs/{runs}").json()["state"] == "running"
    assert operator.post("/v1/admin/accounts/nobody/suspend", json={}).status_code == 404


def test_a_submission_beyond_the_limit_of_waiting_jobs_is_refused_with_the_numbers(people: People) -> None:
    put(people.operator(), "acme/vision", pending_limit=5)
    user = people.user()
    user.submit(array="0-2")
    answer = user.post("/v1/jobs", json=job_spec(array="0-3"))
    assert (answer.status_code, answer.json()["code"]) == (422, "over_quota")
    assert answer.json()["detail"] == ("acme/vision has 3 jobs waiting and may have 5, and this submission adds 4")
    assert answer.json()["try"] == ["-a 0-1"]
    tried = user.post("/v1/jobs?dry_run=true", json=job_spec(array="0-3"))
    assert tried.json()["detail"] == answer.json()["detail"]
    user.submit(array="0-1")
    people.user("ned", "acme/nlp").submit(project="nlp")  # a sister has room of its own


def test_priority_high_is_counted_and_free_for_who_has_the_permission(people: People) -> None:
    put(people.operator(), "acme", high_limit=1)
    user = people.user()
    user.submit(priority="high")
    refused = user.post("/v1/jobs", json=job_spec(priority="high"))
    assert (refused.json()["code"], refused.json()["try"]) == ("over_quota", ["--priority normal"])
    assert "may have 1 jobs of priority high" in refused.json()["detail"]
    place = {"account": "acme/vision", "user": "ana", "may_use_high": True}
    assert people.admin().request("PUT", "/v1/admin/users", json=place).status_code == 200
    user.submit(priority="high")


def test_a_gang_that_no_limit_will_ever_let_start_is_refused_with_one_that_would(people: People) -> None:
    put(people.operator(), "acme", limit={"H100": 8}, user_limit={"H100": 4})
    user = people.user()
    answer = user.post("/v1/jobs", json=job_spec(gpu_classes=["H100"], gpus_per_node=2, nodes=2, booking="spot"))
    assert answer.status_code == 201
    refused = user.post("/v1/jobs", json=job_spec(gpu_classes=["H100"], gpus_per_node=3, nodes=2)).json()
    assert (refused["code"], refused["try"]) == ("over_quota", ["-g H100:3 -N 1"])
    assert refused["detail"] == "a user of acme may hold 4 H100 at once, and this job asks for 6"


def test_why_and_the_list_tell_which_limit_stops_a_job_with_its_numbers(centre: Centre, people: People) -> None:
    put(people.operator(), "acme", user_limit={"H100": 1}, running_limit=2)
    ana, bob = people.user(), people.user("bob")
    first, second = (ana.submit(gpu_classes=["H100"]) for _ in range(2))
    centre.tick()
    centre.clock.advance(seconds=1)
    mine = {each["id"]: each for each in ana.get("/v1/jobs").json()["items"]}
    assert mine[first]["state"] == "running"
    [reason] = mine[second]["reasons"]
    assert (reason["code"], reason["need"], reason["free"], reason["unit"]) == ("quota_user", 1, 0, "gpus")
    assert (reason["detail"], reason["slurm"]) == ("ana in acme", "QOSMaxGRESPerUser")
    bob.submit(gpu_classes=["H100"])
    centre.tick()
    why = ana.get(f"/v1/jobs/{second}/why").json()["reasons"][0]
    assert (why["code"], why["need"], why["free"], why["unit"], why["detail"]) == ("quota_tenant", 1, 0, "jobs", "acme")


def test_an_operators_token_is_nothing_that_an_admin_sees(people: People) -> None:
    people.operator().get("/v1/whoami")
    assert {each["account"].partition("/")[0] for each in people.admin().get("/v1/admin/tokens").json()["items"]} == {
        "acme"
    }
    assert people.with_role(Role.USER, "acme", "ana").get("/v1/admin/tokens").json()["code"] == "not_allowed"
