"""From what was asked for to what is stored: the centre's rules and the defaults, then a draft of the job."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath

from scheduler.admission import Money
from scheduler.auth import Rights, Role
from scheduler.core.model import Dependency, NodeName, PoolName, Shape
from scheduler.executor import LaunchSpec
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.store.jobs import JobDraft
from scheduler.wire.fitting import Offer, size_of
from scheduler.wire.spec import (
    PRIORITIES,
    CheckpointSignal,
    Compat,
    JobSpec,
    PriorityWord,
    invalid,
    parse_array,
    parse_cap,
    parse_topology,
    retried_reasons,
)
from scheduler.wire.text import duration_words, shown


@dataclass(frozen=True, slots=True)
class SubmissionRules:
    """What the centre allows in one submission."""

    longest_time_limit_seconds: int = 30 * 86_400
    """30 days: longer than the longest training runs that cannot checkpoint, short enough that a typing error in the
    unit does not keep a reservation open for years."""
    default_grace_seconds: float = 30.0
    """As `policy.default_grace_ms`: Kubernetes' and Slurm's customary half minute."""
    runs_images: bool = False
    """Whether the executor starts containers: a job that names an image must not run without it, as another program."""
    volumes: frozenset[str] = frozenset()
    """Names of what containers may mount."""
    has_terminals: bool = True
    """Whether the executor gives jobs terminals to sit at."""
    shares_gpus: bool = False
    """Whether a job may ask for a part of a GPU: only where something holds jobs to their parts."""
    needs_image: bool = False
    """Whether the executor runs nothing but containers: a job without an image could not start."""
    run_as: str | None = None
    """The system user that jobs run as, None for the daemon's own: the centre's choice, never the submitter's."""
    log_limit_bytes: int = 64 * 1024 * 1024
    """Most that is kept of a job's output."""
    keeps_secrets: bool = True
    """Whether secrets are kept here; where not, the executor knows them by name (Kubernetes)."""
    high_priority_roles: frozenset[Role] = frozenset({Role.USER, Role.TENANT_ADMIN, Role.OPERATOR})
    """Who may ask for `high`. Everyone by default: it orders within a project only, so a project harms nobody else."""


@dataclass(frozen=True, slots=True)
class Centre:
    """What a submission is held against: the nodes there are, the rules, the time."""

    offers: Sequence[Offer]
    rules: SubmissionRules
    now_ms: int


def draft_of(spec: JobSpec, rights: Rights, centre: Centre, after: tuple[Dependency, ...] = ()) -> JobDraft:
    """Returns the job (or array) to store. Raises Refused; nothing is stored then. Cost: linear in the offers.

    `after` are the jobs that `spec.after` names, found for the caller.
    """
    offers, rules, now_ms = centre.offers, centre.rules, centre.now_ms
    account = rights.submission_account(spec.project)
    _check_rules(spec, rights, rules, now_ms)
    indexes = parse_array(spec.array) if spec.array is not None else None
    ask = size_of(spec, offers)
    argv = spec.command if spec.command is not None else ("/bin/sh", "-c", spec.script or "")
    name = spec.name or _name_of(spec)
    grace = rules.default_grace_seconds if spec.grace_seconds is None else float(spec.grace_seconds)
    return JobDraft(
        account=account,
        user=rights.caller.user,
        name=name,
        shape=Shape(
            gpu_classes=ask.classes,
            nodes=ask.nodes,
            gpu_units=ask.units,
            cpu_millicores=None if spec.cpus_per_node is None else spec.cpus_per_node * 1000,
            memory_bytes=spec.memory_bytes_per_node,
            pool=None if spec.pool is None else PoolName(spec.pool),
            only_nodes=tuple(NodeName(node) for node in sorted(set(spec.only_nodes))),
            exclude_nodes=tuple(NodeName(node) for node in sorted(set(spec.exclude_nodes))),
            constraints=tuple(sorted(spec.constraints.items())),
            topology=None if spec.topology is None else parse_topology(spec.topology),
            most_nodes=ask.most_nodes,
        ),
        time_limit_ms=spec.time_limit_seconds * 1000,
        launch=LaunchSpec(
            argv=tuple(argv),
            name=name,
            environment=dict(spec.env),
            workdir=spec.workdir,
            image=spec.image,
            output=spec.output,
            secrets=tuple(sorted(set(spec.secrets))),
            volumes=tuple(dict.fromkeys(spec.volumes)),
            shm_bytes=spec.shm_bytes,
            is_terminal=spec.terminal,
            idle_stop_seconds=spec.idle_stop_seconds,
            has_slurm_names=spec.compat is Compat.SLURM,
            grace_seconds=grace,
            stop_signal=f"SIG{(spec.checkpoint_signal or CheckpointSignal.TERM).value}",
            log_limit_bytes=rules.log_limit_bytes,
            run_as=rules.run_as,
        ),
        wanted=spec.booking,
        priority=PRIORITIES[spec.priority],
        begin_ms=utc_ms(spec.begin_at),
        deadline_ms=utc_ms(spec.deadline_at),
        is_held=spec.hold,
        retries=spec.retries,
        retry_on=retried_reasons(spec),
        array_indexes=indexes,
        array_cap=None if spec.array is None else parse_cap(spec.array),
        after=after,
        labels=dict(spec.labels),
        max_cost=None if spec.max_cost is None else Money(spec.max_cost.amount, spec.max_cost.currency or ""),
        notify_events=spec.notify,
        notify_when=spec.notify_when,
    )


