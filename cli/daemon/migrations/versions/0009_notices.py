"""Notices: who is told of what, and what is on its way."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Makes the tables and the column."""
    op.add_column("job", sa.Column("notify", sa.JSON()))
    op.create_table(
        "notice_target",
        sa.Column("tenant", sa.String(), primary_key=True),
        sa.Column("user", sa.String(), primary_key=True),
        sa.Column("webhook", sa.String()),
        sa.Column("secret", sa.String()),
        sa.Column("email", sa.String()),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
    )
    cursor = op.create_table(
        "notice_cursor",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
    )
    op.bulk_insert(cursor, [{"id": 1, "sequence": 0}])
    op.create_table(
        "delivery",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("user", sa.String(), nullable=False),
        sa.Column("channel", sa.String(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("cause", sa.String(), nullable=False, unique=True),
        sa.Column("made_ms", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("next_ms", sa.BigInteger(), nullable=False),
        sa.Column("done_ms", sa.BigInteger()),
        sa.Column("error", sa.String()),
    )
    waits = sa.text("done_ms IS NULL")
    op.create_index("ix_delivery_tenant_user_id", "delivery", ["tenant", "user", "id"])
    op.create_index("ix_delivery_next_ms", "delivery", ["next_ms"], sqlite_where=waits, postgresql_where=waits)
