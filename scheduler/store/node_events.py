"""What happened to machines beside their GPUs' occupancy, for `admin node history`: agents heard and silent, XIDs.

History for people: nothing is decided or billed by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.core.model import NodeName
from scheduler.store.history_tables import NODE_EVENT


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """One line of a machine's history. `kind` is a word such as `agent_silent` or `xid`; `device` the GPU meant."""

    node: NodeName
    at_ms: int
    kind: str
    detail: str
    device: str | None = None


def write_node_events(connection: Connection, events: Sequence[NodeEvent]) -> None:
    """Adds lines to the machines' histories, inside the caller's transaction."""
    rows = [
        {"node": each.node, "at_ms": each.at_ms, "kind": each.kind, "device": each.device, "detail": each.detail}
        for each in events
    ]
    if rows:
        connection.execute(sa.insert(NODE_EVENT), rows)


def node_events(connection: Connection, node: NodeName, most: int) -> list[NodeEvent]:
    """Returns a machine's latest events, newest first."""
    rows = connection.execute(
        sa.select(NODE_EVENT)
        .where(NODE_EVENT.c.node == node)
        .order_by(NODE_EVENT.c.at_ms.desc(), NODE_EVENT.c.sequence.desc())
        .limit(most)
    )
    return [NodeEvent(NodeName(row.node), row.at_ms, row.kind, row.detail, row.device) for row in rows]
