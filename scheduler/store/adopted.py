"""Jobs that run what their users made themselves: which those are, for whoever lets it go and looks after it."""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.model import JobId
from scheduler.store.codec import launch_of
from scheduler.store.tables import JOB


def is_adopted(connection: Connection, job: JobId) -> bool:
    """Tells whether a job runs what its user made."""
    launch = connection.execute(sa.select(JOB.c.launch).where(JOB.c.id == job)).scalar_one()
    return bool(launch_of(launch).adopts)


def adopted_jobs(connection: Connection) -> dict[JobId, Sequence[str]]:
    """Returns what each such job that is not over adopts. Linear in the jobs that are not over."""
    # A text of a command would have its quotes escaped; a variable so named is sorted out below.
    has_word = sa.cast(JOB.c.launch, sa.Text).contains('"adopts"')
    rows = connection.execute(sa.select(JOB.c.id, JOB.c.launch).where(JOB.c.ended_ms.is_(None), has_word))
    found = {JobId(id_): launch_of(launch).adopts for id_, launch in rows}
    return {id_: adopts for id_, adopts in found.items() if adopts}
