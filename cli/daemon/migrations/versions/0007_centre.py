"""Advance reservations, and the pool that an admin puts a node into."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Makes the table and the columns."""
    op.create_table(
        "reservation",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.Column("end_ms", sa.BigInteger(), nullable=False),
        sa.Column("nodes", sa.JSON(), nullable=False),
        sa.Column("account", sa.String()),
        sa.Column("reason", sa.String()),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("is_in_force", sa.Boolean(), nullable=False),
        sa.Column("ended_ms", sa.BigInteger()),
        sa.Column("ended_by", sa.String()),
    )
    stands = sa.text("ended_ms IS NULL")
    op.create_index(
        "ix_reservation_name", "reservation", ["name"], unique=True, sqlite_where=stands, postgresql_where=stands
    )
    op.add_column("node", sa.Column("kept_by", sa.String()))
    op.add_column("node", sa.Column("assigned_pool", sa.String()))
