"""Agents of GPU nodes: what they last said, which batches were taken in, who was seen with which GPU, and events."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "node_event",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("device", sa.String()),
        sa.Column("detail", sa.String(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_node_event_node_at_ms", "node_event", ["node", "at_ms"])
    op.create_table(
        "agent",
        sa.Column("node", sa.String(), primary_key=True),
        sa.Column("instance", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("collector", sa.String(), nullable=False),
        sa.Column("driver_version", sa.String()),
        sa.Column("first_ms", sa.BigInteger(), nullable=False),
        sa.Column("heard_ms", sa.BigInteger(), nullable=False),
        sa.Column("skew_ms", sa.BigInteger(), nullable=False),
        sa.Column("silent_ms", sa.BigInteger()),
        sa.Column("problems", sa.JSON(), nullable=False),
        sa.Column("devices", sa.JSON(), nullable=False),
    )
    op.create_table(
        "agent_batch",
        sa.Column("node", sa.String(), primary_key=True),
        sa.Column("key", sa.String(), primary_key=True),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("taken_ms", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_agent_batch_taken_ms", "agent_batch", ["taken_ms"])
    op.create_table(
        "device_witness",
        sa.Column("allocation_id", sa.String(), primary_key=True),
        sa.Column("device", sa.String(), primary_key=True),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("to_ms", sa.BigInteger(), nullable=False),
        sa.Column("witness", sa.String(), nullable=False),
    )
