"""A small Kubernetes API server on loopback: HTTP around `store`, with faults to order.

It speaks what the adapter speaks: typed paths, pages, selectors, watches with bookmarks, 409, 410, merge patches,
dry runs, reviews of rights, logs. What a real server does beside that, the contract suite learns from a real one.
"""

import copy
import json
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, urlsplit

from tests.k8s.store import ApiError, Json, Key, Store, is_over, matches, merge
from tests.k8s.streams import Kubelet, Talk, request_head

_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1(?:/namespaces/(?P<ns>[^/]+)(?=/))?/(?P<kind>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?"
)
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass
class Fault:
    """What happens to the next `times` requests that match: a status, or a cut connection before or after the work."""

    method: str
    path: str
    times: int = 1
    status: int | None = None
    retry_after: str | None = None
    is_carried_out: bool = False


@dataclass
class Asked:
    """One request, taken apart."""

    method: str
    path: str
    query: dict[str, str]
    collection: str
    namespace: str
    name: str
    sub: str
    body: Json = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return (self.collection, self.namespace, self.name)


class ApiServer:
    """Runs from construction until `stop`."""

    def __init__(self) -> None:
        self.store = Store()
        self.faults: list[Fault] = []
        self.denied: set[tuple[str, str]] = set()
        self.dropped_fields: set[str] = set()
        """Fields of a Job's or a pod's spec that this server does not know, and drops without a word."""
        self.logs: dict[str, bytes] = {}
        self.kubelet = Kubelet(Path(tempfile.mkdtemp(prefix="pods-")))
        self.stream_protocols = ["v5.channel.k8s.io", "v4.channel.k8s.io"]
        self.is_frozen = False
        """Watches stay open and say nothing, like a connection whose other end is gone."""
        self.bookmark_seconds = 30.0
        self.requests: list[tuple[str, str]] = []
        self._cut = 0
        server = self

        class Handler(_Handler):
            api = server

        self.store.create("namespaces", "", {"metadata": {"name": "default"}})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.cut_watches()
        self.kubelet.stop()
        shutil.rmtree(self.kubelet.folder)
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def kubeconfig(self, path: Path) -> Path:
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": "tester"}}],
            "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
        }  # fmt: skip
        path.write_text(json.dumps(config), encoding="utf-8")
        return path

    def cut_watches(self) -> None:
        with self.store.lock:
            self._cut += 1
            self.store.lock.notify_all()

    def count(self, method: str, part: str) -> int:
        return sum(1 for asked in self.requests if asked[0] == method and part in asked[1])

    def fault_for(self, asked: Asked) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.method == asked.method and fault.path in asked.path:
                fault.times -= 1
                return fault
        return None

    def carry_out(self, asked: Asked) -> Json:
        store = self.store
        with store.lock:
            if asked.method == "GET":
                return store.get(asked.key) if asked.name else self._list(asked)
            if asked.method == "POST":
                return self._create(asked)
            if asked.method == "DELETE":
                return store.delete(asked.key, asked.body)
            if asked.method == "PATCH":
                return store.update(asked.key, lambda item: _patch(item, asked))
            return store.update(asked.key, lambda item: _become(item, asked.body))

    def _create(self, asked: Asked) -> Json:
        if asked.collection.startswith("selfsubjectaccessreviews"):
            wanted = asked.body["spec"]["resourceAttributes"]
            is_allowed = (wanted["verb"], wanted["resource"]) not in self.denied
            return {**asked.body, "status": {"allowed": is_allowed}}
        spec = asked.body.get("spec")
        if asked.collection == "jobs.batch" and isinstance(spec, dict):
            asked.body["spec"] = self._known(spec)
            template = asked.body["spec"].get("template") or {}
            if "spec" in template:
                template["spec"] = self._known(template["spec"])
        if asked.collection == "pods":
            asked.body["spec"] = self._known(asked.body["spec"])
        is_dry = asked.query.get("dryRun") == "All"
        return self.store.create(asked.collection, asked.namespace, asked.body, is_dry=is_dry)

    def _known(self, spec: Json) -> Json:
        return {name: value for name, value in spec.items() if name not in self.dropped_fields}

    def _list(self, asked: Asked) -> Json:
        query = asked.query
        items = [
            item
            for item in self.store.of(asked.collection)
            if (not asked.namespace or item["metadata"].get("namespace") == asked.namespace)
            and matches(item, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        ]
        first, size = int(query.get("continue", "0")), int(query.get("limit", "500"))
        metadata = {"resourceVersion": str(self.store.version)}
        if first + size < len(items):
            metadata["continue"] = str(first + size)
        return {"kind": "List", "metadata": metadata, "items": items[first : first + size]}

    def watch(self, asked: Asked, send: Callable[[Json], None]) -> None:
        query, store = asked.query, self.store
        since, ends = int(query["resourceVersion"]), time.monotonic() + float(query.get("timeoutSeconds", "300"))
        with store.lock:
            cut, bookmarked = self._cut, time.monotonic()
            if since < store.oldest:
                send({"type": "ERROR", "object": ApiError(410, "Expired", f"too old resource version: {since}").body()})
                return
        while time.monotonic() < ends:
            with store.lock:
                if self._cut != cut:
                    raise ConnectionAbortedError
                found = [] if self.is_frozen else list(store.changes(asked.collection, since))
                if not found:
                    store.lock.wait(0.05)
            for event in found:
                since = event.version
                kind = _kind_for(event.kind, event.item, event.before, query)
                if kind is not None:
                    send({"type": kind, "object": event.item})
            if time.monotonic() - bookmarked > self.bookmark_seconds and not self.is_frozen:
                bookmarked = time.monotonic()
                send({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(store.version)}}})


