"""What the centre was at fault for: one incident for all gangs that one loss of a node hit. Append-only, chained."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0022"
down_revision: str | None = "0021"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_APPEND_TEXT = "incident is append-only"


def upgrade() -> None:
    """Makes the table and begins its chain."""
    op.create_table(
        "incident",
        sa.Column("sequence", _BIG_KEY, primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("began_ms", sa.BigInteger(), nullable=False),
        sa.Column("allocation_id", sa.String(), nullable=False, unique=True),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("recorded_ms", sa.BigInteger(), nullable=False),
        sa.Column("previous_hash", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
    )
    op.create_index("ix_incident_node", "incident", ["node"])
    op.create_index("ix_incident_recorded_ms", "incident", ["recorded_ms"])
    head = sa.table("chain_head", sa.column("name"), sa.column("sequence"), sa.column("hash"))
    op.bulk_insert(head, [{"name": "incident", "sequence": 0, "hash": "0" * 64}])
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER incident_no_{verb.lower()} BEFORE {verb} ON incident "
                f"BEGIN SELECT RAISE(ABORT, '{_APPEND_TEXT}'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION incident_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"RAISE EXCEPTION '{_APPEND_TEXT}' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    op.execute(
        "CREATE TRIGGER incident_no_change BEFORE UPDATE OR DELETE ON incident "
        "FOR EACH ROW EXECUTE FUNCTION incident_append_only()"
    )
    op.execute(
        "CREATE TRIGGER incident_no_truncate BEFORE TRUNCATE ON incident "
        "FOR EACH STATEMENT EXECUTE FUNCTION incident_append_only()"
    )
