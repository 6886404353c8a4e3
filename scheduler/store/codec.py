"""Core values to rows and back: the only place that knows how JSON columns look.

A JSON object leaves out what has its default, so a new field with a default needs no migration. Rows are read in the
order of the `*_COLUMNS` here, because positions are several times cheaper than names at 100,000 rows.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from scheduler.core.lifecycle import ACTIVE
from scheduler.core.model import (
    Account,
    AccountId,
    Allocation,
    AllocationId,
    Booking,
    BookingWanted,
    Dependency,
    DependencyKind,
    Device,
    DeviceHealth,
    DeviceId,
    EndReason,
    GpuClass,
    Grant,
    HoldKind,
    Job,
    JobId,
    JobState,
    Node,
    NodeAvailability,
    NodeName,
    Phase,
    PoolName,
    Shape,
    UserName,
)
from scheduler.core.occupancy import Cursor, Evidence, Interval, OccupancyState, Occupant
from scheduler.executor import LaunchSpec
from scheduler.store.columns import JsonObject
from scheduler.store.ledger_tables import DEVICE_CURSOR, OCCUPANCY
from scheduler.store.tables import ACCOUNT, ALLOCATION, DEVICE, JOB

# Taken from the class itself, so that a field that it gains is kept from that day on.
_LAUNCH_FIELDS = tuple(field.name for field in fields(LaunchSpec))
_LAUNCH_EMPTY = {
    "environment",
    "workdir",
    "image",
    "output",
    "run_as",
    "secrets",
    "volumes",
    "shm_bytes",
    "adopts",
    "is_terminal",
    "idle_stop_seconds",
    "has_slurm_names",
}
"""Fields that are left out when they are empty, which is what they are by default."""

# Looked up once a row: a dictionary is several times faster than an enum's call.
_JOB_STATES = {state.value: state for state in JobState}
_WANTED = {wanted.value: wanted for wanted in BookingWanted}
_BOOKINGS = {booking.value: booking for booking in Booking}
_PHASES = {phase.value: phase for phase in Phase}
_OCCUPANCY_STATES = {state.value: state for state in OccupancyState}

Row = Any  # a SQLAlchemy Row: positions and names are checked by the statements that select them

_OCCUPANT_NAMES = (
    *("state", "units", "cause", "phase", "holder", "job_id", "allocation_id", "segment", "booking", "gpu_eq_units"),
)
_JOB_NAMES = (
    *("id", "account", "user", "shape", "time_limit_ms", "submitted_ms", "wanted", "priority", "begin_ms"),
    *("is_backing_off", "deadline_ms", "state", "hold", "attempt", "retries_left", "allocation_id", "array_id"),
    *("array_index", "waits_for", "array_cap", "retry_on"),
)
_ALLOCATION_NAMES = (
    *("id", "job_id", "account", "user", "gpu_class", "booking", "grants", "decided_ms", "attempt", "time_limit_ms"),
    *("phase", "started_ms", "segment", "stop_reason", "checkpointed_ms", "surplus_of"),
)
_INTERVAL_NAMES = ("sequence", "device", "lane", "gpu_class", "from_ms", "to_ms", *_OCCUPANT_NAMES)
JOB_COLUMNS = tuple(sa.cast(JOB.c.shape, sa.Text) if name == "shape" else JOB.c[name] for name in _JOB_NAMES)
"""A job's shape is read as text, because many jobs share few shapes: see `shape_of_text`."""
ALLOCATION_COLUMNS = tuple(ALLOCATION.c[name] for name in _ALLOCATION_NAMES)
DEVICE_COLUMNS = tuple(
    DEVICE.c[name] for name in ("id", "node", "gpu_class", "units", "health", "reason", "is_foreign")
)
ACCOUNT_COLUMNS = tuple(ACCOUNT.c[name] for name in ("id", "weight", "guarantee", "limit", "is_suspended", "terms"))
CURSOR_COLUMNS = tuple(
    DEVICE_CURSOR.c[name] for name in ("device", "lane", "gpu_class", "since_ms", "version", *_OCCUPANT_NAMES)
)
INTERVAL_COLUMNS = tuple(
    OCCUPANCY.c[name]
    for name in (*_INTERVAL_NAMES, "evidence", "recorded_ms", "idempotency_key", "previous_hash", "hash")
)


