"""Answers about jobs and the centre, as the API and the CLI ask for them."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from scheduler.core.model import (
    GPU_UNITS,
    Account,
    AccountId,
    Booking,
    EndReason,
    JobId,
    JobState,
    PoolName,
    Shape,
    UserName,
)
from scheduler.core.occupancy import OccupancyState
from scheduler.executor import LaunchSpec
from scheduler.refusal import RefusalCode, Refused
from scheduler.store import centre as centre_queries
from scheduler.store import queries, read
from scheduler.store.accounts import SaveAccount
from scheduler.store.actions import CancelJobs
from scheduler.store.codec import launch_json, launch_of
from scheduler.store.jobs import JobDraft
from scheduler.store.ledger_rows import cursors
from scheduler.store.pools import SetPool
from scheduler.store.prepared import json_text
from scheduler.store.queries import JobFilter
from scheduler.store.tokens import RevokeToken, SaveToken
from tests.store.harness import ACME, ANA, H200, PROJECT, Centre, draft

SPEECH = AccountId("acme/speech")
BOB = UserName("bob")
LAUNCH = LaunchSpec(
    argv=("sh", "-c", "echo\n"),
    name="x",
    environment={"A": "ß"},
    workdir="/w",
    image="registry.example/image:1",
    output="o",
    grace_seconds=1.5,
    log_limit_bytes=10,
    run_as="root",
    secrets=("HF_TOKEN",),
    volumes=("data:/data",),
    shm_bytes=1 << 30,
    is_terminal=True,
    idle_stop_seconds=1800,
    adopts=("default/pod-1",),
    has_slurm_names=True,
    simulated_seconds=0.0,
    simulated_exit_code=3,
)


@pytest.fixture
def queue(centre: Centre) -> Centre:
    """Jobs 1 to 6: ana's two and an array of two, bob's one in another project, one that was cancelled."""
    centre.do(SaveAccount(Account(SPEECH), "Speech"))
    pooled = replace(draft().shape, pool=PoolName("main"))
    centre.submit(draft(), draft(shape=pooled, name="pooled"), draft(array_indexes=(4, 7)))
    centre.submit(draft(account=SPEECH, user=BOB, labels={"team": "语音"}), draft(name="old"))
    centre.clock.advance(seconds=5)
    centre.do(CancelJobs((JobId(6),), "ana"))
    return centre


def ids(centre: Centre, wanted: JobFilter, **page: object) -> list[int]:
    with centre.database.read() as connection:
        return [record.job.id for record in queries.list_jobs(connection, wanted, **page)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (JobFilter(), [1, 2, 3, 4, 5, 6]),
        (JobFilter(under=ACME), [1, 2, 3, 4, 5, 6]),
        (JobFilter(under=SPEECH), [5]),
        (JobFilter(under=AccountId("acme/s")), []),
        (JobFilter(under=AccountId("acm")), []),
        (JobFilter(under=AccountId("acme/_peech")), []),
        (JobFilter(users=(BOB,)), [5]),
        (JobFilter(users=()), []),
        (JobFilter(states=(JobState.CANCELLED,)), [6]),
        (JobFilter(states=(JobState.PENDING, JobState.HELD)), [1, 2, 3, 4, 5]),
        (JobFilter(pool=PoolName("main")), [2]),
        (JobFilter(name="old"), [6]),
        (JobFilter(array=JobId(3)), [3, 4]),
        (JobFilter(ids=(JobId(1), JobId(99))), [1]),
    ],
)
def test_a_filter_means_these_jobs(queue: Centre, wanted: JobFilter, found: list[int]) -> None:
    assert ids(queue, wanted) == found
    with queue.database.read() as connection:
        assert queries.job_ids(connection, wanted, limit=2) == found[:2]


def test_jobs_since_a_time_are_those_that_are_not_over_or_ended_later(queue: Centre) -> None:
    now_ms = queue.clock.now_ms()
    assert ids(queue, JobFilter(since_ms=now_ms)) == [1, 2, 3, 4, 5, 6]
    assert ids(queue, JobFilter(since_ms=now_ms + 1)) == [1, 2, 3, 4, 5]


def test_pages_follow_one_another_in_both_directions(queue: Centre) -> None:
    assert ids(queue, JobFilter(), limit=2) == [1, 2]
    assert ids(queue, JobFilter(), limit=2, after=JobId(2)) == [3, 4]
    assert ids(queue, JobFilter(), limit=4, newest_first=True) == [6, 5, 4, 3]
    assert ids(queue, JobFilter(), limit=4, newest_first=True, after=JobId(3)) == [2, 1]


def test_a_job_is_read_as_it_was_submitted(centre: Centre) -> None:
    whole = JobDraft(
        account=PROJECT,
        user=ANA,
        name="训练 'quoted' \"twice\"",
        shape=Shape((H200,), 2, 2 * GPU_UNITS, 5, 7, PoolName("main"), (), (), (("disk", "fast"),)),
        time_limit_ms=1000,
        launch=LAUNCH,
        priority=-1,
        begin_ms=1,
        deadline_ms=2,
        is_held=True,
        retries=4,
        labels={"ключ": "значение"},
    )
    (job,) = centre.submit(whole)
    with centre.database.read() as connection:
        record = queries.job(connection, job)
        assert queries.job(connection, JobId(99)) is None
    assert record is not None
    assert record.job == centre.state.jobs[job]
    assert (record.launch, record.labels, record.name) == (whole.launch, whole.labels, whole.name)
    assert (record.tenant, record.gpu_class, record.last_allocation, record.grants) == (ACME, H200, None, ())


def test_a_launch_spec_keeps_every_field_that_its_class_has() -> None:
    """A field that the class gains later must not get lost on the way through the store."""
    changed: dict[str, Any] = {}
    for field in fields(LaunchSpec):
        value = getattr(LAUNCH, field.name)
        changed[field.name] = f"another {field.name}" if isinstance(value, str) else value
    spec = LaunchSpec(**changed)
    assert all(getattr(spec, field.name) != field.default for field in fields(LaunchSpec))
    assert launch_of(json.loads(json_text(launch_json(spec)))) == spec


def test_a_job_that_ran_shows_where_it_ran_last(centre: Centre) -> None:
    allocation = centre.run("n0/0", "n0/1")
    centre.clock.advance(seconds=1)
    centre.started(allocation)
    centre.clock.advance(seconds=1)
    centre.ended(allocation, EndReason.OOM)
    with centre.database.read() as connection:
        record = queries.job(connection, allocation.job)
        (start,) = queries.allocations_of(connection, allocation.job)
        history = queries.history_of(connection, allocation.job)
    assert record is not None
    assert (record.grants, record.booking, record.last_allocation) == (
        allocation.grants,
        Booking.BURST,
        allocation.id,
    )
    assert (record.job.state, record.job.allocation, record.reason) == (JobState.FAILED, None, EndReason.OOM)
    assert record.ended_ms == centre.clock.now_ms() == (record.started_ms or 0) + 1000
    assert (start.allocation.id, start.end_reason, start.exit_code) == (allocation.id, EndReason.OOM, 1)
    assert [line.kind for line in history] == ["submitted", "allocated", "started", "ended"]
    assert history[-1].detail == {
        "state": "failed",
        "reason": "oom",
        "exit_code": 1,
        "allocation": allocation.id,
    }


def test_a_name_means_the_users_newest_job_so_named(queue: Centre) -> None:
    with queue.database.read() as connection:
        newest = queries.newest_job_named(connection, ACME, ANA, "train")
        assert queries.newest_job_named(connection, SPEECH, ANA, "train") is None
        element = queries.array_element(connection, JobId(3), 7)
        assert queries.array_element(connection, JobId(3), 5) is None
    assert newest is not None
    assert newest.job.id == 4
    assert element is not None
    assert element.job.id == 4


def test_jobs_are_counted_by_what_metrics_ask_for(queue: Centre) -> None:
    with queue.database.read() as connection:
        assert queries.count_jobs_by(connection, ("tenant", "state")) == {
            ("acme", "pending"): 5,
            ("acme", "cancelled"): 1,
        }
        assert queries.count_jobs_by(connection, ("user",), JobFilter(under=SPEECH)) == {("bob",): 1}


def test_units_held_are_those_of_the_open_lanes(centre: Centre) -> None:
    centre.run("n0/0", "n0/1")
    centre.run("n1/0", units=GPU_UNITS // 3)
    with centre.database.read() as connection:
        held = centre_queries.units_held(connection)
        lanes = [cursor.occupant for cursor in cursors(connection)]
    assert held == {(PROJECT, H200, Booking.BURST): 2 * GPU_UNITS + GPU_UNITS // 3}
    assert sum(lane.units for lane in lanes if lane.state is OccupancyState.ALLOCATED) == sum(held.values())
    assert sum(lane.units for lane in lanes) == 8 * GPU_UNITS


def test_nodes_pools_and_accounts_are_told(centre: Centre) -> None:
    centre.do(SetPool(PoolName("main"), True, "maintenance"))
    with centre.database.read() as connection:
        nodes = centre_queries.nodes(connection)
        pools = centre_queries.pools(connection)
        accounts = centre_queries.accounts(connection)
    assert [(record.node.name, len(record.devices), record.seen_ms) for record in nodes] == [
        ("n0", 4, centre.clock.now_ms()),
        ("n1", 4, centre.clock.now_ms()),
    ]
    assert [(pool.name, pool.is_closed, pool.reason) for pool in pools] == [("main", True, "maintenance")]
    assert [(record.account.id, record.display_name) for record in accounts] == [(ACME, "Acme"), (PROJECT, "Vision")]
    centre.check()


def test_a_token_is_found_by_the_hash_of_its_secret_and_revoked_once(centre: Centre) -> None:
    token = SaveToken("01TOKEN", "hash", "user", PROJECT, ANA, expires_ms=5)
    centre.do(token)
    with pytest.raises(Refused) as raised:
        centre.do(token)
    assert raised.value.code is RefusalCode.CONFLICT
    assert centre.do(RevokeToken("01TOKEN")) is True
    assert centre.do(RevokeToken("01TOKEN")) is False
    with pytest.raises(Refused, match="no token 02TOKEN"):
        centre.do(RevokeToken("02TOKEN"))
    with centre.database.read() as connection:
        found = centre_queries.token_by_hash(connection, "hash")
        assert centre_queries.token_by_hash(connection, "other") is None
        assert found is not None
        record, suspended = found
        assert centre_queries.tokens(connection) == [record]
    assert suspended is None
    assert (record.role, record.account, record.user, record.expires_ms, record.revoked_ms) == (
        *("user", PROJECT, ANA, 5),
        centre.clock.now_ms(),
    )


def test_the_ledger_is_read_in_order_and_cut_to_a_period(centre: Centre) -> None:
    begin_ms = centre.clock.now_ms()
    for _ in range(3):
        allocation = centre.run("n0/0")
        centre.clock.advance(seconds=1)
        centre.ended(allocation)
        centre.clock.advance(seconds=1)
    with centre.database.read() as connection:
        every = list(read.occupancy(connection))
        middle = list(read.occupancy(connection, begin_ms + 1500, begin_ms + 2500))
        rest = list(read.occupancy(connection, after_sequence=4))
        head = read.ledger_head(connection)
        latest_ms = read.latest_known_ms(connection)
    assert [each.sequence for each in every] == [1, 2, 3, 4, 5]
    assert [each.sequence for each in middle] == [2, 3]
    assert [each.sequence for each in rest] == [5]
    assert (head.sequence, head.hash) == (5, every[-1].hash)
    assert latest_ms == begin_ms + 5000
