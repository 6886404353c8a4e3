"""Jobs that wait for others, caps of arrays, and the failures after which a job starts again."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Makes the table and the columns; jobs that are there wait for nothing and have no cap."""
    op.add_column("job", sa.Column("array_cap", sa.Integer(), nullable=True))
    op.add_column("job", sa.Column("waits_for", sa.Text(), nullable=True))
    op.add_column("job", sa.Column("retry_on", sa.String(), nullable=True))
    op.create_table(
        "job_dependency",
        sa.Column(
            "job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False
        ),
        sa.Column("dependency", sa.String(), primary_key=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("on_job", sa.BigInteger(), nullable=True),
        sa.Column("on_array", sa.BigInteger(), nullable=True),
        sa.Column("account", sa.String(), nullable=True),
        sa.Column("user", sa.String(), nullable=True),
        sa.Column("name", sa.String(), nullable=True),
    )
    op.create_index("ix_job_dependency_on_job", "job_dependency", ["on_job"])
    op.create_index("ix_job_dependency_on_array", "job_dependency", ["on_array"])
    op.create_index("ix_job_dependency_account_user_name", "job_dependency", ["account", "user", "name"])
