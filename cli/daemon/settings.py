"""The daemon's settings: one TOML file, overridden by TURNSTILE_* variables, overridden by flags.

Each key stands here once, with its default and its reason; `reference()` makes `docs/configuration.md` from it. All
problems of a file are reported together. Secrets (a database URL with a password) may come from a file named by
`database.url_file`, and are never printed.
"""

import os
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from scheduler.core.policy import Policy
from scheduler.knobs import knobs, policy_from, value_of_text

LONGEST_WINDOW_SECONDS = 3600
"""Of sample windows: the ledger takes in none that is longer (metering.ledger.MOST_WINDOW_MS)."""
PREFIX = "TURNSTILE_"


class SettingsProblem(Exception):
    """What is wrong with the settings: every problem found, one a line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _key(default: Any, why: str) -> Any:
    return field(default=default, metadata={"why": why})


@dataclass(frozen=True, slots=True)
class Server:
    """Where the API answers."""

    listen: str = _key(
        "127.0.0.1:8470",
        "host:port. Loopback until somebody decides otherwise: the API speaks plain HTTP, so put TLS in "
        "front of it before it leaves the machine",
    )
    url: str | None = _key(None, "the address that users and followers reach it at; default http://<listen>")
    metrics_open: bool = _key(
        True,
        "serve /metrics without a token. It names tenants and jobs, so set false where the port is reachable by others",
    )
    body_limit_bytes: int = _key(1_048_576, "largest request body. A job with a 128 KiB environment fits eight times")
    requests_per_second: float = _key(
        200.0,
        "per token, sustained, with a burst of twice that. Above what a person or a submit loop needs, "
        "below what would slow others",
    )
    longest_time_limit_seconds: int = _key(2_592_000, "longest time limit of a job: 30 days")


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """Where everything durable lives."""

    url: str | None = _key(None, "sqlite:///path or postgresql://user@host/name; default a SQLite file in data_dir")
    url_file: str | None = _key(None, "a file that holds the URL, for URLs with a password")


@dataclass(frozen=True, slots=True)
class ExecutorSettings:
    """What runs the jobs."""

    kind: str = _key(
        "local",
        "local (processes on this machine), kubernetes (containers of a cluster, see [kubernetes]) or simulated (no "
        "processes; jobs end by the clock)",
    )
    sim: str | None = _key(
        None,
        "simulated GPUs instead of NVML's, as NODESxGPUSxCLASS[,…]: 2x8xH200. With kind local, jobs are "
        "still real processes",
    )
    run_as: str | None = _key(
        None, "system user that jobs run as; needs a daemon that runs as root. Default: the daemon's own user"
    )
    shares: bool = _key(
        False,
        "jobs may ask for a part of a GPU (-g H100:0.5): their accounts, prices and places are exact, but only the MPS "
        "control daemon holds processes to their part, so switch it on where that runs or where jobs are trusted. "
        "Never with kubernetes, which has MIG instances instead",
    )
    log_limit_bytes: int = _key(67_108_864, "most that is kept of a job's output: 64 MiB, the head and the tail")
    log_retention_days: int = _key(30, "days that logs of ended jobs are kept")


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """This machine, when it runs jobs itself."""

    name: str | None = _key(None, "node name; default the host name")
    pool: str = _key("main", "pool of this machine's GPUs")
    classes: dict[str, str] = field(
        default_factory=dict,
        metadata={"why": "NVML product name to GPU class, where the built-in names don't suit"},
    )
    reserved_cpus: int = _key(0, "CPUs kept from jobs for the system")
    reserved_memory_gib: int = _key(0, "memory kept from jobs for the system")


MOST_PROCESSES = 64
"""That read the ledger at once (scheduler.store.readers.MOST_PROCESSES)."""
MOST_CLOSING_HOURS = 8784
"""A leap year: whoever waits longer never closes."""


@dataclass(frozen=True, slots=True)
class KubernetesSettings:
    """The cluster, where executor.kind is kubernetes. Lists are texts with commas."""

    kubeconfig: str | None = _key(
        None, "default: the service account of the daemon's pod inside a cluster, else KUBECONFIG or ~/.kube/config"
    )
    context: str | None = _key(None, "context of the kubeconfig; default its current one")
    installation: str = _key(
        "turnstile", "label of all that this Turnstile makes: two in one cluster must not clean up after each other"
    )
    namespace_prefix: str = _key("turnstile-", "a tenant's namespace is this and its name")
    create_namespaces: bool = _key(
        True, "make tenants' namespaces with quota, limits, network policy and Pod Security labels; false: admins do"
    )
    pod_security: str = _key("baseline", "Pod Security level enforced there; most CUDA images cannot run restricted")
    isolate_namespaces: bool = _key(True, "with a network policy that lets in pods of the same tenant only")
    class_label: str = _key("nvidia.com/gpu.product", "node label that tells the GPU; GPU feature discovery writes it")
    classes: dict[str, str] = field(
        default_factory=dict, metadata={"why": "its values to GPU classes, where the built-in names don't suit"}
    )
    pool_label: str | None = _key(None, "node label that names the pool; default node.pool for all")
    node_selector: str = _key("", "label selector of the nodes to use; default all that offer GPUs")
    tolerations: str = _key("nvidia.com/gpu", "taint keys that jobs tolerate; nodes with other taints are drained")
    image_pull_policy: str = _key("IfNotPresent", "IfNotPresent, Always or Never")
    image_pull_secrets: str = _key("", "Secrets in the tenants' namespaces that hold registry passwords")
    non_root: bool = _key(False, "refuse images that run as root; without capabilities even root is held")
    priority_class: str | None = _key(None, "priorityClassName of jobs' pods")
    runtime_class: str | None = _key(None, "runtimeClassName of jobs' pods, such as nvidia")
    scheduler_name: str | None = _key(None, "schedulerName of jobs' pods; default the cluster's own scheduler")
    pod_annotations: dict[str, str] = field(
        default_factory=dict, metadata={"why": "annotations of jobs' pods, such as to keep sidecars out"}
    )
    volumes: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "why": "what jobs may mount with --volume NAME: `claim=C,mount=/data`, `nfs=HOST:/PATH,mount=/data,ro`"
        },
    )
    start_seconds: float = _key(600.0, "in which all pods of a gang must run, images pulled, or it is released whole")
    node_lost_seconds: float = _key(120.0, "from when the control plane gives a node up until its jobs are given up")
    finished_seconds: float = _key(3600.0, "how long pods of ended jobs stay, for their logs")
    gate: bool = _key(
        True, "pods that users make themselves, with the label gpu-turnstile/project, wait behind a scheduling gate"
    )
    gate_time_limit_seconds: int = _key(
        86_400, "time limit of such a pod that names none; activeDeadlineSeconds is one"
    )


@dataclass(frozen=True, slots=True)
class Metering:
    """What is read off the GPUs, and how time is shown."""

    sample_seconds: float = _key(15.0, "between two samples of every GPU: 10,000 GPUs then cost a fifth of a core")
    window_seconds: float = _key(
        60.0, "length of the windows that samples are kept in: 1,440 rows a GPU and day; at most 3600"
    )
    read_deadline_seconds: float = _key(10.0, "after which a hanging NVML call is given up and its process replaced")
    zone: str | None = _key(
        None, "the centre's time zone (tz database name) for civil days and people; default the system's"
    )
    closing_hours: float = _key(
        72.0, "how long late facts are waited for after a billing period's end: outlasts a weekend's outage of a node"
    )
    observation_days: int = _key(
        400, "how long GPU windows and machines' events are kept: a year and a month. Closed periods need none of them"
    )
    idle_percent: int = _key(
        5, "utilisation up to which a GPU counts as idle: contexts held open and monitoring show 1 to 3"
    )
    idle_notice_minutes: float = _key(
        15.0,
        "how long all GPUs of a job are idle before its owner is told: longer than loading data or a checkpoint takes",
    )
    processes: int | None = _key(
        None,
        "that read a long ledger at once where it is exported, proved or closed; default one a core, 4 at most. Each "
        "takes up to 200 MiB, and lets the daemon go first",
    )
    issuer: str = _key("GPU centre", "the centre's name on invoices and in FOCUS files, where none is asked for")


@dataclass(frozen=True, slots=True)
class Notify:
    """How people are told of their jobs: webhooks, and e-mail where a mail server is named."""

    smtp_host: str | None = _key(None, "mail server; without one no e-mail is sent")
    smtp_port: int = _key(587, "its port for submission (RFC 6409)")
    smtp_from: str | None = _key(None, "the sender's address; needed with smtp_host")
    smtp_user: str | None = _key(None, "name to log in with; none: no login")
    smtp_password_file: str | None = _key(None, "a file that holds the password")
    smtp_tls: bool = _key(True, "STARTTLS, with a checked certificate; false only for a server on the same machine")
    private_addresses: bool = _key(
        False,
        "let webhooks go to loopback and private addresses: tenants choose them, and this machine asks them from "
        "inside the centre's network",
    )


@dataclass(frozen=True, slots=True)
class Decisions:
    """How long it is kept what was decided and why."""

    log_days: float = _key(14.0, "the log of decisions and reasons: a line a start or stop, some 150 bytes each")
    tape_hours: float = _key(
        48.0, "states and events from which a tick can be planned once more: as large as what happened, compressed"
    )


@dataclass(frozen=True, slots=True)
class Logging:
    """What the daemon says of itself, on stderr."""

    level: str = _key("info", "debug, info, warning or error")
    format: str = _key("text", "text for people, json for collectors")


@dataclass(frozen=True, slots=True)
class Tracing:
    """Where OpenTelemetry spans go. Off by default; needs `pip install 'gpu-turnstile[otel]'`."""

    otlp_url: str | None = _key(
        None, "a collector that takes OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; without one no spans"
    )
    ratio: float = _key(
        1.0, "part of the traces that is recorded, from 0 to 1; a caller's own decision goes first. Lower it when busy"
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """All of the daemon's settings."""

    data_dir: str | None = _key(
        None, "directory of the database file, job logs and run state; default the user's data directory"
    )
    server: Server = field(default_factory=Server)
    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    executor: ExecutorSettings = field(default_factory=ExecutorSettings)
    node: NodeSettings = field(default_factory=NodeSettings)
    kubernetes: KubernetesSettings = field(default_factory=KubernetesSettings)
    metering: Metering = field(default_factory=Metering)
    notify: Notify = field(default_factory=Notify)
    decisions: Decisions = field(default_factory=Decisions)
    logging: Logging = field(default_factory=Logging)
    tracing: Tracing = field(default_factory=Tracing)
    policy: Policy = field(default_factory=Policy)

    @property
    def host(self) -> str:
        """The address to listen on."""
        return self.server.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port to listen on; 0 takes a free one."""
        return int(self.server.listen.rpartition(":")[2])


def load(
    path: Path | None, environment: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Returns the settings of a file, under the environment, under the overrides (`{"server.listen": …}`).

    Raises SettingsProblem with every problem found.
    """
    problems: list[str] = []
    raw: dict[str, Any] = {}
    if path is not None:
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsProblem([f"{path}: {error.strerror}; check the path given with --config"]) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsProblem([f"{path}: not valid TOML: {error}"]) from error
    _merge_environment(raw, os.environ if environment is None else environment, problems)
    for dotted, value in (overrides or {}).items():
        _put(raw, dotted, value)
    settings: Settings = _build(Settings, raw, "", problems)
    _check(settings, problems)
    if problems:
        raise SettingsProblem(problems)
    return settings


