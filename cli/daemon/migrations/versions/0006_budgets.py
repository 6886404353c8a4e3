"""The journal of double entry, budgets, and the list of allocations whose use is to be charged."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_APPEND_ONLY = ("posting", "posting_entry", "budget_term", "budget_notice")
_UNBALANCED = (
    "(SELECT coalesce(sum(micros), 0) FROM posting WHERE entry_id = NEW.id) <> 0 "
    "OR (SELECT count(*) FROM posting WHERE entry_id = NEW.id) < 2"
)
_CLOSED = "EXISTS (SELECT 1 FROM posting_entry WHERE id = NEW.entry_id)"
_CHECKS = (
    ("posting_entry_balanced", "posting_entry", _UNBALANCED, "legs of an entry add up to zero"),
    ("posting_entry_open", "posting", _CLOSED, "the entry is closed"),
)


def upgrade() -> None:
    """Makes the tables, lays the triggers, and has the use of all allocations so far charged."""
    _journal()
    _budgets()
    if op.get_bind().dialect.name == "sqlite":
        _sqlite_triggers()
    else:
        _postgres_triggers()
    op.execute(
        "INSERT INTO charge_due (allocation_id, due_ms, is_held, gpu_eq_units, grace_ms, is_warned) "
        "SELECT id, 0, false, 0, 0, false FROM allocation"
    )


def _journal() -> None:
    op.create_table(
        "posting_entry",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False),
        sa.Column("key", sa.String(), nullable=False, unique=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("currency", sa.String(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("allocation_id", sa.String()),
        sa.Column("job_id", sa.BigInteger()),
        sa.Column("actor", sa.String()),
        sa.Column("reason", sa.String()),
        sa.Column("zone", sa.String()),
    )
    op.create_index("ix_posting_entry_allocation_id", "posting_entry", ["allocation_id"])
    op.create_table(
        "posting",
        sa.Column("entry_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("place", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("ledger", sa.String(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("micros", sa.BigInteger(), nullable=False),
        sa.Column("line_id", sa.String()),
        sa.Column("for_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["entry_id"], ["posting_entry.id"], initially="DEFERRED", deferrable=True),
    )
    op.create_index("ix_posting_line_id", "posting", ["line_id"])
    op.create_index("ix_posting_ledger_account_for_ms", "posting", ["ledger", "account", "for_ms"])
    op.create_table(
        "balance",
        sa.Column("ledger", sa.String(), primary_key=True),
        sa.Column("account", sa.String(), primary_key=True),
        sa.Column("currency", sa.String(), primary_key=True),
        sa.Column("micros", sa.BigInteger(), nullable=False),
    )


def _budgets() -> None:
    op.create_table(
        "budget_term",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("is_hard", sa.Boolean(), nullable=False),
        sa.Column("currency", sa.String(), nullable=False),
        sa.Column("zone", sa.String(), nullable=False),
        sa.Column("limit_micros", sa.BigInteger(), nullable=False),
        sa.Column("overdraft_micros", sa.BigInteger(), nullable=False),
        sa.Column("from_ms", sa.BigInteger()),
        sa.Column("to_ms", sa.BigInteger()),
        sa.Column("extra_micros", sa.BigInteger(), nullable=False),
        sa.Column("extra_from_ms", sa.BigInteger()),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_budget_term_account", "budget_term", ["account"])
    op.create_table(
        "budget_use",
        sa.Column("account", sa.String(), primary_key=True),
        sa.Column("from_ms", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("micros", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "budget_notice",
        sa.Column("account", sa.String(), primary_key=True),
        sa.Column("from_ms", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("percent", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "job_cap",
        sa.Column("job_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("currency", sa.String(), nullable=False),
        sa.Column("micros", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "charge_due",
        sa.Column("allocation_id", sa.String(), primary_key=True),
        sa.Column("due_ms", sa.BigInteger(), nullable=False),
        sa.Column("is_held", sa.Boolean(), nullable=False),
        sa.Column("gpu_eq_units", sa.BigInteger(), nullable=False),
        sa.Column("grace_ms", sa.BigInteger(), nullable=False),
        sa.Column("is_warned", sa.Boolean(), nullable=False),
    )
    op.create_index("ix_charge_due_due_ms", "charge_due", ["due_ms"])


def _sqlite_triggers() -> None:
    for table in _APPEND_ONLY:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
    for name, table, wrong, text in _CHECKS:
        op.execute(
            f"CREATE TRIGGER {name} BEFORE INSERT ON {table} WHEN {wrong} BEGIN SELECT RAISE(ABORT, '{text}'); END"
        )


def _postgres_triggers() -> None:
    integrity = "USING ERRCODE = 'integrity_constraint_violation'"
    for table in _APPEND_ONLY:
        op.execute(
            f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"RAISE EXCEPTION '{table} is append-only' {integrity}; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION {table}_append_only()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()"
        )
    for name, table, wrong, text in _CHECKS:
        op.execute(
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF {wrong} THEN RAISE EXCEPTION '{text}' {integrity}; END IF; RETURN NEW; END $$"
        )
        op.execute(f"CREATE TRIGGER {name} BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")
