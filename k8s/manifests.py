"""What we make in a cluster, as JSON: the Job or Jobs of an allocation, and the Service by which its ranks meet. Pure.

One Indexed Job for a gang where the server keeps `completionMode`; elsewhere one Job a rank, which also pins each rank
to its own node. An elastic gang is one Job a rank everywhere, because nodes are taken from it while it runs. Either way
a pod's host is `NAME-RANK` under a headless Service `NAME`, so ranks find each other by the same names. The chosen
nodes are required by name (`matchFields`), and kube-scheduler binds: quotas, volumes and other users of the cluster
stay respected. Text of users is escaped, because the kubelet expands `$(NAME)` in it.
"""

import hashlib
import json
from collections.abc import Mapping

from k8s import names
from k8s.api import Json
from k8s.options import Options
from k8s.seats import awaiting
from scheduler.compat import slurm_variables
from scheduler.core.model import GPU_UNITS, AllocationId, Grant, tenant_of
from scheduler.executor import StartOrder, StartRefused
from scheduler.launch import check, is_protected

MASTER_PORT = 29500
"""PyTorch's own default (torch.distributed.run): each pod has an address of its own, so one port serves all."""
DEFAULT_SIGNAL = "SIGTERM"
BACKSTOP_SECONDS = 600
"""How long after its limit and grace a job may live when no daemon is there to end it."""


def refuse_impossible(order: StartOrder, options: Options) -> None:
    """Refuses what no pod could be. Raises StartRefused."""
    check(order)
    spec = order.spec
    if spec.image is None:
        raise StartRefused("the job names no image, and this centre runs containers; give one with --image")
    if any(grant.units < GPU_UNITS and _is_whole_gpu(grant, options) for grant in order.allocation.grants):
        raise StartRefused("this centre cannot hold a job to a share of a GPU; ask for a whole one or a MIG class")
    unknown = [name for name in spec.volumes if name not in options.pods.volumes]
    if unknown:
        offered = ", ".join(sorted(options.pods.volumes)) or "none"
        raise StartRefused(f"there is no volume {unknown[0]!r}; this centre offers: {offered}")
    if spec.output is not None:
        raise StartRefused("--output names a file, and this centre's jobs have no directory shared with it; see logs")


def _is_whole_gpu(grant: Grant, options: Options) -> bool:
    is_slot = len(grant.devices) == 1 and names.resource_of(grant.devices[0]) == options.nodes.resource
    return is_slot and grant.units < GPU_UNITS


def service(order: StartOrder, options: Options) -> Json:
    """Returns the headless Service of a gang. Ranks are found before they are ready: they wait for each other."""
    name = names.gang_name(order.allocation)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": _labels(order, options)},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.ALLOCATION: order.allocation.id},
            "ports": [{"name": "rendezvous", "port": MASTER_PORT}],
        },
    }


def is_meeting(order: StartOrder) -> bool:
    """Tells whether ranks of the order meet each other, now or later: then they have a Service and names under it."""
    return len(order.allocation.grants) > 1 or order.least_nodes is not None


def job_names(order: StartOrder, *, is_indexed: bool) -> tuple[str, ...]:
    """Returns the names of the Jobs of an allocation: one, or one a rank in order."""
    allocation = order.allocation
    ranks = len(allocation.grants)
    if order.least_nodes is None and (ranks == 1 or is_indexed):
        return (names.gang_name(allocation),)
    return tuple(
        names.rank_name(allocation, rank)
        if (surplus := _surplus_of(order, rank)) is None
        else names.surplus_name(allocation.job, surplus, rank)
        for rank in range(ranks)
    )


def _surplus_of(order: StartOrder, rank: int) -> AllocationId | None:
    return order.surplus if order.least_nodes is not None and rank >= order.least_nodes else None


def jobs(order: StartOrder, options: Options, *, is_indexed: bool) -> list[Json]:
    """Returns the Jobs of an allocation: one, or one a rank. The ranks of an Indexed Job share their terms, so they
    get the least CPU and memory that a rank was granted."""
    found, ranks = job_names(order, is_indexed=is_indexed), range(len(order.allocation.grants))
    if len(found) == 1:
        return [_job(order, options, found[0], tuple(ranks))]
    return [_job(order, options, found[rank], (rank,)) for rank in ranks]


