"""The catalogue of metrics is a contract: every name is declared, and what a daemon serves is what it declares."""

from prometheus_client.parser import text_string_to_metric_families

from tests.dashboards.conftest import VALUES
from tests.dashboards.queries import Catalogue, Family

GPU = ("node", "gpu")
CONTRACT: dict[str, tuple[str, ...]] = {
    "gpu_info": (*GPU, "uuid", "model", "pool"),
    "gpu_allocation_info": (*GPU, "tenant", "job_id"),
    "gpu_allocated": GPU,
    "gpu_utilization_ratio": GPU,
    "gpu_memory_used_bytes": GPU,
    "gpu_memory_bytes": GPU,
    "gpu_power_watts": GPU,
    "gpu_energy_joules": GPU,
    "gpu_temperature_celsius": GPU,
    "gpu_throttled": (*GPU, "reason"),
    "gpu_ecc_uncorrected_errors": GPU,
    "gpu_row_remap_pending": GPU,
    "gpu_row_remap_failure": GPU,
    "gpu_xid_errors": (*GPU, "xid"),
    "gpu_xid_last_timestamp_seconds": (*GPU, "xid"),
    "gpus": ("model", "pool", "state"),
    "gpus_largest_free_block": ("pool",),
    "nodes": ("pool", "state"),
    "jobs": ("tenant", "state"),
    "jobs_pending": ("pool", "reason"),
    "pending_gpus": ("tenant", "model"),
    "job_oldest_pending_seconds": ("pool",),
    "job_wait_seconds": ("pool", "size"),
    "start_estimate_error_seconds": ("pool",),
    "jobs_started": ("pool",),
    "jobs_finished": ("tenant", "result"),
    "preempted_jobs": ("tenant", "reason"),
    "preempting_jobs": ("tenant", "reason"),
    "tenant_fair_share_ratio": ("tenant", "model"),
    "tenant_gpus_allocated": ("tenant", "model", "booking"),
    "tenant_gpus_quota": ("tenant", "model"),
    "tenant_gpus_guarantee": ("tenant", "model"),
    "guarantee_shortfall_gpus": ("model",),
    "tenant_gpu_seconds": ("tenant", "model", "kind"),
    "tenant_budget_used_ratio": ("tenant",),
    "tenant_wait_seconds": ("tenant",),
    "tenant_jobs_started": ("tenant",),
    "build_info": ("version",),
    "schedule_cycle_seconds": (),
    "api_request_seconds": ("route", "code"),
    "collector_last_success_timestamp_seconds": ("node", "collector"),
    "ledger_last_posted_timestamp_seconds": (),
    "ledger_imbalance_seconds": (),
    "journal_imbalance": (),
    "budgets_overdrawn": (),
    "periods_closing": (),
    "periods_overdue": (),
    "periods_uncorrected": (),
    "periods_broken": (),
}
HISTOGRAMS = {"job_wait_seconds", "start_estimate_error_seconds", "schedule_cycle_seconds", "api_request_seconds"}
HOT_BUT_ALLOWED = {"turnstile_gpu_allocation_info"}
"""The one family that may name jobs."""


def test_every_name_of_the_contract_is_declared_with_its_labels(catalogue: Catalogue) -> None:
    for name, labels in CONTRACT.items():
        family = catalogue.families[f"turnstile_{name}"]
        assert family.labels == set(labels), name
        assert (family.kind == "histogram") == (name in HISTOGRAMS), name


def test_a_running_daemon_serves_what_its_registry_declares(exposition: str, declared: dict[str, Family]) -> None:
    served = {family.name: family for family in text_string_to_metric_families(exposition)}
    assert served.keys() == declared.keys()
    for name, family in served.items():
        assert family.type == declared[name].kind, name
        assert family.documentation.endswith("."), name
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == declared[name].labels, name


def test_label_values_of_closed_sets_are_those_that_queries_are_checked_by(exposition: str) -> None:
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            for label, value in sample.labels.items():
                # A simulated GPU is read by a collector of its own name; the boards look at the real one's.
                if (known := VALUES.get((sample.name, label))) is not None and label != "collector":
                    assert value in known, sample


def test_no_series_names_a_user_and_only_one_family_names_jobs(declared: dict[str, Family]) -> None:
    for family in declared.values():
        assert not family.labels & {"user", "account", "project", "name"}, family
        assert "job_id" not in family.labels or family.name in HOT_BUT_ALLOWED, family


def test_a_daemon_at_work_has_every_state_of_gpus_and_a_balanced_ledger(exposition: str) -> None:
    samples = [sample for family in text_string_to_metric_families(exposition) for sample in family.samples]
    states = {sample.labels["state"]: sample.value for sample in samples if sample.name == "turnstile_gpus"}
    assert set(states) == set(VALUES["turnstile_gpus", "state"])
    assert states["allocated"] == 16
    assert [sample.value for sample in samples if sample.name == "turnstile_ledger_imbalance_seconds"] == [0]
