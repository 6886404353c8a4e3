"""`turnstile report`: what is told of a job, and what is left out because nobody measured it."""

from typing import Any

import pytest

from cli.reporting import bar, reported
from tests.cli.conftest import Home
from tests.cli.peer import Peer
from tests.cli.recorded import REPORT

UNMEASURED: dict[str, Any] = {
    "gpu": {**REPORT["gpu"], "busy_percent": None, "idle_gpu_hours": None, "idle_percent": None},
    "energy": None,
    "advice": [],
    "costs": [{**REPORT["costs"][0], "currency": None, "amount": None, "price_per_gpu_hour": None}],
}


def test_a_report_reads_like_the_one_of_the_contract_and_fits_a_terminal() -> None:
    heading, gpu, energy, cost, advice = reported(REPORT)
    assert heading.startswith("10431 llama-sft  mei  acme/nlp  completed (exit 0)  ran 3h 40m of 12h, waited 41m 00s")
    assert gpu == "  GPU     91 % busy   ██████████████████░░   mem 71 GB of 80 GB   117.3 GPU-h, 2.4 idle (2 %)"
    assert energy.startswith("  energy  71.2 kWh")
    assert cost == "  cost    293.33 USD   (117.33 GPU-h × 2.50, price list 2026-10; before tax)"
    assert advice.startswith("  advice  -t 5h")
    assert max(map(len, (heading, gpu, energy, cost, advice))) <= 100


def test_what_was_not_measured_has_no_number() -> None:
    _, gpu, cost = reported({**REPORT, **UNMEASURED})
    assert gpu == "  GPU     117.3 GPU-h; how busy was not measured"
    assert cost == "  cost    117.33 GPU-h without a price"


def test_the_coverage_is_told_where_a_part_was_not_seen() -> None:
    _, _, covered, *_ = reported({**REPORT, "gpu": {**REPORT["gpu"], "coverage_ratio": 0.6}})
    assert covered.strip() == "measured for 60% of the time"


def test_restarts_of_energy_counters_are_told_with_the_energy() -> None:
    for restarts, told in ((1, "an energy counter restarted once"), (3, "energy counters restarted 3 times")):
        _, _, energy, *_ = reported({**REPORT, "energy": {**REPORT["energy"], "counter_restarts": restarts}})
        assert energy == f"  energy  71.2 kWh (an estimate by the GPUs' sensors; {told})"


def test_a_job_that_has_not_started_says_so() -> None:
    waiting = {"job_id": 7, "name": "x", "user": "mei", "account": "acme", "state": "pending", "gpu": {}, "items": []}
    assert reported(waiting) == ["7 x  mei  acme  pending  has not started yet"]


@pytest.mark.parametrize(("percent", "filled"), [(0, 0), (2, 0), (3, 1), (50, 10), (100, 20), (130, 20)])
def test_a_bar_is_filled_by_its_percentage_and_never_longer(percent: int, filled: int) -> None:
    assert bar(percent).count("█") == filled
    assert len(bar(percent)) == 20


def test_several_starts_are_a_table_below(home: Home, peer: Peer) -> None:
    first = REPORT["items"][0]
    peer.answers("GET", "/v1/jobs/10431/report", {**REPORT, "items": [first, {**first, "attempt": 2}]})
    told = home.turnstile("report", "10431").out.splitlines()
    assert [line.split()[0] for line in told[-3:]] == ["START", "1", "2"]
    assert "START" in home.turnstile("report", "10431", "-o", "wide").out
