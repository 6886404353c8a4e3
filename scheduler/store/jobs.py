"""The command that takes jobs in: single ones and arrays, once for each idempotency key."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from scheduler.admission import CostQuestion, Money, Submission
from scheduler.core.events import JobSubmitted
from scheduler.core.model import (
    AccountId,
    BookingWanted,
    Dependency,
    EndReason,
    HoldKind,
    Job,
    JobId,
    JobState,
    Shape,
    UserName,
    tenant_of,
)
from scheduler.core.state import lineage
from scheduler.executor import LaunchSpec
from scheduler.notices import NoticeEvent, NoticeWhen
from scheduler.refusal import RefusalCode, Refused
from scheduler.store.codec import launch_json, retry_on_text, shape_json, waits_for_text
from scheduler.store.columns import JsonObject
from scheduler.store.dependencies import file_dependencies, still_to_wait_for
from scheduler.store.prepared import json_text
from scheduler.store.quotas import Ask, check_quotas
from scheduler.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class JobDraft:
    """A job as asked for. `array_indexes` makes one job an element of it each; None makes one job."""

    account: AccountId
    user: UserName
    name: str
    shape: Shape
    time_limit_ms: int
    launch: LaunchSpec
    wanted: BookingWanted = BookingWanted.AUTO
    priority: int = 0
    begin_ms: int | None = None
    deadline_ms: int | None = None
    is_held: bool = False
    retries: int = 0
    retry_on: tuple[EndReason, ...] = ()
    array_indexes: tuple[int, ...] | None = None
    array_cap: int | None = None
    after: tuple[Dependency, ...] = ()
    """On jobs that are there, and that the submitter may see."""
    labels: Mapping[str, str] = field(default_factory=dict)
    costs: tuple[CostQuestion, ...] = ()
    """What each of its jobs may cost, a question for each class that it may get; empty where nothing has a price."""
    max_cost: Money | None = None
    """The most that all its jobs together may cost, over all their starts."""
    notify_events: tuple[NoticeEvent, ...] | None = None
    """What its user is to be told of; None: what the user wants to hear of all jobs."""
    notify_when: NoticeWhen = NoticeWhen.EACH

    @property
    def count(self) -> int:
        """Jobs that it makes."""
        return 1 if self.array_indexes is None else len(self.array_indexes)

    @property
    def ask(self) -> Ask:
        """What limits ask about it."""
        return Ask(self.account, self.user, self.shape, self.count, self.priority > 0)


@dataclass(frozen=True, slots=True)
class SubmitJobs:
    """Takes jobs in. A request that comes again under its `key` gets its first answer and makes nothing."""

    drafts: tuple[JobDraft, ...]
    tenant: AccountId
    user: UserName
    key: str | None = None
    request_sha256: str | None = None

    def execute(self, tx: Transaction) -> tuple[JobId, ...]:
        """Returns the ids, consecutive and in order of drafts and array indexes.

        Refuses an unknown or suspended account, an empty array, what a limit of an account forbids for ever or at the
        door, a dependency that can never be met, and a key that stood for another request.
        """
        known = self._answered(tx)
        if known is not None:
            return known
        for account in dict.fromkeys(draft.account for draft in self.drafts):
            check_account(tx, account)
        if any(draft.count == 0 for draft in self.drafts):
            raise Refused(RefusalCode.INVALID, "an array needs at least one index, as in 0-9")
        check_quotas(tx, [draft.ask for draft in self.drafts])
        asked = [Submission(draft.costs, draft.count, draft.max_cost) for draft in self.drafts]
        warnings = [tx.admission.admit(tx.reading, each, tx.now_ms) if each.questions else () for each in asked]
        first = tx.reserve_job_ids(sum(draft.count for draft in self.drafts))
        jobs: list[Job] = []
        rows: list[JsonObject] = []
        for draft in self.drafts:
            id_ = JobId(first + len(jobs))
            waits_for = still_to_wait_for(tx, draft.after, (draft.account, draft.user, draft.name))
            made = [replace(job, waits_for=waits_for) for job in _elements(draft, id_, tx.now_ms)]
            jobs += made
            rows += _rows(draft, made)
            if draft.max_cost is not None:
                submission = Submission(draft.costs, draft.count, draft.max_cost)
                tx.admission.cap(tx.connection, [job.id for job in made], submission, tx.now_ms)
            file_dependencies(tx, made, draft.name)
        tx.add_jobs(rows)
        for job in jobs:
            tx.emit(JobSubmitted(tx.now_ms, job))
            tx.note(job.id, "submitted", tx.now_ms, hold=job.hold)
        for warning in dict.fromkeys(text for found in warnings for text in found):
            tx.note(first, "budget", tx.now_ms, warning=warning)
        ids = tuple(job.id for job in jobs)
        if self.key is not None:
            tx.add_submission(self.tenant, self.user, self.key, self.request_sha256 or "", ids)
        return ids

    def _answered(self, tx: Transaction) -> tuple[JobId, ...] | None:
        if self.key is None:
            return None
        known = tx.submission(self.tenant, self.user, self.key)
        if known is None:
            return None
        request_sha256, ids = known
        if request_sha256 != (self.request_sha256 or ""):
            raise Refused(
                RefusalCode.CONFLICT,
                f"the idempotency key {self.key!r} was used for another request; "
                "use a new key, or repeat that request unchanged",
            )
        return tuple(JobId(job) for job in ids)


def check_account(tx: Transaction, account: AccountId) -> None:
    """Raises Refused for an account that is not there (`not_found`), or takes no jobs (`policy`)."""
    if tx.is_suspended(account) is None:
        raise Refused(RefusalCode.NOT_FOUND, f"there is no project {account or 'without a name'}")
    for step in lineage(account):
        if tx.is_suspended(step):
            raise Refused(RefusalCode.POLICY, f"{step} is suspended and takes no jobs; ask the operator")


def element(draft: JobDraft, first: JobId, offset: int, now_ms: int) -> Job:
    """Returns the job that a draft's element at `offset` becomes; a draft that is no array has one, at 0."""
    index = None if draft.array_indexes is None else draft.array_indexes[offset]
    return Job(
        id=JobId(first + offset),
        account=draft.account,
        user=draft.user,
        shape=draft.shape,
        time_limit_ms=draft.time_limit_ms,
        submitted_ms=now_ms,
        wanted=draft.wanted,
        priority=draft.priority,
        begin_ms=draft.begin_ms,
        deadline_ms=draft.deadline_ms,
        state=JobState.HELD if draft.is_held else JobState.PENDING,
        hold=HoldKind.USER if draft.is_held else None,
        retries_left=draft.retries,
        array=None if index is None else first,
        array_index=index,
        waits_for=draft.after,
        array_cap=draft.array_cap,
        retry_on=draft.retry_on,
    )


