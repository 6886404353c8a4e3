"""What a cluster lacks for Turnstile, in words: asked of the cluster itself, changing nothing.

Each finding is a fact with what follows from it. `lacks` keeps Turnstile from working, `warns` from working well;
`fine` is said too, so that a check that did not run cannot look like one that passed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from k8s.admitting import keeps_gates
from k8s.api import Api, Json
from k8s.problems import Rejected
from k8s.rights import DAEMON, Need
from scheduler.clock import Clock

OLDEST = (1, 20)
"""What the adapter is tested against; `batch/v1` Jobs, leases and PodResources v1 are there since."""
INDEXED_SINCE = (1, 24)
"""Indexed Jobs are stable (Kubernetes 1.24 release notes); on by default since 1.22."""
GATES_SINCE = (1, 27)
"""Scheduling gates are beta and on by default; stable in 1.30."""
PRODUCT_LABEL = "nvidia.com/gpu.product"
POD_SECURITY_SINCE = (1, 25)
NAMESPACES = "/api/v1/namespaces"
SKEW_MS = 5_000
POD_SECURITY_LABEL = "pod-security.kubernetes.io/enforce"


class Verdict(StrEnum):
    """How bad a finding is."""

    FINE = "fine"
    WARNS = "warns"
    LACKS = "lacks"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `advice` is None where nothing is to be done."""

    check: str
    verdict: Verdict
    message: str
    advice: str | None = None


def check_cluster(api: Api, clock: Clock, needs: Sequence[Need] = DAEMON) -> list[Finding]:
    """Returns all findings. Raises KubernetesProblem when the cluster cannot be reached at all."""
    version = api.server_version()
    return [
        *_version(version),
        *_gates(api, version),
        *_rights(api, needs),
        *_nodes(api),
        *_tenant_namespace(api, clock, version),
    ]


def _version(version: tuple[int, int]) -> Iterator[Finding]:
    text = f"{version[0]}.{version[1]}"
    if version < OLDEST:
        yield Finding("version", Verdict.LACKS, f"Kubernetes {text}", f"upgrade to {OLDEST[0]}.{OLDEST[1]} or later")
    else:
        yield Finding("version", Verdict.FINE, f"Kubernetes {text}")
    if version < INDEXED_SINCE:
        words = "Indexed Jobs may be missing: gangs run as one Job a node"
        yield Finding("indexed_jobs", Verdict.WARNS, words, "Kubernetes 1.24 has them in any case")
    else:
        yield Finding("indexed_jobs", Verdict.FINE, "Indexed Jobs: a gang is one Job")


def _gates(api: Api, version: tuple[int, int]) -> Iterator[Finding]:
    """Asks what the server stores; goes by its version where it may not be asked."""
    try:
        has_gates = keeps_gates(api)
    except Rejected:
        has_gates = version >= GATES_SINCE
    if has_gates:
        yield Finding("scheduling_gates", Verdict.FINE, "scheduling gates: pods that users make wait for their turn")
    else:
        words = "no scheduling gates: pods that users make themselves do not wait, and count as foreign"
        yield Finding("scheduling_gates", Verdict.WARNS, words, "Kubernetes 1.27 has them")


def _rights(api: Api, needs: Sequence[Need]) -> Iterator[Finding]:
    missing = 0
    for need in needs:
        lacking = [right for right in need.rights() if not api.may(right)]
        for right in lacking:
            missing += 1
            advice = "apply deploy/kubernetes, or bind a role with this verb and resource"
            yield Finding("rights", Verdict.LACKS, f"no right to {right} ({need.purpose})", advice)
    if not missing:
        yield Finding("rights", Verdict.FINE, f"all {sum(len(need.verbs) for need in needs)} rights are granted")


