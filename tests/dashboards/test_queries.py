"""The checker of queries finds what it is for: each kind of mistake in a query that looks right."""

import pytest

from tests.dashboards.queries import Catalogue, labels_of, problems_of


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("sum(turnstile_gpu)", "no metric of the daemon"),
        ("sum(turnstile_jobs_started)", "no metric of the daemon"),
        ('sum(turnstile_gpus{status="free"})', "no label status"),
        ('sum(turnstile_gpus{state=~"free|idle"})', "never 'idle'"),
        ("sum by (tenant) (turnstile_gpus)", "no label tenant"),
        ("sum(turnstile_jobs_started_total)", "without rate"),
        ("rate(turnstile_gpus[5m])", "is a gauge"),
        ("max_over_time(turnstile_jobs_started_total[5m])", "without rate"),
        ("histogram_quantile(0.5, sum by (pool) (rate(turnstile_job_wait_seconds_bucket[5m])))", "lost le"),
        ("histogram_quantile(0.5, rate(turnstile_job_wait_seconds_sum[5m]))", "no buckets"),
        ("turnstile_gpu_power_watts * on (node, gpu) group_left (tenant) turnstile_gpu_info", "no label tenant"),
        ("turnstile_gpu_power_watts * on (pool) turnstile_gpu_info", "no label pool"),
        ("turnstile_gpus / turnstile_gpu_allocated", "never match"),
        ("sum(turnstile_gpus", "does not parse"),
        ("stddev_over_time(turnstile_gpus[5m])", "not checked"),
    ],
)
def test_a_wrong_query_is_named(query: str, words: str, catalogue: Catalogue) -> None:
    found = problems_of(query, catalogue)
    assert any(words in problem for problem in found), found


def test_labels_of_results_follow_grouping_and_joins(catalogue: Catalogue) -> None:
    joined = "avg by (job_id) (turnstile_gpu_utilization_ratio * on (node, gpu) group_left (job_id)"
    assert labels_of(f'{joined} turnstile_gpu_allocation_info{{tenant="$tenant"}})', catalogue) == {"job_id"}
    assert labels_of("topk(3, turnstile_gpu_temperature_celsius)", catalogue) == {"node", "gpu"}
    assert labels_of("sum(turnstile_gpus)", catalogue) == frozenset()