def _sections() -> dict[str, type]:
    hints = get_type_hints(Settings)
    return {each.name: hints[each.name] for each in fields(Settings) if hints[each.name].__module__ == __name__}


def _merge_environment(raw: dict[str, Any], environment: Mapping[str, str], problems: list[str]) -> None:
    known = {"DATA_DIR": "data_dir"}
    for section, kind in _sections().items():
        for each in fields(kind):
            known[f"{section}_{each.name}".upper()] = f"{section}.{each.name}"
    known |= {f"POLICY_{each.name.upper()}": f"policy.{each.name}" for each in fields(Policy)}
    for name, value in sorted(environment.items()):
        if not name.startswith(PREFIX):
            continue
        rest = name.removeprefix(PREFIX)
        if rest in known:
            section, _, key = known[rest].rpartition(".")
            _put(raw, known[rest], value_of_text(key, value) if section == "policy" else value)
        elif any(rest.startswith(f"{section.upper()}_") for section in (*_sections(), "policy")):
            close = get_close_matches(rest, known, 1)
            hint = f"; did you mean {PREFIX}{close[0]}?" if close else ""
            problems.append(f"environment: {name} names no setting{hint}")


def _put(raw: dict[str, Any], dotted: str, value: Any) -> None:
    section, _, name = dotted.rpartition(".")
    target = raw.setdefault(section, {}) if section else raw
    if isinstance(target, dict):
        target[name] = value


