"""The metrics: names and labels as the contract has them, values as the state has them."""

import re
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from scheduler.core.lifecycle import ENDS
from scheduler.core.model import AccountId, JobState, NodeName, PoolName
from scheduler.core.plan import Plan
from scheduler.gauges import GPU_STATES, families, photograph
from scheduler.observer import PREEMPTION_REASONS
from scheduler.routes import scrapes
from scheduler.store.inventory import SetDrain
from scheduler.telemetry import Telemetry
from tests.api.centre import Centre, app_of
from tests.api.conftest import Http, People

LABELS = {
    "turnstile_start_estimate_error_seconds": {"pool"},
    "turnstile_gpus": {"model", "pool", "state"},
    "turnstile_gpus_largest_free_block": {"pool"},
    "turnstile_nodes": {"pool", "state"},
    "turnstile_jobs": {"tenant", "state"},
    "turnstile_jobs_pending": {"pool", "reason"},
    "turnstile_pending_gpus": {"tenant", "model"},
    "turnstile_job_oldest_pending_seconds": {"pool"},
    "turnstile_job_wait_seconds": {"pool", "size"},
    "turnstile_jobs_started": {"pool"},
    "turnstile_jobs_finished": {"tenant", "result"},
    "turnstile_preempted_jobs": {"tenant", "reason"},
    "turnstile_preempting_jobs": {"tenant", "reason"},
    "turnstile_tenant_gpus_allocated": {"tenant", "model", "booking"},
    "turnstile_tenant_gpus_guarantee": {"tenant", "model"},
    "turnstile_guarantee_shortfall_gpus": {"model"},
    "turnstile_tenant_gpus_quota": {"tenant", "model"},
    "turnstile_tenant_gpus_target": {"tenant", "model"},
    "turnstile_tenant_fair_share_ratio": {"tenant", "model"},
    "turnstile_tenant_debt_credits": {"tenant"},
    "turnstile_tenant_wait_seconds": {"tenant"},
    "turnstile_tenant_jobs_started": {"tenant"},
    "turnstile_gpu_allocated": {"node", "gpu"},
    "turnstile_gpu_allocation_info": {"node", "gpu", "tenant", "job_id"},
    "turnstile_build_info": {"version"},
    "turnstile_schedule_cycle_seconds": set(),
    "turnstile_api_request_seconds": {"route", "code"},
    "turnstile_ledger_last_posted_timestamp_seconds": set(),
}
"""The contract's names that this version has data for, counters without `_total`, each with its labels."""


@pytest.fixture
def busy(centre: Centre, people: People) -> Centre:
    """A centre with something to say in every family."""
    centre.has_account("acme", guarantee={"H100": 8}, limit={"H100": 12})
    user = people.user()
    user.submit(gpus_per_node=8, gpu_classes=["H100"])
    centre.tick()
    user.submit(gpus_per_node=8, gpu_classes=["H100"])
    user.submit(gpus_per_node=3, nodes=2, gpu_classes=["A100", "H100"], begin_at="2099-01-01T00:00:00Z")
    people.user("zoe", "zeta/lab").submit(project="lab", hold=True)
    centre.tick()
    centre.clock.advance(minutes=1)
    return centre


def samples(http: Http) -> Iterator[Sample]:
    answer = http.request("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    for family in text_string_to_metric_families(answer.text):
        yield from family.samples


def values(http: Http, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels[key] for key in sorted(sample.labels)): sample.value
        for sample in samples(http)
        if sample.name == name
    }


def test_names_labels_and_kinds_are_the_contracts(busy: Centre) -> None:
    telemetry = Telemetry("1.2.3")
    telemetry.job_started(PoolName("main"), AccountId("acme"), 8, 12.5)
    telemetry.job_finished(AccountId("acme"), JobState.FAILED)
    telemetry.jobs_preempted(AccountId("acme"), AccountId("zeta"), "fair_share")
    telemetry.start_estimated(PoolName("main"), 12.5)
    telemetry.cycle(0.01, Plan(1, 0))
    telemetry.ledger_posted(busy.clock.now_ms())
    telemetry.request("/v1/jobs", 201, 0.002)
    body = telemetry.render(families(busy.ask(photograph).result(), busy.clock.now_ms())).decode()
    seen: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(body):
        assert family.documentation.endswith("."), family.name
        assert re.fullmatch(r"turnstile_[a-z_]+", family.name)
        assert family.samples, f"{family.name} has nothing to say in a busy centre"
        assert (family.type == "counter") == all(sample.name.endswith("_total") for sample in family.samples)
        seen[family.name] = {key for sample in family.samples for key in sample.labels} - {"le"}
    assert seen == LABELS


def test_gpus_by_state_add_up_to_the_inventory(busy: Centre, http: Http) -> None:
    found = values(http, "turnstile_gpus")
    assert {key[2] for key in found} == set(GPU_STATES)
    assert sum(found.values()) == 20
    assert found["H100", "main", "allocated"] == 8
    assert found["H100", "main", "free"] == 8
    assert found["A100", "old", "free"] == 4


