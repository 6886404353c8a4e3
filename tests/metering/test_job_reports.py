"""What came of a job: told from the ledger's lines and from windows, and only as far as those go."""

from dataclasses import replace

import pytest

from metering.advice import Advice, JobEnd, advise, duration, limit_for
from metering.efficiency import JobUse, device_uses, job_use
from metering.ledger import GpuWindow, write_windows
from metering.usage_report import GroupBy, Span, totals_of, usage_by
from scheduler.core.model import GPU_UNITS, AccountId, AllocationId, DeviceId, EndReason, JobState
from tests.metering.builders import HOUR_MS, NOON_MS, book
from tests.metering.centre import SHANGHAI, Centre

A0, A1, B0, B1 = (DeviceId(f"GPU-{place}") for place in ("a-0", "a-1", "b-0", "b-1"))
MINUTE_MS = 60_000
GIB = 1 << 30


def windows(device: DeviceId, from_ms: int, to_ms: int, percent: int, memory: int = 0) -> list[GpuWindow]:
    """Windows of a minute that show the same all the time: 600 joules a minute."""
    return [
        GpuWindow(
            device,
            at_ms,
            min(at_ms + MINUTE_MS, to_ms),
            min(MINUTE_MS, to_ms - at_ms),
            utilization_mean_ppm=percent * 10_000,
            utilization_max_ppm=percent * 10_000,
            memory_max_bytes=memory,
            energy_millijoules=600_000,
        )
        for at_ms in range(from_ms, to_ms, MINUTE_MS)
    ]


def used(centre: Centre, *ids: AllocationId) -> JobUse:
    with centre.read() as connection:
        return job_use(connection, ids, centre.now_ms)


def seen(centre: Centre, *found: list[GpuWindow]) -> None:
    with centre.database.write() as connection:
        write_windows(connection, [window for part in found for window in part])


def ended(**changes: object) -> JobEnd:
    plain = {"state": JobState.COMPLETED, "reason": None, "time_limit_ms": 12 * HOUR_MS, "waited_ms": 40 * MINUTE_MS}
    return JobEnd(**{**plain, "nodes": 1, **changes})  # type: ignore[arg-type]


def test_a_report_has_the_time_the_ledger_has_and_what_windows_saw_of_it(centre: Centre) -> None:
    centre.publish(book("v1", 0, prices={"burst": "2.50"}))
    start_ms = centre.now_ms
    job = centre.run(A0, A1, hours=2)
    seen(
        centre,
        windows(A0, start_ms, start_ms + 2 * HOUR_MS, 90, 71 * GIB),
        windows(A1, start_ms, start_ms + HOUR_MS, 90, 60 * GIB),
        windows(A1, start_ms + HOUR_MS, start_ms + 2 * HOUR_MS, 2),
    )
    use = used(centre, job)
    assert (use.starts, use.gpu_ms, use.measured_ms, use.idle_ms) == (1, 4 * HOUR_MS, 4 * HOUR_MS, HOUR_MS)
    assert use.utilization_ppm == (3 * 900_000 + 20_000) // 4
    assert use.memory_max_bytes == 71 * GIB
    assert use.energy_millijoules == 240 * 600_000
    assert use.charges["CNY"].amount_micros == 10_000_000
    assert use.prices == {("2.50", "v1")}
    assert use.last_ran_ms == 2 * HOUR_MS


