"""The decision log, and the tape that ticks are planned from once more."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0019"
down_revision: str | None = "0018"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Makes both tables."""
    key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "decision",
        sa.Column("sequence", key, primary_key=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("decision", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("policy", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", sa.String()),
        sa.Column("job_id", sa.BigInteger()),
        sa.Column("allocation_id", sa.String()),
        sa.Column("tenant", sa.String()),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("words", sa.String()),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_decision_job_id", "decision", ["job_id"])
    op.create_index("ix_decision_subject", "decision", ["subject"])
    op.create_index("ix_decision_at_ms", "decision", ["at_ms"])
    op.create_table(
        "decision_tape",
        sa.Column("sequence", key, primary_key=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("last_decision", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_decision_tape_at_ms", "decision_tape", ["at_ms"])
