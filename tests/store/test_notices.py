"""Notices: made of each event once, for those who asked, whatever dies when; tried again, and given up in the end."""

from dataclasses import replace
from typing import Any

import pytest

from scheduler.core.model import EndReason, UserName
from scheduler.notices import MOST_TRIES, NoticeEvent, NoticeWhen, events_of
from scheduler.refusal import Refused
from scheduler.store.actions import CancelJobs
from scheduler.store.notices import (
    EVERYBODY,
    Delivery,
    ForgetDeliveries,
    GatherNotices,
    Outcome,
    RecordOutcomes,
    SetTarget,
    Target,
    TestTarget,
    deliveries_of,
    due_deliveries,
    has_news,
)
from tests.store.harness import ACME, ANA, Centre, draft, start

HOOK = Target(ACME, ANA, "https://hooks.acme.example/t", None, frozenset({NoticeEvent.END}), "whs_1")


def gather(centre: Centre) -> None:
    centre.do(GatherNotices())
    with centre.database.read() as connection:
        assert not has_news(connection)


def due(centre: Centre) -> list[Delivery]:
    with centre.database.read() as connection:
        return due_deliveries(connection, centre.clock.now_ms(), 100)


def told(centre: Centre) -> list[tuple[str, str]]:
    return [(each.event.value, each.body["job"]["id"]) for each in due(centre)]


def run_to_end(centre: Centre, reason: EndReason | None = None, **changes: Any) -> int:
    gang = centre.run("n0/0", **changes)
    centre.started(gang)
    centre.clock.advance(seconds=1)
    centre.ended(gang, reason)
    return gang.job


def test_an_event_makes_one_delivery_however_often_one_looks(centre: Centre) -> None:
    centre.do(SetTarget(HOOK))
    job = run_to_end(centre)
    for _ in range(3):
        gather(centre)
        centre.reopen()
    assert told(centre) == [("end", str(job))]
    (delivery,) = due(centre)
    assert (delivery.address, delivery.secret) == (HOOK.webhook, "whs_1")
    assert delivery.body["next"] == [f"turnstile logs {job}", f"turnstile report {job}"]


def test_what_happened_before_anybody_asked_is_not_told(centre: Centre) -> None:
    run_to_end(centre)
    centre.do(SetTarget(HOOK))
    gather(centre)
    assert due(centre) == []


def test_a_job_says_of_what_its_user_is_told_and_the_tenant_hears_of_what_it_asked_for(centre: Centre) -> None:
    centre.do(SetTarget(HOOK))
    everything = frozenset({NoticeEvent.SUBMIT, NoticeEvent.START, NoticeEvent.FAIL})
    centre.do(SetTarget(Target(ACME, EVERYBODY, None, "ops@acme.example", everything)))
    job = run_to_end(centre, EndReason.EXIT_NONZERO, notify_events=(NoticeEvent.START,))
    gather(centre)
    found = sorted((each.channel.value, each.event.value, each.user) for each in due(centre))
    assert found == [
        ("email", "fail", ""),
        ("email", "start", ""),
        ("email", "submit", ""),
        ("webhook", "start", "ana"),
    ]
    assert {each.body["job"]["id"] for each in due(centre)} == {str(job)}


def test_a_whole_array_is_told_of_once_when_its_last_element_has_ended(centre: Centre) -> None:
    centre.do(SetTarget(HOOK))
    jobs = centre.submit(replace(draft(), array_indexes=(0, 1, 2), notify_when=NoticeWhen.LAST))
    gangs = [centre.apply(start(job, f"n0/{number}")).started[0].allocation for number, job in enumerate(jobs[:2])]
    for gang in gangs:
        centre.started(gang)
    centre.ended(gangs[0])
    gather(centre)
    assert due(centre) == []
    centre.ended(gangs[1], EndReason.EXIT_NONZERO)
    centre.do(CancelJobs((jobs[2],), "ana"))
    gather(centre)
    (delivery,) = due(centre)
    assert (delivery.event, delivery.body["job"]["id"]) == (NoticeEvent.END, str(jobs[0]))
    assert delivery.body["elements"] == {"cancelled": 1, "completed": 1, "failed": 1}


def test_a_failed_try_comes_again_later_and_is_given_up_in_the_end(centre: Centre) -> None:
    centre.do(SetTarget(HOOK))
    run_to_end(centre)
    gather(centre)
    tries = 0
    waits = []
    while found := due(centre):
        tries += 1
        centre.do(RecordOutcomes((Outcome(found[0].id, "the receiver answered 500"),)))
        before_ms = centre.clock.now_ms()
        while not due(centre) and centre.clock.now_ms() - before_ms < 4_000_000:
            centre.clock.advance(seconds=10)
        waits.append((centre.clock.now_ms() - before_ms) // 1000)
    assert tries == MOST_TRIES
    assert waits[:4] == [10, 20, 40, 80]
    with centre.database.read() as connection:
        (record,) = deliveries_of(connection, ACME, ANA, 10)
    assert (record.tries, record.error, record.done_ms is None) == (MOST_TRIES, "the receiver answered 500", False)


def test_what_arrived_or_can_never_arrive_is_done(centre: Centre) -> None:
    centre.do(SetTarget(replace(HOOK, email="ana@acme.example")))
    run_to_end(centre)
    gather(centre)
    first, second = due(centre)
    centre.do(RecordOutcomes((Outcome(first.id, None), Outcome(second.id, "not a public address", is_final=True))))
    assert due(centre) == []
    assert centre.do(ForgetDeliveries(centre.clock.now_ms())) == 0
    centre.clock.advance(seconds=1)
    assert centre.do(ForgetDeliveries(centre.clock.now_ms())) == 2


def test_a_test_goes_by_every_channel_and_needs_a_target(centre: Centre) -> None:
    with pytest.raises(Refused, match="nobody is set up"):
        centre.do(TestTarget(ACME, ANA))
    centre.do(SetTarget(replace(HOOK, email="ana@acme.example")))
    assert len(centre.do(TestTarget(ACME, ANA))) == 2
    centre.do(SetTarget(replace(HOOK, webhook=None, email=None)))
    assert [each.address for each in due(centre)] == [None, None]
    with pytest.raises(Refused, match="nobody is set up"):
        centre.do(TestTarget(ACME, UserName("ana")))


@pytest.mark.parametrize(
    ("kind", "detail", "events"),
    [
        ("submitted", {}, ["submit"]),
        ("ended", {"state": "completed"}, ["end"]),
        ("ended", {"state": "failed"}, ["fail", "end"]),
        ("ended", {"state": "timeout"}, ["timeout", "end"]),
        ("ended", {"state": "cancelled"}, ["end"]),
        ("stopping", {"reason": "preempted"}, ["preempt"]),
        ("stopping", {"reason": "cancelled"}, []),
        ("requeued", {"reason": "node_lost"}, ["requeue"]),
        ("idle", {}, ["idle"]),
        ("changed", {}, []),
    ],
)
def test_a_line_of_history_is_these_events(kind: str, detail: dict[str, str], events: list[str]) -> None:
    assert [event.value for event in events_of(kind, detail)] == events
