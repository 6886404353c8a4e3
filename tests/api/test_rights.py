"""Who may do what: every route as every role, and nothing of one tenant before another's eyes."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute

from scheduler.auth import Caller, Rights, Role
from scheduler.core.model import AccountId, UserName
from tests.api.centre import Centre, app_of
from tests.api.conftest import Client, Http, People, job_spec

U, T, B, O, A = Role.USER, Role.TENANT_ADMIN, Role.BILLING, Role.OPERATOR, Role.AGENT  # noqa: E741 -- a table's heads
EVERYBODY: set[Role | None] = {None, U, T, B, O, A}
TOKENS: set[Role | None] = {U, T, B, O, A}
JOBS = {"ids": ["{job}"]}
BOOK: dict[str, Any] = {}
BUDGET = {"limit": {"amount": "5", "currency": "CNY"}}
TOPUP = {"amount": {"amount": "5"}, "reason": "raised"}
HEARTBEAT = {"instance": "one", "version": "1", "collector": "nvml", "driver_version": None, "now_ms": 0}

WHO_MAY: dict[tuple[str, str], tuple[set[Role | None], Any]] = {
    ("GET", "/healthz"): (EVERYBODY, None),
    ("GET", "/readyz"): (EVERYBODY, None),
    ("GET", "/metrics"): (EVERYBODY, None),  # from this machine; `test_metrics` asks from elsewhere
    ("POST", "/v1/jobs"): ({U, T, O}, job_spec()),
    ("GET", "/v1/jobs"): ({U, T, B, O}, None),
    ("GET", "/v1/jobs/{ref}"): ({U, T, B, O}, None),
    ("GET", "/v1/jobs/{ref}/why"): ({U, T, B, O}, None),
    ("GET", "/v1/jobs/{ref}/events"): ({U, T, B, O}, None),
    ("GET", "/v1/jobs/{ref}/allocations"): ({U, T, B, O}, None),
    ("GET", "/v1/jobs/{ref}/report"): ({U, T, B, O}, None),
    ("GET", "/v1/jobs/{ref}/wait"): ({U, T, B, O}, None),
    ("GET", "/v1/jobs/{ref}/logs"): ({U, T, O}, None),
    ("POST", "/v1/jobs/cancel"): ({U, T, O}, JOBS),
    ("POST", "/v1/jobs/hold"): ({U, T, O}, JOBS),
    ("POST", "/v1/jobs/release"): ({U, T, O}, JOBS),
    ("POST", "/v1/jobs/requeue"): ({U, T, O}, JOBS),
    ("POST", "/v1/jobs/checkpoint"): ({U, T, O}, JOBS),
    ("POST", "/v1/jobs/update"): ({U, T, O}, JOBS),
    ("GET", "/v1/gpus"): ({U, T, B, O}, None),
    ("GET", "/v1/quota"): ({U, T, B, O}, None),
    ("GET", "/v1/nodes"): ({U, T, B, O}, None),
    ("GET", "/v1/whoami"): (TOKENS, None),
    ("GET", "/v1/version"): (TOKENS, None),
    ("GET", "/v1/admin/accounts"): ({T, O}, None),
    ("PUT", "/v1/admin/accounts/{path:path}"): ({T, O}, {"weight": 1}),
    ("POST", "/v1/admin/accounts/{path:path}/suspend"): ({T, O}, {}),
    ("POST", "/v1/admin/accounts/{path:path}/resume"): ({T, O}, None),
    ("DELETE", "/v1/admin/accounts/{path:path}"): ({T, O}, None),
    ("POST", "/v1/admin/apply"): ({T, O}, {"sections": {"accounts": [], "users": [], "pools": [], "budgets": []}}),
    ("GET", "/v1/admin/users"): ({T, O}, None),
    ("PUT", "/v1/admin/users"): ({T, O}, {"account": "acme/vision", "user": "bob"}),
    ("DELETE", "/v1/admin/users"): ({T, O}, None),
    ("GET", "/v1/admin/tokens"): ({T, O}, None),
    ("POST", "/v1/admin/tokens"): ({T, O}, {"role": "user", "account": "acme/vision", "user": "bob"}),
    ("DELETE", "/v1/admin/tokens/{token_id}"): ({T, O}, None),
    ("GET", "/v1/tokens"): ({U, T, B, O}, None),
    ("POST", "/v1/tokens"): ({U, T, B, O}, {"expires_in_seconds": 60}),
    ("DELETE", "/v1/tokens/{token_id}"): ({U, T, B, O}, None),
    ("GET", "/v1/admin/prices"): ({B, O}, None),
    ("POST", "/v1/admin/prices"): ({O}, BOOK),
    ("GET", "/v1/admin/prices/{version}"): ({B, O}, None),
    ("POST", "/v1/admin/price-drafts"): ({O}, BOOK),
    ("DELETE", "/v1/admin/price-drafts/{version}"): ({O}, None),
    ("POST", "/v1/admin/price-drafts/{version}/publish"): ({O}, None),
    ("GET", "/v1/admin/packages"): ({B, O}, None),
    ("POST", "/v1/admin/packages"): ({O}, {}),
    ("GET", "/v1/packages"): ({U, T, B, O}, None),
    ("GET", "/v1/prices"): ({U, T, B, O}, None),
    ("POST", "/v1/admin/nodes/{name}/drain"): ({O}, {"reason": "fan"}),
    ("POST", "/v1/admin/nodes/{name}/resume"): ({O}, None),
    ("GET", "/v1/admin/nodes/{name}/history"): ({O}, None),
    ("GET", "/v1/budgets"): ({U, T, B, O}, None),
    ("PUT", "/v1/admin/budgets/{path:path}"): ({T, B, O}, BUDGET),
    ("DELETE", "/v1/admin/budgets/{path:path}"): ({T, B, O}, None),
    ("POST", "/v1/admin/budgets/{path:path}/topup"): ({T, B, O}, TOPUP),
    ("GET", "/v1/admin/agents"): ({O}, None),
    ("DELETE", "/v1/admin/agents/{node}"): ({O}, None),
    ("POST", "/v1/agents/{node}/heartbeat"): ({A}, HEARTBEAT),
    ("POST", "/v1/agents/{node}/evidence"): ({A}, {}),
    ("GET", "/v1/admin/state"): ({O}, None),
    ("GET", "/v1/admin/health"): ({O}, None),
    ("GET", "/v1/admin/jobs/{ref}/decisions"): ({O}, None),
    ("GET", "/v1/admin/decisions/tape"): ({O}, None),
    ("GET", "/v1/admin/defrag"): ({O}, None),
    ("GET", "/v1/secrets"): ({U, T}, None),
    ("PUT", "/v1/secrets/{name}"): ({U, T}, {"value": "s3cret"}),
    ("DELETE", "/v1/secrets/{name}"): ({U, T}, None),
    ("GET", "/v1/notify"): ({U, T}, None),
    ("PUT", "/v1/notify"): ({U, T}, {"email": "ana@acme.example"}),
    ("POST", "/v1/notify/test"): ({U, T}, None),
    ("GET", "/v1/pools"): ({U, T, B, O}, None),
    ("POST", "/v1/admin/pause"): ({O}, {"reason": "power"}),
    ("POST", "/v1/admin/resume"): ({O}, {}),
    ("PUT", "/v1/admin/pools/{name}/nodes"): ({O}, {"nodes": ["h1"]}),
    ("POST", "/v1/admin/pools/unassign"): ({O}, {"nodes": ["h1"]}),
    ("GET", "/v1/reservations"): ({U, T, B, O}, None),
    ("POST", "/v1/admin/reservations"): ({O}, {"name": "works", "duration_seconds": 60, "nodes": ["h1"]}),
    ("DELETE", "/v1/admin/reservations/{name}"): ({O}, None),
    ("GET", "/v1/billing"): ({T, B, O}, None),
    ("GET", "/v1/billing/{period}"): ({T, B, O}, None),
    ("GET", "/v1/usage"): ({U, T, B, O}, None),
    ("GET", "/v1/usage/forecast"): ({U, T, B, O}, None),
    ("GET", "/v1/admin/ledger/verify"): ({B, O}, None),
    ("GET", "/v1/admin/ledger/export"): ({B, O}, None),
    ("GET", "/v1/admin/ledger/unknown"): ({B, O}, None),
    ("GET", "/v1/admin/ledger/incidents"): ({B, O}, None),
    ("GET", "/v1/admin/ledger/periods"): ({B, O}, None),
    ("POST", "/v1/admin/ledger/close"): ({O}, {"period": "2026-09"}),
    ("POST", "/v1/admin/ledger/correct"): ({O}, {"period": "2026-09"}),
    ("POST", "/v1/admin/ledger/reclassify"): (
        {O},
        {"allocation": "A", "ended_at": "2026-11-02T00:00:00Z", "reason": "x"},
    ),
    ("POST", "/v1/ledger/evidence"): (
        {A, O},
        {"items": [{"key": "k", "allocation": "A", "kind": "alive", "at": "2026-11-02T00:00:00Z"}]},
    ),
}
"""Each route: the roles that it answers, and the body of a request that it takes."""

WHO_MAY_OPEN: dict[str, set[Role | None]] = {
    "/v1/jobs/{ref}/exec": {U, T},
    "/v1/jobs/{ref}/attach": {U, T},
    "/v1/jobs/{ref}/port": {U, T},
}
"""Each WebSocket: the roles that it opens to."""
WHERE = {
    "path:path": "acme/new",
    "token_id": "none",
    "name": "h1",
    "node": "ana",
    "version": "none",
    "period": "2026-11",
}
_OPEN_DOCUMENT = ("GET", "/v1/openapi.json")


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    for path, operations in app.openapi()["paths"].items():
        yield from ((method.upper(), path.replace("{path}", "{path:path}")) for method in operations)


def sockets_of(app: FastAPI) -> Iterator[str]:
    """The WebSockets, wherever the framework keeps its routers: the document does not name them."""
    waiting = list(app.router.routes)
    while waiting:
        route = waiting.pop()
        if isinstance(route, APIWebSocketRoute):
            yield route.path
        waiting += (
            getattr(getattr(route, "original_router", None), "routes", None) or getattr(route, "routes", None) or []
        )


def test_every_route_stands_in_the_table(centre: Centre) -> None:
    app = app_of(centre)
    hidden = [route for route in app.routes if isinstance(route, APIRoute) and not route.include_in_schema]
    assert hidden == []
    assert set(routes_of(app)) == set(WHO_MAY)
    assert set(sockets_of(app)) == set(WHO_MAY_OPEN)


@pytest.mark.parametrize("role", [None, *Role])
def test_every_websocket_opens_to_its_roles_and_no_other(people: People, role: Role | None, centre: Centre) -> None:
    job = people.user().submit()
    centre.tick()
    account = "" if role in {O, B, A} else "acme/vision"
    asker = people.stranger() if role is None else people.with_role(role, account, "ana")
    for path, allowed in WHO_MAY_OPEN.items():
        status, (document, *_) = asker.socket(path.format(ref=job))
        if role in allowed:
            assert (status, document["code"]) == (422, "policy"), (path, role)  # this centre offers no way in
        else:
            code = "not_logged_in" if role is None else "not_allowed"
            assert (status, document["code"]) == (401 if role is None else 403, code), (path, role)


@pytest.mark.parametrize("role", [None, *Role])
def test_every_route_answers_its_roles_and_no_other(people: People, role: Role | None) -> None:
    owner = people.user()
    account = "" if role in {O, B, A} else "acme/vision"
    for (method, path), (allowed, body) in WHO_MAY.items():
        job = owner.submit()
        asker = people.stranger() if role is None else people.with_role(role, account, "ana")
        where = (
            path.format_map({**WHERE, "ref": job}) if "{path:" not in path else path.replace("{path:path}", "acme/new")
        )
        if path.endswith("/wait"):
            where += "?timeout_seconds=0"
        if (method, path) == ("DELETE", "/v1/admin/users"):
            where += "?account=acme/vision&user=nobody"
        if path.endswith("/export"):
            where += "?from=2026-09-01&to=2026-09-02"
        sent = {"ids": [str(job)]} if body is JOBS else body
        answer = asker.request(method, where, **({} if sent is None else {"json": sent}))
        document = answer.json() if "json" in answer.headers["content-type"] else {}
        assert answer.status_code < 500, (method, path, role, answer.text)
        if role in allowed:
            assert answer.status_code not in {401, 403}, (method, path, role, answer.text)
        else:
            code = "not_logged_in" if role is None else "not_allowed"
            assert (answer.status_code, document["code"]) == (401 if role is None else 403, code), (method, path, role)


def test_what_belongs_to_another_tenant_is_answered_like_what_does_not_exist(people: People) -> None:
    mine, theirs = people.user(), people.user("zoe", "zeta/lab")
    job = mine.submit(name="secret-plan")
    for path in ("", "/why", "/events", "/allocations", "/wait", "/logs"):
        real, unreal = theirs.get(f"/v1/jobs/{job}{path}"), theirs.get(f"/v1/jobs/{job + 1000}{path}")
        assert real.status_code == unreal.status_code == 404
        assert real.json()["detail"].replace(str(job), "?") == unreal.json()["detail"].replace(str(job + 1000), "?")
    assert theirs.post("/v1/jobs/update", json={"ids": [str(job)], "priority": "low"}).status_code == 404
    for verb in ("cancel", "hold", "release", "requeue", "checkpoint"):
        assert theirs.post(f"/v1/jobs/{verb}", json={"ids": [str(job)]}).status_code == 404
        matched = theirs.post(f"/v1/jobs/{verb}", json={"filter": {"name": "secret-plan"}})
        assert matched.json()["items"] == []
    assert mine.get(f"/v1/jobs/{job}").json()["state"] == "pending"


@pytest.mark.parametrize(
    "query", ["", "?tenant=acme", "?project=acme/vision", "?tenant=acme&project=vision", "?user=ana", "?state=all"]
)
def test_no_filter_of_a_list_reaches_into_another_tenant(people: People, query: str) -> None:
    people.user().submit()
    document = people.user("zoe", "zeta/lab").get(f"/v1/jobs{query}").json()
    assert document["items"] == []
    assert document["totals"] == {"jobs": dict.fromkeys(document["totals"]["jobs"], 0), "gpus_held": {}}


def test_a_project_does_not_see_its_sister(people: People) -> None:
    job = people.user("ned", "acme/nlp").submit(project="nlp")
    assert people.user().get(f"/v1/jobs/{job}").status_code == 404
    assert people.admin().get(f"/v1/jobs/{job}").status_code == 200


def test_a_user_acts_on_its_own_jobs_only_and_a_tenant_admin_on_all(people: People) -> None:
    job = people.user("bob").submit()
    refused = people.user("ana").post("/v1/jobs/cancel", json={"ids": [str(job)]})
    assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed")
    done = people.admin().post("/v1/jobs/cancel", json={"ids": [str(job)]}).json()["items"]
    assert done == [{"id": job, "did": "cancelled", "state": "cancelled"}]


def test_a_users_filter_without_a_name_means_its_own_jobs(people: People) -> None:
    bobs = people.user("bob").submit()
    mine = people.user("ana").submit()
    done = people.user("ana").post("/v1/jobs/cancel", json={"filter": {}}).json()["items"]
    assert [item["id"] for item in done] == [mine]
    assert people.user("bob").get(f"/v1/jobs/{bobs}").json()["state"] == "pending"


def test_the_command_is_shown_to_the_jobs_project_only(people: People) -> None:
    job = people.user().submit(command=["python", "secret.py"])
    assert people.user("bob").get(f"/v1/jobs/{job}").json()["command"] == ["python", "secret.py"]
    for other in (people.operator(), people.with_role(Role.BILLING, "acme", "bill")):
        shown = other.get(f"/v1/jobs/{job}").json()
        assert (shown["command"], shown["environment_names"]) == (None, None)
    assert "secret.py" not in people.operator().get("/v1/jobs?tenant=acme").text


def test_an_operators_hold_is_not_released_by_a_user(people: People) -> None:
    user = people.user()
    job = user.submit()
    people.operator().post("/v1/jobs/hold", json={"ids": [str(job)]})
    refused = user.post("/v1/jobs/release", json={"ids": [str(job)]})
    assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed")
    assert user.get(f"/v1/jobs/{job}").json()["reasons"][0]["code"] == "held_admin"


def test_jobs_on_nodes_are_told_to_operators_only(centre: Centre, people: People) -> None:
    job = people.user().submit()
    centre.tick()
    assert all("jobs" not in node for node in people.user().get("/v1/nodes").json()["items"])
    assert [job] in [node["jobs"] for node in people.operator().get("/v1/nodes").json()["items"]]


def test_a_tenants_billing_gets_its_own_ledger_and_no_other(people: People) -> None:
    billing = people.with_role(Role.BILLING, "acme", "bill")
    other = billing.get("/v1/admin/ledger/export?from=2026-09-01&to=2026-09-02&tenant=zeta")
    assert (other.status_code, other.json()["code"]) == (404, "not_found")
    assert billing.get("/v1/admin/ledger/verify").status_code == 403
    own = billing.get("/v1/admin/ledger/export?from=2026-09-01&to=2026-09-02")
    assert (own.status_code, own.headers["content-type"]) == (200, "application/x-tar")
    project = people.with_role(Role.BILLING, "acme/vision", "bill")
    assert project.get("/v1/admin/ledger/export?from=2026-09-01&to=2026-09-02").status_code == 403


def test_a_token_is_told_once_and_works_until_it_is_revoked(http: Http, people: People) -> None:
    operator = people.operator()
    made = operator.post("/v1/admin/tokens", json={"role": "user", "account": "acme/vision", "user": "new"}).json()
    assert made["secret"].startswith("tst_")
    holder = Client(http, made["secret"])
    assert holder.get("/v1/whoami").json()["user"] == "new"
    listed = operator.get("/v1/admin/tokens")
    assert made["id"] in listed.text
    assert made["secret"] not in listed.text
    assert operator.request("DELETE", f"/v1/admin/tokens/{made['id']}").json()["was_valid"] is True
    assert holder.get("/v1/whoami").status_code == 401


@pytest.mark.parametrize("role", [O, A])
def test_no_token_of_a_tenant_has_a_role_of_the_centre(people: People, role: Role) -> None:
    body = {"role": role.value, "account": "acme", "user": "olga"}
    refused = people.operator().post("/v1/admin/tokens", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid")


def test_an_operators_token_of_a_tenant_from_before_does_nothing(people: People) -> None:
    people.user("zoe", "zeta/lab")
    old = people.with_role(Role.OPERATOR, "acme", "olga")
    for method, path, body in (
        ("PUT", "/v1/admin/accounts/zeta", {"weight": 5}),
        ("POST", "/v1/admin/accounts/zeta/suspend", {}),
        ("POST", "/v1/admin/nodes/h1/drain", {"reason": "x"}),
        ("POST", "/v1/admin/pause", {}),
        ("GET", "/v1/nodes", None),
    ):
        assert old.request(method, path, json=body).json()["code"] == "not_allowed", path


def test_a_token_made_for_oneself_is_like_its_maker_and_seen_by_nobody_else(http: Http, people: People) -> None:
    ana, bob = people.user("ana"), people.user("bob")
    made = ana.post("/v1/tokens", json={"expires_in_seconds": 60}).json()
    assert (made["user"], made["role"], made["account"]) == ("ana", "user", "acme/vision")
    assert Client(http, made["secret"]).get("/v1/whoami").json()["user"] == "ana"
    assert made["id"] in ana.get("/v1/tokens").text
    for other in (bob, people.admin(), people.user("ana", "zeta/lab"), people.operator()):
        assert made["id"] not in other.get("/v1/tokens").text
        assert other.request("DELETE", f"/v1/tokens/{made['id']}").status_code == 404
    assert ana.request("DELETE", f"/v1/tokens/{made['id']}").json()["was_valid"] is True
    assert Client(http, made["secret"]).get("/v1/whoami").status_code == 401


def test_a_token_made_for_oneself_lives_no_longer_than_its_maker(centre: Centre, http: Http, people: People) -> None:
    operator = people.operator()
    body = {"role": "user", "account": "acme/vision", "user": "ana", "expires_in_seconds": 600}
    ana = Client(http, operator.post("/v1/admin/tokens", json=body).json()["secret"])
    refused = ana.post("/v1/tokens", json={"expires_in_seconds": 3600})
    assert refused.json()["code"] == "policy"
    made = Client(http, ana.post("/v1/tokens", json={}).json()["secret"])
    assert made.get("/v1/whoami").json()["expires_at"] is not None
    centre.clock.advance(seconds=601)
    assert made.get("/v1/whoami").status_code == 401


def test_a_revoked_token_that_is_still_remembered_makes_none(centre: Centre, http: Http) -> None:
    from scheduler.store.tokens import RevokeToken

    holder = Client(http, centre.token(Role.OPERATOR, "", "olga"))
    id_ = holder.get("/v1/whoami").json()["token_id"]
    centre.commit(RevokeToken(id_))
    assert holder.post("/v1/tokens", json={}).status_code == 401


def test_a_token_revoked_elsewhere_is_refused_within_a_second(centre: Centre, http: Http) -> None:
    from scheduler.store.tokens import RevokeToken

    holder = Client(http, centre.token(Role.OPERATOR, "", "olga"))
    id_ = holder.get("/v1/whoami").json()["token_id"]
    centre.commit(RevokeToken(id_))
    centre.clock.advance(seconds=1)
    assert holder.get("/v1/whoami").status_code == 401


def test_a_token_past_its_time_is_refused(centre: Centre, http: Http) -> None:
    holder = Client(http, centre.token(Role.USER, "acme", lifetime_ms=100))
    assert holder.get("/v1/whoami").status_code == 200
    centre.clock.advance(milliseconds=100)
    assert holder.get("/v1/whoami").status_code == 401


@pytest.mark.parametrize(
    "header", ["Bearer nonsense", "Bearer", "Basic dXNlcjpwYXNz", "Bearer " + "x" * 5000, "Bearer tst_\xe9"]
)
def test_what_is_no_token_is_answered_401_with_a_challenge(http: Http, header: str) -> None:
    answer = http.request("GET", "/v1/jobs", headers={"Authorization": header.encode("latin-1")})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(
    ("own", "project", "wanted"),
    [
        ("acme", "vision", "acme/vision"),
        ("acme", "acme/vision", "acme/vision"),
        ("acme", None, "acme"),
        ("acme/vision", "vision", "acme/vision"),
        ("acme/vision", None, "acme/vision"),
        ("acme/vision", "acme/vision/deep", "acme/vision/deep"),
        ("", "acme/vision", "acme/vision"),
    ],
)
def test_the_account_of_a_submission_follows_from_token_and_project(own: str, project: str | None, wanted: str) -> None:
    rights = Rights(Caller("t", Role.USER, AccountId(own), UserName("ana")))
    assert rights.submission_account(project) == wanted


def test_an_account_is_not_within_one_whose_name_it_begins_with() -> None:
    rights = Rights(Caller("t", Role.USER, AccountId("acme"), UserName("ana")))
    assert rights.may_see_account(AccountId("acme/vision"))
    assert not rights.may_see_account(AccountId("acme-two/vision"))
