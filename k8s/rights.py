"""What the daemon must be allowed to do in a cluster, in RBAC's words: checked when it starts."""

from collections.abc import Iterator

from k8s.api import Api
from k8s.options import Options
from k8s.problems import Right

_READ = ("get", "list", "watch")


def needed(options: Options) -> Iterator[Right]:
    """Yields the rights without which jobs cannot run. Those on jobs and pods are for all tenants' namespaces."""
    yield from (Right(verb, "nodes") for verb in _READ)
    yield from (Right(verb, "pods") for verb in ("list", "watch", "delete"))
    yield Right("get", "pods/log")
    yield from (Right(verb, "jobs", "batch") for verb in (*_READ, "create", "patch", "delete"))
    yield from (Right(verb, "services") for verb in ("create", "delete"))
    yield Right("get", "leases", "coordination.k8s.io", "kube-node-lease")
    yield Right("get", "namespaces")
    if options.namespaces.may_create:
        yield Right("create", "namespaces")
        yield from (Right("create", kind) for kind in ("serviceaccounts", "resourcequotas", "limitranges"))
        if options.namespaces.is_isolated:
            yield Right("create", "networkpolicies", "networking.k8s.io")


def missing(api: Api, options: Options) -> list[Right]:
    """Returns the needed rights that the server's authorizer denies us. Raises KubernetesProblem."""
    return [right for right in needed(options) if not api.may(right)]
