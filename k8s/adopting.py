"""What a pod that its user made asks of Turnstile, and what it lacks, in words that say what to do. Pure.

    metadata.labels       gpu-turnstile/project    the project, of the namespace's own tenant
                          gpu-turnstile/gang       pods that share it run together, gpu-turnstile/gang-size of them
    spec.schedulingGates  gpu-turnstile/admission  what it waits behind
    metadata.annotations  gpu-turnstile/user, time-limit, gpu-class, booking, priority, pool

The rest stands in the pod: devices, CPU and memory of its containers, its node selector, its grace.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from k8s import names
from k8s.api import Json
from k8s.options import GateOptions, NodeOptions
from k8s.pods import asked_of, main_container
from scheduler.core.model import AccountId

_DURATION = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,8})m)?(?:(\d{1,9})s)?\Z", re.ASCII)
_UNIT_SECONDS = (86_400, 3600, 60, 1)
DEFAULT_ACCOUNT = "default"
"""The service account of pods that name none: nobody in particular."""
MOST_GANG = 1000


@dataclass(frozen=True, slots=True)
class Wish:
    """What a gated pod asks for. All pods of a gang ask for the same."""

    project: str
    user: str
    time_limit_seconds: int
    resource: str
    """The extended resource of its devices."""
    devices: int
    gpu_classes: tuple[str, ...]
    """In order of preference; empty: any that has the resource."""
    cpu_millicores: int | None
    memory_bytes: int | None
    constraints: Mapping[str, str]
    """Its node selector."""
    grace_seconds: float
    booking: str
    priority: str
    pool: str | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pod with our label, reduced to what decides about it."""

    pod: names.UserPod
    is_gated: bool
    """Our gate is on it."""
    is_waiting: bool
    """Our gate is the only one, and nobody deletes it."""
    is_let_go: bool
    """It was admitted, or it never waited and has a node."""
    wish: Wish | None
    lacks: str | None
    """Why there is no wish."""
    argv: tuple[str, ...]
    image: str
    gang: str | None
    gang_size: int
    status: str | None
    """What was said of it last."""


def reduce_candidate(item: Json, options: NodeOptions, gate: GateOptions) -> Candidate:
    """Returns what matters of a pod with the label of a project. Raises ValueError for a quantity that is none."""
    metadata, spec = item["metadata"], item["spec"]
    labels, notes = metadata.get("labels") or {}, metadata.get("annotations") or {}
    gates = [each["name"] for each in spec.get("schedulingGates") or ()]
    is_gated = names.GATE in gates
    is_over = (item.get("status") or {}).get("phase") in {"Succeeded", "Failed"}
    lacks = next(_lacks(item, options), None) if is_gated else None
    if not is_gated and names.ALLOCATION not in labels and not is_over and not metadata.get("deletionTimestamp"):
        lacks = f"it does not wait and is not metered, because it was made without the scheduling gate {names.GATE}"
    main = next(each for each in spec["containers"] if each["name"] == main_container(spec))
    argv = tuple(str(each) for each in (*(main.get("command") or ()), *(main.get("args") or ())))
    size = str(notes.get(names.GANG_SIZE, "1"))
    return Candidate(
        pod=names.UserPod(metadata["namespace"], metadata["name"], metadata["uid"]),
        is_gated=is_gated,
        is_waiting=gates == [names.GATE] and not metadata.get("deletionTimestamp"),
        is_let_go=names.ALLOCATION in labels,
        wish=_wish(item, options, gate) if is_gated and lacks is None else None,
        lacks=lacks,
        argv=argv or (main["image"],),
        image=main["image"],
        gang=labels.get(names.GANG),
        gang_size=int(size) if size.isdigit() else 0,
        status=notes.get(names.STATUS),
    )


def _lacks(item: Json, options: NodeOptions) -> Iterator[str]:
    """Yields what keeps a gated pod from being a job."""
    labels, notes, spec = item["metadata"].get("labels") or {}, _notes(item), item["spec"]
    devices = _devices(spec, options)
    if not devices:
        yield f"it asks for no GPU; pods without GPUs need no turn: make it without the gate {names.GATE}"
    if len(devices) > 1:
        yield f"it asks for several kinds of GPUs ({', '.join(sorted(devices))}); a job has one"
    if _user(item) is None:
        yield f"it names no user: annotate it with {names.USER}=NAME, a member of the project"
    if names.TIME_LIMIT in notes and _seconds(notes[names.TIME_LIMIT]) is None:
        yield f"{names.TIME_LIMIT} is {notes[names.TIME_LIMIT]!r}; write it as 90m, 12h, 1h30m or 2d"
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    if affinity.get("requiredDuringSchedulingIgnoredDuringExecution"):
        yield "it has a required node affinity, which is how Turnstile chooses its nodes; use spec.nodeSelector instead"
    if names.GANG_SIZE in notes and names.GANG not in labels:
        yield f"it has {names.GANG_SIZE} and no label {names.GANG}, by which the pods of a gang know each other"
    size = notes.get(names.GANG_SIZE)
    if names.GANG in labels and (size is None or not size.isdigit() or not 1 <= int(size) <= MOST_GANG):
        yield f"the pods of a gang say how many they are: annotate each with {names.GANG_SIZE}, 1 to {MOST_GANG}"