def test_the_queue_is_told_by_reason_and_the_tenants_by_what_they_hold(busy: Centre, http: Http) -> None:
    assert values(http, "turnstile_jobs_pending") == {("main", "quota_tenant"): 1, ("old", "begin_time"): 1}
    assert values(http, "turnstile_job_oldest_pending_seconds") == {("main",): 60, ("old",): 0}
    assert values(http, "turnstile_tenant_gpus_allocated") == {("guaranteed", "H100", "acme"): 8}
    assert values(http, "turnstile_tenant_gpus_guarantee") == {("H100", "acme"): 8}
    assert values(http, "turnstile_tenant_gpus_quota") == {("H100", "acme"): 12}
    assert values(http, "turnstile_guarantee_shortfall_gpus") == {("H100",): 0}
    assert values(http, "turnstile_pending_gpus") == {("A100", "acme"): 6, ("H100", "acme"): 8}
    jobs = values(http, "turnstile_jobs")
    assert (jobs["running", "acme"], jobs["pending", "acme"], jobs["held", "zeta"]) == (1, 2, 1)


def test_a_projects_own_order_makes_no_waiting_job_younger(people: People, centre: Centre, http: Http) -> None:
    """A place in such an order lies hours behind the submission, by the job's size."""
    centre.has_account("acme", limit={"H100": 8})
    centre.has_account("acme/vision", service_weight=1, limit_weight=1)
    user = people.user()
    user.submit(gpus_per_node=8, gpu_classes=["H100"])
    centre.tick()
    user.submit(gpus_per_node=8, gpu_classes=["H100"])
    centre.clock.advance(minutes=1)
    user.submit(gpus_per_node=8, gpu_classes=["H100"], priority="high")
    centre.tick()
    centre.clock.advance(minutes=1)
    assert values(http, "turnstile_job_oldest_pending_seconds") == {("main",): 120, ("old",): 0}


def test_each_held_gpu_is_joined_to_its_job(busy: Centre, http: Http) -> None:
    held = {key for key, value in values(http, "turnstile_gpu_allocated").items() if value == 1}
    holders = {(s.labels["gpu"], s.labels["node"]) for s in samples(http) if s.name == "turnstile_gpu_allocation_info"}
    assert held == holders
    assert len(held) == 8


def test_requests_are_timed_by_route_template_never_by_path(people: People, http: Http) -> None:
    user = people.user()
    job = user.submit()
    user.get(f"/v1/jobs/{job}")
    user.get("/v1/jobs/nobody")
    user.get("/no/such/place")
    counted = values(http, "turnstile_api_request_seconds_count")
    assert counted["200", "/v1/jobs/{ref}"] == 1
    assert counted["404", "/v1/jobs/{ref}"] == 1
    assert counted["404", "unmatched"] == 1
    assert counted["201", "/v1/jobs"] == 1


def test_metrics_answer_this_machine_and_operators_only(centre: Centre) -> None:
    http = Http(app_of(centre), address="192.0.2.7")
    people = People(centre, http)
    assert people.stranger().get("/metrics").status_code == 401
    assert people.user().get("/metrics").status_code == 403
    assert people.operator().get("/metrics").status_code == 200
    http.close()
    local = Http(app_of(centre))
    assert local.request("GET", "/metrics", headers={"X-Forwarded-For": "192.0.2.7"}).status_code == 401
    local.close()
    opened = Http(app_of(centre, is_metrics_open=True), address="192.0.2.7")
    assert opened.request("GET", "/metrics").status_code == 200
    opened.close()


def test_a_follower_tells_only_of_itself(centre: Centre, http: Http) -> None:
    centre.is_leading = False
    assert values(http, "turnstile_gpus") == {}
    assert list(values(http, "turnstile_build_info").values()) == [1]


def test_histograms_cumulate_and_counters_only_rise() -> None:
    telemetry = Telemetry("1")
    for seconds in (0.5, 30, 30, 10**9):
        telemetry.job_started(PoolName("main"), AccountId("acme"), 1, seconds)
    [family] = [f for f in telemetry.happened() if f.name == "turnstile_job_wait_seconds"]
    buckets = {sample.labels["le"]: sample.value for sample in family.samples if sample.name.endswith("_bucket")}
    assert (buckets["1.0"], buckets["60.0"], buckets["604800.0"], buckets["+Inf"]) == (1, 3, 3, 4)
    assert list(buckets.values()) == sorted(buckets.values())


