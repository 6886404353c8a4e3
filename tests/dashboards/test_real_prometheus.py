"""A real Prometheus scrapes a running daemon with simulated GPUs, and every panel shows a number.

The daemon samples and keeps windows each second, jobs come and go, and each query is asked until its answer is finite;
what a healthy centre has no data for is named below with the reason, and must at least be understood.
"""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler.forecasts import SURVEY_SECONDS
from tests.acceptance.daemons import TENANT, Daemon
from tests.dashboards.conftest import repository
from tests.dashboards.server import Prometheus, prometheus_at

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


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A centre that samples each second; a job holds a node, one waits for its time, and a limit is far."""
    quick = {"TURNSTILE_METERING_SAMPLE_SECONDS": "1", "TURNSTILE_METERING_WINDOW_SECONDS": "1"}
    made = Daemon.at(tmp_path / "centre", "--sim", "2x8xH200", settings=quick)
    try:
        made.start().set_up()
        limited = made.request("PUT", f"/v1/admin/accounts/{TENANT}", {"limit": {"H200": 24}, "guarantee": {"H200": 8}})
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
    rules = sorted((repository() / "deploy/prometheus/rules").glob("*.yaml"))
    with prometheus_at(tmp_path / "prometheus", f"127.0.0.1:{daemon.port}", rules) as server:
        yield server


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
    assert len(asked) == 59
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
