"""Lists: complete, stable and in order, however they are cut into pages."""

from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.clock import iso_utc
from scheduler.core.calibration import Measured
from scheduler.core.model import PoolName
from tests.api.centre import Centre
from tests.api.conftest import Client, People


def parse_ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def ids_by_pages(client: Client, **query: str | int) -> list[int]:
    found: list[int] = []
    page: str | None = None
    while True:
        document = client.get("/v1/jobs", params={**query, **({} if page is None else {"page": page})}).json()
        found += [job["id"] for job in document["items"]]
        page = document["next_page"]
        if page is None:
            return found


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(1, 9))
def test_pages_together_are_the_whole_list_for_any_page_size(people: People, limit: int) -> None:
    user = people.user()
    for _ in range(3):
        user.submit()
    whole = [job["id"] for job in user.get("/v1/jobs?limit=1000").json()["items"]]
    assert ids_by_pages(user, limit=limit) == whole == sorted(whole)


def test_pages_stay_right_while_jobs_come_and_go(people: People) -> None:
    user = people.user()
    jobs = [user.submit() for _ in range(6)]
    first = user.get("/v1/jobs?limit=3").json()
    user.post("/v1/jobs/cancel", json={"ids": [str(jobs[0]), str(jobs[4])]})
    late = user.submit()
    rest = user.get("/v1/jobs", params={"limit": 10, "page": first["next_page"]}).json()
    assert [job["id"] for job in first["items"]] == jobs[:3]
    assert [job["id"] for job in rest["items"]] == [jobs[3], jobs[5], late]


def test_live_jobs_read_like_a_queue_and_ended_ones_begin_with_the_newest(people: People) -> None:
    user = people.user()
    jobs = [user.submit() for _ in range(4)]
    user.post("/v1/jobs/cancel", json={"ids": [str(job) for job in jobs[:3]]})
    assert ids_by_pages(user, state="ended", limit=2) == [jobs[2], jobs[1], jobs[0]]
    assert ids_by_pages(user, state="live") == [jobs[3]]
    assert ids_by_pages(user, state="all", limit=3) == jobs[::-1]


def test_filters_leave_what_they_name(people: People) -> None:
    admin = people.admin()
    named = admin.submit(name="one", project="vision")
    pooled = admin.submit(pool="main", project="nlp")
    held = admin.submit(hold=True, project="vision")
    bobs = people.user("bob").submit()

    def ids(**query: str) -> list[int]:
        return ids_by_pages(admin, **query)

    assert ids(name="one") == [named]
    assert ids(name="on*") == [named]
    assert ids(name="o%*") == ids(name="*ne") == [], "a star at the end stands for more, and nothing else does"
    assert ids(pool="main") == [pooled]
    assert ids(state="held") == [held]
    assert ids(user="bob") == [bobs]
    assert ids(project="nlp") == ids(project="acme/nlp") == [pooled]
    assert ids(project="vision", state="pending") == [named, bobs]
    assert ids(tenant="acme") == [named, pooled, held, bobs]
    assert ids(project="unknown") == []
    assert ids_by_pages(people.operator(), tenant="acme", project="nlp") == [pooled]


def test_totals_count_live_jobs_and_held_gpus_of_the_callers_tenant(centre: Centre, people: People) -> None:
    user = people.user()
    user.submit(gpus_per_node=8, nodes=2, gpu_classes=["H100"])
    centre.tick()
    user.submit(gpus_per_node=8, gpu_classes=["H100"])
    people.user("zoe", "zeta/lab").submit(project="lab", gpu_classes=["A100"])
    centre.tick()
    totals = user.get("/v1/jobs").json()["totals"]
    assert {state: count for state, count in totals["jobs"].items() if count} == {"running": 1, "pending": 1}
    assert totals["gpus_held"] == {"H100": 16}
    assert people.operator().get("/v1/jobs").json()["totals"]["gpus_held"] == {"A100": 1, "H100": 16}


