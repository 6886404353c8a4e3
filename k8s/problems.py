"""What goes wrong between us and a Kubernetes API server, in words that say what to do.

KubernetesProblem(ExecutorError)   the cluster cannot be asked, or does not do what it was asked
  NotConfigured                    no kubeconfig, no such context, no service account: a person must act
  Unreachable                      no connection, no answer in time, TLS, or a server that stays in trouble
  Rejected                         the server answered no; `status` is HTTP's, `reason` the API's own word
    Forbidden                      a right is missing; `verb`, `resource` and `namespace` name it
    NotFound                       404
    Conflict                       409: it exists already, or somebody changed it meanwhile
    Expired                        410: the resource version is too old, list again
    Unacceptable                   400, 413, 422: the object itself is wrong
"""

import json
import re
from dataclasses import dataclass

from scheduler.executor import ExecutorError

_PATH = re.compile(r"/(?:api|apis/(?P<group>[^/]+))/[^/]+/(?:namespaces/(?P<namespace>[^/]+)/)?(?P<rest>.+)")
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_MOST_MESSAGE = 600
"""Characters of the server's own words that are repeated: an admission refusal with its reasons fits."""


class KubernetesProblem(ExecutorError):
    """The cluster cannot be asked, or does not do what it was asked."""


class NotConfigured(KubernetesProblem):
    """There is no way to reach a cluster: a person must give one."""


class Unreachable(KubernetesProblem):
    """The API server gave no usable answer; the same request may work later."""


class Rejected(KubernetesProblem):
    """The server answered no."""

    def __init__(self, message: str, status: int, reason: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.detail = detail
        """The server's own message."""


class NotFound(Rejected):
    """There is no such object."""


class Conflict(Rejected):
    """It exists already, or was changed meanwhile."""


class Expired(Rejected):
    """The resource version is no longer known: list again."""


class Unacceptable(Rejected):
    """The object itself is wrong."""


@dataclass(frozen=True, slots=True)
class Right:
    """A permission, in the words of RBAC. `namespace` is None for what has none, or for all of them."""

    verb: str
    resource: str
    group: str = ""
    namespace: str | None = None

    def __str__(self) -> str:
        """Returns it as a person says it: `create jobs.batch in namespace turnstile-acme`."""
        name = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.verb} {name}" + (f" in namespace {self.namespace}" if self.namespace else "")


class Forbidden(Rejected):
    """A right is missing."""

    def __init__(self, right: Right, detail: str) -> None:
        who = re.search(r'User "([^"]+)"', detail)
        user = f" (the server knows us as {who[1]!r})" if who else ""
        super().__init__(
            f"Kubernetes grants no right to {right}{user}; bind a role with this verb and resource to that user",
            403,
            "Forbidden",
            detail,
        )
        self.right = right


def right_for(method: str, path: str, *, is_watch: bool = False) -> Right:
    """Returns the right that a request needs, as RBAC names it."""
    match = _PATH.fullmatch(path)
    if match is None:
        return Right(method.lower(), path)
    namespace, parts = match["namespace"], match["rest"].split("/")
    group = match["group"] or ""
    if method == "GET":
        verb = "watch" if is_watch else "get" if len(parts) > 1 else "list"
    elif method == "DELETE" and len(parts) == 1:
        verb = "deletecollection"
    else:
        verb = _VERBS[method]
    resource = parts[0] if len(parts) < 3 else f"{parts[0]}/{parts[2]}"
    return Right(verb, resource, group, namespace)


def rejection(method: str, path: str, status: int, body: bytes, *, is_watch: bool = False) -> Rejected:
    """Returns the exception for an answer of 400 or more."""
    reason, detail = _words(body)
    detail = detail or f"HTTP {status}"
    right = right_for(method, path, is_watch=is_watch)
    if status == 401:
        message = f"Kubernetes does not accept our credentials ({detail}); check the token or certificate in use"
        return Rejected(message, status, reason, detail)
    if status == 403 and "is forbidden: User" in detail:
        return Forbidden(right, detail)
    kinds: dict[int, type[Rejected]] = {
        400: Unacceptable, 404: NotFound, 409: Conflict, 410: Expired, 413: Unacceptable, 422: Unacceptable,
    }  # fmt: skip
    return kinds.get(status, Rejected)(f"Kubernetes refused to {right}: {detail}", status, reason, detail)


def _words(body: bytes) -> tuple[str, str]:
    """Returns the reason and the message of a `Status` object; of anything else, its first words."""
    try:
        said = json.loads(body)
        return str(said.get("reason") or ""), str(said.get("message") or "")[:_MOST_MESSAGE]
    except (ValueError, AttributeError):
        return "", body[:_MOST_MESSAGE].decode("utf-8", "replace").strip()
