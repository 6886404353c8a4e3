"""Keeps what a list and its watch say of one kind of object, in a thread of its own, through all that may go wrong.

    list ─► watch from its resource version ─► cut, silent or ended: watch again from the last version seen
     ▲                                      └─► 410, a version of the future, refused often: list again
     └──────────────────────────────────────────┘  what vanished meanwhile is told as gone

Objects are reduced at once to what the owner keeps, so that a thousand pods of others cost a few numbers each. Changes
are told once each through `take_changes`, the latest of an object only; an object deleted and made again under its
name (another uid) is told as gone first. Every failure is tried again with backoff, for ever: `failure` says which.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from k8s.api import Api, Json, Query, backoff_seconds
from k8s.problems import Expired, KubernetesProblem, Rejected, Unreachable

T = TypeVar("T")
Uid = str

OLD_WATCH_SECONDS = 1.0
"""A watch that is cut after longer than this had worked: the next one is tried at once, and nobody is told."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MirrorLimits:
    """Seconds, but for the count."""

    watch_seconds: int = 55
    """The server ends each watch after so long: a new one a minute costs nothing and needs no bookmarks to be safe."""
    silence_seconds: float = 70.0
    """A watch without a byte for longer than the server would keep it open hangs on a half-open connection."""
    first_wait_seconds: float = 0.2
    most_wait_seconds: float = 10.0
    tries_before_relist: int = 4
    """Refused watches in a row after which the version itself is suspected, as after a restored backup of etcd."""


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """What became of one object. `value` is its latest state, or its last one when it is gone."""

    uid: Uid
    value: T
    is_gone: bool = False
    is_seen: bool = True
    """False when it vanished while nobody watched: what happened to it after `value` is not known."""


