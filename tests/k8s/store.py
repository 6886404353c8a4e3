"""What an API server keeps: objects with resource versions, their history for watches, conflicts, graceful deletion."""

import copy
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

Json = dict[str, Any]
Key = tuple[str, str, str]  # collection (`pods`, `jobs.batch`), namespace, name


class ApiError(Exception):
    """An answer of 400 or more."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message

    def body(self) -> Json:
        return {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.status,
            "reason": self.reason, "message": self.message,
        }  # fmt: skip


@dataclass(frozen=True)
class Event:
    version: int
    kind: str
    collection: str
    item: Json
    before: Json | None


class Store:
    """Everything under one lock. `settle` runs after each change: the controllers of a small cluster."""

    def __init__(self) -> None:
        self.lock = threading.Condition(threading.RLock())
        self.version = 1000
        self.oldest = 1000
        self.objects: dict[Key, Json] = {}
        self.events: list[Event] = []
        self.settle: Callable[[], None] = lambda: None
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)  # noqa: TID251 -- plays another machine's clock
        self._is_settling = False

    def stamp(self, later_seconds: float = 0) -> str:
        return (self.now() + timedelta(seconds=later_seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")

    def of(self, collection: str) -> list[Json]:
        return [
            item for (kind, _, _), item in sorted(self.objects.items(), key=lambda pair: pair[0]) if kind == collection
        ]

    def get(self, key: Key) -> Json:
        if key not in self.objects:
            raise ApiError(404, "NotFound", f'{key[0]} "{key[2]}" not found')
        return self.objects[key]

    def find(self, collection: str, namespace: str, name: str) -> Json | None:
        return self.objects.get((collection, namespace, name))

    def create(self, collection: str, namespace: str, body: Json, *, is_dry: bool = False) -> Json:
        item = copy.deepcopy(body)
        metadata = item.setdefault("metadata", {})
        if "generateName" in metadata and "name" not in metadata:
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        key = (collection, namespace, str(metadata["name"]))
        if key in self.objects:
            raise ApiError(409, "AlreadyExists", f'{collection} "{key[2]}" already exists')
        if namespace and ("namespaces", "", namespace) not in self.objects:
            raise ApiError(404, "NotFound", f'namespaces "{namespace}" not found')
        metadata["uid"], metadata["creationTimestamp"] = str(uuid.uuid4()), self.stamp()
        if namespace:
            metadata["namespace"] = namespace
        if is_dry:
            return item
        self._write("ADDED", key, item, None)
        return item

    def update(self, key: Key, change: Callable[[Json], None]) -> Json:
        """Changes an object in place of itself; nothing is written when nothing changed."""
        before = self.get(key)
        item = copy.deepcopy(before)
        change(item)
        given = item["metadata"].get("resourceVersion")
        if given is not None and given != before["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", f"the object {key[2]} has been modified")
        if item == before:
            return before
        if item["metadata"].get("deletionTimestamp") and not item["metadata"].get("finalizers") and key[0] != "pods":
            return self.remove(key)
        self._write("MODIFIED", key, item, before)
        return item

    def delete(self, key: Key, options: Json) -> Json:
        item = self.get(key)
        uid = (options.get("preconditions") or {}).get("uid")
        if uid is not None and uid != item["metadata"]["uid"]:
            raise ApiError(409, "Conflict", "the UID in the precondition does not match")
        grace = 0
        if key[0] == "pods" and item["spec"].get("nodeName") and not is_over(item):
            grace = options.get("gracePeriodSeconds", item["spec"].get("terminationGracePeriodSeconds", 30))
        if grace == 0 and not item["metadata"].get("finalizers"):
            return self.remove(key)

        def mark(item: Json) -> None:
            metadata = item["metadata"]
            if grace < metadata.get("deletionGracePeriodSeconds", grace + 1):
                metadata["deletionTimestamp"] = self.stamp(grace)
                metadata["deletionGracePeriodSeconds"] = grace

        return self.update(key, mark)

    def remove(self, key: Key) -> Json:
        item = copy.deepcopy(self.objects.pop(key))
        if key[0] == "namespaces":
            for other in [other for other in self.objects if other[1] == key[2]]:
                self.remove(other)
        self._write("DELETED", None, item, item, collection=key[0])
        return item

    def compact(self) -> None:
        """Forgets all history: watches from old versions are told 410."""
        with self.lock:
            self.oldest = self.version
            self.events.clear()

    def changes(self, collection: str, since: int) -> Iterator[Event]:
        return (event for event in list(self.events) if event.version > since and event.collection == collection)

    def _write(self, kind: str, key: Key | None, item: Json, before: Json | None, collection: str = "") -> None:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        if key is not None:
            self.objects[key] = item
        snapshot = copy.deepcopy(item)
        self.events.append(Event(self.version, kind, collection or (key or ("",))[0], snapshot, before))
        with self.lock:
            self.lock.notify_all()
        if not self._is_settling:
            self._is_settling = True
            try:
                self.settle()
            finally:
                self._is_settling = False


def is_over(pod: Json) -> bool:
    return (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}


def merge(item: Json, patch: Json) -> None:
    """A JSON merge patch (RFC 7386), in place."""
    for name, value in patch.items():
        if value is None:
            item.pop(name, None)
        elif isinstance(value, dict):
            target = item.setdefault(name, {})
            if not isinstance(target, dict):
                target = item[name] = {}
            merge(target, value)
        else:
            item[name] = value


def matches(item: Json, labels: str, fields: str) -> bool:
    """Equality selectors, as far as they are used."""
    have = item["metadata"].get("labels") or {}
    for part in filter(None, labels.split(",")):
        name, equals, value = part.partition("=")
        if name not in have or (equals and have[name] != value.lstrip("=")):
            return False
    for part in filter(None, fields.split(",")):
        path, _, value = part.partition("=")
        found: Any = item
        for step in path.rstrip("!").split("."):
            found = (found or {}).get(step)
        if ((found or "") == value) is path.endswith("!"):
            return False
    return True
