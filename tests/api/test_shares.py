"""Parts of a GPU over HTTP: asked for exactly, placed beside each other, billed to the last unit; MIG instances."""

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from scheduler.clock import iso_utc
from scheduler.core.model import GPU_UNITS, GpuClass
from scheduler.executor import NodeInventory
from scheduler.wire.submission import SubmissionRules
from tests.api.centre import Centre, app_of
from tests.api.conftest import Http, People, job_spec
from tests.builders import node

PRICES = {
    "version": "v1",
    "currency": "CNY",
    "effective": "2026-01-01T00:00:00Z",
    "tax_rate": "0.06",
    "prices": {"H100": dict.fromkeys(("guaranteed", "burst", "spot"), "10")},
}


@pytest.fixture
def sharing(centre: Centre) -> Iterator[People]:
    """People of a centre that gives out parts of GPUs."""
    http = Http(app_of(centre, rules=SubmissionRules(shares_gpus=True)))
    yield People(centre, http)
    http.close()


def mig(name: str, gpu_class: str, units: int) -> NodeInventory:
    """A node of seven instances."""
    whole = node(name, gpus=7, gpu_class=gpu_class, pool="mig")
    return replace(whole, devices=tuple(replace(device, units=units) for device in whole.devices))


def test_a_centre_that_cannot_enforce_shares_says_what_to_ask_for_instead(people: People) -> None:
    refused = people.user().post("/v1/jobs", json=job_spec(gpus_per_node=0.5, gpu_classes=["H100"]))
    assert (refused.status_code, refused.json()["code"]) == (422, "policy"), refused.text
    assert "gives out whole GPUs" in refused.json()["detail"]
    assert refused.json()["try"] == ["-g H100:1"]


@pytest.mark.parametrize("hundredths", [1, 7, 29, 33, 50, 57, 58, 99])
def test_a_share_is_held_to_the_unit_however_it_was_written(sharing: People, centre: Centre, hundredths: int) -> None:
    job = sharing.user().submit(gpus_per_node=hundredths / 100, gpu_classes=["H100"])
    centre.tick()
    assert [grant.units for grant in centre.grants_of(job)] == [126 * hundredths]
    shown = sharing.user().get(f"/v1/jobs/{job}").json()
    assert (shown["gpus_per_node"], shown["gpus_total"]) == (hundredths / 100, hundredths / 100)


def test_shares_of_one_gpu_lie_together_and_cost_their_part(sharing: People, centre: Centre) -> None:
    operator, user = sharing.operator(), sharing.user()
    assert operator.post("/v1/admin/prices", json=PRICES).status_code == 201
    start_ms = centre.clock.now_ms()
    spec: dict[str, Any] = {"gpu_classes": ["H100"], "time_limit_seconds": 7200}
    first, second = user.submit(gpus_per_node=0.25, **spec), user.submit(gpus_per_node=0.75, **spec)
    assert user.get(f"/v1/jobs/{first}").json()["max_cost"] == {"amount": "5.00", "currency": "CNY"}
    centre.tick()
    devices = {centre.grants_of(job)[0].devices for job in (first, second)}
    assert len(devices) == 1, "a whole GPU stays whole for others"
    centre.clock.advance(hours=1)
    centre.ends(first)
    centre.ends(second)
    centre.clock.advance(minutes=1)
    span = {"from": iso_utc(start_ms), "to": iso_utc(centre.clock.now_ms())}
    (total,) = operator.get("/v1/usage", params=span).json()["totals"]
    assert (Decimal(total["gpu_hours"]), Decimal(total["cost"]["amount"])) == (Decimal(1), Decimal(10))


def test_a_mig_instance_is_held_by_its_own_size_and_one_to_a_node(people: People, centre: Centre) -> None:
    centre.has_nodes(mig("m1", "H100-1g.10gb", GPU_UNITS // 7), mig("m2", "H100-1g.10gb", GPU_UNITS // 7))
    user = people.user()
    job = user.submit(gpus_per_node=1, nodes=2, gpu_classes=["H100-1g.10gb"])
    centre.tick()
    assert [grant.units for grant in centre.grants_of(job)] == [GPU_UNITS // 7] * 2
    refused = user.post("/v1/jobs", json=job_spec(gpus_per_node=2, gpu_classes=["H100-1g.10gb"])).json()
    assert (refused["code"], refused["try"]) == ("invalid", ["-g H100-1g.10gb:1 -N 2"])


def test_who_names_no_class_gets_whole_gpus_where_there_are_any(people: People, centre: Centre) -> None:
    centre.has_nodes(mig("m1", "H100-1g.10gb", GPU_UNITS // 7), node("n1"))
    [job] = people.user().post("/v1/jobs", json=job_spec()).json()["items"]
    assert job["gpu_classes"] == ["H100"]


@pytest.mark.parametrize("changes", [{"gpus_per_node": 0.5, "gpu_classes": ["S"]}, {"gpu_classes": ["S", "H100"]}])
def test_mig_instances_are_neither_shared_nor_mixed_with_gpus(
    sharing: People, centre: Centre, changes: dict[str, Any]
) -> None:
    centre.has_nodes(mig("m1", GpuClass("S"), GPU_UNITS // 7), node("n1"))
    refused = sharing.user().post("/v1/jobs", json=job_spec(**changes))
    assert (refused.status_code, refused.json()["code"], refused.json()["try"]) == (422, "invalid", ["-g S:1"])
