"""The files of a simulation: a cluster in TOML, jobs in CSV. All problems of a file are reported together.

Cluster: `[[nodes]]` with `count, name, gpu_class, gpus, cpus, memory_gib, pool, labels`, and `[[accounts]]` with `id,
weight, guarantee, limit` where tenants have terms, and `limit_weight, service_weight, slowdown_weight, takes_turns`
where projects have an order of their own. Jobs: a header with any of
`job_id, submit_seconds, tenant, project, user, nodes, gpus, gpu_class, cpus, memory_gib, time_limit_seconds,
duration_seconds, booking, priority, checkpoint_seconds`; sizes are per node, `gpus` may be a decimal share, an empty
field means the default, unknown columns are kept as labels.
"""

import csv
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import count
from pathlib import Path
from typing import Any

from scheduler.core.model import (
    GPU_UNITS,
    Account,
    AccountId,
    BookingWanted,
    Device,
    DeviceId,
    GpuClass,
    Node,
    NodeName,
    PoolName,
    Shape,
    UserName,
)
from scheduler.executor import NodeInventory
from scheduler.refusal import Problem, RefusalCode, Refused

GIB = 1 << 30
DEFAULT_LIMIT_MS = 30 * 86_400_000
"""The limit of a job that names none: 30 days, the longest that the daemon allows by default."""
_MOST_PROBLEMS = 20
_PRIORITIES = {"low": -1, "normal": 0, "high": 1, "-1": -1, "0": 0, "1": 1}
_NODE_KEYS = {"count", "name", "gpu_class", "gpus", "cpus", "memory_gib", "pool", "labels"}
_ORDER_KEYS = ("limit_weight", "service_weight", "slowdown_weight")
_ACCOUNT_KEYS = {"id", "weight", "guarantee", "limit", "takes_turns", *_ORDER_KEYS}
_JOB_COLUMNS = {
    *("job_id", "submit_seconds", "tenant", "project", "user", "nodes", "gpus", "gpu_class", "cpus", "memory_gib"),
    *("time_limit_seconds", "duration_seconds", "booking", "priority", "checkpoint_seconds"),
}


@dataclass(frozen=True, slots=True)
class TraceJob:
    """A job of a trace. Times are milliseconds from the trace's beginning; `duration_ms` is what it would run."""

    label: str
    submit_ms: int
    duration_ms: int
    time_limit_ms: int
    account: AccountId
    user: UserName
    shape: Shape
    wanted: BookingWanted
    priority: int
    labels: Mapping[str, str]
    checkpoint_ms: int | None = None
    """Between checkpoints; 0: it goes on where it stopped; None: it has none and begins anew."""


