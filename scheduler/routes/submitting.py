"""A submission's command and its answer, made without reading back what was just written."""

import hashlib
from dataclasses import dataclass

from scheduler.auth import Rights
from scheduler.core.model import JobId, tenant_of
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.routes.door import Door
from scheduler.routes.foreseeing import Foreseeing
from scheduler.routes.shown import Shown
from scheduler.store import queries
from scheduler.store.jobs import JobDraft, SubmitJobs, element
from scheduler.store.queries import JobRecord
from scheduler.store.quotas import Reading, check_quotas
from scheduler.store.transaction import Transaction
from scheduler.wire.answers import estimate_answer, reason_answers
from scheduler.wire.problems import Json, page
from scheduler.wire.spec import invalid

_LONGEST_KEY = 128


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a submission: `is_new` is False when its key had been used for it before."""

    ids: tuple[JobId, ...]
    at_ms: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class Submit:
    """Submits, and tells whether that made anything."""

    jobs: SubmitJobs

    @classmethod
    def of(cls, draft: JobDraft, key: str | None, body: bytes) -> "Submit":
        """Returns the command for a draft that came as `body`."""
        digest = None if key is None else hashlib.sha256(body).hexdigest()
        return cls(SubmitJobs((draft,), tenant_of(draft.account), draft.user, key, digest))

    def execute(self, tx: Transaction) -> Submitted:
        """Returns the ids. Raises Refused as SubmitJobs does."""
        before = len(tx.events)
        ids = self.jobs.execute(tx)
        return Submitted(ids, tx.now_ms, len(tx.events) > before)


def checked_key(key: str | None) -> str | None:
    """Returns an idempotency key as it is. Raises Refused (`invalid`) unless it is short, visible ASCII."""
    if key is None:
        return None
    if not 0 < len(key) <= _LONGEST_KEY or not key.isascii() or not key.isprintable():
        raise invalid((Problem(f"must be 1 to {_LONGEST_KEY} printable ASCII characters", "Idempotency-Key"),))
    return key


async def submitted(door: Door, shown: Shown, draft: JobDraft, command: Submit, rights: Rights) -> Json:
    """Submits, and returns the answer: the job, or an array's first element, how many there are, the budget before it.

    Raises Refused as the command does.
    """
    budget = await shown.knowing.budget_before(draft)
    outcome = await door.carry_out(command)
    if outcome.is_new:
        first = _record(draft, outcome.ids[0], outcome.at_ms)
    else:
        found = await door.read(lambda connection: queries.job(connection, outcome.ids[0]))
        if found is None:
            raise Refused(RefusalCode.NOT_FOUND, f"job {outcome.ids[0]}, made by this key, was archived since")
        first = found
    items = await shown.jobs([first], rights)
    return page(
        "JobList",
        door.now_ms,
        items,
        array_size=None if draft.array_indexes is None else len(outcome.ids),
        is_new=outcome.is_new,
        budget=budget,
    )


async def preview(door: Door, asked: tuple[Shown, Foreseeing], draft: JobDraft, rights: Rights) -> Json:
    """Returns what a submission would be answered; the job has no id. Raises Refused where a limit forbids it.

    Says besides what would keep the job waiting, its place in the queue and when it would start: for an array, of its
    first element.
    """
    shown, foreseeing = asked
    now_ms = door.now_ms
    await door.read(lambda connection: check_quotas(Reading(connection), [draft.ask]))
    record = _record(draft, JobId(0), now_ms)
    items = await shown.jobs([record], rights)
    foreseen = await foreseeing.draft(record.job)
    estimate = foreseen.estimate
    item = {
        **items[0],
        "id": None,
        "array_id": None,
        "reasons": reason_answers(foreseen.explanation.reasons),
        "position": foreseen.explanation.position,
        "start_estimate": None if estimate is None else estimate_answer(estimate, foreseen.record),
    }
    size = None if draft.array_indexes is None else len(draft.array_indexes)
    return page("JobList", now_ms, [item], array_size=size, is_new=False, budget=await shown.knowing.budget(draft))


def _record(draft: JobDraft, first: JobId, at_ms: int) -> JobRecord:
    """Returns the first job of a draft as the store holds it right after its submission."""
    job = element(draft, first, 0, at_ms)
    return JobRecord(
        job=job,
        name=draft.name,
        tenant=tenant_of(draft.account),
        gpu_class=draft.shape.gpu_classes[0],
        reason=None,
        detail=None,
        exit_code=None,
        started_ms=None,
        ended_ms=None,
        launch=draft.launch,
        labels=draft.labels,
        last_allocation=None,
        booking=None,
        grants=(),
    )
