"""What a command works with: the connection, the instant, the policy, and places to say what happened.

Rows that commands only add (jobs, keys, history, ledger) are gathered and written together, because a hundred single
inserts cost several times one insert of a hundred. Whoever asks for `connection` sees all jobs and keys: they are
written first. A savepoint is made when a command first asks for the connection, and not for those that never do.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.admission import Admission, FreeOfCharge
from scheduler.core.events import Event
from scheduler.core.model import Account, AccountId, JobId, UserName, lineage
from scheduler.core.policy import Policy
from scheduler.store.codec import ACCOUNT_COLUMNS, account_of
from scheduler.store.columns import JsonObject
from scheduler.store.history_tables import JOB_EVENT
from scheduler.store.partition import Chain, ChainMark, Lanes
from scheduler.store.prepared import Prepared, json_text
from scheduler.store.tables import ACCOUNT, JOB, SUBMISSION_KEY

_INSERT_JOB = Prepared(
    sa.insert(JOB),
    (
        *("id", "account", "tenant", "user", "name", "state", "gpu_class", "nodes", "gpu_units", "shape", "wanted"),
        *("priority", "time_limit_ms", "submitted_ms", "begin_ms", "is_backing_off", "deadline_ms", "hold", "attempt"),
        *("retries_left", "array_id", "array_index", "array_cap", "waits_for", "retry_on"),
        *("launch", "labels", "notify"),
    ),
)
_INSERT_JOB_EVENT = Prepared(sa.insert(JOB_EVENT), ("at_ms", "job_id", "kind", "detail"))
_KEY_NAMES = ("tenant", "user", "key")
_INSERT_KEY = Prepared(sa.insert(SUBMISSION_KEY), (*_KEY_NAMES, "request_sha256", "job_ids", "created_ms"))
_SELECT_KEY = Prepared(
    sa.select(SUBMISSION_KEY.c.request_sha256, sa.cast(SUBMISSION_KEY.c.job_ids, sa.Text)).where(
        *(SUBMISSION_KEY.c[name] == sa.bindparam(name) for name in _KEY_NAMES)
    ),
    _KEY_NAMES,
)
_JSON_PLACES = tuple(isinstance(column.type, sa.JSON) for column in ACCOUNT_COLUMNS)
_SELECT_ACCOUNT = Prepared(
    sa.select(
        *(
            sa.cast(each, sa.Text) if is_json else each
            for each, is_json in zip(ACCOUNT_COLUMNS, _JSON_PLACES, strict=True)
        )
    ).where(ACCOUNT.c.id == sa.bindparam("id")),
    ("id",),
)
_LAST_ID_SQLITE = sa.text("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'job'")
_LAST_ID_POSTGRES = sa.text("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM job_id_seq")
_SET_ID_POSTGRES = sa.text("SELECT setval('job_id_seq', :last)")

SubmissionKey = tuple[AccountId, UserName, str]


@dataclass(frozen=True, slots=True)
class _Mark:
    events: int
    history: int
    jobs: int
    keys: int
    chain: ChainMark | None


class Transaction:
    """One transaction. `now_ms` is one instant for all of it, never before the ledger's last."""

    def __init__(self, connection: Connection, now_ms: int, policy: Policy, admission: Admission | None = None) -> None:
        self.now_ms = now_ms
        self.policy = policy
        self.admission: Admission = FreeOfCharge() if admission is None else admission
        self.events: list[Event] = []
        self._connection = connection
        self._history: list[JsonObject] = []
        self._jobs: list[JsonObject] = []
        self._keys: dict[SubmissionKey, tuple[str, tuple[int, ...]]] = {}
        self._chain: Chain | None = None
        self._accounts: dict[AccountId, Account | None] = {}
        self._next_job_id: int | None = None
        self._mark: _Mark | None = None
        self._has_savepoint = False

    @property
    def connection(self) -> Connection:
        """The connection, with all that was added so far visible in it. What a refused command did here is undone."""
        if self._mark is not None and not self._has_savepoint:
            # What this command itself added must be undone with it, so that is written inside the savepoint.
            jobs, keys = self._jobs[self._mark.jobs :], list(self._keys.items())[self._mark.keys :]
            del self._jobs[self._mark.jobs :]
            self._keys = dict(list(self._keys.items())[: self._mark.keys])
            self._write_added()
            self._connection.exec_driver_sql("SAVEPOINT command")
            self._has_savepoint = True
            self._jobs, self._keys = jobs, dict(keys)
        self._write_added()
        return self._connection

    @property
    def reading(self) -> Connection:
        """The connection for queries about what no command of this transaction adds late: spares the savepoint."""
        return self._connection

    def after_ledger(self) -> Connection:
        """The connection, with the intervals of earlier commands visible as well; a command asks for it first."""
        if self._chain is not None:
            assert not self._has_savepoint, "what earlier commands closed is written outside of this one's savepoint"
            self._chain.flush()
            if self._mark is not None:
                self._mark = replace(self._mark, chain=self._chain.mark())
        return self.connection

    def emit(self, event: Event) -> None:
        """Says what happened; the caller of `commit` learns of it when it is durable."""
        self.events.append(event)

    def note(self, job: JobId, kind: str, at_ms: int, **detail: str | int | None) -> None:
        """Adds a line to a job's history, as its owner sees it. Details that are None are left out."""
        facts = {name: value for name, value in detail.items() if value is not None}
        self._history.append({"at_ms": at_ms, "job_id": job, "kind": kind, "detail": json_text(facts)})

    def add_jobs(self, rows: Sequence[JsonObject]) -> None:
        """Adds jobs, each with every column that a waiting job has."""
        self._jobs += rows

    def submission(self, tenant: AccountId, user: UserName, key: str) -> tuple[str, tuple[int, ...]] | None:
        """Returns the request's SHA-256 and the job ids that an idempotency key stands for; None for a new key."""
        known = self._keys.get((tenant, user, key))
        if known is None:
            row = _SELECT_KEY.first(self._connection, {"tenant": tenant, "user": user, "key": key})
            known = None if row is None else (row[0], tuple(json.loads(row[1])))
        return known

    def add_submission(
        self, tenant: AccountId, user: UserName, key: str, request_sha256: str, ids: Sequence[JobId]
    ) -> None:
        """Remembers what an idempotency key stands for."""
        self._keys[tenant, user, key] = (request_sha256, tuple(ids))

    def is_suspended(self, account: AccountId) -> bool | None:
        """Tells whether the account itself is suspended; None when there is no such account."""
        known = self.account(account)
        return None if known is None else known.is_suspended

    def account(self, account: AccountId) -> Account | None:
        """Returns an account's terms; None when there is no such account."""
        if account not in self._accounts:
            row = _SELECT_ACCOUNT.first(self._connection, {"id": account})
            values = row and [
                json.loads(each) if is_json else each for each, is_json in zip(row, _JSON_PLACES, strict=True)
            ]
            self._accounts[account] = account_of(values) if values else None
        return self._accounts[account]

    def changed_account(self, project: AccountId, terms: Mapping[AccountId, Account]) -> AccountId | None:
        """Returns the account on a project's path, the nearest first, that has other terms than are given; None: none.

        By value and not by time: what was changed within the same millisecond is seen, too.
        """
        return next((step for step in lineage(project) if self.account(step) != terms.get(step)), None)

    def forget_accounts(self) -> None:
        """Says that accounts changed in this transaction."""
        self._accounts.clear()

    def reserve_job_ids(self, count: int) -> JobId:
        """Returns the first of `count` consecutive job ids that were never given before and never will be again."""
        is_postgres = self._connection.dialect.name == "postgresql"
        if self._next_job_id is None:
            statement = _LAST_ID_POSTGRES if is_postgres else _LAST_ID_SQLITE
            self._next_job_id = int(self._connection.execute(statement).scalar_one()) + 1
        first = self._next_job_id
        self._next_job_id += count
        if is_postgres:
            # SQLite counts ids that are given explicitly; a sequence must be told.
            self._connection.execute(_SET_ID_POSTGRES, {"last": self._next_job_id - 1})
        return JobId(first)

    def lanes(self) -> Lanes:
        """Returns an empty working set of cursors; the command flushes it when it is done."""
        if self._chain is None:
            self._chain = Chain(self._connection, self.now_ms)
        return Lanes(self.connection, self._chain)

    def begin_command(self) -> None:
        """Marks the point that a refusal goes back to."""
        chain = None if self._chain is None else self._chain.mark()
        self._mark = _Mark(len(self.events), len(self._history), len(self._jobs), len(self._keys), chain)
        self._has_savepoint = False

    def end_command(self) -> None:
        """Keeps what the command did."""
        if self._has_savepoint:
            self._connection.exec_driver_sql("RELEASE SAVEPOINT command")
        self._mark = None

    def undo_command(self) -> None:
        """Undoes all that the command did and said."""
        mark = self._mark
        assert mark is not None, "only a command that began can be undone"
        if self._has_savepoint:
            self._connection.exec_driver_sql("ROLLBACK TO SAVEPOINT command")
            self._connection.exec_driver_sql("RELEASE SAVEPOINT command")
            self._jobs, self._keys = [], {}
        else:
            del self._jobs[mark.jobs :]
            self._keys = dict(list(self._keys.items())[: mark.keys])
        self.forget_accounts()
        del self.events[mark.events :]
        del self._history[mark.history :]
        if self._chain is not None:
            self._chain.rewind(mark.chain)
        self._mark = None

    def flush(self) -> None:
        """Writes what was gathered: the last thing before the commit."""
        self._write_added()
        if self._chain is not None:
            self._chain.flush()
        _INSERT_JOB_EVENT.many(self._connection, self._history)

    def _write_added(self) -> None:
        if self._jobs:
            _INSERT_JOB.many(self._connection, self._jobs)
            self._jobs = []
        if self._keys:
            rows = [
                {
                    **dict(zip(_KEY_NAMES, place, strict=True)),
                    "request_sha256": request_sha256,
                    "job_ids": json_text(ids),
                    "created_ms": self.now_ms,
                }
                for place, (request_sha256, ids) in self._keys.items()
            ]
            _INSERT_KEY.many(self._connection, rows)
            self._keys = {}
