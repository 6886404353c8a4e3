"""Jobs that leave their GPUs idle: told, and ended where they asked for it."""

from dataclasses import replace

from cli.daemon.idleness import IdleWatch
from metering.idle import IdleSpells
from metering.samples import StoreWindows
from tests.api.centre import Centre
from tests.api.conftest import People
from tests.metering.test_idle import MINUTE, window

NOTICE_MINUTES = 15


def watch() -> IdleWatch:
    return IdleWatch(IdleSpells(idle_percent=5, gap_ms=int(2.5 * MINUTE)), NOTICE_MINUTES * MINUTE)


def minute(centre: Centre, eye: IdleWatch, *percents: int | None, devices: list[str]) -> None:
    """A minute passes in which the devices were as busy as said."""
    began = centre.clock.now_ms()
    centre.clock.advance(minutes=1)
    plain = [window(0, percent, uuid=device) for device, percent in zip(devices, percents, strict=True)]
    windows = tuple(replace(each, from_ms=began, to_ms=centre.clock.now_ms()) for each in plain)
    centre.carry_out(StoreWindows(windows)).result()
    eye.look(centre, windows)


def devices_of(centre: Centre, job: int) -> list[str]:
    found = centre.ask(lambda state, _: state.allocations[centre.allocation_of(job)].grants).result()
    return [str(device) for grant in found for device in grant.devices]


def kinds(people: People, job: int) -> list[str]:
    return [each["kind"] for each in people.user().get(f"/v1/jobs/{job}/events").json()["items"]]


def test_a_job_is_ended_when_all_its_gpus_were_idle_for_as_long_as_it_said(people: People, centre: Centre) -> None:
    job = people.user().submit(gpus_per_node=2, idle_stop_seconds=180)
    centre.tick()
    devices, eye = devices_of(centre, job), watch()
    for _ in range(5):
        minute(centre, eye, 0, 80, devices=devices)  # one of the two works
    for _ in range(2):
        minute(centre, eye, 0, 1, devices=devices)
    assert people.user().get(f"/v1/jobs/{job}").json()["state"] == "running"
    minute(centre, eye, 0, 0, devices=devices)
    assert people.user().get(f"/v1/jobs/{job}").json()["state"] == "stopping"
    centre.ends(job)
    ended = people.user().get(f"/v1/jobs/{job}").json()
    assert (ended["state"], ended["reason"]) == ("failed", "idle_stop")


def test_a_job_whose_use_is_unknown_is_never_ended_for_it(people: People, centre: Centre) -> None:
    job = people.user().submit(idle_stop_seconds=60)
    centre.tick()
    devices, eye = devices_of(centre, job), watch()
    for _ in range(30):
        minute(centre, eye, None, devices=devices)
    for _ in range(30):
        centre.clock.advance(minutes=1)
        eye.look(centre, [])
    assert people.user().get(f"/v1/jobs/{job}").json()["state"] == "running"
    assert "idle" not in kinds(people, job)


def test_the_owner_is_told_once_of_each_spell(people: People, centre: Centre) -> None:
    job = people.user().submit()
    centre.tick()
    devices, eye = devices_of(centre, job), watch()
    for _ in range(40):
        minute(centre, eye, 0, devices=devices)
    assert kinds(people, job).count("idle") == 1
    minute(centre, eye, 90, devices=devices)
    for _ in range(NOTICE_MINUTES):
        minute(centre, eye, 0, devices=devices)
    assert kinds(people, job).count("idle") == 2


def test_a_daemon_that_starts_again_counts_on_and_tells_nobody_twice(people: People, centre: Centre) -> None:
    stops, works = people.user().submit(idle_stop_seconds=10_800), people.user().submit(idle_stop_seconds=10_800)
    centre.tick()
    devices = [*devices_of(centre, stops), *devices_of(centre, works)]
    for hour in range(3):
        eye = watch()  # each hour another daemon
        for passed in range(60):
            busy = 90 if passed % 10 == 3 else 0
            if (hour, passed) == (2, 59):
                assert people.user().get(f"/v1/jobs/{stops}").json()["state"] == "running"
            minute(centre, eye, 0, busy, devices=devices)
    assert people.user().get(f"/v1/jobs/{stops}").json()["state"] == "stopping"
    assert people.user().get(f"/v1/jobs/{works}").json()["state"] == "running"
    assert (kinds(people, stops).count("idle"), kinds(people, works).count("idle")) == (1, 0)


def test_what_nobody_measured_while_no_daemon_ran_is_not_idle(people: People, centre: Centre) -> None:
    job = people.user().submit(idle_stop_seconds=600)
    centre.tick()
    devices = devices_of(centre, job)
    for away_minutes in (1, 5):
        eye = watch()
        for _ in range(4):
            minute(centre, eye, 0, devices=devices)
        centre.clock.advance(minutes=away_minutes)
    eye = watch()
    for _ in range(9):
        minute(centre, eye, 0, devices=devices)
    assert people.user().get(f"/v1/jobs/{job}").json()["state"] == "running"
    minute(centre, eye, 0, devices=devices)
    assert people.user().get(f"/v1/jobs/{job}").json()["state"] == "stopping"


def test_a_minute_is_the_shortest_idle_stop(people: People) -> None:
    spec = {"command": ["x"], "gpus_per_node": 1, "time_limit_seconds": 60, "idle_stop_seconds": 59}
    assert people.user().post("/v1/jobs", json=spec).json()["problems"][0]["field"] == "idle_stop_seconds"
