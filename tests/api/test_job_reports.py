"""`GET /v1/jobs/{ref}/report`: what came of a job, told to whoever may see it."""

from decimal import Decimal

import pytest

from metering.ledger import GpuWindow, write_windows
from scheduler.clock import iso_utc
from scheduler.core.model import DeviceId
from tests.api.centre import Centre
from tests.api.conftest import People
from tests.api.test_usage import PRICES

HOUR_MS = 3_600_000


@pytest.fixture
def job(centre: Centre, people: People) -> int:
    """A job of eight GPUs that ran for two hours, seen idle for one of them on one GPU."""
    assert people.operator().post("/v1/admin/prices", json=PRICES).status_code == 201
    made = people.user().submit(gpus_per_node=8, gpu_classes=["H100"], time_limit_seconds=86_400)
    centre.clock.advance(minutes=5)
    centre.tick()
    start_ms = centre.clock.now_ms()
    (device, *_) = centre.ask(lambda state, _: state.allocations[centre.allocation_of(made)].grants[0].devices).result()
    centre.clock.advance(hours=2)
    centre.ends(made)
    halves = [(start_ms, 900_000), (start_ms + HOUR_MS, 0)]
    with centre.database.write() as connection:
        write_windows(
            connection,
            [GpuWindow(DeviceId(device), at, at + HOUR_MS, HOUR_MS, utilization_mean_ppm=use) for at, use in halves],
        )
    return made


def test_a_report_has_the_cost_of_the_usage_and_what_was_seen(centre: Centre, people: People, job: int) -> None:
    user = people.user()
    report = user.get(f"/v1/jobs/{job}/report").json()
    span = {"from": iso_utc(0), "to": iso_utc(centre.clock.now_ms()), "by": "job"}
    span["from"] = iso_utc(centre.clock.now_ms() - 24 * HOUR_MS)
    (used,) = user.get("/v1/usage", params=span).json()["items"]
    (cost,) = report["costs"]
    assert (cost["amount"], cost["currency"]) == (used["cost"]["amount"], "CNY")
    assert cost["gpu_hours"] == used["gpu_hours"] == "16.000000000"
    assert (cost["price_per_gpu_hour"], cost["price_book"]) == ("12.345678", "v1")
    assert Decimal(cost["amount"]) == Decimal("197.530848")
    gpu = report["gpu"]
    assert (gpu["measured_gpu_hours"], gpu["idle_gpu_hours"]) == (used["measured_gpu_hours"], used["idle_gpu_hours"])
    assert (gpu["busy_percent"], gpu["idle_percent"], gpu["coverage_ratio"]) == (45, 50, 0.125)
    assert (report["kind"], report["state"], report["energy"], report["waited_seconds"]) == (
        "JobReport",
        "completed",
        None,
        300,
    )
    assert [each["attempt"] for each in report["items"]] == [1]
    assert [each["code"] for each in report["advice"]] == ["shorter_time"]


def test_a_job_that_waits_has_a_report_of_nothing(people: People) -> None:
    user = people.user()
    report = user.get(f"/v1/jobs/{user.submit()}/report").json()
    assert (report["items"], report["costs"], report["advice"], report["ran_seconds"]) == ([], [], [], None)
    assert report["gpu"]["busy_percent"] is None


def test_another_tenants_job_has_no_report(people: People, job: int) -> None:
    refused = people.user("zoe", "zeta/lab").get(f"/v1/jobs/{job}/report")
    assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
