"""Further limits of accounts, when they last changed, and the users that belong to each."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Adds the columns, and makes a member of everybody who has a token of an account that has not been revoked."""
    op.add_column("account", sa.Column("terms", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("account", sa.Column("changed_ms", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "member",
        sa.Column("account", sa.String(), primary_key=True),
        sa.Column("user", sa.String(), primary_key=True),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("may_use_high", sa.Boolean(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
    )
    # Of several roles the one that may do most: `tenant_admin` and `user` sort the other way round than `billing`.
    op.execute(
        'INSERT INTO member (account, "user", role, may_use_high, created_ms) '
        "SELECT account, \"user\", CASE WHEN sum(CASE WHEN role = 'tenant_admin' THEN 1 ELSE 0 END) > 0 "
        "THEN 'tenant_admin' WHEN sum(CASE WHEN role = 'user' THEN 1 ELSE 0 END) > 0 THEN 'user' ELSE 'billing' END, "
        "false, min(created_ms) FROM token WHERE account <> '' AND revoked_ms IS NULL "
        "AND role IN ('user', 'tenant_admin', 'billing') GROUP BY account, \"user\""
    )
