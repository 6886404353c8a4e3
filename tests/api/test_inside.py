"""Who may go into running jobs over HTTP, and what is refused before anything is opened."""

import os
import socket
from typing import Any

import pytest

from scheduler.core.model import AllocationId
from scheduler.executor import CannotRun, Entered, EntryRefused, Program
from tests.api.centre import Centre
from tests.api.conftest import People

SOCKETS = ("exec", "attach", "port")


class WayIn:
    """An executor whose jobs run one program: it says a word and ends with 7."""

    def __init__(self) -> None:
        self.entered: list[Program] = []

    def enter(self, allocation: AllocationId, node_rank: int, program: Program) -> Entered:
        if program.argv[0] == "no-such":
            raise CannotRun("cannot run 'no-such': No such file or directory", 127)
        self.entered.append(program)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.send(b'{"exit_code": 7}')
        theirs.close()
        out, write = os.pipe()
        os.write(write, b"word")
        os.close(write)
        errors, write = os.pipe()
        os.close(write)
        read, sink = os.pipe()
        os.close(read)
        for fd in (out, errors, sink):
            os.set_blocking(fd, False)
        ours.setblocking(False)
        return Entered(sink, out, errors, ours)

    def attach(self, allocation: AllocationId, node_rank: int, size: tuple[int, int]) -> Entered:
        raise EntryRefused("this job has no terminal")

    def reach(self, allocation: AllocationId, node_rank: int, port: int) -> socket.socket:
        raise EntryRefused(f"no process of the job listens on port {port}")


@pytest.fixture
def way(centre: Centre) -> WayIn:
    found = WayIn()
    centre.entrance = found
    return found


def running(people: People, centre: Centre, **spec: Any) -> int:
    job = people.user().submit(**spec)
    centre.tick()
    return job


def test_only_its_user_and_the_tenants_admins_enter_a_job(people: People, centre: Centre, way: WayIn) -> None:
    job = running(people, centre)
    colleague, stranger = people.user("bob"), people.user("zoe", "zeta/lab")
    for name in SOCKETS:
        path = f"/v1/jobs/{job}/{name}"
        assert colleague.socket(path)[1][0]["code"] == "not_allowed"
        assert stranger.socket(path)[1][0]["code"] == "not_found"
        assert stranger.socket(path)[1][0]["detail"] == f"no job {job} in tenant zeta"
        assert people.operator().socket(path)[1][0]["code"] == "not_allowed"
        assert people.admin().socket(path)[0] == 101
    assert not way.entered


def test_only_a_running_job_is_entered(people: People, centre: Centre, way: WayIn) -> None:
    waiting = people.user().submit()
    for name in SOCKETS:
        status, (document,) = people.user().socket(f"/v1/jobs/{waiting}/{name}")
        assert (status, document["code"]) == (409, "wrong_state")
    centre.tick()
    centre.ends(waiting)
    assert people.user().socket(f"/v1/jobs/{waiting}/exec")[0] == 409


def test_a_suspended_tenant_and_a_follower_open_nothing(people: People, centre: Centre, way: WayIn) -> None:
    job = running(people, centre)
    centre.is_leading, centre.leader_url = False, "http://other.example:8470"
    status, (answered,) = people.user().socket(f"/v1/jobs/{job}/exec")
    assert (status, answered["location"]) == (307, f"http://other.example:8470/v1/jobs/{job}/exec")
    centre.is_leading = True
    people.operator().post("/v1/admin/accounts/acme/suspend", json={})
    assert people.user().socket(f"/v1/jobs/{job}/exec")[1][0]["code"] == "policy"


def test_what_is_asked_is_checked_and_refused_in_words(people: People, centre: Centre, way: WayIn) -> None:
    job = running(people, centre)
    user = people.user()

    def refused(name: str, **asked: Any) -> tuple[str, int | None]:
        status, (answer,) = user.socket(f"/v1/jobs/{job}/{name}", asked)
        assert status == 101
        return answer["error"]["code"], answer["exit_code"]

    assert refused("exec", command=[]) == ("invalid", None)
    assert refused("exec", command=["x"], colour="red") == ("invalid", None)
    assert refused("exec", command=["x"], rank=1) == ("not_found", None)
    assert refused("exec", command=["no-such"]) == ("invalid", 127)
    assert refused("attach") == ("wrong_state", None)
    assert refused("port", port=0) == ("invalid", None)
    assert refused("port", port=8888) == ("wrong_state", None)


def test_an_entry_stands_in_the_jobs_history(people: People, centre: Centre, way: WayIn) -> None:
    job = running(people, centre)
    status, said = people.admin().socket(f"/v1/jobs/{job}/exec", {"command": ["sh"]})
    assert (status, said[0]) == (101, {"started": True})
    (line,) = [
        each for each in people.user().get(f"/v1/jobs/{job}/events").json()["items"] if each["kind"] == "entered"
    ]
    assert line["detail"] == {"by": "ada", "how": "exec"}


def test_one_token_opens_so_many_and_no_more(people: People, centre: Centre, way: WayIn) -> None:
    job = running(people, centre)
    for _ in range(20):  # each is closed again: none of them counts for ever
        assert people.user().socket(f"/v1/jobs/{job}/exec", {"command": ["x"]})[0] == 101


def test_a_terminal_is_for_one_job_on_one_node(people: People) -> None:
    user = people.user()
    for wrong in ({"array": "0-3"}, {"nodes": 2}):
        spec = {"command": ["sh"], "gpus_per_node": 1, "time_limit_seconds": 60, "terminal": True, **wrong}
        answer = user.post("/v1/jobs", json=spec)
        assert (answer.status_code, answer.json()["problems"][0]["field"]) == (422, "terminal")
