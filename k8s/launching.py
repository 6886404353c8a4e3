"""Makes an allocation's objects in the cluster, each by a name of its own, so that doing it again does nothing.

Servers before 1.21 drop `completionMode` without a word and would start the ranks of an Indexed Job as equals. So the
server is asked once, by a dry run, what it keeps, and what was stored is read back each time.
"""

import logging
import threading
from collections.abc import Callable, Sequence

from k8s import names
from k8s.admitting import admit, refuse_stranger
from k8s.api import Api, Json
from k8s.manifests import backstop_seconds, is_meeting, job_names, jobs, refuse_impossible, service
from k8s.options import Options
from k8s.problems import Conflict, Forbidden, NotFound, Rejected, Unacceptable, Unreachable
from k8s.tenancy import Namespaces
from scheduler.executor import StartOrder, StartRefused

_log = logging.getLogger(__name__)


class Launcher:
    """Creates Services and Jobs. Several threads may launch at once, each another order."""

    def __init__(self, api: Api, options: Options, adjust: Callable[[StartOrder, Json], Json] | None = None) -> None:
        self._api = api
        self._options = options
        self._adjust = adjust or (lambda _, job: job)
        self._namespaces = Namespaces(api, options)
        self._keeps_indexes: bool | None = None
        self._asking = threading.Lock()

    def check(self, order: StartOrder) -> None:
        """Raises StartRefused for what could never start here."""
        if order.spec.adopts:
            refuse_stranger(order, self._options)
            return
        refuse_impossible(order, self._options)

    def namespace(self, order: StartOrder) -> str:
        """Returns the name of the namespace that the order runs in, there or not."""
        return names.namespace_of(order.account, self._options.namespaces.prefix)

    def possible_jobs(self, order: StartOrder) -> tuple[str, ...]:
        """Returns the names that the order's Jobs can have, whichever way they were made; none for users' own pods."""
        if order.spec.adopts:
            return ()
        if self._keeps_indexes is not None:
            return job_names(order, is_indexed=self._keeps_indexes)
        either = (*job_names(order, is_indexed=True), *job_names(order, is_indexed=False))
        return tuple(dict.fromkeys(either))

    def needed_jobs(self, order: StartOrder, found: Sequence[str]) -> tuple[str, ...]:
        """Returns the names of all Jobs of an order of which some were found."""
        if order.spec.adopts:
            return ()
        return job_names(order, is_indexed=names.gang_name(order.allocation) in found)

    def launch(self, order: StartOrder) -> tuple[str, ...]:
        """Makes what is missing and returns the names of the Jobs. Raises StartRefused, KubernetesProblem.

        Pods that their user made are let go instead.
        """
        if order.spec.adopts:
            admit(self._api, order, self._options)
            return ()
        namespace = self._namespaces.ensure(order.account)
        try:
            is_indexed = False
            if is_meeting(order):
                self._create_service(namespace, order)
            if len(order.allocation.grants) > 1 and order.least_nodes is None:
                is_indexed = self._asks_for_indexes(namespace, order)
            made = []
            for body in jobs(order, self._options, is_indexed=is_indexed):
                self._create_job(namespace, self._adjust(order, body))
                made.append(str(body["metadata"]["name"]))
        except NotFound as problem:
            # The namespace was there a moment ago; whoever took it away, the next try makes it again.
            self._namespaces.forget(namespace)
            raise Unreachable(f"namespace {namespace} is gone: {problem}") from problem
        except Forbidden:
            raise
        except Rejected as refusal:
            if isinstance(refusal, Unacceptable) or refusal.status == 403:
                raise StartRefused(f"Kubernetes does not take this job: {refusal.detail}") from refusal
            raise
        return tuple(made)

    def move_backstop(self, order: StartOrder, name: str, deadline_seconds: int | None) -> None:
        """Gives one of an order's Jobs the deadline of its time limit, if that is not what it has."""
        wanted = backstop_seconds(order, self._options)
        if deadline_seconds == wanted:
            return
        path = f"/apis/batch/v1/namespaces/{self.namespace(order)}/jobs/{name}"
        try:
            self._api.merge(path, {"spec": {"activeDeadlineSeconds": wanted}})
        except NotFound:
            return  # it is over, as its watch is about to say

    def _create_service(self, namespace: str, order: StartOrder) -> None:
        try:
            self._api.create(f"/api/v1/namespaces/{namespace}/services", service(order, self._options))
        except Conflict:
            return  # by name it can only be our own

    def _create_job(self, namespace: str, body: Json) -> None:
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        try:
            stored = self._api.create(path, body)
        except Conflict:
            stored = self._api.get(f"{path}/{body['metadata']['name']}")
            before = (stored["metadata"].get("annotations") or {}).get(names.DIGEST)
            if before != body["metadata"]["annotations"][names.DIGEST]:
                raise StartRefused(
                    f"a Job {body['metadata']['name']} is there already in namespace {namespace} and is not the one "
                    "that was ordered; somebody made it by hand: remove it"
                ) from None
        wanted = body["spec"].get("completionMode", "NonIndexed")
        if stored["spec"].get("completionMode", "NonIndexed") != wanted:
            self._keeps_indexes = False
            raise StartRefused(f"the API server dropped completionMode: {wanted} of the Job; its version changed")

    def _asks_for_indexes(self, namespace: str, order: StartOrder) -> bool:
        """Asks the server once whether it keeps `completionMode`, by a create that is not carried out."""
        with self._asking:
            if self._keeps_indexes is None:
                probe = jobs(order, self._options, is_indexed=True)[0]
                probe["metadata"]["name"] = f"{probe['metadata']['name'][:50]}-probe"
                stored = self._api.create(f"/apis/batch/v1/namespaces/{namespace}/jobs", probe, {"dryRun": "All"})
                self._keeps_indexes = stored["spec"].get("completionMode") == "Indexed"
                if not self._keeps_indexes:
                    _log.warning("this API server keeps no Indexed Jobs: a gang is one Job a node")
            return self._keeps_indexes
