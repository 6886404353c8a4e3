"""Metering's tables beside the scheduler's: price books and packages, and what GPUs were seen to do.

`price_book` and `package` are append-only (triggers refuse update and delete), because lines name the version and the
package that they were rated by. `gpu_window` is evidence and statistics: it never makes money, and a window that comes
twice is stored once. `agent` is what the agents of GPU nodes last said, `agent_batch` which of their batches were taken
in, and `device_witness` which GPUs were seen in an allocation's hands where the platform chooses them.

`posting` and `posting_entry` are the journal of double entry, append-only too: an entry's legs are written first and
the entry last, when a trigger checks that they add up to zero; after it no leg can join them. `balance` and
`budget_use` are sums over it that can be made anew at any time (`metering.journal.rebuild`). `budget_term` is the
append-only history of budgets. `charge_due` is a list of work: allocations whose use is not charged to its end.
"""

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from scheduler.store.columns import BIG_KEY, JsonObject, big, column, json, table_of


class PriceBookRow(SQLModel, table=True):
    """A published price book: `body` is its content, `sha256` the hash of the body's canonical JSON."""

    __tablename__ = "price_book"
    version: str = Field(primary_key=True)
    effective_ms: int = column(sa.BigInteger(), unique=True)
    currency: str
    body: JsonObject = json()
    sha256: str
    published_ms: int = big()
    retroactive_reason: str | None = None
    """Why it prices what was used before it was published; null for a book that does not."""


class PriceDraftRow(SQLModel, table=True):
    """A price book that is not published yet: it may be changed and withdrawn, and nothing is rated by it."""

    __tablename__ = "price_draft"
    version: str = Field(primary_key=True)
    body: JsonObject = json()
    sha256: str
    saved_ms: int = big()


class PackageRow(SQLModel, table=True):
    """GPU-hours that a tenant bought. `sha256` is the hash of all that is sold, so that a changed row is found."""

    __tablename__ = "package"
    id: str = Field(primary_key=True)
    tenant: str
    gpu_class: str
    gpu_hours: int = big()
    price: str
    currency: str
    from_ms: int = big()
    to_ms: int = big()
    sold_ms: int = big()
    sha256: str


class GpuWindowRow(SQLModel, table=True):
    """What one GPU did over `[from_ms, to_ms)`, folded from samples; null is unknown, never zero."""

    __tablename__ = "gpu_window"
    __table_args__ = (sa.Index("ix_gpu_window_to_ms", "to_ms"),)
    device: str = Field(primary_key=True)
    from_ms: int = big(primary_key=True)
    to_ms: int = big()
    coverage_ms: int = big()
    utilization_mean_ppm: int | None = None
    utilization_max_ppm: int | None = None
    memory_mean_bytes: int | None = big(nullable=True)
    memory_max_bytes: int | None = big(nullable=True)
    power_mean_milliwatts: int | None = big(nullable=True)
    energy_millijoules: int | None = big(nullable=True)
    counter_resets: int = 0
    """1 where a new life of the driver begins with this window."""


class AgentRow(SQLModel, table=True):
    """The agent of a machine, as last heard. `heard_ms` is the daemon's time, at most a minute behind the truth."""

    __tablename__ = "agent"
    node: str = Field(primary_key=True)
    instance: str
    version: str
    collector: str
    driver_version: str | None = None
    first_ms: int = big()
    heard_ms: int = big()
    skew_ms: int = big()
    silent_ms: int | None = big(nullable=True)
    problems: list[str] = json()
    devices: list[JsonObject] = json()


class AgentBatchRow(SQLModel, table=True):
    """A batch of evidence that was taken in: the same key again changes nothing."""

    __tablename__ = "agent_batch"
    __table_args__ = (sa.Index("ix_agent_batch_taken_ms", "taken_ms"),)
    node: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    sha256: str
    taken_ms: int = big()


class DeviceWitnessRow(SQLModel, table=True):
    """A GPU was seen in an allocation's hands from `from_ms` to `to_ms`, by the word in `witness`."""

    __tablename__ = "device_witness"
    allocation_id: str = Field(primary_key=True)
    device: str = Field(primary_key=True)
    node: str
    from_ms: int = big()
    to_ms: int = big()
    witness: str


class PostingEntryRow(SQLModel, table=True):
    """A journal entry; its id is higher than all before."""

    __tablename__ = "posting_entry"
    __table_args__ = (
        sa.Index("ix_posting_entry_allocation_id", "allocation_id"),
        sa.Index("ix_posting_entry_job_id", "job_id"),
    )
    id: int = column(BIG_KEY, primary_key=True, sa_column_kwargs={"autoincrement": False})
    key: str = Field(unique=True)
    kind: str
    currency: str
    at_ms: int = big()
    allocation_id: str | None = None
    job_id: int | None = big(nullable=True)
    actor: str | None = None
    reason: str | None = None
    zone: str | None = None
    previous_hash: str = Field(sa_column_kwargs={"server_default": ""})
    hash: str = Field(sa_column_kwargs={"server_default": ""})
    """Of the entry and its legs, and of the entry before: see `journal_chain`."""


class PostingRow(SQLModel, table=True):
    """A leg of a journal entry: a debit is positive, a credit negative, in 10**-6 of the entry's currency."""

    __tablename__ = "posting"
    __table_args__ = (
        sa.ForeignKeyConstraint(["entry_id"], ["posting_entry.id"], initially="DEFERRED", deferrable=True),
        sa.Index("ix_posting_line_id", "line_id"),
        sa.Index("ix_posting_ledger_account_for_ms", "ledger", "account", "for_ms"),
    )
    entry_id: int = big(primary_key=True)
    place: int = Field(primary_key=True)
    ledger: str
    account: str
    micros: int = big()
    line_id: str | None = None
    for_ms: int = big()


