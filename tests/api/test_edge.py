"""The edge: errors as problem documents, limits, rates, and what a follower answers."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from scheduler.refusal import RefusalCode
from scheduler.routes.limits import Rates
from scheduler.store.database import Fenced, StoreCorrupt, StoreUnavailable
from scheduler.wire.problems import HTTP_STATUS
from tests.api.centre import Centre, app_of
from tests.api.conftest import Http, People, job_spec

PROBLEM = {"type", "title", "status", "detail", "code", "try", "problems", "request_id"}


def test_every_code_has_a_status() -> None:
    assert set(HTTP_STATUS) == set(RefusalCode)


def assert_problem(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert set(document) == PROBLEM
    assert (answer.status_code, document["status"], document["code"]) == (status, status, code)
    assert document["type"] == f"urn:turnstile:problem:{code}"
    assert document["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v2/jobs", "/v1/jobs/1/unknown", "/v1/jobs/", "/docs", "/v1/jobs/..%2f..%2fetc"]
)
def test_an_unknown_address_is_a_problem_document(people: People, path: str) -> None:
    assert_problem(people.user().get(path), 404, "not_found")


def test_a_wrong_method_is_a_problem_document_that_names_the_right_ones(people: People) -> None:
    answer = people.user().request("PATCH", "/v1/jobs")
    assert_problem(answer, 405, "invalid")
    assert "GET" in answer.headers["allow"]


def test_a_request_id_that_the_client_chose_comes_back(people: People) -> None:
    assert people.user().get("/v1/jobs", headers={"X-Request-Id": "my.id-7"}).headers["x-request-id"] == "my.id-7"
    forged = people.user().get("/v1/jobs", headers={"X-Request-Id": "a b\tc"}).headers["x-request-id"]
    assert forged != "a b\tc"


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(http: Http, people: People) -> None:
    user = people.user()
    answer = user.post("/v1/jobs", content=b"x" * ((1 << 20) + 1))
    assert_problem(answer, 413, "too_large")


def test_a_body_without_a_length_is_cut_off_at_the_limit(centre: Centre) -> None:
    http = Http(app_of(centre, most_body_bytes=10_000))
    headers = People(centre, http).user().headers
    sent = 0

    async def endless() -> httpx.Response:
        async def body() -> AsyncIterator[bytes]:
            nonlocal sent
            for _ in range(1000):
                sent += 1000
                yield b"x" * 1000

        return await http.client.post("/v1/jobs", content=body(), headers=headers)

    assert_problem(http.run(endless()), 413, "too_large")
    assert sent < 20_000
    http.close()


def test_a_fault_of_ours_tells_its_request_and_nothing_else(centre: Centre, people: People) -> None:
    user = people.user()
    centre.broken = StoreCorrupt("row 17 of acme's secret table")
    answer = user.post("/v1/jobs", json=job_spec())
    assert_problem(answer, 500, "internal")
    assert "17" not in answer.json()["detail"].replace(answer.headers["x-request-id"], "")
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("problem", [StoreUnavailable("disk full"), Fenced("epoch 3")])
def test_a_store_that_is_away_is_503_with_a_time_to_retry(centre: Centre, people: People, problem: Exception) -> None:
    user = people.user()
    centre.broken = problem
    answer = user.post("/v1/jobs", json=job_spec())
    assert_problem(answer, 503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1


def test_no_node_yet_is_a_reason_to_come_back(people: People, centre: Centre) -> None:
    user = people.user()
    centre.has_nodes()
    assert_problem(user.post("/v1/jobs", json=job_spec()), 503, "unavailable")


def test_a_token_beyond_its_rate_is_told_when_to_come_back(centre: Centre) -> None:
    http = Http(app_of(centre, requests_per_second=2, requests_burst=5))
    people = People(centre, http)
    user, other = people.user(), people.user("bob")
    assert [user.get("/v1/whoami").status_code for _ in range(6)] == [200] * 5 + [429]
    limited = user.get("/v1/whoami")
    assert_problem(limited, 429, "too_many")
    assert other.get("/v1/whoami").status_code == 200
    centre.clock.advance(seconds=int(limited.headers["retry-after"]))
    assert user.get("/v1/whoami").status_code == 200
    http.close()


def test_guessing_tokens_is_slowed_down_by_address(centre: Centre) -> None:
    http = Http(app_of(centre, failed_logins_burst=10))
    guesses = [http.request("GET", "/v1/jobs", headers={"Authorization": f"Bearer tst_{n}"}) for n in range(15)]
    assert {answer.status_code for answer in guesses[:10]} == {401}
    assert {answer.status_code for answer in guesses[10:]} == {429}
    http.close()


def test_buckets_are_bounded_and_refill_with_time() -> None:
    rates = Rates(per_second=1, burst=1)
    assert rates.spend("a", 0)
    assert not rates.spend("a", 999)
    assert rates.spend("a", 1000)
    for number in range(50_000):
        rates.spend(str(number), 2000)
    assert len(rates._buckets) <= 20_001


def test_a_follower_answers_reads_and_sends_writes_to_the_leader(centre: Centre, people: People) -> None:
    user = people.user()
    job = user.submit()
    centre.is_leading, centre.leader_url = False, "http://leader.example:7070/"
    assert user.get(f"/v1/jobs/{job}").json()["state"] == "pending"
    answer = user.post("/v1/jobs?dry_run=true", json=job_spec())
    assert (answer.status_code, answer.headers["location"]) == (307, "http://leader.example:7070/v1/jobs?dry_run=true")
    centre.leader_url = None
    assert_problem(user.post("/v1/jobs", json=job_spec()), 503, "unavailable")


def test_readiness_says_in_words_what_is_missing(centre: Centre, people: People) -> None:
    stranger = people.stranger()
    assert stranger.get("/readyz").status_code == 200
    centre.problems = ["the executor was not heard for 31 s"]
    answer = stranger.get("/readyz")
    assert (answer.status_code, answer.json()["problems"]) == (503, centre.problems)
    assert stranger.get("/healthz").status_code == 200


def test_answers_about_callers_are_kept_by_no_cache(people: People) -> None:
    assert people.user().get("/v1/jobs").headers["cache-control"] == "no-store"
    assert people.stranger().get("/v1/jobs").headers["cache-control"] == "no-store"


def test_requests_at_once_do_not_wait_for_a_slow_reader(centre: Centre, http: Http, people: People) -> None:
    """A body that trickles in keeps its own request waiting and no other."""
    headers = people.user().headers

    async def both() -> bool:
        gate = asyncio.Event()

        async def trickle() -> AsyncIterator[bytes]:
            yield b"{"
            await gate.wait()
            yield b"}"

        slow = asyncio.create_task(http.client.post("/v1/jobs", content=trickle(), headers=headers))
        quick = await http.client.get("/v1/jobs", headers=headers)
        was_waiting = not slow.done()
        gate.set()
        await slow
        return was_waiting and quick.status_code == 200

    assert http.run(both())
