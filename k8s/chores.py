"""Deletions: at once where a run waits for them, else queued and tried again until they are done.

Deleting what is not there is done. Pods are deleted by uid, so that a deletion that is late hits no successor.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from k8s.api import Api, backoff_seconds
from k8s.crew import Crew
from k8s.pods import Pod
from k8s.problems import Conflict, NotFound
from scheduler.executor import ExecutorError

AT_ONCE = 64
"""Queued deletions carried out in one go, side by side, before somebody looks up."""
FIRST_WAIT_SECONDS = 1.0
MOST_WAIT_SECONDS = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Chore:
    key: str
    do: Callable[[], None]


class Chores:
    """What is to be removed from the cluster."""

    def __init__(self, api: Api, crew: Crew) -> None:
        self._api = api
        self._crew = crew
        self._queue: deque[_Chore] = deque()
        self._queued: set[str] = set()
        self._failures = 0
        self._not_before = 0.0

    # ---- at once --------------------------------------------------------------------------------------------------

    def delete_job(self, namespace: str, name: str) -> None:
        """Deletes a Job: no more pods are made for it. Those it has are deleted by themselves. Raises."""
        options = {"propagationPolicy": "Background"}
        self._delete(f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}", options)

    def delete_pod(self, pod: Pod, grace_seconds: float | None) -> None:
        """Deletes a pod, with its own grace or a shorter one. Raises."""
        options: dict[str, object] = {"preconditions": {"uid": pod.uid}}
        if grace_seconds is not None:
            # A grace of 0 would remove the object before its containers are gone, and their devices with it.
            options["gracePeriodSeconds"] = max(1, round(grace_seconds))
        self._delete(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}", options)

    def _delete(self, path: str, options: Mapping[str, object]) -> None:
        try:
            self._api.delete(path, dict(options))
        except (NotFound, Conflict):
            return  # gone, or its name is another's by now

    # ---- queued ---------------------------------------------------------------------------------------------------

    def release(self, namespace: str, job_names: Sequence[str], service: str) -> None:
        """Lets go of Jobs whose end is recorded; their pods stay for their logs, their Service does not."""
        for name in job_names:
            self._put(f"release {namespace}/{name}", partial(self._unpin, namespace, name))
        if service:
            self._put(f"service {namespace}/{service}", partial(self._delete_service, namespace, service))

    def end(self, namespace: str, job_names: Sequence[str], service: str, pods: Sequence[Pod]) -> None:
        """Removes Jobs, their pods and their Service, whatever they do."""
        for pod in pods:
            if not pod.is_deleting:
                self._put(f"pod {pod.uid}", partial(self.delete_pod, pod, None))
        self.discard(namespace, job_names, service)

    def discard(self, namespace: str, job_names: Sequence[str], service: str) -> None:
        """Removes Jobs and their Service; the garbage collector takes the pods."""
        for name in job_names:
            self._put(f"job {namespace}/{name}", partial(self._remove, namespace, name))
        if service:
            self._put(f"service {namespace}/{service}", partial(self._delete_service, namespace, service))

    def work(self) -> None:
        """Carries out what is queued, some of it; what cannot be done now is tried again later."""
        if time.monotonic() < self._not_before:
            return
        chores = [self._queue.popleft() for _ in range(min(AT_ONCE, len(self._queue)))]
        problem = None
        for chore, outcome in zip(chores, self._crew.each([chore.do for chore in chores]), strict=True):
            if isinstance(outcome, ExecutorError):
                problem = outcome
                self._queue.append(chore)  # behind all others: one that can never be done must not hold them up
            else:
                self._queued.discard(chore.key)
        if problem is None:
            self._failures = 0
            return
        if self._failures == 0:
            _log.warning("tidying up is put off: %s", problem)
        self._not_before = time.monotonic() + backoff_seconds(self._failures, FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS)
        self._failures += 1

    def __len__(self) -> int:
        """Returns how many deletions wait."""
        return len(self._queue)

    def _put(self, key: str, do: Callable[[], None]) -> None:
        if key not in self._queued:
            self._queued.add(key)
            self._queue.append(_Chore(key, do))

    def _unpin(self, namespace: str, name: str) -> None:
        try:
            self._api.merge(f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}", {"metadata": {"finalizers": None}})
        except NotFound:
            return

    def _remove(self, namespace: str, name: str) -> None:
        self.delete_job(namespace, name)
        self._unpin(namespace, name)

    def _delete_service(self, namespace: str, name: str) -> None:
        self._delete(f"/api/v1/namespaces/{namespace}/services/{name}", {})