def test_pending_jobs_say_why_they_wait(centre: Centre, people: People) -> None:
    user = people.user()
    user.submit(gpus_per_node=8, nodes=2, gpu_classes=["H100"])
    centre.tick()
    waiting = user.submit(gpus_per_node=8, gpu_classes=["H100"])
    centre.tick()
    centre.clock.advance(seconds=1)
    [reason] = user.get("/v1/jobs?state=pending").json()["items"][0]["reasons"]
    assert (reason["code"], reason["blocking"], reason["need"], reason["slurm"]) == ("capacity", True, 8, "Resources")
    why = user.get(f"/v1/jobs/{waiting}/why").json()
    assert (why["kind"], why["job_id"], why["reasons"][0]["code"]) == ("Explanation", waiting, "capacity")
    assert (why["position"], why["ahead_jobs"], why["nodes_considered"], why["nodes_fit"]) == (1, 0, 2, 0)
    terms = {"limit_weight": 0, "service_weight": 24, "slowdown_weight": 0, "takes_turns": False}
    path = f"/v1/admin/accounts/{why['project_order']['account']}"
    assert people.operator().request("PUT", path, json=terms).status_code == 200
    ordered = user.get(f"/v1/jobs/{waiting}/why").json()["project_order"]
    assert ordered == {"account": "acme/vision", **terms}


def test_why_names_all_that_blocks_and_who_is_ahead_only_to_those_who_may_know(centre: Centre, people: People) -> None:
    mei, zoe = people.user(), people.user("zoe", "zeta/lab")
    mei.submit(gpus_per_node=8, nodes=2, gpu_classes=["H100"])
    centre.tick()
    zoe.submit(project="lab", gpus_per_node=8, gpu_classes=["H100"], name="secret")
    job = mei.submit(gpus_per_node=8, gpu_classes=["H100"])
    mei.post("/v1/jobs/hold", json={"ids": [str(job)]})
    centre.has_account("acme", limit={"H100": 16})
    centre.tick()
    own = mei.get(f"/v1/jobs/{job}/why").json()
    assert [each["code"] for each in own["reasons"]] == ["held_user", "quota_tenant", "capacity", "order"]
    mei.post("/v1/jobs/release", json={"ids": [str(job)]})
    centre.tick()
    own, known = (each.get(f"/v1/jobs/{job}/why").json() for each in (mei, people.operator()))
    assert [each["code"] for each in own["reasons"]] == ["quota_tenant", "capacity", "order"]
    assert (own["ahead_jobs"], own["ahead_gpus"], own["ahead"]) == (1, 8, [])
    assert [(each["name"], each["account"]) for each in known["ahead"]] == [("secret", "zeta/lab")]
    assert {each["account"] for each in own["shares"]} == {"acme/vision"}, "her token is the project's"
    assert [each["account"] for each in known["shares"]] == ["acme", "acme/vision"]
    assert [(each["held"], each["limit"]) for each in known["shares"]] == [(16, 16), (16, None)]


def test_a_job_that_ended_is_explained_without_reasons(people: People) -> None:
    user = people.user()
    job = user.submit()
    user.post("/v1/jobs/cancel", json={"ids": [str(job)]})
    assert user.get(f"/v1/jobs/{job}/why").json()["reasons"] == []


def test_a_name_means_the_callers_newest_job_so_named(people: People) -> None:
    user = people.user()
    user.submit(name="train")
    newest = user.submit(name="train")
    people.user("bob").submit(name="train")
    assert user.get("/v1/jobs/train").json()["id"] == newest


