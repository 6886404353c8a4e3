"""What operators keep: accounts, nodes, prices; and the ledger as billing gets it."""

import io
import tarfile
from datetime import UTC, datetime
from typing import Any

import pytest

from scheduler.clock import iso_utc
from tests.api.centre import Centre
from tests.api.conftest import People

DAY_MS = 86_400_000


def book(centre: Centre, **changes: Any) -> dict[str, Any]:
    plain = {
        "version": "2026-09",
        "currency": "USD",
        "effective": iso_utc(centre.clock.now_ms()),
        "prices": {"H100": {"guaranteed": "2.00", "burst": "2.50", "spot": "1.00"}},
    }
    return {**plain, **changes}


def test_an_account_is_made_changed_listed_and_removed(people: People) -> None:
    operator = people.operator()
    terms = {"display_name": "超算 GmbH", "weight": 3, "guarantee": {"H100": 8}, "limit": {"H100": 12}}
    made = operator.request("PUT", "/v1/admin/accounts/newco", json=terms).json()
    assert (made["kind"], made["did_change"], made["is_suspended"]) == ("Account", True, False)
    assert operator.request("PUT", "/v1/admin/accounts/newco", json=terms).json()["did_change"] is False
    assert operator.request("PUT", "/v1/admin/accounts/newco/lab", json={}).json()["parent"] == "newco"
    [listed] = [each for each in operator.get("/v1/admin/accounts").json()["items"] if each["id"] == "newco"]
    assert {key: listed[key] for key in terms} == terms
    blocked = operator.request("DELETE", "/v1/admin/accounts/newco")
    assert (blocked.status_code, blocked.json()["code"]) == (409, "wrong_state")
    for path in ("newco/lab", "newco"):
        assert operator.request("DELETE", f"/v1/admin/accounts/{path}").status_code == 200
    assert operator.request("DELETE", "/v1/admin/accounts/newco").status_code == 404


def test_more_guarantee_than_there_is_needs_force(people: People) -> None:
    operator = people.operator()
    terms = {"guarantee": {"H100": 10}}
    assert operator.request("PUT", "/v1/admin/accounts/acme", json=terms).status_code == 200
    refused = operator.request("PUT", "/v1/admin/accounts/zeta", json=terms)
    assert (refused.status_code, refused.json()["code"]) == (422, "policy")
    assert "the centre has 16, and 10 are guaranteed to others" in refused.json()["detail"]
    assert operator.request("PUT", "/v1/admin/accounts/zeta?force=true", json=terms).status_code == 200


@pytest.mark.parametrize("path", ["a//b", "-x", "/".join("a" * 33), "a b", "a%0Ab", "x" * 70, "..", "a/../b%00"])
def test_an_account_path_that_cannot_be_is_refused(people: People, path: str) -> None:
    answer = people.operator().request("PUT", f"/v1/admin/accounts/{path}", json={})
    assert answer.status_code in {404, 422}
    assert answer.json()["code"] in {"invalid", "not_found"}


def test_a_suspended_tenant_is_told_so_at_submission(people: People) -> None:
    people.operator().request("PUT", "/v1/admin/accounts/acme", json={"is_suspended": True})
    from tests.api.conftest import job_spec

    answer = people.user().post("/v1/jobs", json=job_spec())
    assert (answer.json()["code"], "suspended" in answer.json()["detail"]) == ("policy", True)


def test_a_drained_node_says_why_and_takes_no_job_until_it_is_resumed(centre: Centre, people: People) -> None:
    operator, user = people.operator(), people.user()
    for name in ("h1", "h2"):
        operator.post(f"/v1/admin/nodes/{name}/drain", json={"reason": "fan 3 is loud"})
    job = user.submit(gpu_classes=["H100"])
    centre.tick()
    centre.clock.advance(seconds=1)
    nodes = {node["name"]: node for node in user.get("/v1/nodes").json()["items"]}
    assert (nodes["h1"]["availability"], nodes["h1"]["reason"], nodes["h1"]["drained_by"]) == (
        "draining",
        "fan 3 is loud",
        "operator",
    )
    assert user.get(f"/v1/jobs/{job}").json()["reasons"][0]["code"] == "nodes_down"
    assert operator.post("/v1/admin/nodes/h1/resume").json()["did_change"] is True
    centre.tick()
    assert user.get(f"/v1/jobs/{job}").json()["node_names"] == ["h1"]
    history = operator.get("/v1/admin/nodes/h1/history").json()["items"]
    assert {(each["state"], each["cause"]) for each in history} == {("draining", "admin_drain")}
    assert operator.post("/v1/admin/nodes/h9/drain", json={"reason": "x"}).status_code == 404


def test_prices_show_in_submissions_and_classes(centre: Centre, people: People) -> None:
    operator = people.operator()
    published = operator.post("/v1/admin/prices", json=book(centre))
    assert published.status_code == 201, published.text
    assert [each["version"] for each in operator.get("/v1/admin/prices").json()["items"]] == ["2026-09"]
    user = people.user()
    job = user.submit(gpus_per_node=8, nodes=2, gpu_classes=["H100"], time_limit_seconds=36_000)
    assert user.get(f"/v1/jobs/{job}").json()["max_cost"] == {"amount": "400.00", "currency": "USD"}
    assert user.get("/v1/jobs").json()["items"][0]["max_cost"]["amount"] == "400.00"
    a100, h100 = user.get("/v1/gpus").json()["items"]
    assert (a100["price"], h100["price"]) == (None, {"amount": "2.50", "currency": "USD"})