def _build(kind: type, raw: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(raw, dict):
        problems.append(f"{where.rstrip('.')}: must be a table, [{where.rstrip('.')}]")
        return kind()
    hints = get_type_hints(kind)
    names = {each.name for each in fields(kind)}
    for unknown in sorted(set(raw) - names):
        close = get_close_matches(unknown, names, 1)
        problems.append(f"{where}{unknown}: unknown key" + (f", did you mean '{close[0]}'?" if close else ""))
    values: dict[str, Any] = {}
    for name in names & set(raw):
        wanted = hints[name]
        if wanted is Policy and isinstance(raw[name], dict):
            values[name], wrong = policy_from(raw[name])
            problems += [f"policy.{problem.field}: {problem.message}" for problem in wrong]
        elif name in _sections() and kind is Settings:
            values[name] = _build(wanted, raw[name], f"{name}.", problems)
        else:
            values[name] = _convert(wanted, raw[name], f"{where}{name}", problems)
    return kind(**{name: value for name, value in values.items() if value is not None})


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}


def _convert(wanted: Any, value: Any, where: str, problems: list[str]) -> Any:
    if get_origin(wanted) in {Union, types.UnionType}:
        wanted = next(each for each in get_args(wanted) if each is not type(None))
    if get_origin(wanted) is dict:
        if isinstance(value, dict) and all(isinstance(each, str) for each in value.values()):
            return value
        problems.append(f"{where}: must be a table of texts")
        return None
    converted = _scalar(wanted, value)
    if converted is None:
        problems.append(f"{where}: must be {_WORDS[wanted]}, not {value!r}")
    return converted


