"""Keeps the output of jobs beyond their pods: on this daemon's disk, within each job's cap, as local jobs' logs are.

A pod that is deleted takes its log with it, and that is how jobs are stopped. So a stream is opened before the deletion
is sent, and read until the container is gone; jobs that end by themselves are read once their end is recorded. What a
kubelet does not give is missing, and never harms a job. Any thread may ask; streams are read by threads of their own.
"""

import logging
import queue
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from k8s.api import Api
from k8s.pods import Pod
from k8s.problems import KubernetesProblem
from scheduler.core.model import AllocationId
from scheduler.executor import LogChunk
from scheduler.joblog import LogWriter, read_log

MOST_STREAMS = 64
"""Open at once for what is being stopped; more are not kept, rather than let a mass cancel take all connections."""
MOST_WAITING = 10_000
"""Ended pods whose logs wait to be read; their pods stay for a while anyway."""
SPARE_SECONDS = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Wish:
    allocation: AllocationId
    pod: Pod
    limit_bytes: int


class LogKeeper:
    """Reads logs into `folder`, a directory for each allocation and rank."""

    def __init__(self, api: Api, folder: Path) -> None:
        self._api = api
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._reading: set[tuple[AllocationId, int]] = set()
        self._wishes: queue.Queue[_Wish | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name="log keeper", daemon=True)
        self._thread.start()

    def follow(self, allocation: AllocationId, pod: Pod, limit_bytes: int, grace_seconds: float) -> None:
        """Opens the log of a pod that is about to be stopped, and reads it in the background to its end."""
        key = (allocation, pod.rank)
        with self._lock:
            if key in self._reading or self._place(*key).exists() or len(self._reading) >= MOST_STREAMS:
                return
            self._reading.add(key)
        try:
            pieces = self._open(pod, grace_seconds + SPARE_SECONDS, is_followed=True)
        except KubernetesProblem as problem:
            self._done(key, f"its log is not kept: {problem}")
            return
        wish = _Wish(allocation, pod, limit_bytes)
        threading.Thread(target=self._read, args=(wish, pieces), name=f"log of {pod.name}", daemon=True).start()

    def keep(self, allocation: AllocationId, pod: Pod, limit_bytes: int) -> None:
        """Queues the log of a pod that is over."""
        key = (allocation, pod.rank)
        with self._lock:
            if key in self._reading or self._place(*key).exists():
                return
            self._reading.add(key)
        try:
            self._wishes.put_nowait(_Wish(allocation, pod, limit_bytes))
        except queue.Full:
            self._done(key, "too many logs wait to be read")

    def kept(self, allocation: AllocationId, rank: int, offset: int, limit_bytes: int) -> LogChunk | None:
        """Returns a piece of a log that was read to its end; None when there is none, or it is still being read."""
        with self._lock:
            if (allocation, rank) in self._reading:
                return None
        try:
            data, next_offset, is_truncated = read_log(str(self._place(allocation, rank)), offset, limit_bytes)
        except OSError:
            return None
        return LogChunk(data, next_offset, len(data) < limit_bytes, is_truncated)

    def forget(self, before_ms: int) -> int:
        """Removes what was kept before a time; returns of how many allocations. Raises OSError."""
        count = 0
        for directory in sorted(self._folder.iterdir()):
            if directory.stat().st_mtime_ns // 1_000_000 < before_ms:
                shutil.rmtree(directory)
                count += 1
        return count

    def close(self) -> None:
        """Ends the background reading; what is open is read on until the process ends."""
        self._wishes.put(None)

    def _work(self) -> None:
        while (wish := self._wishes.get()) is not None:
            try:
                pieces = self._open(wish.pod, SPARE_SECONDS, is_followed=False)
            except KubernetesProblem as problem:
                self._done((wish.allocation, wish.pod.rank), f"its log is not kept: {problem}")
                continue
            self._read(wish, pieces)

    def _open(self, pod: Pod, silence_seconds: float, *, is_followed: bool) -> Iterator[bytes]:
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/log"
        query: dict[str, str | int] = {"container": pod.container}
        if is_followed:
            query["follow"] = "true"
        return self._api.stream(path, query, silence_seconds)

    def _read(self, wish: _Wish, pieces: Iterator[bytes]) -> None:
        place = self._place(wish.allocation, wish.pod.rank)
        words = None
        try:
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            writer = LogWriter(str(place), wish.limit_bytes)
            try:
                for piece in pieces:
                    writer.write(piece)
            finally:
                writer.close()
        except (KubernetesProblem, OSError) as problem:
            words = f"its log may end early: {problem}"
        self._done((wish.allocation, wish.pod.rank), words)

    def _done(self, key: tuple[AllocationId, int], words: str | None) -> None:
        if words is not None:
            _log.info("allocation %s rank %d: %s", *key, words)
        with self._lock:
            self._reading.discard(key)

    def _place(self, allocation: AllocationId, rank: int) -> Path:
        return self._folder / allocation / str(rank)
