"""Gives pods that users make themselves their turn: each becomes a job, waits as one, and is let go as one.

    a gated pod with our label ─► a submission, once for its uid ─► queue ─► allocation ─► `admitting` lets it go
    its job ended while it waits ─► it is deleted      it vanished, or lost its gate, while it waits ─► job cancelled

What keeps a pod from being a job is written on it, as an annotation. The tenant is the one whose namespace the pod is
in, whatever its labels say. All that must survive is in the store and on the pods: this class is a cache. `look` is for
one thread; it does nothing unless this daemon leads.
"""

import json
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy.engine import Connection

from k8s import names
from k8s.admitting import keeps_gates
from k8s.adopting import Candidate, Gang, Wish, gangs, in_rank, reduce_candidate, spec_json
from k8s.api import Api, Json
from k8s.cluster import Cluster
from k8s.mirror import Mirror, MirrorLimits
from k8s.nodes import part_of
from k8s.options import Options
from k8s.problems import Conflict, KubernetesProblem, NotFound, Rejected
from scheduler.auth import Caller, Rights, Role, is_within
from scheduler.core.model import AccountId, JobId, JobState, UserName, tenant_of
from scheduler.loop import Controller
from scheduler.refusal import RefusalCode, Refused
from scheduler.routes.knowing import questions_of
from scheduler.store.accounts import account_tree
from scheduler.store.actions import CancelJobs
from scheduler.store.adopted import adopted_jobs
from scheduler.store.jobs import SubmitJobs
from scheduler.store.lookups import ended_among
from scheduler.store.queries import JobFilter, job_ids
from scheduler.store.tokens import members
from scheduler.wire.spec import parse_spec
from scheduler.wire.submission import Centre, SubmissionRules, draft_of

