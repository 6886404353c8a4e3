"""A Prometheus of the test's own, in a folder, on a loopback port, asked over HTTP."""

import contextlib
import json
import math
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.daemons import free_port, until
from tests.dashboards.prometheus import program


class Prometheus:
    """A server that runs."""

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

    def alerting(self) -> list[Any]:  # Any: JSON
        """Returns every alerting rule with its state, health and active alerts."""
        groups = self.get("/api/v1/rules")["groups"]
        return [rule for group in groups for rule in group["rules"] if rule["type"] == "alerting"]


@contextlib.contextmanager
def prometheus_at(folder: Path, target: str, rules: Sequence[Path]) -> Iterator[Prometheus]:
    """Runs a Prometheus that scrapes `target` and evaluates `rules` each second."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in rules],
        "scrape_configs": [
            {"job_name": "turnstile", "scrape_timeout": "1s", "static_configs": [{"targets": [target]}]}
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    # JSON is YAML.
    (folder / "prometheus.yaml").write_text(json.dumps(config))
    port = free_port()
    flags = [
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([program("prometheus"), *flags], stdout=log, stderr=log, cwd=folder)
        try:
            server = Prometheus(port)
            until(server.is_ready, "Prometheus is ready", also=(folder / "prometheus.log").read_text)
            yield server
        finally:
            process.terminate()
            process.wait(timeout=30)