def read_cluster(path: Path) -> tuple[NodeInventory, ...]:
    """Returns the nodes of a cluster file. Raises Refused with every problem."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(RefusalCode.INVALID, f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refused(RefusalCode.INVALID, f"{path}: not valid TOML: {error}") from error
    problems: list[Problem] = []
    tables = raw.get("nodes")
    nodes: list[NodeInventory] = []
    if not isinstance(tables, list) or not tables:
        problems.append(Problem("has no [[nodes]]", "nodes"))
        tables = []
    for number, table in enumerate(tables, 1):
        nodes += _nodes(table, number, problems)
    names = [inventory.node.name for inventory in nodes]
    problems += [
        Problem(f"two nodes are named {name}", "nodes") for name in sorted(set(names)) if names.count(name) > 1
    ]
    if problems:
        raise Refused(RefusalCode.INVALID, f"{path} has {len(problems)} problems", problems=tuple(problems))
    return tuple(nodes)


def read_accounts(path: Path) -> tuple[Account, ...]:
    """Returns the accounts of a cluster file; none are needed.

    Accounts that jobs name and the file does not have weight 1 and no terms. Raises Refused with every problem.
    """
    raw = tomllib.loads(path.read_text(encoding="utf-8"))  # read_cluster has read it before
    problems: list[Problem] = []
    accounts: list[Account] = []
    tables = raw.get("accounts", [])
    for number, table in enumerate(tables if isinstance(tables, list) else [tables], 1):
        accounts += _account(table, f"accounts[{number}]", problems)
    if problems:
        raise Refused(RefusalCode.INVALID, f"{path} has {len(problems)} problems", problems=tuple(problems))
    return tuple(sorted(accounts, key=lambda each: each.id))


def _account(table: Any, where: str, problems: list[Problem]) -> Iterator[Account]:
    if not isinstance(table, dict):
        problems.append(Problem("must be a table", where))
        return
    before = len(problems)
    problems += [Problem("unknown key", f"{where}.{key}") for key in sorted(set(table) - _ACCOUNT_KEYS)]
    weight, name = table.get("weight", 1), table.get("id")
    if not isinstance(name, str) or not name.strip("/"):
        problems.append(Problem("must be a path such as acme or acme/nlp", f"{where}.id"))
    if not isinstance(weight, int) or isinstance(weight, bool) or weight < 1:
        problems.append(Problem(f"must be a whole number from 1 up, not {weight!r}", f"{where}.weight"))
    terms: list[dict[GpuClass, int]] = []
    for key in ("guarantee", "limit"):
        counts = table.get(key, {})
        if not isinstance(counts, dict) or not all(type(each) is int and each >= 0 for each in counts.values()):
            problems.append(Problem("must be GPUs by class, such as { H100 = 8 }", f"{where}.{key}"))
            counts = {}
        terms.append({GpuClass(gpu_class): count for gpu_class, count in counts.items()})
    weights = [table.get(key, 0) for key in _ORDER_KEYS]
    problems += [
        Problem(f"must be a whole number from 0 up, not {value!r}", f"{where}.{key}")
        for key, value in zip(_ORDER_KEYS, weights, strict=True)
        if type(value) is not int or value < 0
    ]
    takes_turns = table.get("takes_turns", False)
    if not isinstance(takes_turns, bool):
        problems.append(Problem(f"must be true or false, not {takes_turns!r}", f"{where}.takes_turns"))
    if len(problems) == before:
        yield Account(
            AccountId(str(name).strip("/")),
            int(weight),
            terms[0],
            terms[1],
            takes_turns=takes_turns,
            **dict(zip(_ORDER_KEYS, weights, strict=True)),
        )


def _nodes(table: Any, number: int, problems: list[Problem]) -> Iterator[NodeInventory]:
    where = f"nodes[{number}]"
    if not isinstance(table, dict):
        problems.append(Problem("must be a table", where))
        return
    problems += [Problem("unknown key", f"{where}.{key}") for key in sorted(set(table) - _NODE_KEYS)]
    gpus, cpus, memory = table.get("gpus"), table.get("cpus", 0), table.get("memory_gib", 0)
    copies, gpu_class = table.get("count", 1), table.get("gpu_class", "GPU")
    for key, value, least in (("gpus", gpus, 1), ("cpus", cpus, 0), ("memory_gib", memory, 0), ("count", copies, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            problems.append(Problem(f"must be a whole number from {least} up, not {value!r}", f"{where}.{key}"))
    if problems:
        return
    assert isinstance(gpus, int), "checked above"
    base = str(table.get("name", f"{str(gpu_class).lower()}-{number}"))
    width = len(str(copies - 1))
    for index in range(copies):
        name = NodeName(base if copies == 1 else f"{base}-{index:0{width}d}")
        node = Node(
            name,
            GpuClass(str(gpu_class)),
            PoolName(str(table.get("pool", "main"))),
            cpus * 1000,
            memory * GIB,
            {str(key): str(value) for key, value in dict(table.get("labels", {})).items()},
        )
        yield NodeInventory(
            node, tuple(Device(DeviceId(f"{name}/{slot}"), name, node.gpu_class) for slot in range(gpus))
        )


def read_jobs(path: Path, classes: Sequence[GpuClass]) -> tuple[TraceJob, ...]:
    """Returns the jobs of a CSV file in order of submission; those without a class accept any of `classes`.

    Raises Refused with the first problems, each with its line.
    """
    problems: list[Problem] = []
    jobs: list[TraceJob] = []
    shapes: dict[Shape, Shape] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = {"submit_seconds", "duration_seconds"} - set(reader.fieldnames or ())
            if missing:
                raise Refused(RefusalCode.INVALID, f"{path}: the header lacks {', '.join(sorted(missing))}")
            for number in count(2):
                row = next(reader, None)
                if row is None or len(problems) >= _MOST_PROBLEMS:
                    break
                try:
                    jobs.append(_job(row, number, classes, shapes))
                except (ValueError, InvalidOperation) as problem:
                    problems.append(Problem(str(problem) or "not a number", f"line {number}"))
    except OSError as error:
        raise Refused(RefusalCode.INVALID, f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refused(RefusalCode.INVALID, f"{path}: not a CSV file in UTF-8: {error}") from error
    if problems:
        raise Refused(RefusalCode.INVALID, f"{path} has problems in {len(problems)} lines", problems=tuple(problems))
    return tuple(sorted(jobs, key=lambda job: job.submit_ms))


def _job(row: Mapping[str, str], number: int, classes: Sequence[GpuClass], shapes: dict[Shape, Shape]) -> TraceJob:
    def text(name: str, default: str) -> str:
        return (row.get(name) or "").strip() or default

    def milliseconds(name: str, default: int | None = None) -> int:
        found = text(name, "")
        if not found and default is not None:
            return default
        value = _decimal(name, found)
        if value < 0:
            raise ValueError(f"{name}: {found} is negative")
        return int(value * 1000)

    gpus = _decimal("gpus", text("gpus", "1"))
    units = gpus * GPU_UNITS
    if units != int(units) or units <= 0 or (units > GPU_UNITS and units % GPU_UNITS):
        raise ValueError(f"gpus: {gpus} is neither a whole number nor a share of one GPU")
    cpus, memory = text("cpus", ""), text("memory_gib", "")
    asked = text("gpu_class", "")
    nodes, most_nodes = _range(text("nodes", "1"))
    if most_nodes is not None and units < GPU_UNITS:
        raise ValueError("gpus: an elastic gang has whole GPUs")
    shape = Shape(
        tuple(GpuClass(each) for each in asked.split("|")) if asked else tuple(classes),
        nodes,
        int(units),
        int(_decimal("cpus", cpus) * 1000) if cpus else None,
        int(_decimal("memory_gib", memory) * GIB) if memory else None,
        most_nodes=most_nodes,
    )
    duration_ms = milliseconds("duration_seconds")
    limit_ms = milliseconds("time_limit_seconds", max(DEFAULT_LIMIT_MS, duration_ms))
    priority = text("priority", "normal")
    if priority not in _PRIORITIES:
        raise ValueError(f"priority: {priority!r} is none of low, normal, high")
    tenant, project = text("tenant", "tenant"), text("project", "main")
    return TraceJob(
        label=text("job_id", str(number - 1)),
        submit_ms=milliseconds("submit_seconds"),
        duration_ms=duration_ms,
        time_limit_ms=max(1, limit_ms),
        account=AccountId(f"{tenant}/{project}"),
        user=UserName(text("user", tenant)),
        shape=shapes.setdefault(shape, shape),
        wanted=BookingWanted(text("booking", BookingWanted.AUTO)),
        priority=_PRIORITIES[priority],
        checkpoint_ms=milliseconds("checkpoint_seconds") if text("checkpoint_seconds", "") else None,
        labels={str(key): value for key, value in row.items() if key not in _JOB_COLUMNS and isinstance(value, str)},
    )


def _range(text: str) -> tuple[int, int | None]:
    """Returns the nodes of `4`, and of an elastic `2-8` the most."""
    low, _, high = text.partition("-")
    least, most = int(low), int(high or low)
    if least < 1:
        raise ValueError("nodes: must be 1 or more")
    if most < least:
        raise ValueError(f"nodes: {text} is upside down: {most}-{least}")
    return least, most if most > least else None


def _decimal(name: str, text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{name}: {text!r} is not a number") from None
    if not value.is_finite():
        raise ValueError(f"{name}: {text!r} is not a finite number")
    return value
