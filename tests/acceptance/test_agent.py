"""The agent as a process beside the daemon: it delivers, survives the daemon, and its silence drains its node."""

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.daemons import Daemon, Ran, environment, free_port, until

NODE = "h200-01"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon.at(tmp_path / "daemon", "--sim", "1x4xH200", settings={"TURNSTILE_METERING_WINDOW_SECONDS": "5"})
    try:
        made.start().set_up()
        yield made
    finally:
        made.close()


def agent_token(daemon: Daemon, node: str = NODE) -> Path:
    body = {"role": "agent", "account": "", "user": node}
    path = daemon.folder / "agent.token"
    path.touch(mode=0o600)
    path.write_text(daemon.request("POST", "/v1/admin/tokens", body).json["secret"])
    return path


def words(daemon: Daemon, token: Path, *more: str) -> list[str]:
    flags = ("--url", daemon.url, "--token-file", str(token), "--spool", str(daemon.folder / "spool"))
    return [sys.executable, "-m", "cli.main", "agent", *flags, *more]


def run(daemon: Daemon, token: Path, *more: str) -> Ran:
    done = subprocess.run(
        words(daemon, token, *more),
        env=environment(daemon.folder), capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


@contextmanager
def running(daemon: Daemon, token: Path, *more: str) -> Iterator["subprocess.Popen[bytes]"]:
    with (daemon.folder / "agent.log").open("ab") as log:
        process = subprocess.Popen(
            words(daemon, token, "--sim", "1x4xH200", "--sample", "1s", "--window", "2s", *more),
            env=environment(daemon.folder), stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=30)


def listed(daemon: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = daemon.get("/v1/admin/agents")["items"]
    return found


def exposition(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def metric(port: int, name: str) -> float:
    values = [line.split()[-1] for line in exposition(port).splitlines() if line.startswith(f"{name} ")]
    return float(values[0]) if values else -1.0


@pytest.mark.acceptance
def test_an_agent_outlives_the_daemon_and_catches_up(daemon: Daemon) -> None:
    token, port = agent_token(daemon), free_port()
    with running(daemon, token, "--metrics", f"127.0.0.1:{port}") as process:
        until(lambda: bool(listed(daemon)), "the daemon hears the agent")
        until(lambda: f'turnstile_gpu_info{{gpu="3",model="H200",node="{NODE}"' in exposition(port), "GPUs are shown")
        assert metric(port, "turnstile_build_info") == -1.0
        daemon.kill()
        until(lambda: metric(port, "turnstile_agent_spool_batches") >= 3, "what cannot be delivered waits on disk")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    waiting = len(list((daemon.folder / "spool").glob("*.json")))
    assert waiting >= 3
    daemon.start()
    done = run(daemon, token, "--sim", "1x4xH200", "--once", "--format", "json")
    assert (done.code, done.json["spool_batches"]) == (0, 0), done
    assert done.json["batches_delivered"] >= waiting
    history = daemon.get(f"/v1/admin/nodes/{NODE}/history")["items"]
    assert {"agent_first", "agent_restarted"} <= {item["event"] for item in history}


@pytest.mark.acceptance
def test_a_silent_agent_drains_its_node_until_it_speaks_or_is_forgotten(daemon: Daemon) -> None:
    token = agent_token(daemon)
    assert run(daemon, token, "--sim", "1x4xH200", "--once").code == 0
    drained = until(
        lambda: next((n for n in daemon.get("/v1/nodes")["items"] if n["availability"] == "draining"), None),
        "the node is drained",
        150,
    )
    assert drained is not None
    assert "no word from its agent" in drained["reason"]
    assert listed(daemon)[0]["is_silent"] is True
    kinds = [item["event"] for item in daemon.get(f"/v1/admin/nodes/{NODE}/history")["items"]]
    assert "agent_silent" in kinds
    assert daemon.request("DELETE", f"/v1/admin/agents/{NODE}").status == 200
    until(lambda: daemon.get("/v1/nodes")["items"][0]["availability"] == "up", "the node takes jobs again")


@pytest.mark.acceptance
def test_what_is_wrong_is_said_with_its_exit_status(daemon: Daemon, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.token"
    wrong.touch(mode=0o600)
    wrong.write_text("tst_wrong")
    sim = ("--sim", "1x4xH200", "--once")
    refused = run(daemon, wrong, *sim)
    assert (refused.code, "turnstile admin token create --role agent" in refused.err) == (5, True), refused
    others = run(daemon, agent_token(daemon, "gpu-017"), *sim)
    assert (others.code, "speaks for node gpu-017, not for h200-01" in others.err) == (5, True), others
    several = run(daemon, wrong, "--sim", "2x4xH200", "--once", "-o", "json")
    assert (several.code, json.loads(several.out)["code"]) == (3, "cannot_run")
    port = run(daemon, agent_token(daemon), "--sim", "1x4xH200", "--metrics", "8471")
    assert (port.code, "is not host:port" in port.err) == (2, True), port
    daemon.terminate()
    away = run(daemon, agent_token_of(daemon), *sim)
    assert (away.code, "cannot reach" in away.err) == (7, True), away


def agent_token_of(daemon: Daemon) -> Path:
    return daemon.folder / "agent.token"
