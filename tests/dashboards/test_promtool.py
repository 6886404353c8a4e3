"""What Prometheus's own tool says: of the metrics that a daemon serves, of the rules, and of when they fire."""

import subprocess
from pathlib import Path

import pytest
import yaml

from scheduler.exposition import Written, label_text, render
from tests.dashboards.conftest import repository
from tests.dashboards.prometheus import program

pytestmark = pytest.mark.prometheus
RULES = repository() / "deploy/prometheus/rules"
CASES = Path(__file__).with_name("alerts_test.yaml")


@pytest.fixture(scope="session")
def promtool() -> str:
    """The path of promtool; without it the tests here are skipped, aloud."""
    return program("promtool")


def run(*command: str, stdin: str = "") -> str:
    """Runs a tool that must succeed, and returns all that it said."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_metrics_of_a_daemon_at_work_follow_prometheus_conventions(promtool: str, exposition: str) -> None:
    assert run(promtool, "check", "metrics", stdin=exposition) == ""


def test_promtool_reads_hostile_labels_back(promtool: str) -> None:
    hostile = Written("turnstile_odd", "A \\ and\na line.", ("tenant",))
    for name in ('a"b\\c\n☃{} 1\n# TYPE turnstile_forged counter\nturnstile_forged 1\n', '"} 1\nx{y="', "\\"):
        hostile.add(label_text({"tenant": name}), 1)
    assert run(promtool, "check", "metrics", stdin=render([hostile])) == ""


def test_a_metric_against_the_conventions_would_be_told(promtool: str) -> None:
    wrong = "# HELP turnstile_jobs_total Jobs.\n# TYPE turnstile_jobs_total gauge\nturnstile_jobs_total 1\n"
    done = subprocess.run(
        [promtool, "check", "metrics"], input=wrong, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0


def test_the_rules_are_valid(promtool: str) -> None:
    said = run(promtool, "check", "rules", *map(str, sorted(RULES.glob("*.yaml"))))
    assert "25 rules found" in said
    assert "1 rules found" in said


def test_alerts_fire_on_what_they_are_for_and_on_nothing_else(promtool: str) -> None:
    assert "SUCCESS" in run(promtool, "test", "rules", str(CASES))


def test_every_alert_has_a_case() -> None:
    text = CASES.read_text(encoding="utf-8")
    rules = yaml.safe_load((RULES / "alerts.yaml").read_text(encoding="utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert rule["alert"] in text, rule["alert"]