def _wish(item: Json, options: NodeOptions, gate: GateOptions) -> Wish:
    notes, spec = _notes(item), item["spec"]
    ((resource, count),) = _devices(spec, options).items()
    sides = _together(spec)
    user = _user(item)
    assert user is not None, "looked at before"
    limit = _seconds(notes[names.TIME_LIMIT]) if names.TIME_LIMIT in notes else spec.get("activeDeadlineSeconds")
    grace = spec.get("terminationGracePeriodSeconds")
    return Wish(
        project=notes.get(names.PROJECT) or item["metadata"]["labels"][names.PROJECT],
        user=user,
        time_limit_seconds=int(limit or gate.time_limit_seconds),
        resource=resource,
        devices=count,
        gpu_classes=tuple(part.strip() for part in notes.get(names.GPU_CLASS, "").split(",") if part.strip()),
        cpu_millicores=sides.get("cpu") or None,
        memory_bytes=sides.get("memory") or None,
        constraints=dict(spec.get("nodeSelector") or {}),
        grace_seconds=30.0 if grace is None else float(grace),
        booking=notes.get(names.BOOKING, "auto"),
        priority=notes.get(names.PRIORITY, "normal"),
        pool=notes.get(names.POOL),
    )


def _notes(item: Json) -> Mapping[str, str]:
    return item["metadata"].get("annotations") or {}


def _user(item: Json) -> str | None:
    """Returns whose job it is: the one that the pod names, or its service account."""
    named = _notes(item).get(names.USER) or (item["metadata"].get("labels") or {}).get(names.USER)
    account = item["spec"].get("serviceAccountName")
    return named or (None if account in {None, "", DEFAULT_ACCOUNT} else account)


def _devices(spec: Json, options: NodeOptions) -> dict[str, int]:
    return {
        name: amount
        for name, amount in _together(spec).items()
        if amount and (name == options.resource or name.startswith(options.mig_prefix))
    }


def _together(spec: Json) -> dict[str, int]:
    found: dict[str, int] = {}
    for container in spec["containers"]:
        for name, amount in asked_of(container).items():
            found[name] = found.get(name, 0) + amount
    return found


def _seconds(text: str) -> int | None:
    """Returns the seconds of `90m`, `1h30m`, `2d`; None for anything else, and for no time at all."""
    match = _DURATION.match(text.strip())
    parts = () if match is None else zip(match.groups(), _UNIT_SECONDS, strict=True)
    return sum(int(number) * unit for number, unit in parts if number) or None


@dataclass(frozen=True, slots=True)
class Gang:
    """Pods that are one job, in rank order: by name, as controllers number them."""

    members: tuple[Candidate, ...]

    @property
    def first(self) -> Candidate:
        """Rank 0."""
        return self.members[0]

    @property
    def key(self) -> str:
        """What makes a job once, for each set of pods."""
        return f"pod {self.first.pod.uid}" if self.first.gang is None else f"gang {self.first.pod.uid}"

    @property
    def lacks(self) -> str | None:
        """Returns what keeps it from being a job; None for nothing."""
        named = next((each.lacks for each in self.members if each.lacks is not None), None)
        if named is not None:
            return named
        if len({each.gang_size for each in self.members}) > 1:
            return f"the pods of gang {self.first.gang} give different sizes in {names.GANG_SIZE}"
        wish = self.first.wish
        if any(each.wish != wish for each in self.members):
            return f"the pods of gang {self.first.gang} ask for different things; a job's nodes are alike"
        if len(self.members) > self.first.gang_size:
            return f"gang {self.first.gang} has {len(self.members)} pods, and says that it is {self.first.gang_size}"
        return None

    @property
    def is_whole(self) -> bool:
        """True when all its pods are there."""
        return self.first.gang is None or len(self.members) == self.first.gang_size


def gangs(waiting: Sequence[Candidate]) -> list[Gang]:
    """Returns the jobs that pods would be, each in rank order: a pod by itself, or those that share a gang's label."""
    found: dict[tuple[str, str, str], list[Candidate]] = {}
    for each in sorted(waiting, key=lambda each: (_natural(each.pod.name), each.pod.uid)):
        key = (each.pod.namespace, each.gang, "") if each.gang is not None else (each.pod.namespace, "", each.pod.uid)
        found.setdefault(key, []).append(each)
    return [Gang(tuple(members)) for members in found.values()]


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Orders `train-2` before `train-10`."""
    return tuple((len(part), part) if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name))


def spec_json(gang: Gang, account: AccountId, classes: Sequence[str]) -> Json:
    """Returns the job that a gang is, as a submission asks for it; `classes` are those that have its resource."""
    first, wish = gang.first, gang.first.wish
    assert wish is not None, "a gang that lacks nothing has a wish"
    pods = " ".join(f"{each.pod.namespace}/{each.pod.name}" for each in gang.members)
    asked: Json = {
        "name": first.gang or first.pod.name,
        "project": account,
        "command": list(first.argv),
        "image": first.image,
        "nodes": len(gang.members),
        "gpus_per_node": wish.devices,
        "gpu_classes": list(wish.gpu_classes or classes),
        "constraints": dict(wish.constraints),
        "time_limit_seconds": wish.time_limit_seconds,
        "booking": wish.booking,
        "priority": wish.priority,
        "labels": {"origin": names.ADOPTED, "pods": pods if len(pods) <= 512 else pods[:511] + "…"},
    }
    return asked if wish.pool is None else {**asked, "pool": wish.pool}


def in_rank(gang: Gang) -> tuple[str, ...]:
    """Returns the references of a gang's pods, by rank."""
    return tuple(str(each.pod) for each in gang.members)
