"""A centre on a real control plane, with everything going wrong: is any job lost, doubled, or any GPU held twice?

    python -m benchmarks.kubernetes --cluster DIR --scripts FOLDER [--nodes 200] [--jobs 2000] [--tenants 20]

DIR is the state directory of a control plane that FOLDER's `up.sh` started, with KCM_QPS=1000 (at its own default the
Job controller makes five pods a second) and a NODE_GRACE longer than the outage, say 30s; FOLDER has `fake_nodes.py`
and `restart.sh` too. In the middle the API server is killed for some seconds, a node falls silent and comes back, and
the daemon is killed with SIGKILL and started again. Prints decisions a second and API requests a job, and ends with
status 1 if anything is not as promised. Without a `restart.sh` the API server is not killed, which is said.
"""

import argparse
import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.daemon import Connection, Running, free_port, machine, wait_until_ready
from benchmarks.kubernetes_witness import PodWitness, Verdicts, figures, from_database
from k8s.api import Access, Api
from k8s.names import selector

SHAPES = ((1, 1),) * 10 + ((1, 2),) * 4 + ((1, 4),) * 3 + ((1, 8),) * 2 + ((2, 8),)
"""(nodes, GPUs a node) of twenty jobs in a row: half of them one GPU, one in twenty a gang."""
ON_THEIR_WAY = "'pending', 'starting', 'running', 'stopping'"
NODE_MARK = f"node.kubernetes.io/instance-type=scale-{os.getpid()}"
"""Nodes of this run alone: the control plane may have others."""


def arguments() -> argparse.Namespace:
    """Returns what was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", type=Path, required=True, help="state directory of the control plane")
    parser.add_argument("--scripts", type=Path, required=True, help="folder with fake_nodes.py and restart.sh")
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--tenants", type=int, default=20)
    parser.add_argument("--run-seconds", type=float, default=20.0, help="how long each job runs")
    parser.add_argument("--outage-seconds", type=float, default=15.0)
    parser.add_argument("--limit-seconds", type=float, default=1500.0, help="after which the run is given up")
    parser.add_argument("--calm", action="store_true", help="nothing goes wrong: for the figures alone")
    return parser.parse_args()


class Centre:
    """The daemon under test, which may be killed and started again."""

    def __init__(self, folder: Path, kubeconfig: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.requests: Counter[str] = Counter()
        """Of daemons that are gone."""
        name = f"scale{os.getpid()}"
        self._environment = {
            **os.environ,
            "TURNSTILE_SERVER_REQUESTS_PER_SECOND": "1000000",
            "TURNSTILE_EXECUTOR_KIND": "kubernetes",
            "TURNSTILE_KUBERNETES_KUBECONFIG": str(kubeconfig),
            "TURNSTILE_KUBERNETES_INSTALLATION": name,
            "TURNSTILE_KUBERNETES_NAMESPACE_PREFIX": f"{name}-",
            "TURNSTILE_KUBERNETES_NODE_SELECTOR": NODE_MARK,
            "TURNSTILE_KUBERNETES_NODE_LOST_SECONDS": "20",
            "TURNSTILE_LOGGING_LEVEL": "warning",
        }
        self.installation = name
        self._process: subprocess.Popen[bytes] | None = None
        self.downtime_seconds = 0.0

    def start(self) -> Running:
        """Starts it and waits until it is ready."""
        command = [sys.executable, "-m", "cli.main", "serve", "--data-dir", str(self.folder)]
        with (self.folder / "daemon.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--listen", f"127.0.0.1:{self.port}"], env=self._environment, stderr=log
            )
        wait_until_ready(self._process, self.port, 300.0)
        token = (self.folder / "operator.token").read_text(encoding="ascii").strip()
        return Running(self._process, self.folder, self.port, token)

    def kill(self) -> None:
        """kill -9, then starts it anew."""
        assert self._process is not None, "it runs"
        self.requests += self.sent()
        began = time.perf_counter()
        self._process.kill()
        self._process.wait()
        self.start()
        self.downtime_seconds = time.perf_counter() - began

    def stop(self) -> None:
        """Ends it in order."""
        if self._process is not None and self._process.poll() is None:
            self.requests += self.sent()
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=60)

    def sent(self) -> Counter[str]:
        """Returns the requests that the running daemon has sent to the API server, by method."""
        asked = ["-H", f"Authorization: Bearer {(self.folder / 'operator.token').read_text(encoding='ascii').strip()}"]
        url = f"http://127.0.0.1:{self.port}/metrics"
        text = subprocess.run(["curl", "-s", *asked, url], capture_output=True, text=True, check=False).stdout
        lines = [line for line in text.splitlines() if line.startswith("turnstile_kubernetes_requests_total{")]
        return Counter({line.split('"')[1]: int(float(line.split()[-1])) for line in lines})

    def turnstile(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Types a command as the operator."""
        own = {"TURNSTILE_URL": f"http://127.0.0.1:{self.port}"}
        token = {"TURNSTILE_TOKEN_FILE": str(self.folder / "operator.token")}
        command = [sys.executable, "-m", "cli.main", *words]
        return subprocess.run(
            command, env={**os.environ, **own, **token}, capture_output=True, text=True, check=False, timeout=600
        )


