"""The daemon's real metrics: as its registry declares them, and as a running daemon serves them."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric

from cli.daemon.app import Daemon as DaemonProgram
from cli.daemon.settings import load
from metering.gpus import ThrottleReason
from metering.ledger_watch import KINDS
from metering.xids import XID_TABLE
from scheduler.core.model import JobState
from scheduler.core.plan import Plan
from scheduler.core.reasons import ReasonCode
from scheduler.core.state import ClusterState
from scheduler.exposition import Written
from scheduler.gauges import GPU_STATES, families, photograph
from tests.acceptance.daemons import TENANT, Daemon, until
from tests.dashboards.queries import Catalogue, Family

VALUES = {
    ("turnstile_gpus", "state"): GPU_STATES,
    ("turnstile_jobs", "state"): tuple(state.value for state in JobState),
    ("turnstile_jobs_pending", "reason"): tuple(code.value for code in ReasonCode),
    ("turnstile_gpu_throttled", "reason"): tuple(reason.value for reason in ThrottleReason),
    ("turnstile_gpu_xid_last_timestamp_seconds", "xid"): tuple(str(xid) for xid in XID_TABLE),
    ("turnstile_tenant_gpu_seconds_total", "kind"): KINDS,
    ("turnstile_collector_last_success_timestamp_seconds", "collector"): ("nvml",),
}


@pytest.fixture(scope="session")
def declared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    """Every family of a daemon that was put together and not started, with the labels that it declares."""
    folder = tmp_path_factory.mktemp("assembled")
    settings = load(None, {}, {"executor.sim": "1x1xH200", "server.listen": "127.0.0.1:0"})
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        parts = DaemonProgram(settings, folder, listener)._assemble()
        try:
            found = [*parts.telemetry.registry.collect(), *families(photograph(ClusterState(), Plan(0, 0)), 0)]
        finally:
            parts.gpus.close()
            parts.database.dispose()
    return {each.name: Family(each.name, each.type, frozenset(_labels(each))) for each in found}


@pytest.fixture(scope="session")
def catalogue(declared: dict[str, Family]) -> Catalogue:
    """What queries may name."""
    return Catalogue(declared, VALUES)


@pytest.fixture(scope="session")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A running daemon on simulated GPUs with a tenant, a job that runs, one that waits and one that failed."""
    daemon = Daemon.at(tmp_path_factory.mktemp("centre"), "--sim", "2x8xH200")
    try:
        daemon.start().set_up()
        running = daemon.submit("sleep", "600", gpus_per_node=8, nodes=2, time_limit_seconds=900)
        daemon.wait_for(running["id"], "running")
        daemon.submit("true", gpus_per_node=8)
        yield daemon
    finally:
        daemon.close()


@pytest.fixture(scope="session")
def exposition(centre: Daemon) -> str:
    """The body of /metrics of a daemon at work."""

    def found() -> str | None:
        body = centre.request("GET", "/metrics").body.decode()
        return body if f'turnstile_jobs{{state="running",tenant="{TENANT}"}} 1.0' in body and _balanced(body) else None

    body = until(found, "the metrics show the running job and the ledger's balance")
    assert body is not None
    return body


def _labels(metric: Metric) -> tuple[str, ...]:
    """Returns the label names that a family was made with; prometheus_client keeps them where no type tells of it."""
    if isinstance(metric, Written):
        return metric.label_names
    return tuple(vars(metric)["_labelnames"])


def _balanced(body: str) -> bool:
    return "\nturnstile_ledger_imbalance_seconds " in body


def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).parents[2]