def test_a_job_shows_where_it_runs_and_what_has_happened(centre: Centre, people: People) -> None:
    user = people.user()
    job = user.submit(gpus_per_node=4, nodes=2, gpu_classes=["H100"])
    centre.tick()
    centre.clock.advance(minutes=5)
    shown = user.get(f"/v1/jobs/{job}").json()
    assert (shown["state"], shown["elapsed_seconds"], shown["attempt"]) == ("running", 300, 1)
    assert (shown["booking"], shown["pool"], shown["node_names"]) == ("burst", "main", ["h1", "h2"])
    centre.ends(job, exit_code=3)
    ended = user.get(f"/v1/jobs/{job}").json()
    assert (ended["state"], ended["reason"], ended["exit_code"]) == ("failed", "exit_nonzero", 3)
    [allocation] = user.get(f"/v1/jobs/{job}/allocations").json()["items"]
    assert (allocation["end_reason"], [node["gpus"] for node in allocation["nodes"]]) == ("exit_nonzero", [4, 4])
    kinds = [event["kind"] for event in user.get(f"/v1/jobs/{job}/events").json()["items"]]
    assert kinds[0] == "submitted"
    assert kinds[-1] == "ended"


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "page=!!",
        "page=am9i",
        "state=sleeping",
        "stat=all",
        "since=yesterday",
        "since=2026-01-01T00:00:00",
        "name=a%00b",
        "array=99999999999999999999",
    ],
)
def test_a_query_that_cannot_be_is_refused_in_words(people: People, query: str) -> None:
    answer = people.user().get(f"/v1/jobs?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert answer.json()["problems"][0]["field"] == query.partition("=")[0]


def test_since_keeps_what_is_live_or_ended_later(centre: Centre, people: People) -> None:
    user = people.user()
    old, live = user.submit(), user.submit()
    user.post("/v1/jobs/cancel", json={"ids": [str(old)]})
    centre.clock.advance(hours=2)
    from scheduler.clock import iso_utc

    since = iso_utc(centre.clock.now_ms() - 3_600_000)
    assert ids_by_pages(user, state="all", since=since) == [live]


def test_gpus_tell_what_is_free_and_what_the_tenant_holds(centre: Centre, people: People) -> None:
    user = people.user()
    user.submit(gpus_per_node=3, gpu_classes=["H100"])
    centre.tick()
    a100, h100 = user.get("/v1/gpus").json()["items"]
    assert (a100["gpu_model"], a100["memory_bytes"], a100["free"], a100["total"]) == ("A100", 80, 4, 4)
    assert (h100["free"], h100["total"], h100["whole_nodes_free"], h100["held_by_tenant"]) == (13, 16, 1, 3)
    zeta = people.user("zoe", "zeta/lab").get("/v1/gpus").json()["items"]
    assert [each["held_by_tenant"] for each in zeta] == [0, 0]


def test_a_job_that_waits_for_a_running_one_is_told_when_it_would_start(centre: Centre, people: People) -> None:
    user = people.user()
    for _ in range(2):
        user.submit(gpus_per_node=8, gpu_classes=["H100"], time_limit_seconds=3600)
    waits = user.submit(gpus_per_node=8, gpu_classes=["H100"], time_limit_seconds=60)
    centre.tick()
    estimate = user.get(f"/v1/jobs/{waits}/why").json()["start_estimate"]
    assert estimate["p90"] == iso_utc(centre.clock.now_ms() + 3_600_000)
    assert estimate["p50"] <= estimate["p90"]


def test_why_tells_changes_that_would_start_it_now_and_that_hold(centre: Centre, people: People) -> None:
    user = people.user()
    user.submit(gpus_per_node=8, gpu_classes=["H100"], time_limit_seconds=3600)
    waits = user.submit(gpus_per_node=8, nodes=2, gpu_classes=["H100"], time_limit_seconds=3600)
    centre.tick()
    told = user.get(f"/v1/jobs/{waits}/why?sooner=true").json()["sooner"]
    assert {"-N 1"} <= {" ".join(each["flags"]) for each in told}
    assert user.get(f"/v1/jobs/{waits}/why").json()["sooner"] is None
    user.post("/v1/jobs/cancel", json={"ids": [str(waits)]})
    new = user.submit(gpus_per_node=8, nodes=1, gpu_classes=["H100"], time_limit_seconds=3600)
    centre.tick()
    assert user.get(f"/v1/jobs/{new}").json()["state"] in {"starting", "running"}
    assert user.get(f"/v1/jobs/{new}/why?sooner=true").json()["sooner"] == []


def test_an_estimate_says_what_estimates_of_the_pool_were_worth_and_goes_by_it(centre: Centre, people: People) -> None:
    user = people.user()
    for _ in range(2):
        user.submit(gpus_per_node=8, gpu_classes=["H100"], time_limit_seconds=7200)
    waits = [user.submit(gpus_per_node=8, gpu_classes=["H100"], time_limit_seconds=60) for _ in range(3)][-1]
    centre.tick()
    pool = PoolName(user.get(f"/v1/jobs/{waits}/why").json()["start_estimate"]["pool"])
    for _ in range(40):
        centre.past.add(Measured(pool, 600_000, 840_000))
    estimate = user.get(f"/v1/jobs/{waits}/why").json()["start_estimate"]
    assert (estimate["past_estimates"], estimate["past_median_error_seconds"]) == (40, 240)
    assert estimate["is_measured"]
    wait_ms = parse_ms(estimate["p50"]) - centre.clock.now_ms()
    assert parse_ms(estimate["p90"]) == centre.clock.now_ms() + wait_ms * 1400 // 1000
