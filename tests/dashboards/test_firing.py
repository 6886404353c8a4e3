"""Every alert on a real Prometheus that scrapes a real daemon: it fires when its fault is there, and not before.

The rules are those that ship. Their `for` is shortened to a second, and a minute of the few expressions that measure
how old or how long something is lasts a second or two; SHORTENED says which, and nothing else is changed.
"""

import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.acceptance.daemons import TENANT, Daemon, job, until
from tests.dashboards import drill
from tests.dashboards.conftest import repository
from tests.dashboards.server import Prometheus, prometheus_at

pytestmark = [pytest.mark.prometheus, pytest.mark.acceptance, pytest.mark.timeout(300)]
SHORTENED = {
    "TurnstileGpuMissing": ("[6h:5m]", "[10m:1s]"),
    "TurnstileInventoryStale": ("> 120", "> 20"),
    "TurnstileSchedulingStopped": ("[5m]", "[12s]"),
    "TurnstileSchedulingSlow": ("[10m]", "[30s]"),
    "TurnstileLedgerLag": ("> 300", "> 20"),
}
"""What lasts minutes in the rules: what stands there, and what stands there in this test."""
LASTS = {"TurnstileSchedulingStopped": "10s", "TurnstileDown": "5s"}
"""An idle daemon ticks each five seconds: two scrapes in a row often see none, and that must not be enough. A scrape
may be late on a busy machine."""
HOURS_5_MS = 5 * 3_600_000
PRICES = {
    "version": "now",
    "currency": "USD",
    "effective": "2020-01-01T00:00:00+00:00",
    "prices": {"H200": {"guaranteed": "2", "burst": "2", "spot": "1"}},
}
GPU_FAULTS: Mapping[str, Mapping[str, object]] = {
    "h200-05/0": {"xid": 79},
    "h200-05/1": {"xid": 94},
    "h200-05/2": {"ecc": 2},
    "h200-05/3": {"remap_failure": True},
    "h200-05/4": {"remap_pending": True},
    "h200-05/5": {"lost": True},
    "h200-05/6": {"celsius": 91},
    "h200-05/7": {"throttled": "hw_thermal"},
}
SILENT: Mapping[str, object] = {"idle": ["h200-07"], "silent": ["h200-06"]}
SPOT_NODES = ("h200-02", "h200-03", "h200-04")
OF_GPUS = {
    "GpuXidCritical": "0",
    "GpuXidRestartApp": "1",
    "GpuEccUncorrected": "2",
    "GpuRowRemapFailed": "3",
    "GpuRowRemapPending": "4",
    "GpuHot": "6",
    "GpuThrottledHw": "7",
}
"""Which GPU of the node with the faults each alert must name."""


