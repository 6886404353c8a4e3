"""The door to a Kubernetes API server: credentials, requests with timeouts and retries, raw JSON in and out.

The only import of the `kubernetes` package. It reads kubeconfigs and service accounts and sets up TLS and proxies; its
typed models stay unused, because they cost more time than the server takes to answer. Every request may be sent twice
(a lost answer is tried again): creates are therefore by name, and the caller compares on Conflict. Problems are those
of `k8s.problems`. Safe to call from any thread. Lists with watches on top of it are in `k8s.mirror`.
"""

import json
import logging
import secrets
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode

import urllib3
import yaml
from kubernetes.client.configuration import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config.config_exception import ConfigException
from kubernetes.config.incluster_config import load_incluster_config
from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION, list_kube_config_contexts, load_kube_config
from urllib3.exceptions import HTTPError

from k8s.problems import NotConfigured, Rejected, Right, Unreachable, rejection

Json = dict[str, Any]
Query = Mapping[str, str | int]

MERGE_PATCH = "application/merge-patch+json"
PAGE_SIZE = 500
"""Objects a page of a list: client-go's own default page (tools/pager), well below a server's answer limits."""
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Access:
    """Which cluster, and as whom. All None: the pod's service account inside a cluster, else the usual kubeconfig."""

    kubeconfig: str | None = None
    context: str | None = None


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """How long a request may take and how often it is tried. Seconds."""

    connect_seconds: float = 5.0
    read_seconds: float = 15.0
    """An API server answers in milliseconds; one that takes longer than this has lost its database."""
    tries: int = 4
    first_wait_seconds: float = 0.2
    most_wait_seconds: float = 5.0
    all_seconds: float = 20.0
    """No new try begins after this: the caller has other work, and tries again later."""
    connections: int = 16


@dataclass(frozen=True, slots=True)
class Streaming:
    """What a WebSocket to the server needs."""

    url: str
    headers: Mapping[str, str]
    tls: ssl.SSLContext
    proxy: str | None