@contextmanager
def fake_nodes(given: argparse.Namespace, kubeconfig: Path, folder: Path) -> Iterator[Path]:
    """Plays the nodes until the block ends; yields the file that says who holds which GPU."""
    state = folder / "nodes.json"
    options = ["--nodes", str(given.nodes), "--prefix", f"scale-{os.getpid()}", "--state-file", str(state), "--cleanup"]
    options += ["--instance-type", f"scale-{os.getpid()}"]
    options += ["--run-seconds", str(given.run_seconds), "--kubeconfig", str(kubeconfig)]
    command = [sys.executable, "-m", "benchmarks.fake_kubelets", str(given.scripts / "fake_nodes.py"), *options]
    with (folder / "nodes.log").open("wb") as log:
        driver = subprocess.Popen(command, stderr=log)
        try:
            yield state
        finally:
            driver.terminate()
            driver.wait(60)


async def submit_all(running: Running, jobs: int, tenants: int) -> list[int]:
    """Submits all jobs, each tenant's in turn; returns their ids."""
    connection = await Connection.open(running)
    for number in range(tenants):
        for path in (f"t{number:02d}", f"t{number:02d}/main"):
            status, answer = await connection.request("PUT", f"/v1/admin/accounts/{path}", {"display_name": path})
            assert status in {200, 201}, answer
    connection.close()
    taken: list[int] = []
    opened = [await Connection.open(running) for _ in range(4)]
    left = iter(range(jobs))

    async def work(connection: Connection) -> None:
        for number in left:
            nodes, gpus = SHAPES[number % len(SHAPES)]
            body = {
                "project": f"t{number % tenants:02d}/main", "name": "step", "command": ["train"],
                "image": "registry.example/train:1", "nodes": nodes, "gpus_per_node": gpus,
                "time_limit_seconds": 600, "grace_seconds": 5,
            }  # fmt: skip
            status, answer = await connection.request("POST", "/v1/jobs", body)
            assert status == 201, answer
            taken.append(int(answer["items"][0]["id"]))

    await asyncio.gather(*(work(connection) for connection in opened))
    for connection in opened:
        connection.close()
    return taken