def test_counters_say_zero_before_their_first_event_so_that_increase_sees_it(busy: Centre, http: Http) -> None:
    busy.has_account("quiet")
    found = list(samples(http))

    def of(name: str, label: str) -> set[str]:
        return {
            sample.labels[label]
            for sample in found
            if sample.name == name and sample.labels["tenant"] == "quiet" and sample.value == 0
        }

    assert of("turnstile_jobs_finished_total", "result") == {state.value for state in ENDS}
    assert of("turnstile_preempted_jobs_total", "reason") == set(PREEMPTION_REASONS)
    assert of("turnstile_preempting_jobs_total", "reason") == set(PREEMPTION_REASONS)
    assert of("turnstile_tenant_jobs_started_total", "tenant") == of("turnstile_tenant_wait_seconds_total", "tenant")
    assert values(http, "turnstile_jobs_started_total") == {("main",): 0, ("old",): 0}
    assert not any(sample.name.startswith("turnstile_job_wait_seconds") for sample in found), "no quantile of nothing"


def test_a_planner_that_hangs_does_not_take_the_metrics_with_it(
    busy: Centre, http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last picture is shown: an alert must tell a tick that hangs from a daemon that is down."""
    monkeypatch.setattr(scrapes, "PATIENCE_SECONDS", 0.05)
    seen = values(http, "turnstile_gpus")
    busy.is_hanging = True
    busy.commit(SetDrain(NodeName("h2"), "tested", "ops"))
    assert values(http, "turnstile_gpus") == seen
    assert values(http, "turnstile_build_info")
    busy.go_on()
    assert values(http, "turnstile_gpus") != seen
    busy.is_leading = False
    assert values(http, "turnstile_gpus") == {}


HOSTILE = 'a"b\\c\n中文{} 1\n# TYPE turnstile_forged counter\nturnstile_forged 1\n'
"""What somebody might call a tenant: it would end its label, its line, and forge a family, were it not escaped."""


def test_hostile_names_are_escaped_and_forge_no_series(busy: Centre, people: People, http: Http) -> None:
    families_before = {sample.name for sample in samples(http)}
    busy.has_account(HOSTILE)
    found = {sample.labels["tenant"] for sample in samples(http) if sample.name == "turnstile_jobs"}
    assert HOSTILE in found, "as it was given, once it is read"
    assert {sample.name for sample in samples(http)} == families_before
    people.user().submit(name='机器学习 "quoted" \\ {x}', labels={"a": 'b"c'})
    texts = {text for sample in samples(http) for text in sample.labels.values()}
    assert not any("机器学习" in text or 'b"c' in text or text == "ana" for text in texts), (
        "no user's words are a label"
    )
    refused = people.operator().request("PUT", f"/v1/admin/accounts/{'x' * 10_000}", json={})
    assert refused.status_code in {400, 404, 414, 422}


def test_series_are_as_many_with_ten_thousand_jobs_of_a_tenant_as_with_one(
    busy: Centre, people: People, http: Http
) -> None:
    user = people.user()
    user.submit(gpus_per_node=8, gpu_classes=["H100"])
    busy.tick()
    before = {(sample.name, *sorted(sample.labels.items())) for sample in samples(http)}
    for number in range(10):
        user.submit(gpus_per_node=8, gpu_classes=["H100"], array="0-999", name=f"sweep-{number}")
    busy.tick()
    after = {(sample.name, *sorted(sample.labels.items())) for sample in samples(http)}
    new = {name for name, *_ in after - before}
    assert new <= {
        "turnstile_api_request_seconds_bucket",
        "turnstile_api_request_seconds_count",
        "turnstile_api_request_seconds_sum",
        "turnstile_jobs_pending",
    }
    assert len(after) <= len(before) + 32
    assert values(http, "turnstile_jobs")["pending", "acme"] >= 10_000


def test_an_element_of_an_array_is_shown_as_people_type_it(centre: Centre, people: People, http: Http) -> None:
    people.user().submit(gpus_per_node=1, gpu_classes=["H100"], array="5-6")
    centre.tick()
    shown = {sample.labels["job_id"] for sample in samples(http) if sample.name == "turnstile_gpu_allocation_info"}
    assert {each.partition("_")[2] for each in shown} == {"5", "6"}


def test_the_text_is_what_the_library_itself_would_write(busy: Centre) -> None:
    busy.has_account(HOSTILE)
    telemetry = Telemetry("1.2.3")
    for seconds in (0.5, 1e6, 123456789.25, 1e22):
        telemetry.job_started(PoolName("main"), AccountId(HOSTILE), 8, seconds)
    telemetry.ledger_posted(busy.clock.now_ms())
    odd = GaugeMetricFamily("turnstile_odd", "A \\ and\na line.", labels=("what",))
    for number in (float("inf"), float("-inf"), float("nan"), -1.5, 0, -0.0, 1e-9, 999_999.5, 1_000_000, 12_345_678.5):
        odd.add_metric((str(number),), number)
    present = [*families(busy.ask(photograph).result(), busy.clock.now_ms()), odd]
    library = CollectorRegistry(auto_describe=False)
    library.register(Made(present))
    assert telemetry.render(present) == generate_latest(telemetry.registry) + generate_latest(library)


class Made(Collector):
    """Families as they were made."""

    def __init__(self, made: list[Metric]) -> None:
        self._made = made

    def collect(self) -> list[Metric]:
        return self._made
