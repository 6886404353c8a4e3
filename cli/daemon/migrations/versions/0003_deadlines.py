"""An index of the jobs that a deadline may still end: the look for them is rung every two seconds."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_HAS_DEADLINE = sa.text("deadline_ms IS NOT NULL AND ended_ms IS NULL")


def upgrade() -> None:
    """Makes the index, which holds no job without a deadline and none that has ended."""
    op.create_index(
        "ix_job_deadline_ms", "job", ["deadline_ms"], sqlite_where=_HAS_DEADLINE, postgresql_where=_HAS_DEADLINE
    )