def test_a_price_book_never_changes_under_its_version(centre: Centre, people: People) -> None:
    operator = people.operator()
    operator.post("/v1/admin/prices", json=book(centre))
    other = operator.post("/v1/admin/prices", json=book(centre, prices={"H100": {"burst": "1.00"}}))
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    for body in (b"{", b"[]", b'{"version": 1}'):
        assert operator.post("/v1/admin/prices", content=body).status_code == 422


def test_the_ledger_is_proved_and_exported_the_same_twice(centre: Centre, people: People) -> None:
    operator = people.operator()
    operator.post("/v1/admin/prices", json=book(centre))
    job = people.user().submit(gpus_per_node=8, gpu_classes=["H100"])
    centre.tick()
    centre.clock.advance(hours=2)
    centre.ends(job)
    report = operator.get("/v1/admin/ledger/verify").json()
    assert (report["kind"], report["is_sound"], report["failures"]) == ("LedgerReport", True, [])
    began = datetime.fromtimestamp(centre.clock.now_ms() // 1000, tz=UTC)
    query = {"from": f"{began:%Y-%m-01}", "to": iso_utc(centre.clock.now_ms()), "zone": "Asia/Shanghai"}
    first, second = (operator.get("/v1/admin/ledger/export", params=query) for _ in range(2))
    assert first.status_code == 200, first.text
    assert first.content == second.content
    with tarfile.open(fileobj=io.BytesIO(first.content)) as archive:
        names = archive.getnames()
        usage = next(name for name in names if name.startswith("usage_lines"))
        content = archive.extractfile(usage)
        assert content is not None
        assert b"acme" in content.read()
    assert {"manifest.json", "invoice_totals.csv", "capacity.csv"} <= set(names)
    assert sum(name.startswith("focus_") for name in names) == 1
    for name, value in (("focus", "0.5"), ("issuer", " ")):
        refused = operator.get("/v1/admin/ledger/export", params={**query, name: value})
        assert refused.json()["problems"][0]["field"] == name
    refused = operator.get("/v1/admin/ledger/export", params={**query, "zone": "Mars/Base"})
    assert refused.json()["problems"][0]["field"] == "zone"


def test_a_paused_pool_starts_nothing_and_says_why_until_it_is_resumed(people: People) -> None:
    operator = people.operator()
    paused = operator.post("/v1/admin/pause", json={"reason": "power works"}).json()
    assert paused["changed"] == sorted({each["name"] for each in paused["items"]})
    assert {each["reason"] for each in people.user().get("/v1/pools").json()["items"]} == {"power works"}
    unknown = operator.post("/v1/admin/resume", json={"pools": ["elsewhere"]})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    resumed = operator.post("/v1/admin/resume", json={}).json()
    assert not any(each["is_paused"] for each in resumed["items"])
    assert operator.post("/v1/admin/resume", json={}).json()["changed"] == []


def test_nodes_are_put_into_a_pool_and_given_back(people: People) -> None:
    operator = people.operator()
    before = {each["name"]: each["pool"] for each in operator.get("/v1/nodes").json()["items"]}
    moved = operator.request("PUT", "/v1/admin/pools/fast/nodes", json={"nodes": ["h1"]}).json()
    assert moved["moved"] == ["h1"]
    nodes = {each["name"]: each["pool"] for each in operator.get("/v1/nodes").json()["items"]}
    assert nodes == before | {"h1": "fast"}
    assert operator.post("/v1/admin/pools/unassign", json={"nodes": ["h1"]}).json()["moved"] == ["h1"]
    assert {each["name"]: each["pool"] for each in operator.get("/v1/nodes").json()["items"]} == before
    assert operator.request("PUT", "/v1/admin/pools/fast/nodes", json={"nodes": ["zz"]}).status_code == 404


def test_a_reservation_is_made_seen_by_those_it_concerns_and_taken_back(people: People) -> None:
    operator = people.operator()
    body = {"name": "demo", "duration_seconds": 3600, "nodes": ["h1"], "account": "acme", "reason": "launch"}
    made = operator.post("/v1/admin/reservations", json=body).json()
    assert (made["kind"], made["nodes"], made["overrunning_jobs"]) == ("Reservation", ["h1"], [])
    again = operator.post("/v1/admin/reservations", json=body | {"name": "other"})
    assert (again.status_code, again.json()["problems"][0]["field"]) == (422, "nodes")

    def seen_by(client: Any) -> list[str]:
        return [each["name"] for each in client.get("/v1/reservations").json()["items"]]

    assert seen_by(operator) == seen_by(people.user()) == ["demo"]
    assert seen_by(people.user("zoe", "zeta/lab")) == []
    assert [each["name"] for each in operator.get("/v1/nodes").json()["items"] if each["is_reserved"]] == ["h1"]
    assert operator.request("DELETE", "/v1/admin/reservations/demo").json()["name"] == "demo"
    assert operator.request("DELETE", "/v1/admin/reservations/demo").status_code == 404
    assert operator.get("/v1/reservations?ended=true").json()["items"][0]["ended_at"] is not None


@pytest.mark.parametrize(
    "change",
    [{"nodes": None}, {"gpu_model": "H100"}, {"duration_seconds": 0}, {"start": "soon"}, {"account": "nobody"}],
)
def test_a_reservation_that_cannot_be_is_refused_in_words(people: People, change: dict[str, Any]) -> None:
    body = {"name": "demo", "duration_seconds": 3600, "nodes": ["h1"]} | change
    refused = people.operator().post("/v1/admin/reservations", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid"), refused.text