AGAIN_MS = 30_000
"""Between two tries of a pod that was refused: budgets are filled and nodes registered meanwhile."""
PATIENCE_SECONDS = 3.0
"""What a watch says that hears nothing for longer is not acted upon."""
ANSWER_SECONDS = 30.0
ACTOR = "kubernetes"
"""Who ends a job whose pod is gone, as its history has it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _View:
    """The pods with our label, at one look."""

    candidates: Mapping[str, Candidate]
    """By uid."""
    tenants: Mapping[str, AccountId]
    """By namespace, of those that can have one."""


class Gate:
    """One for a daemon."""

    def __init__(
        self, api: Api, cluster: Cluster, options: Options, rules: SubmissionRules, limits: MirrorLimits | None = None
    ) -> None:
        self._api = api
        self._cluster = cluster
        self._options = options
        self._rules = rules
        self._bell = threading.Event()
        self._mirror: Mirror[Candidate] = Mirror(
            api, "/api/v1/pods", self._reduce, self._bell.set, {"labelSelector": names.PROJECT}, limits
        )
        self._is_started = False
        self._keeps_gates: bool | None = None
        self._jobs: dict[JobId, tuple[names.UserPod, ...]] = {}
        self._is_loaded = False
        self._again_ms: dict[str, int] = {}
        """When a pod that was refused is tried again, by the uid of its gang's first."""
        self._seen_version = -1

    def _reduce(self, item: Json) -> Candidate:
        return reduce_candidate(item, self._options.nodes, self._options.gate)

    def say(self) -> bool | None:
        """Asks the server once whether it keeps gates, and logs what follows; None while it does not answer."""
        if self._keeps_gates is None:
            try:
                self._keeps_gates = keeps_gates(self._api)
            except KubernetesProblem as problem:
                _log.warning("whether this API server keeps scheduling gates is not known yet: %s", problem)
                return None
            if self._keeps_gates:
                _log.info("pods with the label %s and the scheduling gate %s get their turn", names.PROJECT, names.GATE)
            else:
                _log.warning(
                    "this API server keeps no scheduling gates (Kubernetes 1.27 does): pods that users make "
                    "themselves do not wait for their turn; they run at once and count as foreign"
                )
        return self._keeps_gates

    def look(self, controller: Controller) -> None:
        """Does what is to be done now. Raises KubernetesProblem, Refused, StoreError: then it is called again."""
        if not controller.is_leading:
            self._is_loaded = False
            return
        if not self.say():
            return
        if not self._is_started:
            self._is_started = True
            self._mirror.start()
        if not self._mirror.is_synced or self._mirror.silent_seconds() > PATIENCE_SECONDS:
            return
        version, now_ms = controller.version, controller.clock.now_ms()
        is_due = any(due_ms <= now_ms for due_ms in self._again_ms.values())
        if not self._bell.is_set() and version == self._seen_version and self._is_loaded and not is_due:
            return
        self._bell.clear()
        if not self._is_loaded:
            self._load(controller)
        candidates = self._mirror.objects()
        with controller.database.read() as connection:
            view = _View(candidates, self._tenants(connection))
        self._submit(controller, view)
        self._settle(controller, candidates)
        self._seen_version = version

    def close(self) -> None:
        """Ends the watch. Pods go on waiting."""
        self._mirror.stop()

    def _load(self, controller: Controller) -> None:
        """Learns which pods wait as jobs already: those that vanished meanwhile are told by nobody else."""
        with controller.database.read() as connection:
            known = adopted_jobs(connection)
        self._jobs = {job: tuple(map(names.user_pod, adopts)) for job, adopts in known.items()}
        self._again_ms.clear()
        self._is_loaded = True

    def _tenants(self, connection: Connection) -> dict[str, AccountId]:
        prefix = self._options.namespaces.prefix
        tenants = {tenant_of(account) for account in account_tree(connection) if account}
        return {names.namespace_of(tenant, prefix): tenant for tenant in sorted(tenants)}

    # ---- pods to jobs ---------------------------------------------------------------------------------------------

    def _submit(self, controller: Controller, view: _View) -> None:
        known = {pod.uid for pods in self._jobs.values() for pod in pods}
        now_ms = controller.clock.now_ms()
        for each in view.candidates.values():
            if not each.is_gated and each.lacks is not None:
                self._tell([each], each.lacks)
        waiting = [each for uid, each in view.candidates.items() if each.is_waiting and uid not in known]
        for gang in gangs(waiting):
            uid = gang.first.pod.uid
            if self._again_ms.get(uid, 0) > now_ms and gang.first.status is not None:
                continue
            self._again_ms.pop(uid, None)
            words = gang.lacks
            if words is None and not gang.is_whole:
                words = f"waits for the other pods of gang {gang.first.gang}: {len(gang.members)} are there"
            if words is None:
                words = self._take_in(controller, gang, view)
            self._tell(gang.members, words)

    def _take_in(self, controller: Controller, gang: Gang, view: _View) -> str:
        """Makes a gang a job, once; returns what is said of it. Raises StoreError, KubernetesProblem."""
        try:
            job = controller.carry_out(self._submission(controller, gang, view)).result(timeout=ANSWER_SECONDS)[0]
        except Refused as refused:
            if refused.code is RefusalCode.UNAVAILABLE and not controller.is_leading:
                raise
            self._again_ms[gang.first.pod.uid] = controller.clock.now_ms() + AGAIN_MS
            tries = f" (on the command line: {'; '.join(refused.tries)})" if refused.tries else ""
            return f"is no job: {refused.message}{tries}"
        self._jobs[job] = tuple(each.pod for each in gang.members)
        _log.info("job %d is pod %s/%s", job, gang.first.pod.namespace, gang.first.pod.name)
        return f"waits as job {job}; turnstile why {job} tells for what"

    def _submission(self, controller: Controller, gang: Gang, view: _View) -> SubmitJobs:
        """Returns the command that makes it a job. Raises Refused with what it lacks."""
        wish = gang.first.wish
        assert wish is not None, "a gang that lacks nothing has a wish"
        account = self._account(gang, wish, view)
        user = UserName(wish.user)
        with controller.database.read() as connection:
            self._check_user(connection, account, user)
        rights = Rights(Caller(ACTOR, Role.USER, tenant_of(account), user))
        body = json.dumps(spec_json(gang, account, self._classes(wish))).encode()
        centre = Centre(controller.offers, self._rules, controller.clock.now_ms())
        draft = draft_of(parse_spec(body), rights, centre)
        shape = replace(draft.shape, cpu_millicores=wish.cpu_millicores, memory_bytes=wish.memory_bytes)
        launch = replace(draft.launch, adopts=in_rank(gang), grace_seconds=wish.grace_seconds)
        draft = replace(draft, shape=shape, launch=launch)
        draft = replace(draft, costs=questions_of(draft, controller.offers))
        return SubmitJobs((draft,), tenant_of(account), user, gang.key, gang.key)

    def _account(self, gang: Gang, wish: Wish, view: _View) -> AccountId:
        """Returns the project, which is the namespace's own tenant's. Raises Refused."""
        namespace = gang.first.pod.namespace
        tenant = view.tenants.get(namespace)
        if tenant is None or not self._is_ours(namespace):
            raise Refused(
                RefusalCode.NOT_ALLOWED,
                f"namespace {namespace} is no tenant's of this Turnstile; a tenant's pods belong into its own "
                f"namespace, which carries the label {names.selector(self._options.installation)}",
            )
        named = AccountId(wish.project)
        if is_within(named, tenant):
            return named
        account = AccountId(f"{tenant}/{wish.project}")
        if tenant_of(named) in view.tenants.values() and "/" in named:
            raise Refused(
                RefusalCode.NOT_ALLOWED, f"project {named} is another tenant's; this namespace's tenant is {tenant}"
            )
        return account

    def _is_ours(self, namespace: str) -> bool:
        try:
            found = self._api.get(f"/api/v1/namespaces/{namespace}")
        except NotFound:
            return False
        return bool((found["metadata"].get("labels") or {}).get(names.INSTALLATION) == self._options.installation)

    @staticmethod
    def _check_user(connection: Connection, account: AccountId, user: UserName) -> None:
        """Refuses a user who belongs neither to the project nor to an account above it. Raises Refused."""
        those = {each.user for each in members(connection, tenant_of(account)) if is_within(account, each.account)}
        if user not in those:
            raise Refused(
                RefusalCode.NOT_ALLOWED,
                f"{user} is no member of {account}; annotate the pod with {names.USER}=NAME, one who is",
            )

    def _classes(self, wish: Wish) -> Sequence[str]:
        """Returns the classes whose devices are of the resource that a pod asks for. Raises Refused."""
        options = self._options.nodes
        classes = sorted(
            {
                part_of(machine, wish.resource, options).gpu_class
                for machine in self._cluster.machines().values()
                if machine.capacity.get(wish.resource)
            }
        )
        strange = [name for name in wish.gpu_classes if name not in classes]
        if strange or not classes:
            what = f"no node offers {wish.resource}" + (f" as {strange[0]}" if strange else "")
            raise Refused(RefusalCode.NEVER_FITS, f"{what}; there is {', '.join(classes) or 'none'}")
        return classes

    # ---- jobs to pods ---------------------------------------------------------------------------------------------

    def _settle(self, controller: Controller, candidates: Mapping[str, Candidate]) -> None:
        """Ends waiting jobs whose pods are gone, and deletes waiting pods whose jobs are over."""
        if not self._jobs:
            return
        with controller.database.read() as connection:
            ended = ended_among(connection, list(self._jobs))
            waits = JobFilter(ids=tuple(self._jobs), states=(JobState.PENDING, JobState.HELD))
            waiting = job_ids(connection, waits, len(self._jobs))
        for job in waiting:
            lost = next((pod for pod in self._jobs[job] if not _waits(candidates.get(pod.uid))), None)
            if lost is not None:
                how = "was deleted" if lost.uid not in candidates else f"has no gate {names.GATE} any more"
                words = f"pod {lost.namespace}/{lost.name} {how} before its turn"
                controller.carry_out(CancelJobs((job,), ACTOR, detail=words)).result(timeout=ANSWER_SECONDS)
        for job in ended:
            left = [pod for pod in self._jobs[job] if pod.uid in candidates]
            for pod in left:
                if _waits(candidates[pod.uid]):
                    self._delete(pod)
            if not left:
                del self._jobs[job]

    def _delete(self, pod: names.UserPod) -> None:
        try:
            self._api.delete(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}", {"preconditions": {"uid": pod.uid}})
        except (NotFound, Conflict):
            return  # gone, or its name is another's by now

    def _tell(self, candidates: Iterable[Candidate], status: str) -> None:
        """Writes on pods what becomes of them, where that is new."""
        for each in candidates:
            if each.status == status:
                continue
            path = f"/api/v1/namespaces/{each.pod.namespace}/pods/{each.pod.name}"
            try:
                self._api.merge(path, {"metadata": {"uid": each.pod.uid, "annotations": {names.STATUS: status}}})
            except (NotFound, Conflict):
                continue
            except Rejected as refused:
                _log.warning("pod %s/%s is not told that it %s: %s", each.pod.namespace, each.pod.name, status, refused)


def _waits(candidate: Candidate | None) -> bool:
    return candidate is not None and candidate.is_gated
