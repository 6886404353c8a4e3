"""Price books over HTTP: a draft first, all problems at once, published for ever; tenants see their own terms only."""

from typing import Any

import pytest

from scheduler.clock import iso_utc
from tests.api.centre import Centre
from tests.api.conftest import People
from tests.api.test_administration import DAY_MS, book


def with_contracts(centre: Centre, **changes: Any) -> dict[str, Any]:
    contracts = [
        {"tenant": "acme", "discount": "0.20"},
        {"tenant": "zeta", "prices": {"H100": {"burst": "1.11"}}},
    ]
    return book(centre, contracts=contracts, **changes)


def test_a_draft_is_kept_shown_published_and_gone(centre: Centre, people: People) -> None:
    operator = people.operator()
    kept = operator.post("/v1/admin/price-drafts", json=with_contracts(centre))
    assert (kept.status_code, kept.json()["state"]) == (201, "draft"), kept.text
    assert people.user().get("/v1/gpus").json()["items"][1]["price"] is None
    assert operator.get("/v1/admin/prices/2026-09").json()["state"] == "draft"
    assert [each["state"] for each in operator.get("/v1/admin/prices").json()["items"]] == ["draft"]
    published = operator.post("/v1/admin/price-drafts/2026-09/publish")
    assert (published.status_code, published.json()["state"]) == (201, "published"), published.text
    assert operator.get("/v1/admin/prices/2026-09").json()["sha256"] == kept.json()["sha256"]
    assert [each["state"] for each in operator.get("/v1/admin/prices").json()["items"]] == ["published"]
    assert operator.post("/v1/admin/price-drafts/2026-09/publish").status_code == 404
    changed = book(centre, prices={"H100": {"burst": "9"}})
    assert operator.post("/v1/admin/price-drafts", json=changed).json()["code"] == "conflict"


def test_a_draft_can_be_replaced_and_withdrawn(centre: Centre, people: People) -> None:
    operator = people.operator()
    for price in ("3.00", "4.00"):
        operator.post("/v1/admin/price-drafts", json=book(centre, prices={"H100": {"burst": price}}))
    assert operator.get("/v1/admin/prices/2026-09").json()["prices"] == {"H100": {"burst": "4"}}
    assert operator.request("DELETE", "/v1/admin/price-drafts/2026-09").status_code == 200
    assert operator.request("DELETE", "/v1/admin/price-drafts/2026-09").status_code == 404
    assert operator.get("/v1/admin/prices").json()["items"] == []


def test_strangers_in_a_book_are_told_all_at_once(centre: Centre, people: People) -> None:
    operator = people.operator()
    operator.post("/v1/admin/prices", json=book(centre))
    wrong = book(
        centre,
        version="2026/12",
        currency="EUR",
        effective=iso_utc(centre.clock.now_ms() + DAY_MS),
        zone="Asia/Shanghai",
        prices={"H100": {"burst": "2"}, "B300": {"burst": "1"}},
        contracts=[{"tenant": "nobody", "discount": "0.1"}],
        reserved=[{"account": "acme/none", "class": "H200", "gpus": 1, "monthly": "5"}],
    )
    for path in ("/v1/admin/price-drafts", "/v1/admin/prices"):
        refused = operator.post(path, json=wrong)
        assert refused.status_code == 422
        fields = {each["field"] for each in refused.json()["problems"]}
        assert fields == {
            *("version", "currency", "prices.B300", "contracts[0].tenant"),
            *("reserved[0].account", "reserved[0].class"),
        }
        assert refused.json()["try"] == ["--allow new-class", "--allow new-currency"]
    only_class = book(centre, version="other", prices={"B300": {"burst": "1"}})
    assert operator.post("/v1/admin/prices", json=only_class).json()["try"] == ["--allow new-class"]
    meant = {**wrong, "version": "2026-12", "contracts": [], "reserved": []}
    assert operator.post("/v1/admin/prices", json=meant).status_code == 422
    allowed = "/v1/admin/prices?allow=new-class&allow=new-currency"
    assert operator.post(allowed, json=meant).status_code == 201


