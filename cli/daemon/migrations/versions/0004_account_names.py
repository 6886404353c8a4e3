"""What each account was called when: past exports name it as it was called then."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_APPEND_TEXT = "account_name is append-only"


def upgrade() -> None:
    """Makes the table, writes the present names down as those of all the past, and lays the triggers."""
    big_key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "account_name",
        sa.Column("sequence", big_key, primary_key=True),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_account_name_account_from_ms", "account_name", ["account", "from_ms"])
    op.execute(
        "INSERT INTO account_name (account, from_ms, name) SELECT id, created_ms, display_name FROM account ORDER BY id"
    )
    if op.get_bind().dialect.name == "sqlite":
        _sqlite_triggers()
    else:
        _postgres_triggers()


def _sqlite_triggers() -> None:
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER account_name_no_{verb.lower()} BEFORE {verb} ON account_name "
            f"BEGIN SELECT RAISE(ABORT, '{_APPEND_TEXT}'); END"
        )


def _postgres_triggers() -> None:
    op.execute(
        "CREATE FUNCTION account_name_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"RAISE EXCEPTION '{_APPEND_TEXT}' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    op.execute(
        "CREATE TRIGGER account_name_no_change BEFORE UPDATE OR DELETE ON account_name "
        "FOR EACH ROW EXECUTE FUNCTION account_name_append_only()"
    )
    op.execute(
        "CREATE TRIGGER account_name_no_truncate BEFORE TRUNCATE ON account_name "
        "FOR EACH STATEMENT EXECUTE FUNCTION account_name_append_only()"
    )