def _without_defaults(**fields: Any) -> JsonObject:  # Any: JSON values
    return {name: value for name, value in fields.items() if value not in (None, (), {}, [])}


def shape_json(shape: Shape) -> JsonObject:
    """Returns a shape as its JSON object."""
    return _without_defaults(
        gpu_classes=list(shape.gpu_classes),
        nodes=shape.nodes,
        gpu_units=shape.gpu_units,
        cpu_millicores=shape.cpu_millicores,
        memory_bytes=shape.memory_bytes,
        pool=shape.pool,
        only_nodes=list(shape.only_nodes),
        exclude_nodes=list(shape.exclude_nodes),
        constraints=[list(pair) for pair in shape.constraints],
        topology=None if shape.topology is None else list(shape.topology),
        most_nodes=shape.most_nodes,
    )


def shape_of(values: Mapping[str, Any]) -> Shape:
    """Returns the shape that `shape_json` wrote."""
    pool = values.get("pool")
    return Shape(
        gpu_classes=tuple(GpuClass(name) for name in values["gpu_classes"]),
        nodes=values["nodes"],
        gpu_units=values["gpu_units"],
        cpu_millicores=values.get("cpu_millicores"),
        memory_bytes=values.get("memory_bytes"),
        pool=None if pool is None else PoolName(pool),
        only_nodes=tuple(NodeName(name) for name in values.get("only_nodes", ())),
        exclude_nodes=tuple(NodeName(name) for name in values.get("exclude_nodes", ())),
        constraints=tuple((label, value) for label, value in values.get("constraints", ())),
        topology=_topology_of(values.get("topology")),
        most_nodes=values.get("most_nodes"),
    )


def _topology_of(values: Sequence[Any] | None) -> tuple[str, bool] | None:
    if values is None:
        return None
    label, is_required = values
    return label, is_required


@lru_cache(maxsize=16_384)
def shape_of_text(text: str) -> Shape:
    """Returns the shape of a JSON text; the same text gives the same object, which keeps many waiting jobs small."""
    return shape_of(json.loads(text))


def waits_for_text(waits_for: Sequence[Dependency]) -> str | None:
    """Returns dependencies as one text, `afterok:21 afterany:20:20_3 singleton`; None for none.

    An element stands with its own id before the number that people know it by, an array as `20_`.
    """
    return " ".join(_dependency_text(each) for each in waits_for) or None


def _dependency_text(each: Dependency) -> str:
    if each.job is None:
        return each.kind.value
    if each.array is None:
        return f"{each.kind}:{each.job}"
    return f"{each.kind}:{each.job}:{each.array}_{'' if each.index is None else each.index}"


@lru_cache(maxsize=16_384)
def waits_for_of(text: str) -> tuple[Dependency, ...]:
    """Returns the dependencies that `waits_for_text` wrote; the same text gives the same object."""
    return tuple(_dependency_of(*each.split(":")) for each in text.split(" "))


def _dependency_of(kind: str, job: str | None = None, place: str | None = None) -> Dependency:
    if job is None:
        return Dependency(DependencyKind(kind))
    if place is None:
        return Dependency(DependencyKind(kind), JobId(int(job)))
    array, _, index = place.partition("_")
    return Dependency(DependencyKind(kind), JobId(int(job)), JobId(int(array)), int(index) if index else None)


def retry_on_text(reasons: Sequence[EndReason]) -> str | None:
    """Returns reasons as one text; None for none."""
    return " ".join(reason.value for reason in reasons) or None


@lru_cache(maxsize=1024)
def retry_on_of(text: str) -> tuple[EndReason, ...]:
    """Returns the reasons that `retry_on_text` wrote."""
    return tuple(EndReason(word) for word in text.split(" "))