def test_a_retroactive_book_is_refused_without_its_reason(centre: Centre, people: People) -> None:
    operator = people.operator()
    operator.post("/v1/admin/prices", json=book(centre))
    job = people.user().submit(gpus_per_node=8, gpu_classes=["H100"])
    centre.tick()
    began = centre.clock.now_ms()
    centre.clock.advance(hours=2)
    centre.ends(job)
    late = book(centre, version="late", effective=iso_utc(began + 1), prices={"H100": {"burst": "1.00"}})
    operator.post("/v1/admin/price-drafts", json=late)
    refused = operator.post("/v1/admin/price-drafts/late/publish")
    assert (refused.status_code, refused.json()["code"]) == (422, "policy"), refused.text
    done = operator.post("/v1/admin/price-drafts/late/publish?reason=contract+4411")
    assert (done.status_code, done.json()["retroactive_reason"]) == (201, "contract 4411"), done.text


def test_a_tenant_sees_its_own_price_and_nobody_elses(centre: Centre, people: People) -> None:
    people.operator().post("/v1/admin/prices", json=with_contracts(centre))
    acme, zeta = people.user(), people.user("zoe", "zeta/lab")
    assert acme.get("/v1/gpus").json()["items"][1]["price"] == {"amount": "2.00", "currency": "USD"}
    assert zeta.get("/v1/gpus").json()["items"][1]["price"] == {"amount": "1.11", "currency": "USD"}
    shown = acme.get("/v1/prices")
    assert [each["tenant"] for each in shown.json()["contracts"]] == ["acme"]
    assert "zeta" not in shown.text
    assert "1.11" not in shown.text
    assert len(people.operator().get("/v1/prices").json()["contracts"]) == 2
    job = zeta.submit(project="lab", gpus_per_node=8, gpu_classes=["H100"], time_limit_seconds=3600)
    assert zeta.get(f"/v1/jobs/{job}").json()["max_cost"] == {"amount": "8.88", "currency": "USD"}


def test_a_package_is_sold_and_seen_by_its_tenant_alone(centre: Centre, people: People) -> None:
    operator = people.operator()
    operator.post("/v1/admin/prices", json=book(centre))
    now = centre.clock.now_ms()
    asked = {
        "id": "acme-q4",
        "tenant": "acme",
        "class": "H100",
        "gpu_hours": 100,
        "price": "200.00",
        "currency": "USD",
        "from": iso_utc(now + 1000),
        "to": iso_utc(now + 90 * DAY_MS),
    }
    sold = operator.post("/v1/admin/packages", json=asked)
    assert (sold.status_code, sold.json()["id"]) == (201, "package/acme-q4"), sold.text
    centre.clock.advance(seconds=1)
    job = people.user().submit(gpus_per_node=8, gpu_classes=["H100"])
    centre.tick()
    centre.clock.advance(hours=2)
    centre.ends(job)
    (mine,) = people.user().get("/v1/packages").json()["items"]
    assert mine["left_gpu_hours"].startswith("84.")
    assert people.user("zoe", "zeta/lab").get("/v1/packages").json()["items"] == []
    assert len(operator.get("/v1/admin/packages").json()["items"]) == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tenant": "acme/vision"}, "tenant"),
        ({"gpu_hours": 0}, "gpu_hours"),
        ({"price": "-1"}, "price"),
        ({"price": "nan"}, "price"),
        ({"colour": "red"}, "colour"),
        ({"from": "soon"}, "from"),
        ({"to": "2020-01-01T00:00:00Z"}, "to"),
    ],
)
def test_a_package_that_cannot_be_is_refused(people: People, change: dict[str, Any], field: str) -> None:
    asked = {"id": "x", "tenant": "acme", "class": "H100", "gpu_hours": 1, "price": "1", "currency": "USD"}
    asked |= {"from": "2030-01-01T00:00:00Z", "to": "2030-02-01T00:00:00Z", **change}
    refused = people.operator().post("/v1/admin/packages", json=asked)
    assert refused.status_code == 422
    assert field in {each["field"] for each in refused.json()["problems"]}
