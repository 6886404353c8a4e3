"""A tenant's namespace: made when its first job starts, with what keeps tenants apart and runaways small.

A namespace that is there already and does not carry our label is never taken over: its name may be a coincidence, and
what runs in it is not ours to bill or to delete.
"""

import threading
from collections.abc import Iterator

from k8s import names
from k8s.api import Api, Json
from k8s.options import Options
from k8s.problems import Conflict, KubernetesProblem, NotFound
from scheduler.core.model import AccountId, tenant_of

MOST_CONTAINER = {"cpu": "100m", "memory": "256Mi"}
"""What a container gets that asks for nothing: pods that users make by themselves must not crowd a GPU node."""


class NotOurs(KubernetesProblem):
    """A namespace of that name belongs to somebody else."""


class Namespaces:
    """Makes sure of namespaces, once each. Safe to call from any thread."""

    def __init__(self, api: Api, options: Options) -> None:
        self._api = api
        self._options = options
        self._ensured: set[str] = set()
        self._lock = threading.Lock()

    def ensure(self, account: AccountId) -> str:
        """Returns the namespace of an account's tenant, made if need be. Raises KubernetesProblem."""
        name = names.namespace_of(account, self._options.namespaces.prefix)
        if name not in self._ensured:
            with self._lock:
                if name not in self._ensured:
                    self._look_after(name, account)
        return name

    def _look_after(self, name: str, account: AccountId) -> None:
        options = self._options
        try:
            found = self._api.get(f"/api/v1/namespaces/{name}")
        except NotFound:
            if not options.namespaces.may_create:
                raise NotOurs(
                    f"there is no namespace {name} for tenant {tenant_of(account)}, and the settings say that this "
                    f"centre makes them itself; create it with the label {names.selector(options.installation)}"
                ) from None
            found = self._create(name, account)
        owner = (found["metadata"].get("labels") or {}).get(names.INSTALLATION)
        if owner != options.installation:
            raise NotOurs(
                f"namespace {name} is there already and is not this Turnstile's; if its jobs may run there, "
                f"label it: kubectl label namespace {name} {names.selector(options.installation)}"
            )
        if options.namespaces.may_create:
            for path, body in _furniture(name, options):
                self._create_once(path, body)
        self._ensured.add(name)

    def forget(self, name: str) -> None:
        """Says that the namespace may be gone: the next start looks again."""
        self._ensured.discard(name)

    def _create(self, name: str, account: AccountId) -> Json:
        options = self._options
        level = options.namespaces.pod_security
        labels = {
            names.INSTALLATION: options.installation,
            names.TENANT: names.label_value(tenant_of(account)),
            "pod-security.kubernetes.io/enforce": level,
            "pod-security.kubernetes.io/warn": "restricted",
        }
        body = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": labels, "annotations": {names.ACCOUNT: tenant_of(account)}},
        }
        self._create_once("/api/v1/namespaces", body)
        return self._api.get(f"/api/v1/namespaces/{name}")

    def _create_once(self, path: str, body: Json) -> None:
        try:
            self._api.create(path, body)
        except Conflict:
            return  # made by another daemon, by our own first try, or changed by an admin: it stands as it is


def _furniture(namespace: str, options: Options) -> Iterator[tuple[str, Json]]:
    """Yields what a namespace of ours has, as (path, object)."""
    core, meta = f"/api/v1/namespaces/{namespace}", {"name": "turnstile"}
    yield (
        f"{core}/serviceaccounts",
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": names.SERVICE_ACCOUNT},
            "automountServiceAccountToken": False,
        },
    )
    most = str(options.namespaces.most_pods)
    yield (
        f"{core}/resourcequotas",
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": meta,
            # Not of Jobs: those that ended stay for a while for their logs, and must not keep the next from starting.
            "spec": {"hard": {"pods": most, "services": most}},
        },
    )
    yield (
        f"{core}/limitranges",
        {
            "apiVersion": "v1",
            "kind": "LimitRange",
            "metadata": meta,
            "spec": {"limits": [{"type": "Container", "defaultRequest": MOST_CONTAINER}]},
        },
    )
    if options.namespaces.is_isolated:
        yield (
            f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": meta,
                "spec": {
                    "podSelector": {},
                    "policyTypes": ["Ingress"],
                    "ingress": [{"from": [{"podSelector": {}}]}],
                },
            },
        )