def shortened_rules(folder: Path) -> Path:
    """Writes the shipped alerts with short times, and returns the file."""
    rules = yaml.safe_load((repository() / "deploy/prometheus/rules/alerts.yaml").read_text(encoding="utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["for"] = LASTS.get(rule["alert"], "1s")
            if rule["alert"] in SHORTENED:
                long, short = SHORTENED[rule["alert"]]
                assert long in rule["expr"], rule
                rule["expr"] = rule["expr"].replace(long, short)
    path = folder / "alerts.yaml"
    path.write_text(yaml.safe_dump(rules), encoding="utf-8")
    return path


class Watch:
    """Which alerts have fired so far, by the names that the rules give them without the prefix."""

    def __init__(self, server: Prometheus, daemon: Daemon) -> None:
        self._server = server
        self._daemon = daemon
        self.fired: dict[str, list[Mapping[str, str]]] = {}
        self.expected: set[str] = set()

    def look(self) -> set[str]:
        """Adds what fires now; returns all that ever fired. Fails on what fired before its fault."""
        for rule in self._server.alerting():
            assert rule["health"] == "ok", rule
            for alert in rule["alerts"]:
                if alert["state"] == "firing":
                    known = self.fired.setdefault(rule["name"].removeprefix("Turnstile"), [])
                    if alert["labels"] not in known:
                        known.append(alert["labels"])
        assert self.fired.keys() <= self.expected, {
            each: self.fired[each] for each in self.fired.keys() - self.expected
        }
        return set(self.fired)

    def expect(self, *names: str) -> None:
        """Says that their fault is there now. None of them has fired until now."""
        assert not self.look() & {*names}
        self.expected |= {*names}

    def until_fired(self) -> None:
        """Waits until all fire whose fault is there."""
        until(
            lambda: self.look() >= self.expected,
            "every fault is told",
            90,
            also=lambda: f"missing: {self.expected - self.fired.keys()}; {self._daemon.state_of_health()}",
        )

    def places(self, name: str) -> set[tuple[str | None, str | None]]:
        """Returns node and GPU that an alert has named."""
        return {(labels.get("node"), labels.get("gpu")) for labels in self.fired[name]}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Eight nodes of eight GPUs; a job holds two GPUs for good, one has been held back by its user for five hours."""
    settings = {
        "TURNSTILE_METERING_SAMPLE_SECONDS": "1",
        "TURNSTILE_METERING_WINDOW_SECONDS": "1",
        "TURNSTILE_EXECUTOR_KIND": "simulated",
        drill.VARIABLE: str(tmp_path / "faults.json"),
    }
    made = Daemon.at(tmp_path / "centre", "--sim", "8x8xH200", settings=settings)
    made.command = (sys.executable, "-m", "tests.dashboards.drill")
    drill.tell(tmp_path / "faults.json", {"idle": ["h200-07"]})
    try:
        made.start().set_up()
        terms = {"display_name": TENANT, "guarantee": {"H200": 64}}
        assert made.request("PUT", f"/v1/admin/accounts/{TENANT}", terms).status == 200
        assert made.request("POST", "/v1/admin/prices", PRICES).status == 201
        has_budget(made, 100_000)
        old = lasting(made, "h200-08", gpus_per_node=2, hold=True)
        made.kill()
        with closing(sqlite3.connect(made.database)) as connection, connection:
            connection.execute("UPDATE job SET submitted_ms = submitted_ms - ? WHERE id = ?", [HOURS_5_MS, old["id"]])
        made.start()
        # A histogram is seen to rise from its second event on: a wait of this size.
        lasting(made, "h200-08", gpus_per_node=2)
        lasting(made, "h200-01", booking="guaranteed", gpus_per_node=8)
        yield made
    finally:
        made.close()


def lasting(daemon: Daemon, node: str, **spec: Any) -> Any:  # Any: JSON
    """Submits a job that would hold its GPUs on a node for longer than any test."""
    return daemon.submit("sleep", "7200", **{"only_nodes": [node], "time_limit_seconds": 7200, **spec})


def has_budget(daemon: Daemon, amount: int) -> None:
    """Gives the tenant so much for each month."""
    terms = {"limit": {"amount": str(amount), "currency": "USD"}}
    assert daemon.request("PUT", f"/v1/admin/budgets/{TENANT}", terms).status == 200


def cancel(daemon: Daemon, made: Any) -> None:  # Any: JSON
    assert daemon.request("POST", "/v1/jobs/cancel", {"ids": [str(made["id"])]}).status == 200


def metrics(daemon: Daemon) -> str:
    return daemon.request("GET", "/metrics").body.decode()


def is_refused(daemon: Daemon) -> bool:
    """Submits a job, and tells whether the daemon says that it cannot take it."""
    return daemon.request("POST", "/v1/jobs", job("true"), token="mei").status == 503


def test_each_alert_fires_when_its_fault_is_there_and_not_before(daemon: Daemon, tmp_path: Path) -> None:
    with prometheus_at(tmp_path / "prometheus", f"127.0.0.1:{daemon.port}", [shortened_rules(tmp_path)]) as server:
        until(
            lambda: server.values("count_over_time(turnstile_build_info[1m]) > 5"), "five scrapes of a healthy centre"
        )
        watch = Watch(server, daemon)
        assert [rule["health"] for rule in server.alerting()] == ["ok"] * 25
        watch.look()

        watch.expect("CapacityFreeButQueueStuck", "GpuMissing", "InventoryStale")
        drill.tell(tmp_path / "faults.json", SILENT)  # a node's GPUs are gone at once; that it is not read shows later
        gang = daemon.submit("sleep", "7200", nodes=8, gpus_per_node=8, time_limit_seconds=7200)
        until(lambda: "CapacityFreeButQueueStuck" in watch.look(), "a queue that stands still beside free GPUs", 90)
        cancel(daemon, gang)

        watch.expect(*OF_GPUS, "GuaranteesShrunk", "GpuHeldIdle", "QueueWaitHigh", "TenantBudget80")
        drill.tell(tmp_path / "faults.json", {**SILENT, "gpus": GPU_FAULTS})
        lasting(daemon, "h200-07", gpus_per_node=8)
        assert daemon.request("POST", "/v1/jobs/release", {"ids": ["1"]}).status == 200
        has_budget(daemon, 50)
        watch.until_fired()
        for name, gpu in OF_GPUS.items():
            assert watch.places(name) == {("h200-05", gpu)}, name
        assert watch.places("GpuMissing") == {("h200-05", None), ("h200-06", None)}
        assert watch.places("InventoryStale") == {("h200-06", None)}
        assert watch.places("GpuHeldIdle") == {("h200-07", str(gpu)) for gpu in range(8)}

        watch.expect("PreemptionStorm", "LedgerImbalance", "JournalImbalance")
        has_budget(daemon, 100_000)
        for node in SPOT_NODES:
            daemon.submit("sleep", "7200", only_nodes=[node], array="0-7", booking="spot", time_limit_seconds=7200)
        until(lambda: 'booking="spot",model="H200",tenant="acme"} 24' in metrics(daemon), "spot jobs fill three nodes")
        daemon.submit("sleep", "60", only_nodes=SPOT_NODES, nodes=3, gpus_per_node=8, booking="guaranteed")
        with closing(sqlite3.connect(daemon.database)) as connection, connection:
            connection.execute("UPDATE device SET first_seen_ms = first_seen_ms - 60000 WHERE node = 'h200-08'")
            connection.execute("UPDATE balance SET micros = micros + 1 WHERE rowid = (SELECT min(rowid) FROM balance)")
        watch.until_fired()

        watch.expect("SchedulingSlow")
        drill.tell(tmp_path / "faults.json", {"tick_seconds": 6})
        until(lambda: "SchedulingSlow" in watch.look(), "a tick of six seconds", 90)
        drill.tell(tmp_path / "faults.json", {})

        watch.expect("SchedulingStopped", "LedgerLag", "ApiErrors")
        with closing(sqlite3.connect(daemon.database, isolation_level=None)) as locked:
            locked.execute("BEGIN IMMEDIATE")  # nobody else writes while this stands
            until(lambda: is_refused(daemon), "submissions are refused", 90)
            until(lambda: is_refused(daemon) and watch.look() >= watch.expected, "a daemon that cannot write", 90)
            locked.execute("ROLLBACK")

        watch.expect("Down")
        daemon.terminate()
        watch.until_fired()