class Api:
    """Requests to one API server."""

    def __init__(
        self,
        configuration: Any,  # kubernetes' Configuration, which has no types
        limits: RequestLimits | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._configuration = configuration
        self._limits = limits or RequestLimits()
        self._sleep = sleep
        configuration.connection_pool_maxsize = self._limits.connections
        self._pool = RESTClientObject(configuration).pool_manager
        self.host = str(configuration.host).rstrip("/")
        self._sent: Counter[str] = Counter()
        self._sent_lock = threading.Lock()

    @classmethod
    def connect(cls, access: Access, limits: RequestLimits | None = None) -> "Api":
        """Returns the door to a cluster, without a request yet. Raises NotConfigured."""
        return cls(_configuration(access), limits)

    # ---- requests -------------------------------------------------------------------------------------------------

    def get(self, path: str, query: Query | None = None) -> Json:
        """Returns an object. Raises KubernetesProblem."""
        return self._json("GET", path, query=query)

    def create(self, path: str, body: Json, query: Query | None = None) -> Json:
        """Returns the object as stored. Raises Conflict when the name is taken, perhaps by our own first try."""
        return self._json("POST", path, body, query)

    def merge(self, path: str, changes: Json) -> Json:
        """Changes an object by a JSON merge patch (RFC 7386: null removes); returns it as stored."""
        return self._json("PATCH", path, changes, content_type=MERGE_PATCH)

    def replace(self, path: str, body: Json) -> Json:
        """Puts an object in place of the one that is there, at the resource version it names; Conflict otherwise."""
        return self._json("PUT", path, body)

    def delete(self, path: str, options: Json | None = None) -> Json:
        """Deletes an object, with DeleteOptions; returns what the server says of it. Raises NotFound."""
        return self._json("DELETE", path, options or {})

    def list_all(self, path: str, query: Query | None = None) -> tuple[list[Json], str]:
        """Returns all objects, page by page, and the resource version to watch from.

        Raises Expired when the list went on for longer than the server keeps a snapshot; then begin again.
        """
        items: list[Json] = []
        asked: dict[str, str | int] = {**(query or {}), "limit": PAGE_SIZE}
        while True:
            page = self.get(path, asked)
            items.extend(page.get("items") or ())
            follows = page["metadata"].get("continue")
            if not follows:
                return items, str(page["metadata"]["resourceVersion"])
            asked["continue"] = follows

    def text(self, path: str, query: Query | None = None, most_bytes: int = 1 << 20) -> bytes:
        """Returns up to `most_bytes` of an answer that is no JSON, such as a container's log."""
        with closing(self._send("GET", path, query=query, is_stream=True)) as answer:
            return bytes(answer.read(most_bytes, decode_content=True))

    def stream(self, path: str, query: Query, silence_seconds: float) -> Iterator[bytes]:
        """Opens a long answer, once, and returns it piece by piece. Raises KubernetesProblem, also while it is read."""
        answer = self._once("GET", path, None, query, read_seconds=silence_seconds, is_stream=True)
        return _pieces(path, answer)

    def watch(self, path: str, query: Query, silence_seconds: float) -> Iterator[Json]:
        """Opens a watch, once, and returns its events as they come, until the server ends it.

        Raises KubernetesProblem; while it is read, Unreachable, also after `silence_seconds` without a byte: a
        half-open connection looks like that.
        """
        asked = {**query, "watch": "1", "allowWatchBookmarks": "true"}
        return _events(path, self._once("GET", path, None, asked, read_seconds=silence_seconds, is_stream=True))

    # ---- questions about the cluster ------------------------------------------------------------------------------

    def server_version(self) -> tuple[int, int]:
        """Returns the server's version, such as (1, 31)."""
        said = self.get("/version")
        major, minor = (int("".join(filter(str.isdigit, str(said.get(part, "0")))) or 0) for part in ("major", "minor"))
        return major, minor

    def may(self, right: Right) -> bool:
        """Tells whether we hold a right, as the server's authorizer sees it (SelfSubjectAccessReview)."""
        resource, _, subresource = right.resource.partition("/")
        attributes = {"verb": right.verb, "resource": resource, "group": right.group}
        if subresource:
            attributes["subresource"] = subresource
        if right.namespace:
            attributes["namespace"] = right.namespace
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = self.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
        return bool(answer["status"].get("allowed"))

    def sent(self) -> dict[str, int]:
        """Returns how many requests were sent so far, tries included, by method."""
        with self._sent_lock:
            return dict(self._sent)

    def streaming(self) -> Streaming:
        """Returns how a WebSocket is opened, with credentials as of now. Raises NotConfigured."""
        given = self._configuration
        headers = {"User-Agent": "turnstile", **self._credentials()}
        try:
            tls = ssl.create_default_context(cafile=given.ssl_ca_cert)
            if not given.verify_ssl:
                tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
            if given.cert_file:
                tls.load_cert_chain(given.cert_file, given.key_file)
        except OSError as problem:
            raise NotConfigured(f"the cluster's certificates cannot be read: {problem}") from problem
        with self._sent_lock:
            self._sent["GET"] += 1
        return Streaming(self.host, headers, tls, given.proxy)

    def close(self) -> None:
        """Closes idle connections."""
        self._pool.clear()

    # ---- how a request is sent ------------------------------------------------------------------------------------

    def _json(
        self, method: str, path: str, body: Json | None = None, query: Query | None = None, content_type: str = ""
    ) -> Json:
        answer = self._send(method, path, body, query, content_type)
        try:
            return cast("Json", json.loads(answer.data))
        except ValueError as problem:
            words = "the answer is no JSON: is this the address of a Kubernetes API server?"
            raise Unreachable(f"{self.host}{path}: {words}") from problem

    def _send(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        query: Query | None = None,
        content_type: str = "",
        *,
        is_stream: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        """Tries until an answer comes that waiting would not change. Raises KubernetesProblem."""
        limits, began = self._limits, time.monotonic()
        for attempt in range(limits.tries):
            is_last = attempt + 1 == limits.tries or time.monotonic() - began > limits.all_seconds
            wait_seconds = backoff_seconds(attempt, limits.first_wait_seconds, limits.most_wait_seconds)
            try:
                return self._once(method, path, body, query or {}, content_type, is_stream=is_stream)
            except Unreachable:
                if is_last:
                    raise
            except _Busy as busy:
                if is_last:
                    raise Unreachable(f"{self.host} is in trouble: {busy.answer}") from busy
                wait_seconds = max(wait_seconds, min(busy.retry_after_seconds, limits.most_wait_seconds))
            self._sleep(wait_seconds)
        raise AssertionError("the last try returns or raises")

    def _once(  # noqa: PLR0913 -- the parts of a request
        self,
        method: str,
        path: str,
        body: Json | None,
        query: Query,
        content_type: str = "",
        *,
        read_seconds: float | None = None,
        is_stream: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        url = self.host + path + ("?" + urlencode(query) if query else "")
        headers = {"Accept": "application/json", "User-Agent": "turnstile", **self._credentials()}
        if body is not None:
            headers["Content-Type"] = content_type or "application/json"
        limits = self._limits
        with self._sent_lock:
            self._sent[method] += 1
        try:
            answer = self._pool.request(
                method,
                url,
                body=None if body is None else json.dumps(body),
                headers=headers,
                timeout=urllib3.Timeout(connect=limits.connect_seconds, read=read_seconds or limits.read_seconds),
                preload_content=not is_stream,
                retries=False,
                redirect=False,
            )
        except (HTTPError, OSError) as problem:
            raise Unreachable(f"{self.host} does not answer: {_in_words(problem)}") from problem
        if answer.status < 300:
            return answer
        is_watch = "watch" in query
        refusal = rejection(method, path, answer.status, answer.data, is_watch=is_watch)
        if answer.status == 429 or answer.status >= 500:
            # What is sent once is not to be waited for here.
            raise refusal if read_seconds is not None else _Busy(refusal, _retry_after(answer))
        raise refusal

    def _credentials(self) -> dict[str, str]:
        """Asked for each request: tokens of service accounts and plugins are renewed while we run."""
        try:
            settings = self._configuration.auth_settings()
        except ConfigException as problem:
            raise NotConfigured(f"the cluster's credentials cannot be renewed: {problem}") from problem
        return {each["key"]: each["value"] for each in settings.values() if each.get("in") == "header"}


def _pieces(path: str, answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    with closing(answer):
        try:
            yield from answer.stream(1 << 16, decode_content=True)
        except (HTTPError, OSError) as problem:
            raise Unreachable(f"{path} was cut: {_in_words(problem)}") from problem


def _events(path: str, answer: urllib3.BaseHTTPResponse) -> Iterator[Json]:
    """Cuts a watch into its events, a line each."""
    rest = b""
    with closing(answer):
        try:
            for chunk in answer.stream(1 << 16, decode_content=True):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield json.loads(line)
        except (HTTPError, OSError) as problem:
            raise Unreachable(f"the watch of {path} was cut: {_in_words(problem)}") from problem
        except ValueError as problem:
            raise Unreachable(f"the watch of {path} sent something that is no JSON") from problem


class _Busy(Exception):
    """The server asks for patience."""

    def __init__(self, answer: Rejected, retry_after_seconds: float) -> None:
        super().__init__(str(answer))
        self.answer = answer
        self.retry_after_seconds = retry_after_seconds


def backoff_seconds(attempt: int, first_seconds: float, most_seconds: float) -> float:
    """Returns how long to wait after try `attempt` (from 0): doubling, and between half and all of that by chance.

    Chance keeps many clients of a server that comes back from asking at the same instant.
    """
    whole = min(most_seconds, first_seconds * 2.0 ** min(attempt, 30))
    return whole * (500 + secrets.randbelow(501)) / 1000


def _retry_after(answer: urllib3.BaseHTTPResponse) -> float:
    try:
        return max(0.0, float(answer.headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0


def _in_words(problem: Exception) -> str:
    text = str(getattr(problem, "reason", None) or problem)
    # urllib3 begins its messages with the connection object's own representation.
    return text.rpartition(">: ")[2] or type(problem).__name__


def _configuration(access: Access) -> Any:
    configuration = Configuration()
    try:
        if access.kubeconfig is None and access.context is None and SERVICE_ACCOUNT.exists():
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call] # has no types
        else:
            load_kube_config(access.kubeconfig, access.context, configuration)  # type: ignore[no-untyped-call] # likewise
    except ConfigException as problem:
        raise NotConfigured(_what_is_missing(access, problem)) from problem
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as problem:
        where = access.kubeconfig or KUBE_CONFIG_DEFAULT_LOCATION
        words = " ".join(str(problem).split())
        raise NotConfigured(f"kubeconfig {where} cannot be read: {words}") from problem
    return configuration


def _what_is_missing(access: Access, problem: Exception) -> str:
    where = access.kubeconfig or KUBE_CONFIG_DEFAULT_LOCATION
    paths = [Path(part).expanduser() for part in str(where).split(":") if part]
    if not any(path.exists() for path in paths):
        place = f"at {where}" if paths else "(KUBECONFIG is set and empty)"
        return (
            f"there is no kubeconfig {place} and this is no pod of a cluster; "
            "name one with kubernetes.kubeconfig in the settings, or with KUBECONFIG"
        )
    try:
        contexts, current = list_kube_config_contexts(access.kubeconfig)  # type: ignore[no-untyped-call] # likewise
    except ConfigException:
        return f"kubeconfig {where}: {problem}"
    names = ", ".join(sorted(str(each["name"]) for each in contexts)) or "none"
    wanted = access.context or (current or {}).get("name")
    if wanted not in {each["name"] for each in contexts}:
        return f"kubeconfig {where} has no context {wanted!r}; it has: {names}"
    return f"kubeconfig {where}, context {wanted!r}: {problem}"
