"""The API against its own OpenAPI document: no request that it describes, or nearly describes, breaks the daemon."""

import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.auth import Role
from tests.api.centre import Centre, app_of
from tests.api.conftest import Client, Http, People
from tests.api.test_rights import WHO_MAY

with warnings.catch_warnings():
    # Its import touches names that other packages deprecate; that is no matter of ours.
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis import GenerationMode

ENVELOPE = {"apiVersion", "kind", "generated_at"}
PROBLEM = {"type", "title", "status", "detail", "code", "try", "problems", "request_id"}
NO_DOCUMENT = {"/metrics", "/v1/jobs/{ref}/logs", "/v1/admin/ledger/export"}


@pytest.fixture
def operator(centre: Centre) -> Any:
    """An operator whose requests are not counted, in a centre with a job that ran and one that is held."""
    http = Http(app_of(centre, requests_burst=10**9, longest_wait_seconds=1))
    people = People(centre, http)
    user = people.user()
    user.submit()
    centre.tick()
    centre.writes(1, b"hello\n", is_complete=True)
    centre.ends(1)
    user.submit(hold=True)
    yield people.with_role(Role.OPERATOR, "", "olga")
    http.close()


def test_the_document_names_every_body_and_every_error(centre: Centre) -> None:
    document = app_of(centre).openapi()
    assert document["openapi"].startswith("3.")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert "application/problem+json" in operation["responses"]["default"]["content"]
            takes_body = WHO_MAY[method.upper(), path.replace("{path}", "{path:path}")][1] is not None
            assert ("requestBody" in operation) == takes_body, (method, path)
    assert "$defs" not in str(document)
    spec = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert spec["additionalProperties"] is False
    assert spec["required"] == ["time_limit_seconds"]


def as_sent(case: Any) -> dict[str, Any]:  # Any: schemathesis' own Case
    """Returns a generated request as httpx takes it; text that no HTTP header can carry is left out."""
    sent = case.as_transport_kwargs(base_url="http://turnstile.example")
    headers = {
        name: value.encode("latin-1", "ignore")
        for name, value in dict(sent["headers"] or {}).items()
        if name.lower() not in {"authorization", "user-agent", "transfer-encoding", "content-length"}
    }
    body = {key: sent[key] for key in ("json", "data") if sent.get(key) is not None}
    if isinstance(body.get("data"), bytes | str):
        body = {"content": body["data"]}
    return {"url": sent["url"], "params": sent.get("params"), "headers": headers, **body}


def aim(case: Any) -> None:
    """Points a generated request at what exists, and makes a generated job one that fits."""
    known = {"ref": "1", "name": "h1", "path": "acme/nlp"}
    for name in set(known) & set(case.path_parameters or {}):
        case.path_parameters[name] = known[name]
    if isinstance(case.body, dict) and "time_limit_seconds" in case.body:
        plain = {"command": ["true"], "gpus_per_node": 1, "time_limit_seconds": 60, "project": "acme/vision"}
        kept = ("name", "env", "labels", "workdir", "output", "retries", "hold", "priority", "booking")
        case.body = {**{key: case.body[key] for key in kept if key in case.body}, **plain}


OPERATIONS = sorted((method, path.replace("{path:path}", "{path}")) for method, path in WHO_MAY)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_breaks_the_daemon_and_each_answer_has_its_shape(
    centre: Centre, operator: Client, method: str, path: str
) -> None:
    schema = schemathesis.openapi.from_dict(app_of(centre).openapi())
    described = schema[path][method]

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        mode = data.draw(st.sampled_from([GenerationMode.POSITIVE, GenerationMode.NEGATIVE]))
        case = data.draw(described.as_strategy(generation_mode=mode))
        if data.draw(st.booleans()):
            aim(case)
        sent = as_sent(case)
        answer = operator.request(method, sent.pop("url"), **sent)
        assert answer.status_code < 500, (sent, answer.text)
        if answer.headers["content-type"] == "application/problem+json":
            assert set(answer.json()) == PROBLEM
        elif path not in NO_DOCUMENT:
            assert set(answer.json()) >= ENVELOPE

    check()
