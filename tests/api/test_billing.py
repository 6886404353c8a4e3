"""`GET /v1/billing`: a tenant's own months, drafts before they are closed and the sealed files after."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from metering.closing import close_period
from metering.periods import AdvancePeriods
from metering.verify_files import verify_export
from scheduler.auth import Role
from tests.api.centre import PERIODS, Centre
from tests.api.conftest import Client, People
from tests.api.test_usage import PRICES


@pytest.fixture
def month(centre: Centre, people: People) -> str:
    """The month in which acme used eight GPUs for two hours."""
    assert people.operator().post("/v1/admin/prices", json=PRICES).status_code == 201
    job = people.user().submit(gpus_per_node=8, gpu_classes=["H100"])
    centre.tick()
    centre.clock.advance(hours=2)
    centre.ends(job)
    centre.clock.advance(hours=1)
    name: str = people.operator().get("/v1/billing?tenant=acme").json()["items"][-1]["period"]
    return name


def files_of(client: Client, month: str, **query: Any) -> dict[str, bytes]:
    answer = client.get(f"/v1/billing/{month}", params=query)
    assert answer.status_code == 200, answer.text
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        return {name: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]


def test_an_open_months_bill_is_a_draft_of_the_tenants_own(people: People, month: str) -> None:
    files = files_of(people.admin("acme"), month)
    (statement,) = [content for name, content in files.items() if name.startswith("statement_")]
    assert b"Draft statement" in statement
    assert b"197.53" in statement
    assert "capacity.csv" not in files
    assert people.admin("acme").get("/v1/billing").json()["items"][-1]["is_draft"] is True


def test_a_closed_months_bill_is_what_was_sealed_and_its_statement_is_final(
    centre: Centre, people: People, month: str, tmp_path: Path
) -> None:
    centre.clock.advance(hours=24 * 40)
    centre.commit(AdvancePeriods(PERIODS.zone))
    for name in _closable(people, month):
        close_period(centre, PERIODS, name, "root")
    first, second = (files_of(people.with_role(Role.BILLING, "acme", "bill"), month) for _ in range(2))
    assert first == second
    (statement,) = [content for name, content in first.items() if name.startswith("statement_")]
    assert b"Draft" not in statement
    folder = tmp_path / "bill"
    folder.mkdir()
    for name, content in first.items():
        (folder / name).write_bytes(content)
    report = verify_export(folder)
    assert report.is_proved, report.findings
    bills = {each["period"]: each for each in people.admin("acme").get("/v1/billing").json()["items"]}
    assert (bills[month]["status"], bills[month]["is_draft"], bills[month]["has_charges"]) == ("closed", False, True)
    empty = people.admin("zeta").get(f"/v1/billing/{month}")
    assert (empty.status_code, empty.json()["code"]) == (404, "not_found")


def _closable(people: People, last: str) -> list[str]:
    """Months up to one, in the order in which they close."""
    found = people.operator().get("/v1/admin/ledger/periods").json()["items"]
    return [each["period"] for each in found if each["period"] <= last]


def test_nobody_has_another_tenants_bill(people: People, month: str) -> None:
    for asker in (people.admin("zeta"), people.with_role(Role.BILLING, "zeta", "bill")):
        for path in ("/v1/billing", f"/v1/billing/{month}"):
            refused = asker.get(path, params={"tenant": "acme"})
            assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
    assert people.user().get("/v1/billing").status_code == 403
    assert people.admin("acme/vision").get("/v1/billing").status_code == 404


def test_the_centres_people_say_whose_bill_they_want(people: People, month: str) -> None:
    operator = people.operator()
    refused = operator.get(f"/v1/billing/{month}")
    assert refused.json()["problems"][0]["field"] == "tenant"
    assert any(name.startswith("statement_") for name in files_of(operator, month, tenant="acme"))


@pytest.mark.parametrize("name", ["2020-01", "november", "..%2F..%2Fetc"])
def test_a_month_that_is_none_is_not_found(people: People, month: str, name: str) -> None:
    assert people.admin("acme").get(f"/v1/billing/{name}").status_code == 404
