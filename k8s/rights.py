"""What Turnstile must be allowed to do in a cluster, in RBAC's words: one table for all who ask.

The daemon checks it when it starts, `admin k8s check` before that, and `deploy/kubernetes` grants exactly this; a test
compares. A right for which there is no row is a request that the code does not make.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from k8s.api import Api
from k8s.options import Options
from k8s.problems import Right

LEASE_NAMESPACE = "kube-node-lease"


def _always(_options: Options) -> bool:
    return True


def _makes_namespaces(options: Options) -> bool:
    return options.namespaces.may_create


def _has_gate(options: Options) -> bool:
    return options.gate.is_on


def _isolates(options: Options) -> bool:
    return options.namespaces.may_create and options.namespaces.is_isolated


@dataclass(frozen=True, slots=True)
class Need:
    """Verbs on a resource, and what they are for. `namespace` None: in all namespaces, or it has none."""

    resource: str
    verbs: tuple[str, ...]
    purpose: str
    group: str = ""
    namespace: str | None = None
    applies: Callable[[Options], bool] = _always
    """Whether a centre with these options needs it."""

    def rights(self) -> tuple[Right, ...]:
        """Returns each right by itself."""
        return tuple(Right(verb, self.resource, self.group, self.namespace) for verb in self.verbs)


DAEMON: tuple[Need, ...] = (
    Need("nodes", ("get", "list", "watch"), "the inventory: GPUs, labels, taints, conditions"),
    Need(
        "pods", ("list", "watch", "delete"), "what became of jobs, GPUs that others use, cleaning up after a lost lead"
    ),
    Need("pods", ("get", "patch"), "pods that users make themselves and that wait for their turn", applies=_has_gate),
    Need("pods/log", ("get",), "jobs' logs"),
    Need("pods/exec", ("get", "create"), "exec, and run --pty's beginning"),
    Need("pods/attach", ("get", "create"), "the terminal of run --pty"),
    Need("pods/portforward", ("get", "create"), "port-forward"),
    Need("jobs", ("get", "list", "watch", "create", "patch", "delete"), "a Job an allocation", "batch"),
    Need("services", ("create", "delete"), "a headless Service a gang, for MASTER_ADDR"),
    Need("namespaces", ("get",), "whose namespace it is"),
    Need("namespaces", ("create",), "a namespace a tenant", applies=_makes_namespaces),
    Need(
        "serviceaccounts", ("create",), "what jobs' pods run as: an identity without rights", applies=_makes_namespaces
    ),
    Need("resourcequotas", ("create",), "a tenant's quota against runaways", applies=_makes_namespaces),
    Need("limitranges", ("create",), "defaults for pods that name no limits", applies=_makes_namespaces),
    Need("networkpolicies", ("create",), "tenants' pods apart", "networking.k8s.io", applies=_isolates),
    Need("leases", ("get",), "when a node was last heard", "coordination.k8s.io", LEASE_NAMESPACE),
)
"""What `turnstile serve` with `executor.kind = "kubernetes"` asks. Those on jobs and pods are for all namespaces."""

AGENT: tuple[Need, ...] = (Need("pods", ("list",), "the labels of the node's pods: whose GPUs the kubelet gave"),)
"""What `turnstile agent --kubelet` asks of the API server."""


def needed(options: Options) -> Iterator[Right]:
    """Yields the rights without which jobs of a centre with these options cannot run."""
    for need in DAEMON:
        if need.applies(options):
            yield from need.rights()


def missing(api: Api, options: Options) -> list[Right]:
    """Returns the needed rights that the server's authorizer denies us. Raises KubernetesProblem."""
    return [right for right in needed(options) if not api.may(right)]


def rules(needs: Sequence[Need], namespace: str | None = None) -> list[dict[str, list[str]]]:
    """Returns the rules of a Role in `namespace`, or of a ClusterRole for None, as RBAC writes them."""
    return [
        {"apiGroups": [need.group], "resources": [need.resource], "verbs": list(need.verbs)}
        for need in needs
        if need.namespace == namespace
    ]
