"""Somebody changes the ledger behind the daemon's back, with all rights to the database; and what is found of it."""

from collections.abc import Callable
from functools import partial

import sqlalchemy as sa
from sqlalchemy import Connection

from metering.findings import Check, Report
from metering.verify import verify
from tests.metering import in_parts
from tests.metering.centre import Centre


def tampered(centre: Centre, tamper: Callable[[Connection], object], *, is_proved_in_parts: bool = True) -> Report:
    """Returns what verification says after the tampering, which is undone again. Triggers are gone for good."""
    prove = in_parts.verify if is_proved_in_parts else verify
    with centre.database.write() as connection:
        names = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars().all()
        for name in names:
            connection.exec_driver_sql(f'DROP TRIGGER "{name}"')
        connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        connection.exec_driver_sql("SAVEPOINT sound")
        tamper(connection)
        report = prove(connection, centre.now_ms)
        connection.exec_driver_sql("ROLLBACK TO sound")
        connection.exec_driver_sql("PRAGMA ignore_check_constraints = OFF")
    return report


def assert_every_change_is_found(centre: Centre, table: sa.Table) -> None:
    """Changes each value of each row of a chained table, and takes each row out; only the latter is proved in parts."""
    with centre.read() as connection:
        rows = connection.execute(sa.select(table)).mappings().all()
    for row in rows:
        this = table.c.sequence == row["sequence"]
        for column in table.c:
            value = row[column.name]
            other = value + 10_000 if isinstance(value, int) else f"{value or ''}x"
            change = table.update().where(this).values({column.name: other})
            report = tampered(centre, partial(sa.Connection.execute, statement=change), is_proved_in_parts=False)
            assert any(table.name in finding.where for finding in report.findings), (column.name, report.findings)
        gone = table.delete().where(this)
        report = tampered(centre, partial(sa.Connection.execute, statement=gone))
        assert any(finding.check is Check.CHAIN and table.name in finding.where for finding in report.findings)