def count_left(folder: Path) -> int:
    """Returns how many jobs have not ended, by the daemon's database."""
    with closing(sqlite3.connect(f"file:{folder / 'turnstile.db'}?mode=ro", uri=True, timeout=30)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM job WHERE state IN ({ON_THEIR_WAY})").fetchone()[0])


class Troubles:
    """What goes wrong, in its order, each once so many of the jobs have ended."""

    def __init__(self, given: argparse.Namespace, centre: Centre, api: Api, state: Path) -> None:
        self._given, self._centre, self._api, self._state = given, centre, api, state
        self._silent: str | None = None
        self._due = (
            [] if given.calm else [(0.2, self._outage), (0.35, self._silence), (0.5, self._kill), (0.7, self._wake)]
        )
        self.lost_node: str | None = None

    def look(self, part_ended: float) -> None:
        """Does what is due."""
        while self._due and part_ended >= self._due[0][0]:
            self._due.pop(0)[1]()

    def _outage(self) -> None:
        script = self._given.scripts / "restart.sh"
        if not script.exists():
            say(f"no {script}: the API server is NOT taken away")
            return
        say(f"kills the API server for {self._given.outage_seconds:g} s")
        command = [str(script), str(self._given.cluster), "kube-apiserver", str(self._given.outage_seconds)]
        subprocess.run(command, env={**os.environ, "SIGNAL": "KILL"}, check=True, capture_output=True)

    def _silence(self) -> None:
        held: dict[str, dict[str, str]] = {}
        until = time.monotonic() + 120
        while not held and time.monotonic() < until:  # after the outage there may be a moment without any pod
            held = json.loads(self._state.read_text(encoding="utf-8"))["held"]
            time.sleep(0.1)
        if not held:
            raise SystemExit("no pod holds a GPU: there is no node to lose")
        self.lost_node = max(held, key=lambda name: (len(held[name]), name))
        say(f"node {self.lost_node} falls silent, with pods on {len(held[self.lost_node])} GPUs")
        self._mark("silent")

    def _wake(self) -> None:
        say(f"node {self.lost_node} comes back")
        self._mark(None)

    def _mark(self, state: str | None) -> None:
        changes = {"metadata": {"annotations": {"fake.turnstile/state": state}}}
        self._api.merge(f"/api/v1/nodes/{self.lost_node}", changes)

    def _kill(self) -> None:
        say("kills the daemon")
        self._centre.kill()
        say(f"the daemon is ready again after {self._centre.downtime_seconds:.1f} s")

    @property
    def are_over(self) -> bool:
        """True once all of it has happened."""
        return not self._due


def say(words: str) -> None:
    """Prints a line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {words}", flush=True)


def main() -> None:
    """Runs it all and prints what was seen."""
    given = arguments()
    kubeconfig = given.cluster / "admin.kubeconfig"
    with tempfile.TemporaryDirectory(prefix="turnstile-scale-") as name:
        folder = Path(name)
        with fake_nodes(given, kubeconfig, folder) as state:
            verdicts = run(given, folder, kubeconfig, state)
    sys.exit(1 if verdicts.are_bad else 0)


def run(given: argparse.Namespace, folder: Path, kubeconfig: Path, state: Path) -> Verdicts:
    """Runs the jobs to their end; returns what is to be said of it."""
    api = Api.connect(Access(str(kubeconfig)))
    wait_for_nodes(api, given.nodes)
    data = folder / "data"
    data.mkdir()
    centre = Centre(data, kubeconfig)
    witness = PodWitness(api, centre.installation, state)
    try:
        running = centre.start()
        print(f"{given.nodes} nodes of 8 GPUs, {given.jobs} jobs of {given.tenants} tenants; {machine()}")
        began = time.perf_counter()
        jobs = asyncio.run(submit_all(running, given.jobs, given.tenants))
        say(f"{len(jobs)} jobs taken in {time.perf_counter() - began:.1f} s")
        troubles = Troubles(given, centre, api, state)
        finish(given, running, troubles)
        seconds = time.perf_counter() - began
        verify = centre.turnstile("admin", "ledger", "verify")
        centre.stop()
        verdicts = Verdicts()
        facts = from_database(data / "turnstile.db")
        verdicts.judge(jobs, facts, witness, troubles.lost_node)
        verdicts.say("the ledger verifies", verify.returncode == 0, verify.stdout[-500:] + verify.stderr[-500:])
        log = (data / "daemon.log").read_text(encoding="utf-8")
        verdicts.say("no stack trace in the daemon's log", "Traceback" not in log, log[log.find("Traceback") :][:2000])
        print("\n".join(figures(facts, centre.requests, seconds)))
    finally:
        centre.stop()
        witness.stop()
        tidy_up(api, centre.installation)
    return verdicts


def tidy_up(api: Api, installation: str) -> None:
    """Removes what a run leaves, also one that was given up: Jobs whose end nobody records any more."""
    for item in api.list_all("/apis/batch/v1/jobs", {"labelSelector": selector(installation)})[0]:
        if item["metadata"].get("finalizers"):
            path = f"/apis/batch/v1/namespaces/{item['metadata']['namespace']}/jobs/{item['metadata']['name']}"
            api.merge(path, {"metadata": {"finalizers": None}})
    for item in api.list_all("/api/v1/namespaces")[0]:
        if item["metadata"]["name"].startswith(f"{installation}-"):
            api.delete(f"/api/v1/namespaces/{item['metadata']['name']}")


def finish(given: argparse.Namespace, running: Running, troubles: Troubles) -> None:
    """Waits for the last end, and lets go wrong on the way what shall."""
    until, said = time.monotonic() + given.limit_seconds, 0.0
    while True:
        left = count_left(running.folder)
        troubles.look(1 - left / given.jobs)
        if left == 0 and troubles.are_over:
            return
        if time.monotonic() > until:
            say(f"given up with {left} jobs on their way")
            return
        if time.monotonic() - said > 10:
            said = time.monotonic()
            say(f"{left} jobs on their way")
        time.sleep(0.5)


def wait_for_nodes(api: Api, count: int) -> None:
    """Returns once the nodes are there."""
    until = time.monotonic() + 120
    found: list[dict[str, Any]] = []
    while time.monotonic() < until:
        found = api.list_all("/api/v1/nodes", {"labelSelector": NODE_MARK})[0]
        if len(found) >= count and all(not (each["spec"].get("taints") or ()) for each in found):
            return
        time.sleep(0.5)
    raise SystemExit(f"{len(found)} of {count} nodes appeared")


if __name__ == "__main__":
    main()
