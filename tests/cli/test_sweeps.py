"""`--sweep`, `--max-cost`, `quote`, and flags before the verb."""

import itertools
import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import costs, sweeps
from cli.errors import Refusal, UsageProblem
from tests.cli.conftest import Home
from tests.cli.peer import Asked, Json, Peer, Reply, envelope, page, problem, said
from tests.cli.recorded import job

PRICED = page("JobList", [job(id=None)], is_new=False)
"""A dry run's answer: 64 GPUs for 12 h at 2.50 is 1,920.00 USD."""
WAITS = "would wait: waits for GPUs (needs 64, 40 free)   "


def numbered(peer: Peer) -> None:
    """Answers submissions with numbers one after the other, dry runs with none."""
    numbers = itertools.count(501)

    def answer(asked: Asked) -> Reply:
        spec = asked.json
        number = None if "dry_run" in asked.query else next(numbers)
        return said(page("JobList", [job(id=number, name=spec["name"])], is_new=True))

    peer.answers("POST", "/v1/jobs", answer)


SWEEP = ("--sweep", "lr=1e-5,2e-5", "--sweep", "seed=1,2,3")


def test_a_sweep_is_a_job_for_each_combination_with_the_numbers_on_stdout(home: Home, peer: Peer) -> None:
    numbered(peer)
    done = home.turnstile("submit", "-t", "1h", "-n", "sft", *SWEEP, "--", "x", "--lr={lr}", "{seed}", "{other} {}")
    assert (done.code, done.out) == (0, "501\n502\n503\n504\n505\n506\n")
    specs = [each.json for each in peer.requests("POST", "/v1/jobs")]
    assert [each["name"] for each in specs][:2] == ["sft-lr=1e-5-seed=1", "sft-lr=1e-5-seed=2"]
    assert specs[5]["command"] == ["x", "--lr=2e-5", "3", "{other} {}"]
    assert specs[5]["env"] == {"lr": "2e-5", "seed": "3"}
    assert len({each.headers["Idempotency-Key"] for each in peer.requests("POST", "/v1/jobs")}) == 6
    listed = home.turnstile("submit", "-o", "json", "-t", "1h", *SWEEP, "x")
    assert json.loads(listed.out)["items"][0]["name"] == "x-lr=1e-5-seed=1"
    assert len(home.turnstile("submit", "-q", "-t", "1h", *SWEEP, "x").out.split()) == 6


def test_a_sweep_is_listed_in_each_format_and_tried_without_numbers(home: Home, peer: Peer) -> None:
    numbered(peer)
    sweep = ("submit", "-t", "1h", "-n", "s", "--sweep", "a=1,2")
    rows = home.turnstile(*sweep, "-o", "csv", "x").out.splitlines()
    assert [row.split(",")[0] for row in rows] == ["id", "501", "502"]
    bare = home.turnstile(*sweep, "-o", "csv", "--no-header", "x").out.splitlines()
    assert [row.split(",")[0] for row in bare] == ["503", "504"]
    assert home.turnstile(*sweep, "-o", "name", "x").out == "505\n506\n"
    lines = home.turnstile(*sweep, "-o", "jsonl", "x").out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [507, 508]
    tried = home.turnstile(*sweep, "--dry-run", "x")
    assert (tried.code, tried.err) == (0, "")
    assert tried.out.startswith("Would submit s-a=1\nWould submit s-a=2\neach\n  gets ")
    assert all(each.query for each in peer.requests("POST", "/v1/jobs")[-2:])


def test_the_cost_that_is_told_of_an_array_is_that_of_all_its_elements(home: Home, peer: Peer) -> None:
    peer.answers("POST", "/v1/jobs", page("JobList", [job(id="7_0", array_id=7, array_index=0)], array_size=10))
    told = home.turnstile("submit", "-t", "12h", "-a", "0-9", "x").err
    assert "cost     at most 19,200.00 USD (10 × 1,920.00 USD)" in told


def test_a_sweep_in_a_job_file_is_the_same(home: Home, peer: Peer) -> None:
    numbered(peer)
    (home.path / "s.yaml").write_text("time: 1h\nscript: echo {lr}\nsweep:\n  lr: [1e-5, 2e-5]\n")
    assert home.turnstile("submit", "s.yaml").out == "501\n502\n"
    assert [each.json["script"] for each in peer.requests("POST", "/v1/jobs")] == ["echo 1e-5", "echo 2e-5"]
    assert peer.requests("POST", "/v1/jobs")[0].json["name"] == "script-lr=1e-5"


def test_a_sweep_that_is_refused_on_its_way_says_what_it_has_submitted(home: Home, peer: Peer) -> None:
    first, refused = page("JobList", [job(id=501)]), problem("over_quota", 422, "no more")
    peer.answers("POST", "/v1/jobs", first, refused)
    done = home.turnstile("submit", "-t", "1h", "--sweep", "a=1,2,3", "x")
    assert done.code == 3
    assert "1 of 3 are submitted: 501" in done.err


