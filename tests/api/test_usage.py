"""`GET /v1/usage`: a tenant's own, billing's all; every number is the export's."""

import csv
import io
import tarfile
from decimal import Decimal
from typing import Any

import pytest

from scheduler.clock import iso_utc
from tests.api.centre import Centre
from tests.api.conftest import Client, People

PRICES = {
    "version": "v1",
    "currency": "CNY",
    "effective": "2026-01-01T00:00:00Z",
    "tax_rate": "0.06",
    "prices": {"H100": dict.fromkeys(("guaranteed", "burst", "spot"), "12.345678")},
}


@pytest.fixture
def span(centre: Centre, people: People) -> dict[str, str]:
    """Two tenants used the centre for some hours; the range that has it all."""
    start_ms = centre.clock.now_ms()
    operator = people.operator()
    assert operator.post("/v1/admin/prices", json=PRICES).status_code == 201
    first = people.user().submit(gpus_per_node=8, gpu_classes=["H100"])
    second = people.user("zoe", "zeta/lab").submit(project="zeta/lab", gpus_per_node=1, gpu_classes=["H100"])
    centre.tick()
    centre.clock.advance(hours=2, seconds=1)
    centre.ends(first)
    centre.clock.advance(minutes=7)
    centre.ends(second)
    centre.clock.advance(minutes=1)
    return {"from": iso_utc(start_ms), "to": iso_utc(centre.clock.now_ms()), "zone": "Asia/Shanghai"}


def keys_of(client: Client, query: dict[str, str]) -> list[str]:
    answer = client.get("/v1/usage", params=query)
    assert answer.status_code == 200, answer.text
    return [item["key"] for item in answer.json()["items"]]


def test_tenants_see_their_own_and_billing_sees_all(people: People, span: dict[str, str]) -> None:
    assert keys_of(people.user(), span) == ["acme/vision"]
    assert keys_of(people.admin("zeta"), span) == ["zeta/lab"]
    assert keys_of(people.operator(), span) == ["acme/vision", "zeta/lab"]
    assert keys_of(people.operator(), {**span, "account": "zeta"}) == ["zeta/lab"]
    refused = people.user().get("/v1/usage", params={**span, "account": "zeta"})
    assert (refused.status_code, refused.json()["code"]) == (404, "not_found")


def test_the_sum_of_usage_is_the_sum_of_the_export(people: People, span: dict[str, str]) -> None:
    operator = people.operator()
    archive = operator.get("/v1/admin/ledger/export", params=span).content
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        name = next(name for name in files.getnames() if name.startswith("usage_lines"))
        content = files.extractfile(name)
        assert content is not None
        rows = list(csv.DictReader(io.StringIO(content.read().decode("utf-8-sig"))))
    usage = [row for row in rows if row["line_type"] == "usage"]
    (total,) = operator.get("/v1/usage", params=span).json()["totals"]
    assert Decimal(total["gpu_hours"]) == sum(Decimal(row["gpu_hours"]) for row in usage) > 16
    assert Decimal(total["cost"]["amount"]) == sum(Decimal(row["amount"]) for row in usage)
    assert (total["lines"], total["idle_gpu_hours"], total["idle_percent"]) == (len(usage), None, None)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"from": "2030-01-01", "to": "2030-02-01"}, "from"),
        ({"from": "2020-01-01"}, "from"),
        ({"zone": "Mars/Base"}, "zone"),
        ({"by": "mood"}, "by"),
    ],
)
def test_a_range_or_key_that_will_not_do_is_refused_by_name(
    people: People, span: dict[str, str], changes: dict[str, Any], field: str
) -> None:
    refused = people.operator().get("/v1/usage", params={**span, **changes})
    assert refused.status_code == 422
    assert field in str(refused.json()["problems"])
