"""Requests: what is tried again, what is not, and that a lost answer does no harm."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from k8s.api import Access, Api
from k8s.problems import Conflict, NotFound, Right, Unreachable
from tests.k8s.apiserver import ApiServer, Fault
from tests.k8s.grounds import FAST_REQUESTS

NODE = {"metadata": {"name": "n"}}


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def api(server: ApiServer, tmp_path: Path, waits: list[float]) -> Iterator[Api]:
    built = Api.connect(Access(str(server.kubeconfig(tmp_path / "kubeconfig"))), FAST_REQUESTS)
    built._sleep = waits.append
    yield built
    built.close()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, None])
def test_trouble_that_passes_is_waited_out(server: ApiServer, api: Api, waits: list[float], status: int | None) -> None:
    server.faults.append(Fault("POST", "/nodes", times=3, status=status))
    assert api.create("/api/v1/nodes", NODE)["metadata"]["name"] == "n"
    assert len(waits) == 3


def test_trouble_that_stays_is_told_after_the_last_try(server: ApiServer, api: Api, waits: list[float]) -> None:
    server.faults.append(Fault("GET", "/nodes", times=99, status=503))
    with pytest.raises(Unreachable, match="is in trouble"):
        api.get("/api/v1/nodes")
    assert len(waits) == FAST_REQUESTS.tries - 1


def test_the_server_says_how_long_to_wait_within_reason(server: ApiServer, api: Api, waits: list[float]) -> None:
    server.faults.append(Fault("GET", "/nodes", status=429, retry_after="3600"))
    api.get("/api/v1/nodes")
    assert waits == [FAST_REQUESTS.most_wait_seconds]


@pytest.mark.parametrize("status", [400, 403, 404, 409, 422])
def test_a_no_is_not_asked_again(server: ApiServer, api: Api, waits: list[float], status: int) -> None:
    server.faults.append(Fault("GET", "/nodes", times=2, status=status))
    with pytest.raises(Exception, match="ordered by the test"):
        api.get("/api/v1/nodes")
    assert not waits


def test_a_create_whose_answer_was_lost_is_a_conflict_and_made_once(server: ApiServer, api: Api) -> None:
    server.faults.append(Fault("POST", "/nodes", is_carried_out=True))
    with pytest.raises(Conflict):
        api.create("/api/v1/nodes", NODE)
    assert len(api.list_all("/api/v1/nodes")[0]) == 1


def test_a_delete_whose_answer_was_lost_finds_nothing(server: ApiServer, api: Api) -> None:
    api.create("/api/v1/nodes", NODE)
    server.faults.append(Fault("DELETE", "/nodes", is_carried_out=True))
    with pytest.raises(NotFound):
        api.delete("/api/v1/nodes/n")


def test_a_server_that_is_not_there_is_named(tmp_path: Path, server: ApiServer) -> None:
    path = server.kubeconfig(tmp_path / "kubeconfig")
    path.write_text(path.read_text().replace(server.url, "http://127.0.0.1:9"))
    api = Api.connect(Access(str(path)), FAST_REQUESTS)
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:9 does not answer: .*refused"):
        api.get("/api/v1/nodes")


def test_an_address_that_is_no_api_server_is_told_so(server: ApiServer, api: Api) -> None:
    pod = {"metadata": {"name": "p"}, "status": {"phase": "Running"}, "spec": {"containers": []}}
    api.create("/api/v1/namespaces", {"metadata": {"name": "ns"}})
    api.create("/api/v1/namespaces/ns/pods", pod)
    server.logs["p"] = b"<html>welcome</html>"
    with pytest.raises(Unreachable, match="is this the address of a Kubernetes API server"):
        api.get("/api/v1/namespaces/ns/pods/p/log")


def test_rights_are_asked_of_the_servers_own_authorizer(server: ApiServer, api: Api) -> None:
    server.denied.add(("delete", "pods"))
    assert not api.may(Right("delete", "pods"))
    assert api.may(Right("list", "pods"))
