"""Metering's tables: price books, which triggers keep append-only, and windows of GPU samples."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_APPEND_TEXT = "price_book is append-only"


def upgrade() -> None:
    """Makes the tables and lays the triggers."""
    op.create_table(
        "price_book",
        sa.Column("version", sa.String(), primary_key=True),
        sa.Column("effective_ms", sa.BigInteger(), nullable=False, unique=True),
        sa.Column("currency", sa.String(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("published_ms", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "gpu_window",
        sa.Column("device", sa.String(), primary_key=True),
        sa.Column("from_ms", sa.BigInteger(), primary_key=True),
        sa.Column("to_ms", sa.BigInteger(), nullable=False),
        sa.Column("coverage_ms", sa.BigInteger(), nullable=False),
        sa.Column("utilization_mean_ppm", sa.Integer()),
        sa.Column("utilization_max_ppm", sa.Integer()),
        sa.Column("memory_mean_bytes", sa.BigInteger()),
        sa.Column("memory_max_bytes", sa.BigInteger()),
        sa.Column("power_mean_milliwatts", sa.BigInteger()),
        sa.Column("energy_millijoules", sa.BigInteger()),
    )
    op.create_index("ix_gpu_window_to_ms", "gpu_window", ["to_ms"])
    if op.get_bind().dialect.name == "sqlite":
        _sqlite_triggers()
    else:
        _postgres_triggers()


def _sqlite_triggers() -> None:
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER price_book_no_{verb.lower()} BEFORE {verb} ON price_book "
            f"BEGIN SELECT RAISE(ABORT, '{_APPEND_TEXT}'); END"
        )


def _postgres_triggers() -> None:
    op.execute(
        "CREATE FUNCTION price_book_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"RAISE EXCEPTION '{_APPEND_TEXT}' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    op.execute(
        "CREATE TRIGGER price_book_no_change BEFORE UPDATE OR DELETE ON price_book "
        "FOR EACH ROW EXECUTE FUNCTION price_book_append_only()"
    )
    op.execute(
        "CREATE TRIGGER price_book_no_truncate BEFORE TRUNCATE ON price_book "
        "FOR EACH STATEMENT EXECUTE FUNCTION price_book_append_only()"
    )