def _job(order: StartOrder, options: Options, name: str, ranks: tuple[int, ...]) -> Json:
    labels = _labels(order, options)
    if len(ranks) == 1:
        labels[names.RANK] = str(ranks[0])
        if (surplus := _surplus_of(order, ranks[0])) is not None:
            labels[names.SURPLUS] = surplus
    spec = {
        "parallelism": len(ranks),
        "completions": len(ranks),
        "backoffLimit": 0,
        "activeDeadlineSeconds": backstop_seconds(order, options),
        "template": {
            "metadata": {
                "labels": labels,
                "annotations": dict(options.pods.annotations),
            },
            "spec": _pod(order, options, ranks),
        },
    }
    if len(ranks) > 1:
        spec["completionMode"] = "Indexed"
    account = order.allocation.account
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": {names.ACCOUNT: account, names.DIGEST: _digest(spec)},
            "finalizers": [names.FINALIZER],
        },
        "spec": spec,
    }


def _digest(spec: Mapping[str, object]) -> str:
    # The backstop moves with the time limit, which may change while the Job is there.
    lasting = {key: value for key, value in spec.items() if key != "activeDeadlineSeconds"}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()


def backstop_seconds(order: StartOrder, options: Options) -> int:
    """Returns a Job's `activeDeadlineSeconds`.

    The daemon ends a job at its limit, with its grace; this ends it when no daemon is there to do so.
    """
    limit_seconds = -(-order.allocation.time_limit_ms // 1000)
    return limit_seconds + round(options.times.start_seconds + order.spec.grace_seconds) + BACKSTOP_SECONDS


def _labels(order: StartOrder, options: Options) -> dict[str, str]:
    return {
        "app.kubernetes.io/managed-by": "turnstile",
        names.INSTALLATION: options.installation,
        names.ALLOCATION: order.allocation.id,
        names.JOB: str(order.allocation.job),
        names.TENANT: names.label_value(tenant_of(order.allocation.account)),
    }


def _pod(order: StartOrder, options: Options, ranks: tuple[int, ...]) -> Json:
    pods, grants = options.pods, [order.allocation.grants[rank] for rank in ranks]
    memory_bytes = min(grant.memory_bytes for grant in grants)
    shm_bytes = order.spec.shm_bytes or memory_bytes // 2  # as Linux sizes a tmpfs by default: half the memory
    shm: Json = {"medium": "Memory", **({"sizeLimit": str(shm_bytes)} if shm_bytes else {})}
    volumes = [{"name": "dshm", "emptyDir": shm}, *(_volume(name, options) for name in order.spec.volumes)]
    pod: Json = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": max(0, round(order.spec.grace_seconds)),
        "affinity": _affinity(order, grants),
        "tolerations": [{"key": key, "operator": "Exists"} for key in options.nodes.tolerations],
        "securityContext": {
            "seccompProfile": {"type": "RuntimeDefault"},
            **({"runAsNonRoot": True} if pods.must_be_non_root else {}),
        },
        "containers": [_container(order, options, ranks, memory_bytes)],
        "volumes": volumes,
        "imagePullSecrets": [{"name": name} for name in pods.image_pull_secrets],
    }
    for key, value in (
        ("priorityClassName", pods.priority_class),
        ("runtimeClassName", pods.runtime_class),
        ("schedulerName", pods.scheduler_name),
    ):
        if value is not None:
            pod[key] = value
    if options.namespaces.may_create:
        pod["serviceAccountName"] = names.SERVICE_ACCOUNT
    if is_meeting(order):
        pod["subdomain"] = names.gang_name(order.allocation)
        if len(ranks) == 1:
            pod["hostname"] = names.rank_name(order.allocation, ranks[0])
    return pod


def _affinity(order: StartOrder, grants: list[Grant]) -> Json:
    terms = [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [names.machine_of(grant.devices[0])]}]}
        for grant in grants
    ]
    # One pod of an allocation a node, also where it has but one: a Job's controller whose answer an outage swallowed
    # makes its pod again, and pinned to the same node the second must not run beside the first.
    apart = {"labelSelector": {"matchLabels": {names.ALLOCATION: order.allocation.id}}}
    return {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}},
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [apart | {"topologyKey": "kubernetes.io/hostname"}]
        },
    }