def _scalar(wanted: type, value: Any) -> bool | int | float | str | None:
    """Returns the value as what is wanted; None if it is not. Variables come as text, so text is read as numbers."""
    if wanted is bool:
        known = {"true": True, "1": True, "false": False, "0": False}
        return known.get(value.lower()) if isinstance(value, str) else value if isinstance(value, bool) else None
    if wanted is str:
        return value if isinstance(value, str) else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    if wanted is float:
        return number if isfinite(number) else None
    return int(number) if isfinite(number) and number == int(number) else None


def _check(settings: Settings, problems: list[str]) -> None:
    server, executor, metering = settings.server, settings.executor, settings.metering
    host, colon, port = server.listen.rpartition(":")
    if not (host and colon and port.isdigit() and int(port) < 65_536):
        problems.append(f"server.listen: {server.listen!r} is not host:port, such as 127.0.0.1:8470")
    for where, number in (
        ("server.body_limit_bytes", server.body_limit_bytes),
        ("server.requests_per_second", server.requests_per_second),
        ("server.longest_time_limit_seconds", server.longest_time_limit_seconds),
        ("executor.log_limit_bytes", executor.log_limit_bytes),
        ("executor.log_retention_days", executor.log_retention_days),
        ("metering.sample_seconds", metering.sample_seconds),
        ("metering.window_seconds", metering.window_seconds),
        ("metering.read_deadline_seconds", metering.read_deadline_seconds),
        ("decisions.log_days", settings.decisions.log_days),
        ("decisions.tape_hours", settings.decisions.tape_hours),
        ("kubernetes.gate_time_limit_seconds", settings.kubernetes.gate_time_limit_seconds),
    ):
        if not number > 0:
            problems.append(f"{where}: must be more than 0, not {number}")
    if metering.window_seconds > LONGEST_WINDOW_SECONDS:
        problems.append(
            f"metering.window_seconds: must be at most {LONGEST_WINDOW_SECONDS}, not {metering.window_seconds:g}"
        )
    for where, value, allowed in (
        ("executor.kind", executor.kind, ("local", "kubernetes", "simulated")),
        ("kubernetes.pod_security", settings.kubernetes.pod_security, ("privileged", "baseline", "restricted")),
        ("kubernetes.image_pull_policy", settings.kubernetes.image_pull_policy, ("IfNotPresent", "Always", "Never")),
        ("logging.level", settings.logging.level, ("debug", "info", "warning", "error")),
        ("logging.format", settings.logging.format, ("text", "json")),
    ):
        if value not in allowed:
            problems.append(f"{where}: must be one of {', '.join(allowed)}, not {value!r}")
    problems.extend(_executor_problems(executor))
    if executor.kind == "simulated" and executor.sim is None:
        problems.append('executor.sim: the simulated executor needs GPUs to simulate, such as "2x8xH200"')
    if settings.database.url is not None and settings.database.url_file is not None:
        problems.append("database.url, database.url_file: give one of the two")
    if settings.notify.smtp_host is not None and settings.notify.smtp_from is None:
        problems.append("notify.smtp_from: needed with notify.smtp_host, such as turnstile@park.example")
    problems.extend(_tracing_problems(settings.tracing))
    problems.extend(_metering_problems(metering))


