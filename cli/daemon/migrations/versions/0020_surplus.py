"""Which allocations are the surplus nodes of an elastic gang, and whose."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0020"
down_revision: str | None = "0019"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Adds the column and its index; every allocation so far is a gang."""
    op.add_column("allocation", sa.Column("surplus_of", sa.String()))
    op.create_index("ix_allocation_surplus_of", "allocation", ["surplus_of"])
