"""Alembic's environment: runs inside the connection and transaction that `cli.daemon.migrate` opened, never alone."""

from alembic import context
from sqlmodel import SQLModel

import metering.tables  # noqa: F401  # fills the metadata
import scheduler.store.history_tables
import scheduler.store.ledger_tables
import scheduler.store.tables  # noqa: F401

connection = context.config.attributes.get("connection")
if connection is None:
    raise RuntimeError("migrations run through cli.daemon.migrate, which holds the database's lock; not by themselves")
context.configure(
    connection=connection,
    target_metadata=SQLModel.metadata,
    compare_type=True,
    # SQLite's DDL is transactional once the driver's own transaction rules are off, as they are in store.database.
    transactional_ddl=True,
)
context.run_migrations()
