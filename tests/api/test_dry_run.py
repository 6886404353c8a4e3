"""What a dry run says holds when the same is submitted against the same state: refused alike, or taken alike."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering.ledger import publish
from scheduler.auth import Role
from tests.api.centre import Centre
from tests.api.conftest import People, number_of
from tests.builders import START_MS
from tests.metering.builders import book

SPECS = st.fixed_dictionaries(
    {"command": st.just(["true"])},
    optional={
        "project": st.sampled_from(["acme/vision", "acme/nlp", "acme/none"]),
        "time_limit_seconds": st.sampled_from([600, 3600, 40 * 3600, 31 * 86_400]),
        "gpus_per_node": st.sampled_from([1, 3, 8, 9]),
        "gpu_classes": st.sampled_from([["H100"], ["A100"], ["H100", "A100"], ["V100"]]),
        "nodes": st.sampled_from([1, 2, 3]),
        "pool": st.sampled_from(["default", "old", "new"]),
        "array": st.sampled_from(["0-3", "0-5%2", "5-1"]),
        "priority": st.sampled_from(["low", "normal", "high"]),
        "booking": st.sampled_from(["auto", "guaranteed", "spot"]),
        "hold": st.booleans(),
        "after": st.sampled_from([[], ["1"], ["999"]]),
        "max_cost": st.sampled_from([{"amount": "1", "currency": "CNY"}, {"amount": "5000", "currency": "CNY"}]),
    },
)
LASTING = (
    *("name", "tenant", "project", "user", "nodes", "gpus_per_node", "gpus_total", "gpu_model", "gpu_classes", "pool"),
    *("booking", "priority", "time_limit_seconds", "max_cost", "begin_at", "deadline_at", "labels", "command"),
)
REFUSED = ("code", "status", "detail", "problems", "try")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=SPECS, ends_one=st.booleans())
def test_what_a_dry_run_says_holds_when_it_is_submitted(
    centre: Centre, people: People, spec: dict[str, Any], *, ends_one: bool
) -> None:
    """The queue fills up from one example to the next, so that limits, budgets and full nodes are met as well."""
    user = people.user("ana", "acme")
    if centre.clock.now_ms() == START_MS:
        with centre.database.write() as connection:
            publish(connection, book(), centre.clock.now_ms())
        centre.has_account("acme", pending_limit=25)
        budget = {"limit": {"amount": "40000"}}
        people.with_role(Role.OPERATOR, "", "ops").request("PUT", "/v1/admin/budgets/acme", json=budget)
    centre.clock.advance(seconds=1)
    before = user.get("/v1/jobs?state=all&limit=1000").json()["items"]
    said = user.post("/v1/jobs?dry_run=true", json=spec)
    assert user.get("/v1/jobs?state=all&limit=1000").json()["items"] == before, "a dry run stores nothing"
    done = user.post("/v1/jobs", json=spec)
    told, became = said.json(), done.json()
    if became.get("code") == "over_budget" and said.status_code == 200:
        assert told["budget"]["fits"] is False  # told as a fact: whoever asks may look for what does fit
        return
    if done.status_code >= 400:
        assert [told.get(key) for key in REFUSED] == [became[key] for key in REFUSED]
        return
    assert said.status_code < 400, told
    [foretold], first = told["items"], became["items"][0]
    assert {key: foretold[key] for key in LASTING} == {key: first[key] for key in LASTING}
    assert told["array_size"] == became["array_size"]
    waits = [each["code"] for each in foretold["reasons"] if each["blocking"]]
    centre.tick()
    now = user.get(f"/v1/jobs/{first['id']}").json()
    if not waits:
        assert now["state"] in {"starting", "running"}, now["reasons"]
    elif now["state"] not in {"pending", "held"}:
        raise AssertionError(f"it was to wait ({', '.join(waits)}) and is {now['state']}")
    if ends_one:
        running = user.get("/v1/jobs?state=running&limit=1").json()["items"]
        for each in running:
            centre.ends(number_of(each["id"]))
