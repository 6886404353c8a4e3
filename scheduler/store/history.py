"""Lines of a job's history that nothing else stands behind: what its people did, what was noticed of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.core.model import JobId
from scheduler.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class NoteOnJob:
    """Adds a line to a job's history: `kind` is a word such as `entered` or `idle`."""

    job: JobId
    kind: str
    detail: Mapping[str, str | int | None] = field(default_factory=dict)

    def execute(self, tx: Transaction) -> None:
        """Adds the line at the transaction's time."""
        tx.note(self.job, self.kind, tx.now_ms, **self.detail)
