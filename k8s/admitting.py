"""Lets pods that users made themselves go: each is bound to the node that was chosen for it, and its gate taken away.

One patch a pod does all of it, against the very version that was looked at, so that nothing runs anywhere else; done
again, it does nothing. All pods of a gang are looked at before the first is let go.
"""

from collections.abc import Sequence

from k8s import names
from k8s.api import Api, Json
from k8s.options import Options
from k8s.problems import Conflict, NotFound, Rejected, Unacceptable, Unreachable
from scheduler.core.model import Grant, tenant_of
from scheduler.executor import StartOrder, StartRefused

BACKSTOP_SECONDS = 600
"""How long after its limit and grace a pod may run when no daemon is there to end it."""
PROBE_NAMESPACE = "default"
"""It is in every cluster; nothing is stored there."""


def keeps_gates(api: Api) -> bool:
    """Asks the server whether it keeps scheduling gates, by a create that is not carried out.

    Servers before 1.26 drop the field without a word, and would start such pods at once. Raises KubernetesProblem.
    """
    gate = {"name": names.GATE}
    pod = {"restartPolicy": "Never", "schedulingGates": [gate], "containers": [{"name": "probe", "image": "probe"}]}
    body: Json = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "turnstile-gate-probe"},
        "spec": {"template": {"metadata": {}, "spec": pod}},
    }
    stored = api.create(f"/apis/batch/v1/namespaces/{PROBE_NAMESPACE}/jobs", body, {"dryRun": "All"})
    return bool(stored["spec"]["template"]["spec"].get("schedulingGates") == [gate])


def refuse_stranger(order: StartOrder, options: Options) -> None:
    """Refuses pods that are not in the namespace of the order's own tenant. Raises StartRefused."""
    own = names.namespace_of(order.account, options.namespaces.prefix)
    if len(order.spec.adopts) != len(order.allocation.grants):
        raise StartRefused("it is a job of other pods than it was given nodes for")
    for text in order.spec.adopts:
        pod = names.user_pod(text)
        if pod.namespace != own:
            raise StartRefused(f"pod {pod.namespace}/{pod.name} is not in {own}, the namespace of its project's tenant")


def admit(api: Api, order: StartOrder, options: Options) -> None:
    """Lets an order's pods go, those that wait still. Raises StartRefused, KubernetesProblem."""
    refuse_stranger(order, options)
    found = [(rank, _look(api, order, text)) for rank, text in enumerate(order.spec.adopts)]
    for rank, item in found:
        if item is not None:
            _let_go(api, _path(names.user_pod(order.spec.adopts[rank])), patch_of(order, rank, item, options))


def _path(pod: names.UserPod) -> str:
    return f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"


def _look(api: Api, order: StartOrder, text: str) -> Json | None:
    """Returns a pod that waits; None for one that this very order let go before. Raises StartRefused."""
    pod = names.user_pod(text)
    try:
        item = api.get(_path(pod))
    except NotFound:
        raise StartRefused(f"pod {pod.namespace}/{pod.name} is gone") from None
    metadata = item["metadata"]
    if metadata["uid"] != pod.uid:
        raise StartRefused(f"pod {pod.namespace}/{pod.name} was deleted, and another has its name")
    if (metadata.get("labels") or {}).get(names.ALLOCATION) == order.allocation.id:
        return None
    if not any(each["name"] == names.GATE for each in item["spec"].get("schedulingGates") or ()):
        raise StartRefused(f"somebody took the gate {names.GATE} from pod {pod.namespace}/{pod.name}")
    if metadata.get("deletionTimestamp"):
        raise StartRefused(f"pod {pod.namespace}/{pod.name} is being deleted")
    return item


def _let_go(api: Api, path: str, changes: Json) -> None:
    try:
        stored = api.merge(path, changes)
    except NotFound:
        raise StartRefused("its pod is gone") from None
    except Conflict as problem:
        # Somebody else changed it in between: it is looked at again.
        raise Unreachable(f"{path} changed while it was let go: {problem.detail}") from problem
    except Rejected as refusal:
        if isinstance(refusal, Unacceptable):
            raise StartRefused(f"Kubernetes does not let this pod go: {refusal.detail}") from refusal
        raise
    if names.ALLOCATION not in stored["metadata"]["labels"]:
        raise StartRefused("the API server dropped the labels that it was given")


def patch_of(order: StartOrder, rank: int, item: Json, options: Options) -> Json:
    """Returns the merge patch that binds a gated pod to its node and takes our gate away.

    Only what the API lets change in a gated pod changes (Kubernetes, "Pod Scheduling Readiness"): the required node
    affinity, which it has none of yet, further tolerations, a deadline, labels, and fewer gates.
    """
    allocation, spec = order.allocation, item["spec"]
    gates = [each for each in spec["schedulingGates"] if each["name"] != names.GATE]
    labels = {
        names.INSTALLATION: options.installation,
        names.ALLOCATION: allocation.id,
        names.JOB: str(allocation.job),
        names.RANK: str(rank),
        names.TENANT: names.label_value(tenant_of(allocation.account)),
        names.ORIGIN: names.ADOPTED,
    }
    deadline = _deadline_seconds(order, options)
    given = spec.get("activeDeadlineSeconds")
    status = f"runs as job {allocation.job}, allocation {allocation.id}"
    return {
        "metadata": {
            "uid": item["metadata"]["uid"],
            "resourceVersion": item["metadata"]["resourceVersion"],
            "labels": labels,
            "annotations": {names.ACCOUNT: allocation.account, names.STATUS: status},
        },
        "spec": {
            "schedulingGates": gates or None,
            "affinity": {"nodeAffinity": _only(allocation.grants[rank])},
            "tolerations": _tolerations(spec.get("tolerations") or (), options.nodes.tolerations),
            "activeDeadlineSeconds": deadline if given is None else min(int(given), deadline),
        },
    }


def _only(grant: Grant) -> Json:
    named = {"key": "metadata.name", "operator": "In", "values": [names.machine_of(grant.devices[0])]}
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [named]}]}}


def _tolerations(given: Sequence[Json], keys: Sequence[str]) -> list[Json]:
    ours = [{"key": key, "operator": "Exists"} for key in keys]
    return [*given, *(each for each in ours if each not in given)]


def _deadline_seconds(order: StartOrder, options: Options) -> int:
    """The daemon ends a job at its limit, with its grace; this ends it when no daemon is there to do so."""
    limit_seconds = -(-order.allocation.time_limit_ms // 1000)
    return limit_seconds + round(options.times.start_seconds + order.spec.grace_seconds) + BACKSTOP_SECONDS
