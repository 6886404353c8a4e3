"""Every alert on a real Prometheus that scrapes a real daemon: it fires when its fault is there, and not before.

The rules are those that ship. Their `for` is shortened to a second, and a minute of the few expressions that measure
how old or how long something is lasts a second or two; SHORTENED says which, and nothing else is changed.
"""

import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler.clock import iso_utc
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
DAYS_BACK = 35
"""So long ago lies in a month that is over, and late facts about it are waited for no longer (31 days and 72 hours)."""
CLOSING_HOURS = "TURNSTILE_METERING_CLOSING_HOURS"
PRICES = {
    "version": "now",
    "currency": "USD",
    "effective": "2020-01-01T00:00:00+00:00",
    "prices": {"H200": {"guaranteed": "2", "burst": "2", "spot": "1"}},
}
DEARER = {
    "version": "dearer",
    "currency": "USD",
    "effective": "2020-01-02T00:00:00+00:00",
    "prices": {"H200": {"guaranteed": "3", "burst": "3", "spot": "1"}},
}
"""What was used under the first prices costs more by these."""
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


def drilled(folder: Path, sim: str, **more: str) -> Daemon:
    """Returns a daemon, not yet started, that measures each second and is told its faults by a file in the folder."""
    settings = {
        "TURNSTILE_METERING_SAMPLE_SECONDS": "1",
        "TURNSTILE_METERING_WINDOW_SECONDS": "1",
        "TURNSTILE_EXECUTOR_KIND": "simulated",
        drill.VARIABLE: str(folder / "faults.json"),
        **more,
    }
    made = Daemon.at(folder / "centre", "--sim", sim, settings=settings)
    made.command = (sys.executable, "-m", "tests.dashboards.drill")
    return made


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Eight nodes of eight GPUs; a job holds two GPUs for good, one has been held back by its user for five hours."""
    made = drilled(tmp_path, "8x8xH200")
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


def watch_of_a_healthy_centre(server: Prometheus, daemon: Daemon) -> Watch:
    """Returns a watch that has seen every rule keep quiet for some scrapes."""
    until(lambda: server.values("count_over_time(turnstile_build_info[1m]) > 5"), "five scrapes of a healthy centre")
    watch = Watch(server, daemon)
    assert [rule["health"] for rule in server.alerting()] == ["ok"] * 25
    watch.look()
    return watch


def test_each_alert_fires_when_its_fault_is_there_and_not_before(daemon: Daemon, tmp_path: Path) -> None:
    with prometheus_at(tmp_path / "prometheus", f"127.0.0.1:{daemon.port}", [shortened_rules(tmp_path)]) as server:
        watch = watch_of_a_healthy_centre(server, daemon)

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


@pytest.fixture
def past(tmp_path: Path) -> Iterator[Daemon]:
    """A centre where a job ran in a month that is over, for which late facts are waited for still.

    Its scratch files lie in a folder of their own.
    """
    (tmp_path / "scratch").mkdir()
    settings = {"TMPDIR": str(tmp_path / "scratch"), CLOSING_HOURS: str(24 * DAYS_BACK)}
    made = drilled(tmp_path, "1x2xH200", **settings, **{drill.DAYS_BACK: str(DAYS_BACK)})
    try:
        made.start().set_up()
        assert made.request("POST", "/v1/admin/prices", PRICES).status == 201
        made.wait_for(made.submit("sleep", "1")["id"], "completed")
        made.terminate()
        starts_without(made, drill.DAYS_BACK)
        yield made
    finally:
        made.close()


def starts_without(daemon: Daemon, setting: str) -> None:
    """Starts a daemon that was ended, without one of its settings."""
    daemon.settings = {name: value for name, value in daemon.settings.items() if name != setting}
    daemon.start()


def overdue(daemon: Daemon) -> list[str]:
    """Returns the months that could be closed and are not, in order: one, or two at the beginning of a month."""
    listed = daemon.get("/v1/admin/ledger/periods")["items"]
    now = iso_utc(time.time_ns() // 1_000_000)
    return [each["period"] for each in listed if each["status"] == "closing" and each["closes_from"] <= now]


def test_alerts_on_billing_periods_fire_when_their_fault_is_there_and_not_before(past: Daemon, tmp_path: Path) -> None:
    with prometheus_at(tmp_path / "prometheus", f"127.0.0.1:{past.port}", [shortened_rules(tmp_path)]) as server:
        watch = watch_of_a_healthy_centre(server, past)
        assert server.values("turnstile_periods_closing > 0"), "a month is over and not closed, which is no fault yet"

        watch.expect("Down")
        past.terminate()
        watch.until_fired()

        watch.expect("PeriodOverdue")
        starts_without(past, CLOSING_HOURS)
        watch.until_fired()
        for name in overdue(past):
            past.turnstile("admin", "ledger", "close", "--period", name)
        until(lambda: server.values("turnstile_periods_overdue") == [0], "every month is closed that can be")

        watch.expect("PeriodUncorrected")
        (tmp_path / "scratch").rmdir()  # where a month is rated again
        assert past.request("POST", "/v1/admin/price-drafts", DEARER).status == 201
        answer = past.request("POST", "/v1/admin/price-drafts/dearer/publish?reason=agreed")
        assert answer.status == 201, answer
        watch.until_fired()
        (tmp_path / "scratch").mkdir()
        until(lambda: server.values("turnstile_periods_uncorrected") == [0], "what became known later is corrected")

        with closing(sqlite3.connect(past.database)) as connection, connection:
            assert connection.execute("SELECT count(*) FROM correction").fetchone() > (0,)
            watch.expect("PeriodBroken")
            # All from the job's end on: what every closed month had as the end of its chain.
            connection.execute("DROP TRIGGER occupancy_no_delete")
            ended = connection.execute("SELECT max(to_ms) FROM occupancy WHERE holder = 'acme/nlp'").fetchone()
            connection.execute("DELETE FROM occupancy WHERE to_ms >= ?", ended)
        watch.until_fired()