class Mirror(Generic[T]):
    """One kind of object under one path and selector. `start` it once; all else from any thread."""

    def __init__(  # noqa: PLR0913, PLR0917 -- what to watch, how to keep it, whom to tell
        self,
        api: Api,
        path: str,
        reduce: Callable[[Json], T | None],
        on_change: Callable[[], None],
        query: Query | None = None,
        limits: MirrorLimits | None = None,
        group_of: Callable[[T], Hashable] = lambda _: None,
    ) -> None:
        self._api = api
        self._group_of = group_of
        self.path = path
        self._reduce = reduce
        self._on_change = on_change
        self._query = dict(query or {})
        self._limits = limits or MirrorLimits()
        self._lock = threading.Lock()
        self._objects: dict[Uid, T] = {}
        self._groups: dict[Hashable, dict[Uid, T]] = {}
        self._keys: dict[str, Uid] = {}
        self._changes: dict[Uid, Change[T]] = {}
        self._version: str | None = None
        self._is_closing = threading.Event()
        self._synced = threading.Event()
        self._heard = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"watch {path}", daemon=True)
        self.failure: KubernetesProblem | None = None
        """What is wrong; None while the list or a watch of it is in order."""
        self.relists = 0

    def start(self) -> None:
        """Begins to list and to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends at the next event or timeout; does not wait for it, because a silent watch can take a minute."""
        self._is_closing.set()

    def wait_until_synced(self, timeout_seconds: float) -> bool:
        """Sleeps until the first list is complete; False when the time was not enough."""
        return self._synced.wait(timeout_seconds)

    @property
    def is_synced(self) -> bool:
        """True once a list was complete."""
        return self._synced.is_set()

    def silent_seconds(self) -> float:
        """Returns for how long the server has answered neither list nor watch; 0 while a watch is open."""
        return 0.0 if self.failure is None else time.monotonic() - self._heard

    def objects(self) -> dict[Uid, T]:
        """Returns what there is now, by uid."""
        with self._lock:
            return dict(self._objects)

    def of(self, group: Hashable) -> list[T]:
        """Returns the objects of a group as `group_of` says, without looking at any other."""
        with self._lock:
            return list(self._groups.get(group, {}).values())

    def groups(self) -> list[Hashable]:
        """Returns the groups that have an object."""
        with self._lock:
            return list(self._groups)

    def take_changes(self) -> list[Change[T]]:
        """Returns what changed since the last call, what is gone first; each object once."""
        with self._lock:
            changes = sorted(self._changes.values(), key=lambda change: not change.is_gone)
            self._changes.clear()
        return changes

    # ---- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while not self._is_closing.is_set():
            began = time.monotonic()
            try:
                if self._version is None:
                    self._list()
                self._follow()
                failures = 0
            except Expired:
                self._version = None
            except KubernetesProblem as problem:
                is_old = time.monotonic() - began > OLD_WATCH_SECONDS
                failures = self._failed(problem, 0 if is_old and isinstance(problem, Unreachable) else failures)
            except Exception:  # noqa: BLE001 -- logged, counted as a failure, tried again
                # The loop's edge: one object that cannot be understood must not end the watch of all others.
                _log.exception("the watch of %s broke", self.path)
                self._version = None
                failures = self._failed(Unreachable("an object could not be read; see the log"), failures)

    def _failed(self, problem: KubernetesProblem, failures: int) -> int:
        limits = self._limits
        if self.failure is None and failures > 0:
            _log.warning("%s: %s", self.path, problem)
        # A watch that is cut once is every day's business; the second failure in a row is told.
        self.failure = problem if failures > 0 or not self.is_synced else self.failure
        if isinstance(problem, Rejected) and failures + 1 >= limits.tries_before_relist:
            self._version = None
        self._is_closing.wait(backoff_seconds(failures, limits.first_wait_seconds, limits.most_wait_seconds))
        return failures + 1

    def _list(self) -> None:
        items, version = self._api.list_all(self.path, self._query)
        found = [(_key(item), _uid(item), self._reduce(item)) for item in items]
        kept = {uid: (key, value) for key, uid, value in found if value is not None}
        with self._lock:
            for uid in [uid for uid in self._objects if uid not in kept]:
                self._drop(uid, self._objects[uid], is_seen=False)
            self._keys = {key: uid for uid, (key, _) in kept.items()}
            for uid, (_, value) in kept.items():
                if self._objects.get(uid) != value:
                    self._put(uid, value)
        self._version = version
        self.relists += 1
        self._in_order()
        self._synced.set()
        self._on_change()

    def _follow(self) -> None:
        assert self._version is not None, "a list came first"
        limits = self._limits
        query = {**self._query, "resourceVersion": self._version, "timeoutSeconds": limits.watch_seconds}
        events = self._api.watch(self.path, query, limits.silence_seconds)
        self._in_order()
        for event in events:
            if self._is_closing.is_set():
                return
            self._take(event)
            self._in_order()
        self._in_order()

    def _in_order(self) -> None:
        self._heard = time.monotonic()
        if self.failure is not None:
            _log.info("%s: in order again", self.path)
            self.failure = None
            self._on_change()

    def _take(self, event: Mapping[str, Json | str]) -> None:
        kind, item = event["type"], event["object"]
        assert isinstance(item, dict), "an event has an object"
        if kind == "ERROR":
            message, code = str(item.get("message") or item), int(item.get("code") or 0)
            if code == 410:
                raise Expired(message, 410)
            raise Rejected(f"the watch of {self.path} was ended: {message}", code)
        version = str(item["metadata"]["resourceVersion"])
        if kind != "BOOKMARK":
            self._learn(item, is_gone=kind == "DELETED")
        self._version = version

    def _learn(self, item: Json, *, is_gone: bool) -> None:
        key, uid, value = _key(item), _uid(item), self._reduce(item)
        with self._lock:
            before = self._keys.get(key)
            if before is not None and before != uid and before in self._objects:
                self._drop(before, self._objects[before], is_seen=False)
            known = self._objects.get(uid)
            if is_gone or value is None:
                self._keys.pop(key, None)
                last = value if value is not None else known
                if last is None:
                    return
                self._drop(uid, last, is_seen=True)
            elif known == value:
                return
            else:
                self._keys[key] = uid
                self._put(uid, value)
        self._on_change()

    def _put(self, uid: Uid, value: T) -> None:
        self._ungroup(uid)
        self._objects[uid] = value
        self._groups.setdefault(self._group_of(value), {})[uid] = value
        self._changes[uid] = Change(uid, value)

    def _drop(self, uid: Uid, last: T, *, is_seen: bool) -> None:
        self._ungroup(uid)
        self._objects.pop(uid, None)
        self._changes[uid] = Change(uid, last, is_gone=True, is_seen=is_seen)

    def _ungroup(self, uid: Uid) -> None:
        known = self._objects.get(uid)
        if known is None:
            return
        group = self._group_of(known)
        self._groups[group].pop(uid, None)
        if not self._groups[group]:
            del self._groups[group]


def _uid(item: Json) -> Uid:
    return str(item["metadata"]["uid"])


def _key(item: Json) -> str:
    metadata = item["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata['name']}"
