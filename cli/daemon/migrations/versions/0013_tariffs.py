"""Drafts of price books, the reason of a retroactive one, and packages of GPU-hours, which are append-only."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_APPEND_TEXT = "package is append-only"


def upgrade() -> None:
    """Makes the tables and lays the triggers."""
    op.add_column("price_book", sa.Column("retroactive_reason", sa.String()))
    op.create_table(
        "price_draft",
        sa.Column("version", sa.String(), primary_key=True),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("saved_ms", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "package",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("gpu_class", sa.String(), nullable=False),
        sa.Column("gpu_hours", sa.BigInteger(), nullable=False),
        sa.Column("price", sa.String(), nullable=False),
        sa.Column("currency", sa.String(), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("to_ms", sa.BigInteger(), nullable=False),
        sa.Column("sold_ms", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER package_no_{verb.lower()} BEFORE {verb} ON package "
                f"BEGIN SELECT RAISE(ABORT, '{_APPEND_TEXT}'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION package_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"RAISE EXCEPTION '{_APPEND_TEXT}' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    op.execute(
        "CREATE TRIGGER package_no_change BEFORE UPDATE OR DELETE ON package "
        "FOR EACH ROW EXECUTE FUNCTION package_append_only()"
    )
    op.execute(
        "CREATE TRIGGER package_no_truncate BEFORE TRUNCATE ON package "
        "FOR EACH STATEMENT EXECUTE FUNCTION package_append_only()"
    )