def _container(order: StartOrder, options: Options, ranks: tuple[int, ...], memory_bytes: int) -> Json:
    spec, pods = order.spec, options.pods
    grants = [order.allocation.grants[rank] for rank in ranks]
    resources = {names.resource_of(grants[0].devices[0]): str(len(grants[0].devices))}
    cpu = min(grant.cpu_millicores for grant in grants)
    if cpu:
        resources["cpu"] = f"{cpu}m"
    if memory_bytes:
        resources["memory"] = str(memory_bytes)
    if pods.ephemeral_bytes:
        resources["ephemeral-storage"] = str(pods.ephemeral_bytes)
    mounts = [{"name": "dshm", "mountPath": "/dev/shm"}]  # noqa: S108 -- where programs look for shared memory
    mounts += [_mount(name, options) for name in spec.volumes]
    container: Json = {
        "name": names.CONTAINER,
        "image": spec.image,
        "imagePullPolicy": pods.image_pull_policy,
        "command": [_literal(argument) for argument in (awaiting(spec.argv) if spec.is_terminal else spec.argv)],
        "env": _environment(order, ranks),
        "envFrom": [{"secretRef": {"name": name}} for name in spec.secrets],
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": mounts,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    if spec.is_terminal:
        container |= {"stdin": True, "tty": True}
    if spec.workdir is not None:
        container["workingDir"] = spec.workdir
    if spec.stop_signal != DEFAULT_SIGNAL:
        container["lifecycle"] = {"preStop": {"exec": {"command": _checkpoint_hook(spec.stop_signal)}}}
    return container


def _checkpoint_hook(stop_signal: str) -> list[str]:
    """Sends the job its own signal instead of SIGTERM, and holds that back until the job is gone or its grace over."""
    number = stop_signal.removeprefix("SIG")
    return ["/bin/sh", "-c", f"kill -{number} 1; while kill -0 1 2>/dev/null; do sleep 1; done"]


def _volume(name: str, options: Options) -> Json:
    source = {k: v for k, v in options.pods.volumes[name].items() if k not in {"mountPath", "readOnly"}}
    return {"name": f"v-{name}", **source}


def _mount(name: str, options: Options) -> Json:
    offered = options.pods.volumes[name]
    return {"name": f"v-{name}", "mountPath": offered["mountPath"], "readOnly": bool(offered.get("readOnly", False))}


def _literal(text: str) -> str:
    """Escapes a text that the kubelet would expand (`$(NAME)`; `$$` is a dollar)."""
    return text.replace("$", "$$")


def _environment(order: StartOrder, ranks: tuple[int, ...]) -> list[Json]:
    allocation, spec = order.allocation, order.spec
    tenant, count = tenant_of(allocation.account), len(allocation.grants)
    name = names.gang_name(allocation)
    master = f"{names.rank_name(allocation, 0)}.{name}" if is_meeting(order) else "127.0.0.1"
    rank: Json = {"value": str(ranks[0])}
    if len(ranks) > 1:
        rank = {"valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{names.COMPLETION_INDEX}']"}}}
    gpus = str(len(allocation.grants[ranks[0]].devices))
    # What torchrun reads by itself; the job may choose its own.
    ours: dict[str, Json] = {
        "MASTER_ADDR": {"value": master},
        "MASTER_PORT": {"value": str(MASTER_PORT)},
        "PET_NNODES": {"value": str(count)},
        "PET_NODE_RANK": rank,
        "PET_NPROC_PER_NODE": {"value": gpus},
        "PET_MASTER_ADDR": {"value": master},
        "PET_MASTER_PORT": {"value": str(MASTER_PORT)},
    }
    for key, value in slurm_variables(order, ranks[0]).items():
        ours[key] = rank if key in {"SLURM_NODEID", "SLURM_PROCID"} else {"value": _literal(value)}
    ours |= {key: {"value": _literal(value)} for key, value in spec.environment.items() if not is_protected(key)}
    fixed = {
        "TURNSTILE_ALLOCATION_ID": allocation.id,
        "TURNSTILE_JOB_ID": str(allocation.job),
        "TURNSTILE_JOB_NAME": _literal(spec.name),
        "TURNSTILE_TENANT": tenant,
        "TURNSTILE_PROJECT": allocation.account.removeprefix(tenant).lstrip("/"),
        "TURNSTILE_NODES": str(count),
        "TURNSTILE_GPUS_PER_NODE": gpus,
        "TURNSTILE_ATTEMPT": str(allocation.attempt),
    }
    if order.least_nodes is not None:
        fixed["TURNSTILE_NODES_MIN"] = str(order.least_nodes)
    if order.array_index is not None:
        fixed["TURNSTILE_ARRAY_INDEX"] = str(order.array_index)
    ours |= {key: {"value": value} for key, value in fixed.items()} | {"TURNSTILE_NODE_RANK": rank}
    return [{"name": key, **value} for key, value in ours.items()]