def launch_json(spec: LaunchSpec) -> JsonObject:
    """Returns a launch spec as its JSON object: every field that its class has, less those that are empty anyway."""
    values = {name: getattr(spec, name) for name in _LAUNCH_FIELDS}
    return {name: _plain(value) for name, value in values.items() if name not in _LAUNCH_EMPTY or value}


def launch_of(values: Mapping[str, Any]) -> LaunchSpec:
    """Returns the launch spec that `launch_json` wrote."""
    whole: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return LaunchSpec(**whole)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def grants_json(grants: tuple[Grant, ...]) -> list[JsonObject]:
    """Returns grants as a JSON list, in rank order."""
    return [
        {
            "node": grant.node,
            "devices": list(grant.devices),
            "units": grant.units,
            "cpu_millicores": grant.cpu_millicores,
            "memory_bytes": grant.memory_bytes,
        }
        for grant in grants
    ]


def grants_of(listed: list[JsonObject]) -> tuple[Grant, ...]:
    """Returns the grants that `grants_json` wrote."""
    return tuple(
        Grant(
            NodeName(grant["node"]),
            tuple(DeviceId(device) for device in grant["devices"]),
            grant["units"],
            grant["cpu_millicores"],
            grant["memory_bytes"],
        )
        for grant in listed
    )


@lru_cache(maxsize=16_384)
def grants_of_text(text: str) -> tuple[Grant, ...]:
    """Returns the grants of a JSON text; the same text gives the same objects."""
    return grants_of(json.loads(text))


@lru_cache(maxsize=4_096)
def labels_of_text(text: str) -> Mapping[str, str]:
    """Returns the labels of a JSON text, which nobody may change: the same text gives the same object."""
    return MappingProxyType(json.loads(text) or {})


def account_of(row: Row) -> Account:
    """Returns the account of a row of ACCOUNT_COLUMNS."""
    id_, weight, guarantee, limit, is_suspended, terms = row
    return Account(
        AccountId(id_),
        weight,
        guarantee,
        limit,
        bool(is_suspended),
        terms.get("limit_weight", 0),
        terms.get("service_weight", 0),
        terms.get("slowdown_weight", 0),
        terms.get("user_limit", {}),
        terms.get("running_limit"),
        terms.get("pending_limit"),
        terms.get("high_limit"),
        terms.get("takes_turns", False),
        terms.get("is_locked", False),
        terms.get("guaranteed_yields", False),
    )


def terms_json(account: Account) -> JsonObject:
    """Returns the terms of an account that have no column of their own."""
    return _without_defaults(
        limit_weight=account.limit_weight or None,
        service_weight=account.service_weight or None,
        slowdown_weight=account.slowdown_weight or None,
        user_limit=dict(account.user_limit),
        running_limit=account.running_limit,
        pending_limit=account.pending_limit,
        high_limit=account.high_limit,
        takes_turns=account.takes_turns or None,
        is_locked=account.is_locked or None,
        guaranteed_yields=account.guaranteed_yields or None,
    )


def node_of(row: Row, availability: NodeAvailability, reason: str | None) -> Node:
    """Returns the node of a whole row, with the availability that the admin's drain leaves of the executor's view."""
    return Node(
        name=NodeName(row.name),
        gpu_class=GpuClass(row.gpu_class),
        pool=PoolName(row.pool),
        cpu_millicores=row.cpu_millicores,
        memory_bytes=row.memory_bytes,
        labels=row.labels,
        availability=availability,
        reason=reason,
    )


def device_of(row: Row) -> Device:
    """Returns the device of a row of DEVICE_COLUMNS."""
    id_, node, gpu_class, units, health, reason, is_foreign = row
    return Device(DeviceId(id_), NodeName(node), GpuClass(gpu_class), units, DeviceHealth(health), reason, is_foreign)


