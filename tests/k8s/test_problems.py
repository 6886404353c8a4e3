"""What a person reads when a cluster refuses, is missing, or was never named."""

from pathlib import Path

import pytest

from k8s.api import Access, Api, backoff_seconds
from k8s.problems import Conflict, Expired, Forbidden, NotConfigured, NotFound, rejection, right_for

KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: u, user: {token: "secret-token"}}]
contexts: [{name: lab, context: {cluster: c, user: u}}, {name: prod, context: {cluster: c, user: u}}]
current-context: lab
"""


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_text(KUBECONFIG, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("method", "path", "right"),
    [
        ("GET", "/api/v1/nodes", "list nodes"),
        ("GET", "/api/v1/nodes/n1", "get nodes"),
        ("POST", "/apis/batch/v1/namespaces/a/jobs", "create jobs.batch in namespace a"),
        ("DELETE", "/api/v1/namespaces/a/pods/p", "delete pods in namespace a"),
        ("GET", "/api/v1/namespaces/a/pods/p/log", "get pods/log in namespace a"),
        ("PATCH", "/apis/batch/v1/namespaces/a/jobs/j", "patch jobs.batch in namespace a"),
        ("GET", "/api/v1/namespaces/a", "get namespaces"),
    ],
)
def test_a_request_is_named_by_the_right_that_it_needs(method: str, path: str, right: str) -> None:
    assert str(right_for(method, path)) == right


def test_a_missing_right_names_verb_resource_and_user() -> None:
    body = b'{"reason":"Forbidden","message":"nodes is forbidden: User \\"daemon\\" cannot watch resource"}'
    refusal = rejection("GET", "/api/v1/nodes", 403, body, is_watch=True)
    assert isinstance(refusal, Forbidden)
    assert "watch nodes" in str(refusal)
    assert "'daemon'" in str(refusal)


def test_a_refusal_by_admission_is_no_missing_right() -> None:
    body = b'{"reason":"Forbidden","message":"pods \\"x\\" is forbidden: exceeded quota: gpus"}'
    refusal = rejection("POST", "/api/v1/namespaces/a/pods", 403, body)
    assert not isinstance(refusal, Forbidden)
    assert "exceeded quota" in str(refusal)


@pytest.mark.parametrize(("status", "kind"), [(404, NotFound), (409, Conflict), (410, Expired)])
def test_each_status_that_a_caller_acts_on_has_its_exception(status: int, kind: type[Exception]) -> None:
    assert type(rejection("GET", "/api/v1/nodes/n", status, b"no json")) is kind


def test_without_a_kubeconfig_the_message_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(NotConfigured, match=r"no kubeconfig at .*nowhere.*kubernetes\.kubeconfig"):
        Api.connect(Access(str(tmp_path / "nowhere")))


def test_a_wrong_context_is_answered_with_those_that_exist(kubeconfig: Path) -> None:
    with pytest.raises(NotConfigured, match="no context 'staging'; it has: lab, prod"):
        Api.connect(Access(str(kubeconfig), "staging"))


def test_a_kubeconfig_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.write_text("clusters: [", encoding="utf-8")
    with pytest.raises(NotConfigured, match="broken cannot be read: while parsing") as raised:
        Api.connect(Access(str(path)))
    assert "\n" not in str(raised.value), "one line for a person"


def test_waiting_doubles_up_to_its_limit_and_never_less_than_half() -> None:
    for attempt, whole in ((0, 0.2), (1, 0.4), (3, 1.6), (9, 5.0), (1000, 5.0)):
        waits = [backoff_seconds(attempt, 0.2, 5.0) for _ in range(50)]
        assert whole / 2 <= min(waits) <= max(waits) <= whole