def utc_ms(moment: datetime | None) -> int | None:
    """Returns an instant as UTC milliseconds."""
    if moment is None:
        return None
    return int(moment.replace(microsecond=0).timestamp()) * 1000 + moment.microsecond // 1000


def _name_of(spec: JobSpec) -> str:
    """Returns the command's own name, or `script`: what `ps` would show."""
    if spec.command is None:
        return "script"
    base = shown(PurePosixPath(spec.command[0]).name, longest=64).strip()
    return base or "job"


def _check_rules(spec: JobSpec, rights: Rights, rules: SubmissionRules, now_ms: int) -> None:
    check_time_limit(spec.time_limit_seconds, rules)
    if spec.image is not None and not rules.runs_images:
        raise Refused(
            RefusalCode.POLICY,
            "this centre runs processes and no images",
            tries=("leave out --image",),
            problems=(Problem("no images run here", "image"),),
        )
    if spec.terminal and not rules.has_terminals:
        raise Refused(
            RefusalCode.POLICY,
            "jobs have no terminals here: simulated jobs have no inside",
            tries=("turnstile run -- COMMAND",),
            problems=(Problem("is not offered here", "terminal"),),
        )
    _check_container(spec, rules)
    _check_share(spec, rules)
    check_priority(spec.priority, rights, rules)
    check_deadline(spec.deadline_at, now_ms)


def _check_container(spec: JobSpec, rules: SubmissionRules) -> None:
    """Raises Refused (`policy`) for what a container of this centre cannot have, or must."""
    unknown = [name for name in spec.volumes if name not in rules.volumes]
    if unknown:
        offered = ", ".join(sorted(rules.volumes)) or "none"
        raise Refused(
            RefusalCode.POLICY,
            f"there is no volume {unknown[0]!r}; this centre offers: {offered}",
            problems=(Problem("is not offered", "volumes"),),
        )
    if spec.shm_bytes is not None and not rules.runs_images:
        raise Refused(
            RefusalCode.POLICY,
            "this centre runs processes, and they share the machine's own /dev/shm",
            tries=("leave out --shm",),
            problems=(Problem("no containers run here", "shm_bytes"),),
        )
    if spec.image is None and rules.needs_image:
        raise Refused(
            RefusalCode.POLICY,
            "this centre runs containers: say which image",
            tries=("--image REF",),
            problems=(Problem("is required here", "image"),),
        )


def _check_share(spec: JobSpec, rules: SubmissionRules) -> None:
    """Raises Refused (`policy`) for a part of a GPU where jobs cannot be held to one."""
    if spec.gpus_per_node is None or spec.gpus_per_node >= 1 or rules.shares_gpus:
        return
    prefix = f"{','.join(spec.gpu_classes)}:" if spec.gpu_classes else ""
    what = "this centre gives out whole GPUs, because it cannot hold jobs to a share of one"
    raise Refused(
        RefusalCode.POLICY, what, tries=(f"-g {prefix}1",), problems=(Problem("no shares here", "gpus_per_node"),)
    )


def check_time_limit(seconds: int, rules: SubmissionRules) -> None:
    """Raises Refused (`policy`) for a time limit that is longer than the centre allows."""
    if seconds > rules.longest_time_limit_seconds:
        longest = duration_words(rules.longest_time_limit_seconds)
        raise Refused(
            RefusalCode.POLICY,
            f"a time limit of {duration_words(seconds)} is more than this centre allows: {longest}",
            tries=(f"-t {longest}",),
            problems=(Problem(f"at most {longest}", "time_limit_seconds"),),
        )


def check_priority(word: PriorityWord | None, rights: Rights, rules: SubmissionRules) -> None:
    """Raises Refused (`policy`) for a priority that the caller's role may not ask for."""
    if word is PriorityWord.HIGH and rights.caller.role not in rules.high_priority_roles:
        raise Refused(
            RefusalCode.POLICY,
            f"priority high is not for the role {rights.caller.role} at this centre",
            tries=("--priority normal",),
            problems=(Problem("high is not allowed", "priority"),),
        )


def check_deadline(deadline_at: datetime | None, now_ms: int) -> None:
    """Raises Refused (`invalid`) for a deadline that has passed."""
    deadline_ms = utc_ms(deadline_at)
    if deadline_ms is not None and deadline_ms <= now_ms:
        raise invalid((Problem("has passed already", "deadline_at"),))