def _nodes(api: Api) -> Iterator[Finding]:
    try:
        nodes, _ = api.list_all("/api/v1/nodes")
    except Rejected:
        return  # the missing right stands above
    with_gpus = [node for node in nodes if _gpus(node)]
    if not with_gpus:
        words = f"none of {len(nodes)} nodes offers a GPU (an allocatable resource nvidia.com/gpu or nvidia.com/mig-…)"
        yield Finding("gpus", Verdict.LACKS, words, "install NVIDIA's device plugin (or the GPU operator)")
        return
    total = sum(_gpus(node) for node in with_gpus)
    yield Finding("gpus", Verdict.FINE, f"{total} GPUs or MIG instances on {len(with_gpus)} of {len(nodes)} nodes")
    bare = sorted(_name(node) for node in with_gpus if PRODUCT_LABEL not in (node["metadata"].get("labels") or {}))
    if bare:
        words = f"{len(bare)} GPU nodes without the label {PRODUCT_LABEL}: {', '.join(bare[:5])}"
        advice = "install GPU feature discovery, or label them by hand: their GPUs have no class otherwise"
        yield Finding("gpu_labels", Verdict.LACKS, words, advice)
    else:
        yield Finding("gpu_labels", Verdict.FINE, f"every GPU node has the label {PRODUCT_LABEL}")
    minors = sorted({str(node["status"]["nodeInfo"]["kubeletVersion"]) for node in nodes if _has_version(node)})
    if len(minors) > 1:
        words = f"kubelets of {len(minors)} versions: {', '.join(minors)}"
        yield Finding("kubelets", Verdict.WARNS, words, "the oldest decides what jobs may ask for")


def _tenant_namespace(api: Api, clock: Clock, version: tuple[int, int]) -> Iterator[Finding]:
    """Tries a tenant's namespace without making it: what is stored of its labels, and by what clock."""
    body: Json = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "turnstile-check", "labels": {POD_SECURITY_LABEL: "baseline"}},
    }
    before_ms = clock.now_ms()
    try:
        stored = api.create(NAMESPACES, body, {"dryRun": "All"})["metadata"]
    except Rejected as refused:
        words = (
            f"a tenant's namespace cannot be tried, so neither the clock nor Pod Security is known: {refused.detail}"
        )
        yield Finding("tenant_namespace", Verdict.WARNS, words, None)
        return
    yield _skew(str(stored["creationTimestamp"]), before_ms, clock.now_ms())
    if version < POD_SECURITY_SINCE:
        words = "Pod Security admission is not stable before 1.25: labels on tenants' namespaces may enforce nothing"
        yield Finding("pod_security", Verdict.WARNS, words, "use another admission that refuses privileged pods")
        return
    kept = (stored.get("labels") or {}).get(POD_SECURITY_LABEL)
    if kept == "baseline":
        yield Finding("pod_security", Verdict.FINE, "tenants' namespaces enforce the Pod Security level baseline")
    else:
        words = f"the label {POD_SECURITY_LABEL} of a tenant's namespace became {kept!r}"
        yield Finding("pod_security", Verdict.LACKS, words, "see which admission webhook changes it")


def _skew(written: str, before_ms: int, after_ms: int) -> Finding:
    """Compares clocks by when the server says that it wrote; Kubernetes writes whole seconds, cut off."""
    there_ms = int(datetime.fromisoformat(written).timestamp() * 1000)
    ahead_ms = max(there_ms - after_ms, 0) - max(before_ms - there_ms - 1000, 0)
    if abs(ahead_ms) <= SKEW_MS:
        return Finding("clock", Verdict.FINE, "the API server's clock and this machine's agree within seconds")
    side = "ahead of" if ahead_ms > 0 else "behind"
    words = f"the API server's clock is {abs(ahead_ms) / 1000:.0f} s {side} this machine's"
    return Finding("clock", Verdict.WARNS, words, "run NTP on all machines; tokens and leases fail otherwise")


def _gpus(node: Json) -> int:
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    return sum(
        int(amount)
        for resource, amount in allocatable.items()
        if resource == "nvidia.com/gpu" or resource.startswith("nvidia.com/mig-")
        if str(amount).isdigit()
    )


def _name(node: Json) -> str:
    return str(node["metadata"]["name"])


def _has_version(node: Json) -> bool:
    return bool(((node.get("status") or {}).get("nodeInfo") or {}).get("kubeletVersion"))