@pytest.mark.parametrize("text", ["lr", "=1", "1a=2", "lr=1,,2", "lr=", "a b=1"])
def test_what_is_no_sweep_is_wrong_usage(text: str, home: Home, peer: Peer) -> None:
    assert home.turnstile("submit", "-t", "1h", "--sweep", text, "x").code == 2
    assert peer.requests("POST", "/v1/jobs") == []


def test_a_sweep_is_bounded_and_names_each_variable_once(home: Home, peer: Peer) -> None:
    many = ",".join(map(str, range(11)))
    done = home.turnstile("submit", "-t", "1h", *(w for n in "abc" for w in ("--sweep", f"{n}={many}")), "x")
    assert (done.code, "makes 1,331 jobs; 1,000 is the most" in done.err) == (3, True)
    assert home.turnstile("submit", "-t", "1h", "--sweep", "a=1", "--sweep", "a=2", "x").code == 2
    assert home.turnstile("run", "-t", "1h", "--sweep", "a=1", "x").code == 2
    assert peer.requests("POST", "/v1/jobs") == []


LISTS = st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(lists=LISTS)
def test_combinations_are_the_cross_product_in_order(lists: list[list[str]]) -> None:
    texts = [f"v{n}={','.join(each)}" for n, each in enumerate(lists)]
    found = [tuple(each.values()) for each in sweeps.combinations(texts)]
    assert found == list(itertools.product(*lists))


def test_what_may_cost_more_than_is_allowed_is_refused_before_it_is_submitted(home: Home, peer: Peer) -> None:
    peer.answers("POST", "/v1/jobs", PRICED)
    done = home.turnstile("submit", "--max-cost", "1919.99", "-t", "12h", "x")
    assert done.code == 3
    assert done.err.startswith("error: may cost 1,920.00 USD, but --max-cost allows 1,919.99 USD\n")
    assert done.err.endswith("  code  over_budget\n")
    assert [each.query for each in peer.requests("POST", "/v1/jobs")] == [{"dry_run": ["true"]}]
    peer.answers("POST", "/v1/jobs", PRICED, page("JobList", [job()]))
    assert home.turnstile("submit", "--max-cost", "1920 usd", "-t", "12h", "x").out == "10482\n"


def test_the_limit_is_for_all_of_a_sweep_and_all_of_an_array(home: Home, peer: Peer) -> None:
    numbered(peer)
    done = home.turnstile("submit", "--max-cost", "5000", "-t", "12h", "--sweep", "a=1,2,3", "x")
    assert (done.code, done.out) == (3, "")
    assert "may cost 5,760.00 USD (3 jobs, 1,920.00 USD each)" in done.err
    peer.answers("POST", "/v1/jobs", page("JobList", [job(id=None)], array_size=10))
    assert "may cost 19,200.00 USD" in home.turnstile("submit", "--max-cost", "9", "-t", "1h", "-a", "0-9", "x").err


def test_a_limit_that_cannot_be_kept_is_refused(home: Home, peer: Peer) -> None:
    peer.answers("POST", "/v1/jobs", page("JobList", [job(id=None, max_cost=None)]))
    assert "no price is known" in home.turnstile("submit", "--max-cost", "9", "-t", "1h", "x").err
    peer.answers("POST", "/v1/jobs", PRICED)
    done = home.turnstile("submit", "--max-cost", "9 EUR", "-t", "1h", "x")
    assert (done.code, "prices are in USD" in done.err) == (3, True)
    assert home.turnstile("submit", "--max-cost", "much", "-t", "1h", "x").code == 2
    assert all(each.query for each in peer.requests("POST", "/v1/jobs"))


@settings(max_examples=100, deadline=None)
@given(cents=st.integers(0, 10**9), limit=st.integers(0, 10**9), many=st.integers(1, 1000))
def test_a_limit_is_compared_to_the_cent(cents: int, limit: int, many: int) -> None:
    most = costs.Most(Decimal(cents) / 100, "USD")
    try:
        costs.check(str(Decimal(limit) / 100), most, many)
    except Refusal as refused:
        assert refused.code == "over_budget"  # noqa: PT017  (either outcome is right, by the amounts)
        assert cents * many > limit
    except UsageProblem:
        assert "E" in str(Decimal(limit) / 100)
    else:
        assert cents * many <= limit


