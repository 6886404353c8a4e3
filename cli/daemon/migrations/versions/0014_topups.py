"""What each row of a budget's history added, once under its key; postings by job; charges that are due since 0006."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Adds the columns and indexes, and lists the allocations that were made since there is a journal."""
    op.add_column("budget_term", sa.Column("topup_key", sa.String()))
    op.add_column("budget_term", sa.Column("topup_micros", sa.BigInteger()))
    op.add_column("budget_term", sa.Column("reason", sa.String()))
    op.create_index("ix_budget_term_topup_key", "budget_term", ["account", "topup_key"], unique=True)
    op.create_index("ix_posting_entry_job_id", "posting_entry", ["job_id"])
    op.execute(
        "INSERT INTO charge_due (allocation_id, due_ms, is_held, gpu_eq_units, grace_ms, is_warned) "
        "SELECT id, 0, false, 0, 0, false FROM allocation WHERE id NOT IN (SELECT allocation_id FROM charge_due)"
    )
