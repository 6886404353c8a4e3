"""The rights that Turnstile needs in a cluster: one table for the manifests, the check of a cluster, and the docs.

Each row says what for. A right for which there is no row is a request that the code does not make; a request without a
row fails in the cluster, because `deploy/kubernetes` grants exactly this.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from k8s.problems import Right

LEASE_NAMESPACE = "kube-node-lease"


@dataclass(frozen=True, slots=True)
class Need:
    """Verbs on a resource, and what they are for. `namespace` None: in all namespaces, or it has none."""

    resource: str
    verbs: tuple[str, ...]
    purpose: str
    group: str = ""
    namespace: str | None = None

    def rights(self) -> tuple[Right, ...]:
        """Returns each right by itself."""
        return tuple(Right(verb, self.resource, self.group, self.namespace) for verb in self.verbs)


DAEMON: tuple[Need, ...] = (
    Need("nodes", ("list", "watch"), "the inventory: GPUs, labels, taints, conditions"),
    Need(
        "pods", ("list", "watch", "delete"), "what became of jobs, GPUs that others use, cleaning up after a lost lead"
    ),
    Need("pods/log", ("get",), "jobs' logs"),
    Need("services", ("create", "delete"), "a headless Service a gang, for MASTER_ADDR"),
    Need("jobs", ("create", "get", "list", "watch", "patch", "delete"), "a Job an allocation", "batch"),
    Need("namespaces", ("get", "create"), "a namespace a tenant"),
    Need("serviceaccounts", ("create",), "what jobs' pods run as: an identity without rights"),
    Need("resourcequotas", ("create",), "a tenant's quota against runaways"),
    Need("limitranges", ("create",), "defaults for pods that name no limits"),
    Need("networkpolicies", ("create",), "tenants' pods apart from each other", "networking.k8s.io"),
    Need("leases", ("get",), "when a node was last heard", "coordination.k8s.io", LEASE_NAMESPACE),
)
"""What `turnstile serve` with `executor.kind = "kubernetes"` asks of the API server."""

AGENT: tuple[Need, ...] = (Need("pods", ("list",), "the labels of the node's pods: whose GPUs the kubelet gave"),)
"""What `turnstile agent --kubelet` asks of the API server."""


def rules(needs: Sequence[Need], namespace: str | None = None) -> list[dict[str, list[str]]]:
    """Returns the rules of a Role in `namespace`, or of a ClusterRole for None, as RBAC writes them."""
    return [
        {"apiGroups": [need.group], "resources": [need.resource], "verbs": list(need.verbs)}
        for need in needs
        if need.namespace == namespace
    ]
