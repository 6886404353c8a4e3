"""Waiting for a job's end, and reading its log: as bytes and as a stream that can be taken up again."""

import asyncio
import base64
import json
from typing import Any

import httpx
import pytest

from scheduler.core.model import AllocationId
from scheduler.executor import LogChunk
from scheduler.routes.limits import Slots, TooFast
from scheduler.routes.streams import LogPlace, follow
from tests.api.centre import Centre, app_of
from tests.api.conftest import Http, People

STREAM = {"Accept": "text/event-stream"}


def events_of(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines() if not line.startswith(":")]
        fields = {name: value for name, _, value in lines}
        if fields:
            found.append({**fields, "data": json.loads(fields["data"])})
    return found


def bytes_of(text: str) -> bytes:
    return b"".join(base64.b64decode(each["data"].get("data_base64", "")) for each in events_of(text))


def test_a_wait_answers_when_the_job_ends(centre: Centre, http: Http, people: People) -> None:
    user = people.user()
    job = user.submit()
    centre.tick()

    async def wait_and_end() -> tuple[httpx.Response, bool]:
        waiting = asyncio.create_task(http.client.get(f"/v1/jobs/{job}/wait?timeout_seconds=60", headers=user.headers))
        await asyncio.sleep(0.2)
        was_waiting = not waiting.done()
        await asyncio.to_thread(centre.ends, job)
        return await waiting, was_waiting

    answer, was_waiting = http.run(wait_and_end())
    assert was_waiting
    assert (answer.status_code, answer.json()["kind"], answer.json()["state"]) == (200, "Job", "completed")


def test_a_wait_whose_time_is_up_answers_with_the_job_as_it_is(centre: Centre, people: People) -> None:
    user = people.user()
    job = user.submit()
    answer = user.get(f"/v1/jobs/{job}/wait?timeout_seconds=0.1")
    assert (answer.status_code, answer.json()["state"]) == (200, "pending")


def test_many_waits_are_woken_by_one_end(centre: Centre, http: Http, people: People) -> None:
    user = people.user()
    job, other = user.submit(), user.submit()
    centre.tick()

    async def wait_all() -> list[httpx.Response]:
        path = f"/v1/jobs/{job}/wait?timeout_seconds=60"
        waiting = [asyncio.create_task(http.client.get(path, headers=user.headers)) for _ in range(50)]
        await asyncio.sleep(0.2)
        await asyncio.to_thread(centre.ends, other)
        await asyncio.to_thread(centre.ends, job)
        return await asyncio.gather(*waiting)

    assert {answer.json()["state"] for answer in http.run(wait_all())} == {"completed"}


def test_a_token_may_not_keep_more_waits_open_than_allowed(centre: Centre) -> None:
    http = Http(app_of(centre, most_waits_per_token=2))
    user = People(centre, http).user()
    job = user.submit()

    async def wait_all() -> list[int]:
        path = f"/v1/jobs/{job}/wait?timeout_seconds=0.5"
        answers = await asyncio.gather(*(http.client.get(path, headers=user.headers) for _ in range(3)))
        return sorted(answer.status_code for answer in answers)

    assert http.run(wait_all()) == [200, 200, 429]
    http.close()


def test_a_log_is_read_piece_by_piece(centre: Centre, people: People) -> None:
    user = people.user()
    job = user.submit()
    before = user.get(f"/v1/jobs/{job}/logs")
    assert (before.content, before.headers["turnstile-log-complete"], before.headers["turnstile-attempt"]) == (
        b"",
        "false",
        "0",
    )
    centre.tick()
    centre.writes(job, b"one\ntwo\n\xff")
    first = user.get(f"/v1/jobs/{job}/logs?limit_bytes=4")
    assert (first.content, first.headers["turnstile-next-offset"]) == (b"one\n", "4")
    assert first.headers["x-content-type-options"] == "nosniff"
    centre.writes(job, b"", is_complete=True)
    rest = user.get(f"/v1/jobs/{job}/logs?offset=4")
    assert (rest.content, rest.headers["turnstile-log-complete"]) == (b"two\n\xff", "true")
    assert user.get(f"/v1/jobs/{job}/logs?rank=5").content == b""
    assert user.get(f"/v1/jobs/{job}/logs?attempt=2").status_code == 404


