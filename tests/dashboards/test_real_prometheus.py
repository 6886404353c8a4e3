"""A real Prometheus scrapes a running daemon with simulated GPUs, and every panel shows a number.

The daemon samples and keeps windows each second, jobs come and go, and each query is asked until its answer is finite;
what a healthy centre has no data for is named below with the reason, and must at least be understood.
"""

import json
import math
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scheduler.forecasts import SURVEY_SECONDS
from tests.acceptance.daemons import TENANT, Daemon, free_port, until
from tests.dashboards.conftest import repository
from tests.dashboards.prometheus import program

pytestmark = [pytest.mark.prometheus, pytest.mark.acceptance, pytest.mark.timeout(400)]
BOARDS = repository() / "deploy/grafana/boards"
ANSWER_SECONDS = 240
EMPTY_HERE = {
    "XIDs in the last 24 h": "a simulated GPU reports none unless told to",
    "Uncorrectable ECC errors": "a simulated GPU has none",
    "Row remap pending or failed": "a simulated GPU has none",
    "Inventory age, worst 10 nodes": "it looks at the collector nvml, and simulated GPUs are read by another",
    "Preempted and preempting": "nothing is preempted while GPUs are free",
}


PRICES = """
version = "now"
currency = "USD"
effective = 2020-01-01T00:00:00+00:00
[prices.H200]
guaranteed = "2"
burst = "2.5"
spot = "1"
"""


class Prometheus:
    """A server of the test's own, asked over HTTP."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._base}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def get(self, path: str, **query: str) -> Any:  # Any: JSON
        try:
            with urllib.request.urlopen(f"{self._base}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{query}: {error.read().decode()}")

    def values(self, query: str) -> list[float]:
        """Returns the values of a query's result now; one with a five-minute subquery is asked at its next step."""
        at = math.ceil(time.time() / 300) * 300 if ":5m]" in query else time.time()
        result = self.get("/api/v1/query", query=query, time=str(at))["result"]
        return [float(series["value"][1]) for series in result]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A centre that samples each second; a job holds a node, one waits for its time, and a limit is far."""
    quick = {"TURNSTILE_METERING_SAMPLE_SECONDS": "1", "TURNSTILE_METERING_WINDOW_SECONDS": "1"}
    made = Daemon.at(tmp_path / "centre", "--sim", "2x8xH200", settings=quick)
    try:
        made.start().set_up()
        limited = made.request("PUT", f"/v1/admin/accounts/{TENANT}", {"display_name": TENANT, "limit": {"H200": 24}})
        assert limited.status in {200, 201}, limited
        (made.folder / "prices.toml").write_text(PRICES, encoding="utf-8")
        made.turnstile("admin", "price", "import", "prices.toml", "--publish")
        made.turnstile("admin", "budget", "set", TENANT, "--limit", "1000")
        made.submit("sleep", "600", gpus_per_node=8, time_limit_seconds=900)
        made.submit("true", begin_at="2099-01-01T00:00:00Z")
        yield made
    finally:
        made.close()


@pytest.fixture
def prometheus(daemon: Daemon, tmp_path: Path) -> Iterator[Prometheus]:
    """A Prometheus with our rules that scrapes the daemon each second."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in (repository() / "deploy/prometheus/rules").glob("*.yaml")],
        "scrape_configs": [
            {"job_name": "turnstile", "static_configs": [{"targets": [f"127.0.0.1:{daemon.port}"]}]},
        ],
    }
    # JSON is YAML.
    (tmp_path / "prometheus.yaml").write_text(json.dumps(config))
    port = free_port()
    flags = [
        f"--config.file={tmp_path / 'prometheus.yaml'}",
        f"--storage.tsdb.path={tmp_path / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([program("prometheus"), *flags], stdout=log, stderr=log, cwd=tmp_path)
        try:
            server = Prometheus(port)
            until(server.is_ready, "Prometheus is ready", also=(tmp_path / "prometheus.log").read_text)
            yield server
        finally:
            process.terminate()
            process.wait(timeout=30)


def queries() -> list[tuple[str, str]]:
    """Returns each panel's title and query, as Grafana would send it for this tenant and all pools."""
    found = []
    for path in sorted(BOARDS.glob("*.json")):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel["targets"]:
                query = target["expr"].replace("$__rate_interval", "1m").replace("$__range", "6h")
                found.append((panel["title"], query.replace("$tenant", TENANT).replace("$pool", ".*")))
    return found


def _is_shown(query: str, values: list[float]) -> bool:
    """True for an answer of numbers. A quantile of a route that nobody asked just now is a gap in its line, rightly."""
    enough = any if query.startswith("histogram_quantile") else all
    return bool(values) and enough(map(math.isfinite, values))


def test_every_panel_of_every_board_shows_finite_numbers(daemon: Daemon, prometheus: Prometheus) -> None:
    asked = queries()
    assert len(asked) == 46
    missing = {(title, query) for title, query in asked if title not in EMPTY_HERE}
    assert len(missing) >= 30
    deadline = time.monotonic() + ANSWER_SECONDS
    seen: dict[str, list[float]] = {}
    blocked_seconds = SURVEY_SECONDS + 3
    while missing:
        assert time.monotonic() < deadline, {query: seen.get(query) for _, query in missing}
        # One holds the free node and others wait for it: what a survey foretells of their starts is measured when they
        # start, two seconds apart, because a rate is seen from the second on. On a slow machine surveys are rarer.
        daemon.submit("sleep", str(blocked_seconds), gpus_per_node=8)
        waiting = [daemon.submit("sleep", "2", gpus_per_node=8) for _ in range(2)]
        blocked_seconds = min(2 * blocked_seconds, 40)
        for job in waiting:
            daemon.wait_for(job["id"], "completed")
        for title, query in sorted(missing):
            seen[query] = values = prometheus.values(query)
            if _is_shown(query, values):
                missing.discard((title, query))
    for _, query in asked:
        prometheus.values(query)  # fails the test when Prometheus does not understand it

    in_use = prometheus.values('sum(turnstile_gpus{state="allocated"}) / sum(turnstile_gpus{state=~"free|allocated"})')
    assert 0.5 <= in_use[0] <= 1
    assert prometheus.values("sum(abs(turnstile_ledger_imbalance_seconds))") == [0]


def test_the_rules_are_evaluated_without_an_error_and_a_healthy_centre_fires_none(
    daemon: Daemon, prometheus: Prometheus
) -> None:
    until(lambda: prometheus.values("turnstile_build_info"), "the daemon was scraped")

    def rules() -> list[Any]:
        return [rule for group in prometheus.get("/api/v1/rules")["groups"] for rule in group["rules"]]

    # Recording rules are evaluated every five minutes, alerts each second.
    alerts = until(
        lambda: (
            [rule for rule in rules() if rule["type"] == "alerting" and not rule["lastEvaluation"].startswith("0001")]
            if all(rule["type"] != "alerting" or rule["health"] != "unknown" for rule in rules())
            else []
        ),
        "every alert was evaluated",
    )
    assert len(alerts) == 21
    for rule in alerts:
        assert rule["health"] == "ok", rule
        assert rule["state"] != "firing", rule