def _patch(item: Json, asked: Asked) -> None:
    """A merge patch, of pods as far as the API allows it (Kubernetes, "Pod Scheduling Readiness")."""
    before = copy.deepcopy(item)
    merge(item, asked.body)
    if item["metadata"]["uid"] != before["metadata"]["uid"]:
        raise ApiError(409, "Conflict", "Precondition failed: UID in precondition")
    if asked.collection != "pods":
        return
    old, new = before["spec"], item["spec"]
    gates = [each["name"] for each in old.get("schedulingGates") or ()]
    if {each["name"] for each in new.get("schedulingGates") or ()} - set(gates):
        raise ApiError(422, "Invalid", "spec.schedulingGates: only deletion is allowed")
    changed = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    allowed = {"activeDeadlineSeconds", "tolerations", "schedulingGates"} | ({"affinity"} if gates else set())
    if not changed <= allowed or any(each not in new["tolerations"] for each in old.get("tolerations") or ()):
        raise ApiError(422, "Invalid", "spec: Forbidden: pod updates may not change fields other than these")


def _become(item: Json, body: Json) -> None:
    item.clear()
    item.update(body)


def _kind_for(kind: str, item: Json, before: Json | None, query: dict[str, str]) -> str | None:
    labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
    is_in = matches(item, labels, fields)
    was_in = before is not None and matches(before, labels, fields)
    if kind == "MODIFIED" and is_in != was_in:
        return "ADDED" if is_in else "DELETED"
    return kind if is_in else None


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 with kept connections, as the real one."""

    api: ApiServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        if parts.path == "/version":
            self._answer(200, {"major": "1", "minor": "33+"})
            return
        match = _PATH.fullmatch(parts.path)
        assert match is not None, parts.path
        group = match["group"]
        collection = match["kind"] + (f".{group}" if group else "")
        names = match["ns"] or "", match["name"] or "", match["sub"] or ""
        asked = Asked(self.command, parts.path, dict(parse_qsl(parts.query)), collection, *names, body)
        self.api.requests.append((asked.method, parts.path))
        fault = self.api.fault_for(asked)
        try:
            if fault is not None and fault.is_carried_out:
                self.api.carry_out(asked)
            if fault is not None:
                self._fail(fault)
                return
            self._allowed(asked)
            if asked.sub in {"exec", "attach", "portforward"}:
                self._stream(asked)
            elif asked.sub == "log":
                self._log(asked)
            elif "watch" in asked.query:
                self._watch(asked)
            else:
                self._answer(200 if self.command != "POST" else 201, self.api.carry_out(asked))
        except ApiError as error:
            self._answer(error.status, error.body())

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 -- as http.server calls them

    def _allowed(self, asked: Asked) -> None:
        verb = _VERBS.get(asked.method) or ("watch" if "watch" in asked.query else "get" if asked.name else "list")
        resource = asked.collection.partition(".")[0]
        if (verb, resource) in self.api.denied:
            text = f'{asked.collection} is forbidden: User "tester" cannot {verb} resource "{resource}"'
            raise ApiError(403, "Forbidden", text)

    def _fail(self, fault: Fault) -> None:
        if fault.status is None:
            self.close_connection = True
            self.connection.close()
            return
        self._answer(fault.status, ApiError(fault.status, "Fault", "ordered by the test").body(), fault.retry_after)

    def _log(self, asked: Asked) -> None:
        pod = self.api.store.get(("pods", asked.namespace, asked.name))
        if (pod.get("status") or {}).get("phase") == "Pending":
            raise ApiError(400, "BadRequest", "container is waiting to start")
        if asked.query.get("follow") == "true":
            self._follow_log(asked)
            return
        data = self.api.logs.get(asked.name, b"")[: int(asked.query.get("limitBytes", "1000000"))]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, asked: Asked) -> None:
        """Hands the connection to the pod's kubelet, until what runs there or the caller has gone."""
        pod = self.api.store.get(("pods", asked.namespace, asked.name))
        query = parse_qs(urlsplit(self.path).query)
        self.close_connection = True
        talk = Talk(self.connection, request_head(self.path, self.headers), self.api.stream_protocols)
        if asked.sub == "portforward":
            self.api.kubelet.forward(talk, int(query["ports"][0]))
        elif asked.sub == "exec":
            is_terminal = query["tty"] == ["true"]
            self.api.kubelet.exec(talk, asked.name, query["command"], is_terminal=is_terminal)
        else:
            # As the kubelet expands what stands in a manifest.
            command = [word.replace("$$", "$") for word in pod["spec"]["containers"][0]["command"]]
            code = self.api.kubelet.attach(talk, asked.name, command)
            if code is not None:
                with self.api.store.lock:
                    notes = {"fake.turnstile/fail": str(code)}
                    change = {"metadata": {"annotations": notes}}
                    self.api.store.update(asked.key, lambda item: merge(item, change))

    def _follow_log(self, asked: Asked) -> None:
        """Sends what is there and what comes, until the pod's containers are over."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent, store = 0, self.api.store
        while True:
            with store.lock:
                current = store.find("pods", asked.namespace, asked.name)
                is_over_now = current is None or is_over(current)
                data = self.api.logs.get(asked.name, b"")[sent:]
                if not data and not is_over_now:
                    store.lock.wait(0.05)
            if data:
                sent += len(data)
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            elif is_over_now:
                self.wfile.write(b"0\r\n\r\n")
                return

    def _watch(self, asked: Asked) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()

        def send(event: Json) -> None:
            data = json.dumps(event).encode() + b"\n"
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

        try:
            self.api.watch(asked, send)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True

    def _answer(self, status: int, body: Json, retry_after: str | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(data)
