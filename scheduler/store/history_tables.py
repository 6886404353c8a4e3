"""The tables of what happened: to jobs, to machines, and in the planner's mind. They are forgotten after a time."""

import sqlalchemy as sa
from sqlmodel import SQLModel

from scheduler.store.columns import BIG_KEY, JsonObject, big, column, json, table_of


class JobEventRow(SQLModel, table=True):
    """What users see as a job's history."""

    __tablename__ = "job_event"
    __table_args__ = (sa.Index("ix_job_event_job_id", "job_id"), {"sqlite_autoincrement": True})
    sequence: int | None = column(BIG_KEY, primary_key=True)
    at_ms: int = big()
    job_id: int = big()
    kind: str
    detail: JsonObject = json()


class NodeEventRow(SQLModel, table=True):
    """What happened to a machine beside its GPUs' occupancy: its agent fell silent, a GPU reported an XID."""

    __tablename__ = "node_event"
    __table_args__ = (sa.Index("ix_node_event_node_at_ms", "node", "at_ms"), {"sqlite_autoincrement": True})
    sequence: int | None = column(BIG_KEY, primary_key=True)
    node: str
    at_ms: int = big()
    kind: str
    device: str | None = None
    detail: str


class DecisionRow(SQLModel, table=True):
    """One line of the decision log. `subject` names the group or shape that waits; the others name a job."""

    __tablename__ = "decision"
    __table_args__ = (
        sa.Index("ix_decision_job_id", "job_id"),
        sa.Index("ix_decision_subject", "subject"),
        sa.Index("ix_decision_at_ms", "at_ms"),
        {"sqlite_autoincrement": True},
    )
    sequence: int | None = column(BIG_KEY, primary_key=True)
    epoch: int = big()
    decision: int = big()
    at_ms: int = big()
    version: int = big()
    policy: str
    kind: str
    subject: str | None = None
    job_id: int | None = big(nullable=True)
    allocation_id: str | None = None
    tenant: str | None = None
    reasons: list[JsonObject] = json()
    words: str | None = None


class DecisionTapeRow(SQLModel, table=True):
    """A piece of the flight recorder's tape: a state, or the events and ticks that came after."""

    __tablename__ = "decision_tape"
    __table_args__ = (sa.Index("ix_decision_tape_at_ms", "at_ms"), {"sqlite_autoincrement": True})
    sequence: int | None = column(BIG_KEY, primary_key=True)
    epoch: int = big()
    at_ms: int = big()
    kind: str
    last_decision: int = big()
    body: bytes = column(sa.LargeBinary())


JOB_EVENT = table_of(JobEventRow)
NODE_EVENT = table_of(NodeEventRow)
DECISION = table_of(DecisionRow)
DECISION_TAPE = table_of(DecisionTapeRow)
