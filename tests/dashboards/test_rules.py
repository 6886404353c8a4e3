"""The alerts: those of the contract, about metrics that exist, each with an action and a runbook section."""

import re
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric

from k8s.traffic import TrafficCollector
from metering.agent_metrics import AgentCollector
from metering.xids import XID_TABLE, XidClass
from tests.dashboards.conftest import repository
from tests.dashboards.queries import Catalogue, Family, labels_of, problems_of

ROOT = repository()
RULES = ROOT / "deploy/prometheus/rules"
Rule = dict[str, Any]  # Any: YAML
ALERTS = (
    "GpuXidCritical GpuXidRestartApp GpuEccUncorrected GpuRowRemapFailed GpuRowRemapPending GpuMissing GpuHot"
    " GpuThrottledHw GpuHeldIdle InventoryStale QueueWaitHigh CapacityFreeButQueueStuck PreemptionStorm"
    " GuaranteesShrunk TenantBudget80 Down SchedulingStopped SchedulingSlow LedgerLag LedgerImbalance ApiErrors"
    " PeriodOverdue PeriodUncorrected PeriodBroken JournalImbalance"
)


def groups(name: str) -> list[Rule]:
    found: list[Rule] = yaml.safe_load((RULES / name).read_text(encoding="utf-8"))["groups"]
    return found


def alerts() -> list[Rule]:
    return [rule for group in groups("alerts.yaml") for rule in group["rules"]]


def anchors(text: str) -> set[str]:
    """Returns the anchors that a Markdown page's headings have where forges and wikis show it."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_the_alerts_are_those_of_the_contract() -> None:
    assert [rule["alert"] for rule in alerts()] == [f"Turnstile{name}" for name in ALERTS.split()]


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do_and_leads_to_its_runbook(rule: Rule) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    notes = rule["annotations"]
    assert notes.keys() == {"summary", "description", "runbook_url"}
    assert len(notes["description"].split()) >= 8
    path, _, anchor = notes["runbook_url"].partition("#")
    assert anchor == rule["alert"].lower()
    assert anchor in anchors((ROOT / path).read_text(encoding="utf-8"))


SHOWN_ELSEWHERE = {
    **dict.fromkeys(
        ("agent_spool_batches", "agent_spool_bytes", "agent_dropped_batches", "agent_refused_facts"),
        "of the nodes' agents: `turnstile doctor` and `admin node list` tell of those that do not deliver",
    ),
    "agent_clock_skew_seconds": "the agent warns in its log, and `turnstile doctor` tells of clocks",
    "agent_last_delivery_timestamp_seconds": "TurnstileInventoryStale sees the same from the daemon's side",
    "kubernetes_requests": "only where a cluster runs the jobs; asked when its API server is slow",
}
"""Families that no board and no alert looks at, each with the reason."""


def test_every_metric_is_looked_at_by_a_board_or_an_alert_or_said_not_to_be(catalogue: Catalogue) -> None:
    boards = [path.read_text(encoding="utf-8") for path in (ROOT / "deploy/grafana/boards").glob("*.json")]
    queries = " ".join([*boards, *(rule["expr"] for rule in alerts())])
    asked = set(re.findall(r"turnstile_\w+", queries))
    every = {**catalogue.families, **{each.name: family_of(each) for each in of_agents_and_clusters()}}
    ignored = {name for name, family in every.items() if asked.isdisjoint(family.series())}
    assert ignored == {f"turnstile_{name}" for name in SHOWN_ELSEWHERE}


def of_agents_and_clusters() -> list[Metric]:
    """Returns the families that a daemon on simulated GPUs does not have."""
    nothing = AgentCollector.describe(None), TrafficCollector.describe(None)  # type: ignore[arg-type]  # asks for no self
    return [family for families in nothing for family in families]


def family_of(metric: Metric) -> Family:
    return Family(metric.name, metric.type, frozenset())


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_is_about_metrics_that_the_daemon_has_and_names_their_labels(rule: Rule, catalogue: Catalogue) -> None:
    assert problems_of(rule["expr"], catalogue) == []
    named = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    assert named <= labels_of(rule["expr"], catalogue)


def test_the_recording_rule_is_about_metrics_that_the_daemon_has(catalogue: Catalogue) -> None:
    (group,) = groups("recording.yaml")
    (rule,) = group["rules"]
    assert rule["record"] == "tenant:turnstile_gpu_seconds:increase1d"
    assert problems_of(rule["expr"], catalogue) == []


def test_critical_xids_are_the_fatal_ones_of_the_table() -> None:
    by_name = {rule["alert"]: rule["expr"] for rule in alerts()}

    def listed(alert: str) -> set[int]:
        found = re.search(r'xid=~?"([\d|]+)"', by_name[alert])
        assert found is not None
        return {int(xid) for xid in found[1].split("|")}

    def of_class(xid_class: XidClass) -> set[int]:
        return {row.xid for row in XID_TABLE.values() if row.xid_class is xid_class}

    assert listed("TurnstileGpuXidCritical") == of_class(XidClass.FATAL)
    assert listed("TurnstileGpuXidRestartApp") == of_class(XidClass.RESTART_APP)


def test_the_runbook_has_a_section_for_every_xid_of_the_table_with_its_action() -> None:
    text = (ROOT / "docs/runbooks/gpus.md").read_text(encoding="utf-8")
    for row in XID_TABLE.values():
        section = text.partition(f"### XID {row.xid}\n")[2].partition("\n#")[0]
        assert row.action.lower() in section.lower(), row.xid
        assert f"xid-{row.xid}" in anchors(text)


def test_every_link_between_runbooks_leads_somewhere() -> None:
    for page in (ROOT / "docs/runbooks").glob("*.md"):
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            path, _, anchor = target.partition("#")
            found = page.parent / path if path else page
            assert found.is_file(), (page.name, target)
            assert not anchor or anchor in anchors(found.read_text(encoding="utf-8")), (page.name, target)
