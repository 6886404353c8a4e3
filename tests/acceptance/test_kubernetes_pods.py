"""A daemon over a cluster, as its people meet it there: pods that they make themselves, on the command line.

The cluster is the API server of `tests/k8s`; the daemon, its database and what is typed are real.
"""

import contextlib
import http.client
import http.server
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from k8s import names
from k8s.api import Api
from tests.acceptance.conftest import MakeDaemon
from tests.acceptance.daemons import Daemon, environment, free_port, until
from tests.acceptance.test_inside import Terminal, answered, number_of, sitting
from tests.k8s.controllers import GPU, PREFIX
from tests.k8s.grounds import Ground, memory_ground

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]
NAMESPACE = "turnstile-acme"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with memory_ground(tmp_path) as built:
        yield built


@pytest.fixture
def centre(make_daemon: MakeDaemon, ground: Ground) -> Daemon:
    config = ground.folder / "turnstile.toml"
    lines = f'[executor]\nkind = "kubernetes"\n[kubernetes]\nkubeconfig = "{ground.kubeconfig}"\n'
    config.write_text(lines, encoding="utf-8")
    return make_daemon("centre", "--config", str(config)).start().set_up()


def made_by_mei(admin: Api, name: str, gpus: int) -> None:
    """Makes a gated pod that runs until it is stopped."""
    container = {"name": "train", "image": "train:1", "resources": {"limits": {GPU: str(gpus)}}}
    notes = {names.USER: "mei", names.TIME_LIMIT: "4h", PREFIX + "run-seconds": "forever"}
    metadata = {"name": name, "labels": {names.PROJECT: "nlp"}, "annotations": notes}
    spec = {"containers": [container], "schedulingGates": [{"name": names.GATE}], "restartPolicy": "Never"}
    admin.create(PODS, {"metadata": metadata, "spec": spec})


def test_pods_that_a_user_makes_stand_in_the_queue_are_explained_metered_and_cancelled(
    centre: Daemon, ground: Ground
) -> None:
    admin = ground.api()
    labels = {names.INSTALLATION: "turnstile"}
    admin.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE, "labels": labels}})
    for index in range(5):  # four nodes
        made_by_mei(admin, f"own-{index}", 8)

    def states() -> dict[str, str]:
        listed = centre.turnstile("queue", "-o", "json", who="mei").json["items"]
        return {each["name"]: each["state"] for each in listed}

    until(lambda: sorted(states().values()) == ["pending", *["running"] * 4], "four run and one waits")
    (last,) = (name for name, state in states().items() if state == "pending")
    shown = centre.turnstile("show", last, "-o", "json", who="mei").json
    assert (shown["labels"]["origin"], shown["labels"]["pods"]) == ("adopted", f"{NAMESPACE}/{last}")
    assert "32 GPUs" in centre.turnstile("why", last, who="mei").out or shown["reasons"], shown
    centre.turnstile("cancel", "own-0", who="mei")
    freed = centre.wait_for(shown["id"], "running")
    assert freed["node_names"], freed
    assert {each["metadata"]["name"] for each in admin.list_all(PODS)[0]} == {f"own-{n}" for n in range(1, 5)}
    centre.turnstile("cancel", last, who="mei")
    centre.wait_for(shown["id"], "cancelled")
    used = centre.turnstile("history", "-o", "json", who="mei").json["items"]
    assert {each["name"]: each["gpus_total"] for each in used}[last] == 8
    centre.turnstile("admin", "ledger", "verify")
    centre.assert_no_trace_in_log()
    admin.close()


IMAGE = ("--image", "train:1")


def submitted(centre: Daemon) -> str:
    number = centre.turnstile("submit", *IMAGE, "-g", "1", "-t", "1h", "--", "train", who="mei").out.strip()
    centre.wait_for(number, "running")
    return number


def secrets_of(centre: Daemon) -> dict[str, str]:
    return environment(centre.folder, {"TURNSTILE_URL": centre.url, "TURNSTILE_TOKEN_FILE": str(centre.token("mei"))})