def job_of(row: Row) -> Job:
    """Returns the job of a row of JOB_COLUMNS. The row keeps the last allocation of a job that holds none now."""
    id_, account, user, shape, time_limit_ms, submitted_ms, wanted, priority, begin_ms, is_backing_off = row[:10]
    deadline_ms, state, hold, attempt, retries_left, allocation_id, array_id, array_index = row[10:18]
    waits_for, array_cap, retry_on = row[18:]
    job_state = _JOB_STATES[state]
    return Job(
        JobId(id_),
        AccountId(account),
        UserName(user),
        shape_of_text(shape),
        time_limit_ms,
        submitted_ms,
        _WANTED[wanted],
        priority,
        begin_ms,
        is_backing_off,
        deadline_ms,
        job_state,
        None if hold is None else HoldKind(hold),
        attempt,
        retries_left,
        AllocationId(allocation_id) if job_state in ACTIVE else None,
        None if array_id is None else JobId(array_id),
        array_index,
        () if waits_for is None else waits_for_of(waits_for),
        array_cap,
        () if retry_on is None else retry_on_of(retry_on),
    )


def allocation_of(row: Row) -> Allocation:
    """Returns the allocation of a row of ALLOCATION_COLUMNS."""
    id_, job_id, account, user, gpu_class, booking, grants, decided_ms, attempt, time_limit_ms = row[:10]
    phase, started_ms, segment, stop_reason, checkpointed_ms, surplus_of = row[10:]
    return Allocation(
        AllocationId(id_),
        JobId(job_id),
        AccountId(account),
        UserName(user),
        GpuClass(gpu_class),
        _BOOKINGS[booking],
        grants_of(grants),
        decided_ms,
        attempt,
        time_limit_ms,
        _PHASES[phase],
        started_ms,
        segment,
        None if stop_reason is None else EndReason(stop_reason),
        checkpointed_ms,
        surplus_of=None if surplus_of is None else AllocationId(surplus_of),
    )


def cursor_of(row: Row) -> Cursor:
    """Returns the cursor of a row of CURSOR_COLUMNS."""
    device, lane, gpu_class, since_ms, version, *occupant = row
    return Cursor(DeviceId(device), lane, GpuClass(gpu_class), since_ms, version, occupant_of(occupant))


def interval_of(row: Row) -> Interval:
    """Returns the interval of a row of INTERVAL_COLUMNS."""
    sequence, device, lane, gpu_class, from_ms, to_ms, *occupant = row[:16]
    evidence, recorded_ms, idempotency_key, previous_hash, hash_ = row[16:]
    return Interval(
        sequence,
        DeviceId(device),
        lane,
        GpuClass(gpu_class),
        from_ms,
        to_ms,
        occupant_of(occupant),
        Evidence(evidence),
        recorded_ms,
        idempotency_key,
        previous_hash,
        hash_,
    )


def occupant_values(occupant: Occupant) -> JsonObject:
    """Returns an occupant's columns by name, as plain strings and integers, which drivers bind fastest."""
    return {
        "state": occupant.state.value,
        "units": occupant.units,
        "cause": occupant.cause,
        "phase": None if occupant.phase is None else occupant.phase.value,
        "holder": occupant.holder,
        "job_id": occupant.job,
        "allocation_id": occupant.allocation,
        "segment": occupant.segment,
        "booking": None if occupant.booking is None else occupant.booking.value,
        "gpu_eq_units": occupant.gpu_eq_units,
    }


def occupant_of(values: Any) -> Occupant:  # Any: a slice of a row
    """Returns the occupant of its columns' values, in the order of `occupant_values`."""
    state, units, cause, phase, holder, job_id, allocation_id, segment, booking, gpu_eq_units = values
    return Occupant(
        _OCCUPANCY_STATES[state],
        units,
        cause,
        None if phase is None else _PHASES[phase],
        None if holder is None else AccountId(holder),
        None if job_id is None else JobId(job_id),
        None if allocation_id is None else AllocationId(allocation_id),
        segment,
        None if booking is None else _BOOKINGS[booking],
        gpu_eq_units,
    )