def test_a_stream_has_every_byte_once_and_ends(centre: Centre, people: People) -> None:
    user = people.user()
    job = user.submit()
    centre.tick()
    centre.writes(job, bytes(range(256)) * 3000, is_complete=True)
    answer = user.get(f"/v1/jobs/{job}/logs", headers=STREAM)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert bytes_of(answer.text) == bytes(range(256)) * 3000
    assert events_of(answer.text)[-1]["event"] == "end"


@pytest.mark.parametrize("place", [0, 1, 700, 5000])
def test_a_stream_goes_on_where_the_client_lost_it(centre: Centre, people: People, place: int) -> None:
    user = people.user()
    job = user.submit()
    centre.tick()
    written = b"".join(b"line %d\n" % number for number in range(1000))
    centre.writes(job, written, is_complete=True)
    answer = user.get(f"/v1/jobs/{job}/logs", headers={**STREAM, "Last-Event-ID": str(place)})
    assert bytes_of(answer.text) == written[place:]
    assert int(events_of(answer.text)[-1]["id"]) == len(written)


def test_the_id_of_each_event_is_where_to_go_on(centre: Centre, people: People) -> None:
    user = people.user()
    job = user.submit()
    centre.tick()
    centre.writes(job, b"x" * 700_000, is_complete=True)
    events = events_of(user.get(f"/v1/jobs/{job}/logs", headers=STREAM).text)
    assert [each["data"]["offset"] for each in events[1:]] == [int(each["id"]) for each in events[:-1]]


def test_a_stream_follows_a_job_from_before_its_start_to_its_end(centre: Centre, http: Http, people: People) -> None:
    user = people.user()
    job = user.submit()

    async def live() -> str:
        path = f"/v1/jobs/{job}/logs"
        stream = asyncio.create_task(http.client.get(path, headers={**user.headers, **STREAM}))
        await asyncio.sleep(0.15)
        await asyncio.to_thread(centre.tick)
        centre.writes(job, b"hello ")
        await asyncio.sleep(0.3)
        centre.writes(job, b"world", is_complete=True)
        return (await stream).text

    assert bytes_of(http.run(live())) == b"hello world"


def test_a_stream_of_a_job_that_never_ran_ends_at_once(people: People) -> None:
    user = people.user()
    job = user.submit()
    user.post("/v1/jobs/cancel", json={"ids": [str(job)]})
    [event] = events_of(user.get(f"/v1/jobs/{job}/logs", headers=STREAM).text)
    assert event["event"] == "end"


def test_a_place_to_go_on_from_that_is_no_number_is_refused(people: People) -> None:
    user = people.user()
    job = user.submit()
    answer = user.get(f"/v1/jobs/{job}/logs", headers={**STREAM, "Last-Event-ID": "later"})
    assert (answer.status_code, answer.json()["problems"][0]["field"]) == (422, "Last-Event-ID")


def test_a_stream_that_the_client_drops_gives_its_slot_back() -> None:
    slots = Slots(1, 1, "log streams")

    async def find() -> LogPlace:
        return LogPlace(AllocationId("a"), 1, is_over=False)

    async def look(_: AllocationId, offset: int) -> LogChunk | None:
        return LogChunk(b"x", offset + 1, is_complete=False)

    async def drop() -> None:
        stream = follow(find, look, 0, slots, "token")
        await anext(stream)
        with pytest.raises(TooFast):
            slots.check("token")
        await stream.aclose()  # type: ignore[attr-defined]  # an async generator, typed as what routes need of it
        slots.check("token")

    asyncio.run(drop())