class BalanceRow(SQLModel, table=True):
    """The sum of an account's legs on a ledger, in one currency: a fold of `posting`, kept up by each entry."""

    __tablename__ = "balance"
    ledger: str = Field(primary_key=True)
    account: str = Field(primary_key=True)
    currency: str = Field(primary_key=True)
    micros: int = big()


class BudgetTermRow(SQLModel, table=True):
    """The terms of an account's budget from an instant on; the last row of an account counts."""

    __tablename__ = "budget_term"
    __table_args__ = (
        sa.Index("ix_budget_term_account", "account"),
        sa.Index("ix_budget_term_topup_key", "account", "topup_key", unique=True),
        {"sqlite_autoincrement": True},
    )
    sequence: int | None = column(BIG_KEY, primary_key=True)
    account: str
    at_ms: int = big()
    actor: str
    kind: str
    """month, fixed, prepaid; `none` ends the budget."""
    is_hard: bool
    currency: str
    zone: str
    limit_micros: int = big()
    overdraft_micros: int = big()
    from_ms: int | None = big(nullable=True)
    to_ms: int | None = big(nullable=True)
    extra_micros: int = big()
    extra_from_ms: int | None = big(nullable=True)
    topup_key: str | None = None
    topup_micros: int | None = big(nullable=True)
    """What this row added, under its key once."""
    reason: str | None = None


class BudgetUseRow(SQLModel, table=True):
    """What was charged below an account with a budget in the period that begins at `from_ms`: a fold of `posting`."""

    __tablename__ = "budget_use"
    account: str = Field(primary_key=True)
    from_ms: int = big(primary_key=True)
    micros: int = big()


class BudgetNoticeRow(SQLModel, table=True):
    """That a share of a budget was used up, once in each period: append-only."""

    __tablename__ = "budget_notice"
    account: str = Field(primary_key=True)
    from_ms: int = big(primary_key=True)
    percent: int = Field(primary_key=True)
    at_ms: int = big()


class JobCapRow(SQLModel, table=True):
    """The most that a job may cost over all its starts: its `--max-cost`."""

    __tablename__ = "job_cap"
    job_id: int = big(primary_key=True)
    currency: str
    micros: int = big()


class ChargeDueRow(SQLModel, table=True):
    """An allocation whose use is not charged to its end yet, and when to look at it next."""

    __tablename__ = "charge_due"
    __table_args__ = (sa.Index("ix_charge_due_due_ms", "due_ms"),)
    allocation_id: str = Field(primary_key=True)
    due_ms: int = big()
    is_held: bool
    """Money is set aside for it."""
    gpu_eq_units: int = big()
    grace_ms: int = big()
    is_warned: bool


class PeriodEventRow(SQLModel, table=True):
    """A billing period that began to close, or was closed: two rows a period, chained, never back."""

    __tablename__ = "period_event"
    __table_args__ = (sa.UniqueConstraint("period", "status"),)
    sequence: int = big(primary_key=True)
    period: str
    status: str
    from_ms: int = big()
    to_ms: int = big()
    zone: str
    at_ms: int = big()
    actor: str
    attempt: str
    """Names the sealed files; empty while it is closing."""
    seal: str
    """JSON: the heads of all chains, the price books, the hashes of the files; empty while it is closing."""
    previous_hash: str
    hash: str


class PeriodFileRow(SQLModel, table=True):
    """A part of a sealed file, compressed. `attempt` is the hash of all files: a repeat writes the same rows."""

    __tablename__ = "period_file"
    attempt: str = Field(primary_key=True)
    path: str = Field(primary_key=True)
    part: int = Field(primary_key=True)
    data: bytes = column(sa.LargeBinary())


class CorrectionRow(SQLModel, table=True):
    """A charge of the open period that corrects one of a closed period: append-only, chained."""

    __tablename__ = "correction"
    __table_args__ = (
        sa.Index("ix_correction_recorded_ms", "recorded_ms"),
        sa.Index("ix_correction_corrected_period", "corrected_period"),
    )
    sequence: int = big(primary_key=True)
    key: str = Field(unique=True)
    """The line's id in every export."""
    period: str
    """In which it is charged: the open one."""
    corrected_period: str
    corrects_line_id: str
    target_line_id: str
    """The line whose amount it brings to what is known now."""
    origin: str
    tenant: str
    amount_micros: int = big()
    gpu_ms: int = big()
    hours_nano: int = big()
    currency: str
    price_book: str
    cells: str
    """JSON: the line as exported, less what belongs to the period that it stands in."""
    reason: str
    actor: str
    recorded_ms: int = big()
    previous_hash: str
    hash: str


PRICE_BOOK = table_of(PriceBookRow)
PRICE_DRAFT = table_of(PriceDraftRow)
PACKAGE = table_of(PackageRow)
GPU_WINDOW = table_of(GpuWindowRow)
AGENT = table_of(AgentRow)
AGENT_BATCH = table_of(AgentBatchRow)
DEVICE_WITNESS = table_of(DeviceWitnessRow)
POSTING_ENTRY = table_of(PostingEntryRow)
POSTING = table_of(PostingRow)
BALANCE = table_of(BalanceRow)
BUDGET_TERM = table_of(BudgetTermRow)
BUDGET_USE = table_of(BudgetUseRow)
BUDGET_NOTICE = table_of(BudgetNoticeRow)
JOB_CAP = table_of(JobCapRow)
CHARGE_DUE = table_of(ChargeDueRow)
PERIOD_EVENT = table_of(PeriodEventRow)
PERIOD_FILE = table_of(PeriodFileRow)
CORRECTION = table_of(CorrectionRow)