def test_energy_is_told_by_the_lives_of_the_driver_where_a_counter_began_anew(centre: Centre) -> None:
    start_ms = centre.now_ms
    job = centre.run(A0, A1, hours=1)
    halves = [
        windows(A0, start_ms, start_ms + HOUR_MS // 2, 90),
        windows(A0, start_ms + HOUR_MS // 2, centre.now_ms, 90),
    ]
    halves[1][0] = replace(halves[1][0], counter_resets=1)
    seen(centre, *halves, windows(A1, start_ms, centre.now_ms, 90))
    use = used(centre, job)
    assert [(each.device, each.millijoules, each.is_restart) for each in use.epochs] == [
        (A0, 30 * 600_000, False),
        (A0, 30 * 600_000, True),
    ]
    assert (use.counter_restarts, use.energy_millijoules) == (1, 120 * 600_000)


def test_what_was_not_measured_is_unknown_and_not_nothing(centre: Centre) -> None:
    use = used(centre, centre.run(A0, hours=1))
    assert (use.utilization_ppm, use.memory_max_bytes, use.energy_millijoules) == (None, None, None)
    assert (use.measured_ms, use.gpu_ms) == (0, HOUR_MS)
    assert advise(ended(time_limit_ms=HOUR_MS), use) == ()


def test_a_share_is_told_no_use_for_others_are_on_its_gpu(centre: Centre) -> None:
    start_ms = centre.now_ms
    job = centre.run(A0, hours=1, units=GPU_UNITS // 2)
    seen(centre, windows(A0, start_ms, start_ms + HOUR_MS, 90))
    use = used(centre, job)
    assert (use.utilization_ppm, use.measured_ms, use.gpu_ms) == (None, 0, HOUR_MS // 2)


def test_windows_that_reach_beyond_the_job_count_by_their_part_and_give_no_maximum(centre: Centre) -> None:
    start_ms = centre.now_ms
    job = centre.run(A0, hours=1)
    before = GpuWindow(
        A0,
        start_ms - 30_000,
        start_ms + 30_000,
        MINUTE_MS,
        utilization_mean_ppm=1_000_000,
        utilization_max_ppm=1_000_000,
        memory_max_bytes=80 * GIB,
        energy_millijoules=1_000_000,
    )
    seen(centre, [before], windows(A0, start_ms + 30_000, start_ms + HOUR_MS, 1, GIB))
    use = used(centre, job)
    assert use.memory_max_bytes == GIB
    assert use.measured_ms == HOUR_MS
    assert use.whole[0].utilization_max_ppm == 10_000
    assert use.energy_millijoules == 500_000 + 600_000 * 60


def test_a_jobs_starts_add_up_and_each_counts_at_its_own_price(centre: Centre) -> None:
    centre.publish(book("v1", 0, prices={"burst": "2.50"}))
    first = centre.run(A0, hours=1, reason=EndReason.PREEMPTED)
    centre.publish(book("v2", centre.now_ms, prices={"burst": "3.00"}))
    second = centre.run(B0, hours=2)
    use = used(centre, second, first)
    assert (use.starts, use.gpu_ms) == (2, 3 * HOUR_MS)
    assert use.charges["CNY"].amount_micros == 2_500_000 + 6_000_000
    assert use.charges["CNY"].preempted_hours_nano == 10**9
    assert use.prices == {("2.50", "v1"), ("3.00", "v2")}


def test_the_reports_of_all_jobs_add_up_to_the_usage_of_the_centre(centre: Centre) -> None:
    centre.publish(book("v1", 0, prices={"burst": "17.333333"}, tax="0.06"))
    ids = [centre.run(A0, B0, hours=13), centre.run(A1, hours=7, account="globex/nlp"), centre.run(B1, hours=30)]
    with centre.read() as connection:
        span = Span(NOON_MS, centre.now_ms, SHANGHAI)
        (total,) = totals_of(usage_by(connection, span, GroupBy.JOB, AccountId("")))
    # Without a zone in the books, days are UTC's: as many lines or not, each is within half a micro of exact.
    reports = [used(centre, each).charges["CNY"] for each in ids]
    assert sum(report.gpu_hours_nano for report in reports) == total.gpu_hours_nano == 63 * 10**9
    assert abs(sum(report.amount_micros for report in reports) - total.amount_micros) <= total.lines


def test_a_gpu_that_was_never_busy_is_advised_against(centre: Centre) -> None:
    start_ms = centre.now_ms
    job = centre.run(A0, A1, B0, B1, hours=2)
    busy = [windows(each, start_ms, start_ms + 2 * HOUR_MS, 95) for each in (A0, A1, B0)]
    seen(centre, *busy, windows(B1, start_ms, start_ms + 2 * HOUR_MS, 0))
    advice = advise(ended(time_limit_ms=2 * HOUR_MS), used(centre, job))
    assert advice == (Advice("fewer_gpus", "1 of 4 GPUs were never busy (2.0 GPU-h); ask for 3 in all"),)


def test_a_gpu_that_was_seen_for_a_part_of_the_time_is_not_said_to_be_idle(centre: Centre) -> None:
    start_ms = centre.now_ms
    job = centre.run(A0, A1, hours=2)
    seen(centre, windows(A0, start_ms, start_ms + 2 * HOUR_MS, 95), windows(A1, start_ms, start_ms + HOUR_MS, 0))
    assert advise(ended(time_limit_ms=2 * HOUR_MS), used(centre, job)) == ()


def test_idle_time_at_the_end_is_told_where_all_of_it_was_seen(centre: Centre) -> None:
    start_ms = centre.now_ms
    job = centre.run(A0, A1, hours=3)
    for device in (A0, A1):
        seen(centre, windows(device, start_ms, start_ms + HOUR_MS, 95))
    blind = advise(ended(time_limit_ms=3 * HOUR_MS), used(centre, job))
    for device in (A0, A1):
        seen(centre, windows(device, start_ms + HOUR_MS, start_ms + 3 * HOUR_MS, 1))
    told = advise(ended(time_limit_ms=3 * HOUR_MS), used(centre, job))
    assert blind == ()
    assert told == (Advice("idle_end", "no GPU was busy in its last 2h (4.0 GPU-h)"),)


def test_a_job_that_never_used_its_gpus_is_told_so(centre: Centre) -> None:
    start_ms = centre.now_ms
    job = centre.run(A0, hours=3)
    seen(centre, windows(A0, start_ms, start_ms + 3 * HOUR_MS, 0))
    (advice,) = advise(ended(time_limit_ms=3 * HOUR_MS), used(centre, job))
    assert (advice.code, "3.0 GPU-h" in advice.message) == ("all_idle", True)
    brief = replace(used(centre, job), last_ran_ms=3_600)
    assert "0.001 GPU-h" in advise(ended(time_limit_ms=3 * HOUR_MS), brief)[0].message, "little is not told as none"


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({}, ["shorter_time"]),
        ({"waited_ms": 30_000}, []),
        ({"waited_ms": None}, []),
        ({"time_limit_ms": 4 * HOUR_MS}, []),
        ({"state": JobState.FAILED, "reason": EndReason.EXIT_NONZERO}, []),
        ({"state": JobState.TIMEOUT, "reason": EndReason.WALLTIME}, ["longer_time"]),
        ({"state": JobState.RUNNING}, []),
    ],
)
def test_a_shorter_limit_is_advised_to_who_waited_and_used_less_than_half(
    changes: dict[str, object], codes: list[str]
) -> None:
    use = JobUse(starts=1, last_ran_ms=220 * MINUTE_MS)
    found = advise(ended(**changes), use)
    assert [each.code for each in found] == codes
    if codes == ["shorter_time"]:
        assert found[0].message.startswith("-t 5h would have been enough (3h40m of 12h used)")


@pytest.mark.parametrize(
    ("ran_ms", "typed"),
    [(1_000, "5m"), (220 * MINUTE_MS, "5h"), (48 * MINUTE_MS, "1h"), (20 * HOUR_MS, "1d6h"), (50 * MINUTE_MS, "1h30m")],
)
def test_a_limit_is_a_quarter_longer_than_the_run_and_easily_typed(ran_ms: int, typed: str) -> None:
    assert limit_for(ran_ms) * 4 >= ran_ms * 5
    assert duration(limit_for(ran_ms)) == typed


def test_every_gpu_asked_about_is_answered_for(centre: Centre) -> None:
    seen(centre, windows(A0, NOON_MS, NOON_MS + HOUR_MS, 50))
    with centre.read() as connection:
        found = device_uses(connection, (B1, A0), NOON_MS, NOON_MS + HOUR_MS)
    assert [(each.device, each.measured_ms) for each in found] == [(B1, 0), (A0, HOUR_MS)]