def test_programs_run_in_a_pod_with_their_streams_and_status_and_its_ports_are_reached(
    centre: Daemon, ground: Ground
) -> None:
    number = submitted(centre)
    said = centre.turnstile("exec", number, "--", "sh", "-c", "echo out; echo err >&2; exit 7", who="mei", code=7)
    assert (said.out, "err" in said.err) == ("out\n", True)
    centre.turnstile("exec", number, "no-such-program", who="mei", code=127)
    assert "needs" in centre.turnstile("exec", number, "true", code=5).err, "an operator looks into nobody's job"

    sent = os.urandom(300_000)
    exec_cat = [*centre.command, "exec", number, "--", "cat"]
    done = subprocess.run(exec_cat, input=sent, capture_output=True, env=secrets_of(centre), timeout=60, check=False)
    assert (done.returncode, done.stdout == sent, done.stderr) == (0, True, b"")

    with sitting(centre, "exec", "-t", number, "--", "sh", "-c", "stty size; trap 'echo caught; exit 3' INT; "
                 "echo ready $TERM; while :; do sleep 0.05; done") as seat:  # fmt: skip
        seat.reads(b"ready ")
        assert b"30 100" in seat.seen
        seat.type(b"\x03")
        seat.reads(b"caught")
        seat.ends_with(3)

    # A program ends with its connection, which no kubelet sees to.
    assert ground.server is not None
    with sitting(centre, "exec", "-t", number, "--", "sleep", "1000") as seat:
        until(lambda: is_running(ground, "sleep"), "it runs")
        seat.process.kill()
    until(lambda: not is_running(ground, "sleep"), "it ended with its caller")
    assert_port_is_reached(centre, number)
    assert centre.job(number)["state"] == "running"
    centre.assert_no_trace_in_log()


def is_running(ground: Ground, name: str) -> bool:
    assert ground.server is not None
    programs = [each for each in ground.server.kubelet.programs if each.poll() is None]
    return any(Path(f"/proc/{each.pid}/comm").read_text(encoding="ascii").strip() == name for each in programs)


def assert_port_is_reached(centre: Daemon, number: str) -> None:
    """As soon as something listens on it, and not before."""
    port = free_port()
    command = [*centre.command, "port-forward", number, f"0:{port}", "-o", "jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=secrets_of(centre)) as forward:
        assert forward.stdout is not None
        assert forward.stderr is not None
        told = forward.stdout.readline()
        assert b"nothing listens on port" in forward.stderr.readline()
        handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(centre.folder))
        web = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
        threading.Thread(target=web.serve_forever, daemon=True).start()
        for _ in range(3):
            connection = http.client.HTTPConnection("127.0.0.1", json.loads(told)["local_port"], timeout=30)
            connection.request("GET", "/")
            assert b"Directory listing" in connection.getresponse().read()
            connection.close()
        forward.send_signal(signal.SIGINT)
        assert forward.wait(30) == 130
    web.shutdown()
    web.server_close()


def test_run_pty_is_a_shell_in_a_pod_that_waits_for_its_viewer_and_for_his_return(centre: Daemon) -> None:
    words = ("run", "--pty", *IMAGE, "-g", "1", "-t", "5m", "-n", "shell", "--", "sh")
    with sitting(centre, *words) as seat:
        seat.reads(b"Submitted")
        until(lambda: answered_to(seat, b"word=remembered; echo $((40+2))\n", b"\n42"), "the shell answers")
        other = centre.request("GET", f"/v1/jobs/{number_of(seat)}", token="mei").json
        assert other["state"] == "running"
        centre.kill()
        centre.start()
        seat.reads(b"coming back")
        until(lambda: answered(seat), "the terminal is back")
        seat.type(b"exit 9\n")
        seat.ends_with(9)
    ended = centre.wait_for(number_of(seat), "failed")
    assert (ended["exit_code"], ended["reason"]) == (9, "exit_nonzero")
    centre.assert_no_trace_in_log()


def answered_to(seat: Terminal, typed: bytes, answer: bytes) -> bool:
    with contextlib.suppress(AssertionError):
        seat.type(typed)
        seat.reads(answer, seconds=2.0)
        return True
    return False