def _tracing_problems(tracing: Tracing) -> Iterator[str]:
    if tracing.otlp_url is not None and not tracing.otlp_url.startswith(("http://", "https://")):
        yield f"tracing.otlp_url: {tracing.otlp_url!r} is no http:// or https:// address"
    if not 0 <= tracing.ratio <= 1:
        yield f"tracing.ratio: {tracing.ratio:g} is not from 0 to 1"


def _metering_problems(metering: Metering) -> Iterator[str]:
    if not 0 <= metering.closing_hours <= MOST_CLOSING_HOURS:
        yield f"metering.closing_hours: {metering.closing_hours:g} is not from 0 to {MOST_CLOSING_HOURS} hours"
    if metering.processes is not None and not 1 <= metering.processes <= MOST_PROCESSES:
        yield f"metering.processes: {metering.processes} is not from 1 to {MOST_PROCESSES}"
    if metering.observation_days < 1:
        yield f"metering.observation_days: must be at least 1, not {metering.observation_days}"
    if not 0 <= metering.idle_percent < 100:
        yield f"metering.idle_percent: {metering.idle_percent} is not from 0 to 99"
    if not metering.idle_notice_minutes > 0:
        yield f"metering.idle_notice_minutes: must be more than 0, not {metering.idle_notice_minutes:g}"
    if not metering.issuer.strip() or not metering.issuer.isprintable():
        yield 'metering.issuer: needs a name that can be read, such as "Park GPU Centre"'
    if metering.zone is not None:
        try:
            ZoneInfo(metering.zone)
        except (ZoneInfoNotFoundError, ValueError):
            yield f"metering.zone: {metering.zone!r} is not in the tz database; write one such as Asia/Shanghai"


def _executor_problems(executor: ExecutorSettings) -> Iterator[str]:
    from metering.simulated import parse_sim
    from scheduler.executor import StartRefused
    from scheduler.launch import user_for

    if executor.sim is not None:
        try:
            parse_sim(executor.sim)
        except ValueError as problem:
            yield f"executor.sim: {problem}"
    if executor.shares and executor.kind == "kubernetes":
        yield "executor.shares: a container cannot be held to a part of a GPU; offer MIG instances as classes"
    if executor.kind == "local":
        try:
            # Said now, or every job would fail at its start.
            user_for(executor.run_as)
        except StartRefused as problem:
            yield f"executor.run_as: {problem}"


def reference() -> str:
    """Returns the settings as a page: every key with its type, default and reason."""
    lines = [
        "# Configuration",
        "",
        "One TOML file (`turnstile serve --config turnstile.toml`), overridden by variables, overridden by flags.",
        "The variable of a key is `TURNSTILE_<SECTION>_<KEY>`. This page is made from `cli/daemon/settings.py`.",
        "",
    ]
    tables: list[tuple[str, type]] = [("", Settings), *_sections().items()]
    for section, kind in tables:
        hints = get_type_hints(kind)
        if section:
            lines += [f"## [{section}]", "", (kind.__doc__ or "").strip(), ""]
        lines += ["| key | type | default | why |", "|---|---|---|---|"]
        for each in fields(kind):
            if "why" in each.metadata:
                default = each.default if each.default_factory is not dict else {}
                name = getattr(hints[each.name], "__name__", None) or str(hints[each.name])
                name = str(hints[each.name]).removeprefix("<class '").removesuffix("'>").replace(" | None", "")
                lines.append(f"| `{each.name}` | {name} | {_shown(default)} | {each.metadata['why']} |")
        lines.append("")
    lines += ["## [policy]", "", (Policy.__doc__ or "").strip(), ""]
    lines += ["| key | type | default | why |", "|---|---|---|---|"]
    lines += [f"| `{knob.name}` | {knob.kind} | {_shown(knob.default)} | {knob.why} |" for knob in knobs()]
    lines.append("")
    return "\n".join(lines)


def _shown(default: object) -> str:
    if default is None or default == ():
        return "–"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"