def test_quote_says_what_a_job_may_cost_and_how_that_comes_about(home: Home, peer: Peer) -> None:
    peer.answers("POST", "/v1/jobs", PRICED)
    done = home.turnstile("quote", "-g", "H100:8", "-N", "8", "-t", "12h")
    assert (done.code, done.err) == (0, "")
    assert (
        done.out == "at most 1,920.00 USD (768 GPU-h × 2.50)   starts ~14:20   " + WAITS + "could be submitted: yes\n"
    )
    (asked,) = peer.requests("POST", "/v1/jobs")
    assert asked.query == {"dry_run": ["true"]}
    assert home.turnstile("quote", "-q", "-t", "12h").out == "1920.00\n"
    rows = home.turnstile("quote", "-o", "csv", "-t", "12h").out.splitlines()
    assert rows[0].startswith("gpus_total,gpu_model")
    assert len(rows) == 2
    assert home.turnstile("quote", "-o", "csv", "--no-header", "-t", "12h").out.splitlines() == rows[1:]


def test_an_elastic_job_is_told_at_its_least_and_at_its_most(home: Home, peer: Peer) -> None:
    elastic = job(
        nodes=2, nodes_min=2, nodes_max=8, gpus_total=16, max_cost_at_nodes_min={"amount": "480.00", "currency": "USD"}
    )
    peer.answers("POST", "/v1/jobs", page("JobList", [elastic]))
    peer.answers("GET", "/v1/jobs/10482", envelope("Job", **elastic))
    asked = ("-g", "H100:8", "-N", "2-8", "-t", "12h")
    quoted = home.turnstile("quote", *asked).out
    assert quoted.startswith("at most 1,920.00 USD (768 GPU-h × 2.50), 480.00 USD on 2 nodes   ")
    echo = home.turnstile("submit", *asked, "--", "true").err
    assert "gets     2 to 8 nodes × 8 H100 = 16 to 64 GPUs for at most 12h" in echo
    assert "cost     at most 1,920.00 USD; 480.00 USD on 2 nodes" in echo
    spec = peer.requests("POST", "/v1/jobs")[-1].json
    assert (spec["nodes"], spec["nodes_max"], spec["gpus_per_node"]) == (2, 8, 8)
    shown = home.turnstile("show", "10482").out
    assert "16-64×H100 (2-8 nodes × 8)" in shown
    assert "at most 1,920.00 USD, 480.00 USD on 2 nodes" in shown
    upside_down = home.turnstile("submit", "-g", "8", "-N", "8-2", "-t", "1h", "--", "true")
    assert (upside_down.code, "-N 2-8" in upside_down.err) == (2, True)


def test_a_quote_is_json_of_decimal_texts_and_counts_all_jobs(home: Home, peer: Peer) -> None:
    numbered(peer)
    document: Json = json.loads(home.turnstile("quote", "-o", "json", "-n", "x", *SWEEP, "-t", "12h").out)
    assert document["kind"] == "Quote"
    assert document["jobs"] == 6
    assert document["max_cost"] == {"amount": "11520.00", "currency": "USD"}
    assert document["gpu_hours"] == "4608"
    assert document["price_per_gpu_hour"] == {"amount": "2.50", "currency": "USD"}


def test_a_quote_without_a_price_or_start_says_what_it_knows(home: Home, peer: Peer) -> None:
    peer.answers("POST", "/v1/jobs", page("JobList", [job(id=None, max_cost=None, start_estimate=None)]))
    shown = home.turnstile("quote", "-t", "12h").out
    assert shown == "768 GPU-h; no price is known for these GPUs   " + WAITS + "could be submitted: yes\n"
    peer.answers("POST", "/v1/jobs", problem("over_quota", 422, "acme would hold 200 of 128 H100"))
    refused = home.turnstile("quote", "-t", "12h")
    assert (refused.code, refused.out) == (3, "")
    assert "acme would hold 200 of 128 H100" in refused.err


def test_flags_of_all_verbs_may_stand_before_the_verb(home: Home, peer: Peer) -> None:
    assert home.turnstile("-o", "json", "queue").out == home.turnstile("queue", "-o", "json").out
    assert home.turnstile("-q", "queue").out == home.turnstile("queue", "-q").out
    assert home.turnstile("--no-header", "admin", "tenant", "list").out.count("\n") + 1 == (
        home.turnstile("admin", "tenant", "list").out.count("\n")
    )
    assert home.turnstile("admin", "-o=x", "tenant", "list").code == 2
    assert home.turnstile("--format=csv", "admin", "tenant", "list").out.startswith("id,")
    assert home.turnstile("-o", "json", "queue", "-q").out == home.turnstile("queue", "-q").out
    refused = home.turnstile("--context", "nowhere", "queue")
    assert (refused.code, "nowhere" in refused.err) == (2, True)
    assert home.turnstile("--gpus", "queue").code == 2
    assert home.turnstile("-o").code == 2
    assert "queue" in home.turnstile("-q").out  # help, as without a verb
    assert home.turnstile("--url", peer.url, "submit", "-t", "1h", "--", "x").out == "10482\n"