def _elements(draft: JobDraft, first: JobId, now_ms: int) -> list[Job]:
    count = 1 if draft.array_indexes is None else len(draft.array_indexes)
    return [element(draft, first, offset, now_ms) for offset in range(count)]


def _rows(draft: JobDraft, jobs: list[Job]) -> list[JsonObject]:
    same = {
        "account": draft.account,
        "tenant": tenant_of(draft.account),
        "user": draft.user,
        "name": draft.name,
        "gpu_class": draft.shape.gpu_classes[0],
        "nodes": draft.shape.nodes,
        "gpu_units": draft.shape.gpu_units,
        "shape": json_text(shape_json(draft.shape)),
        "wanted": draft.wanted.value,
        "priority": draft.priority,
        "time_limit_ms": draft.time_limit_ms,
        "begin_ms": draft.begin_ms,
        "is_backing_off": False,
        "deadline_ms": draft.deadline_ms,
        "attempt": 0,
        "retries_left": draft.retries,
        "array_cap": draft.array_cap,
        "waits_for": waits_for_text(jobs[0].waits_for),
        "retry_on": retry_on_text(draft.retry_on),
        "launch": json_text(launch_json(draft.launch)),
        "labels": json_text(dict(draft.labels)),
        "notify": _notify_text(draft),
    }
    return [
        {
            "id": job.id,
            "state": job.state.value,
            "submitted_ms": job.submitted_ms,
            "hold": None if job.hold is None else job.hold.value,
            "array_id": job.array,
            "array_index": job.array_index,
            **same,
        }
        for job in jobs
    ]


def _notify_text(draft: JobDraft) -> str | None:
    asked: JsonObject = {}
    if draft.notify_events is not None:
        asked["events"] = [event.value for event in draft.notify_events]
    if draft.notify_when is not NoticeWhen.EACH:
        asked["when"] = draft.notify_when.value
    return json_text(asked) if asked else None
