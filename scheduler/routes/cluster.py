"""What there is and what is free: GPU classes, nodes; who asks, and which version answers."""

from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from scheduler.auth import ANYBODY, OPERATES, READS_JOBS, Rights
from scheduler.core.defrag import Proposal, blocked_by_fragmentation, propose
from scheduler.core.model import GPU_UNITS, BookingWanted, GpuClass, Shape
from scheduler.core.plan import Plan
from scheduler.core.reasons import ReasonCode
from scheduler.core.state import ClusterState
from scheduler.routes.counting import ClassCount, class_counts
from scheduler.routes.door import Door, answer
from scheduler.routes.knowing import Priced
from scheduler.routes.shown import Shown
from scheduler.snapshot import document_of, take
from scheduler.store.lookups import node_counts
from scheduler.wire.answers import gpu_count, time_or_none
from scheduler.wire.problems import API_VERSION, Json, envelope, page

_HOUR_MS = 3_600_000
_MOST_PROPOSALS = 16
"""Blocked shapes that one answer looks at: the planner waits meanwhile."""


def cluster_routes(door: Door, shown: Shown) -> APIRouter:
    """Returns the routes about the cluster and the caller."""
    router = APIRouter(tags=["cluster"])
    reader = door.allow(READS_JOBS)

    @router.get("/v1/gpus", summary="GPU classes: what is free, what it costs, what the caller's tenant holds")
    async def gpus(rights: Annotated[Rights, Depends(reader)]) -> Response:
        tenant = rights.caller.tenant
        counts = await door.read(lambda connection: class_counts(connection, tenant))
        prices = await shown.knowing.max_costs([_one_hour(each.gpu_class, rights) for each in counts])
        items = [_class(each, price) for each, price in zip(counts, prices, strict=True)]
        return answer(page("GpuClassList", door.now_ms, items))

    @router.get("/v1/nodes", summary="Nodes and what is free on them")
    async def nodes(rights: Annotated[Rights, Depends(reader)]) -> Response:
        with_jobs = rights.may_see_node_jobs()
        found = await door.read(node_counts)
        items: list[Json] = []
        for each in found:
            item: Json = {
                "name": each.node.name,
                "pool": each.node.pool,
                "gpu_model": each.node.gpu_class,
                "gpus": each.gpus,
                "gpus_free": each.gpus_free,
                "cpus": each.node.cpu_millicores // 1000,
                "memory_bytes": each.node.memory_bytes,
                "availability": each.node.availability.value,
                "reason": each.node.reason,
                "drained_by": each.drained_by,
                "is_reserved": each.kept_by is not None,
            }
            if with_jobs:
                item["jobs"] = list(each.jobs)
            items.append(item)
        return answer(page("NodeList", door.now_ms, items))

    @router.get("/v1/admin/defrag", summary="Moves of running jobs that would let blocked ones start: proposals only")
    async def defrag(_: Annotated[Rights, Depends(door.allow(OPERATES))]) -> Response:
        now_ms = door.now_ms
        found = await door.ask(lambda state, made: _proposals(state, made, now_ms))
        return answer(page("DefragProposalList", now_ms, [_proposal(each) for each in found]))

    @router.get("/v1/admin/state", summary="What the scheduler decides from, for admin simulate")
    async def state(rights: Annotated[Rights, Depends(door.allow(OPERATES))]) -> Response:
        rights.require_centre()
        policy, now_ms = door.controller.policy, door.now_ms
        found = await door.read(lambda connection: document_of(take(connection, policy, now_ms)))
        return answer(envelope("State", now_ms, **found))

    @router.get("/v1/whoami", summary="Who the token says that asks")
    async def whoami(rights: Annotated[Rights, Depends(door.allow(ANYBODY))]) -> Response:
        caller = rights.caller
        document = envelope(
            "Caller",
            door.now_ms,
            token_id=caller.token_id,
            role=caller.role.value,
            account=caller.account,
            tenant=caller.tenant,
            user=caller.user,
            expires_at=time_or_none(caller.expires_ms),
        )
        return answer(document)

    @router.get("/v1/version", summary="Which version answers")
    async def version(_: Annotated[Rights, Depends(door.allow(ANYBODY))]) -> Response:
        leads = door.controller.is_leading
        return answer(
            envelope("Version", door.now_ms, version=door.settings.version, api=API_VERSION, is_leading=leads)
        )

    return router


def _proposals(state: ClusterState, made: Plan, now_ms: int) -> list[Proposal]:
    """Returns what would let the oldest blocked job of each shape start, a bounded number of them."""
    shapes = {
        shape
        for shape, verdict in made.verdicts.items()
        if any(reason.code is ReasonCode.FRAGMENTATION for reason in verdict.reasons)
    }
    blocked = islice(blocked_by_fragmentation(state, shapes), _MOST_PROPOSALS)
    return [found for job in blocked if (found := propose(state, job, now_ms)) is not None]


def _proposal(each: Proposal) -> Json:
    return {
        "job_id": each.job,
        "gpu_model": each.gpu_class,
        "nodes": list(each.nodes),
        "moves": [
            {
                "job_id": move.job,
                "gpus": gpu_count(move.units),
                "from_node": move.from_node,
                "to_node": move.to_node,
                "lost_gpu_seconds": move.lost_unit_ms // (1000 * GPU_UNITS),
            }
            for move in each.moves
        ],
        "lost_gpu_seconds": each.lost_unit_ms // (1000 * GPU_UNITS),
    }


def _one_hour(gpu_class: GpuClass, rights: Rights) -> Priced:
    """Returns the question that a class's price is read from: one GPU for one hour, at the caller's terms."""
    return Priced(
        rights.caller.account, Shape((gpu_class,), nodes=1, gpu_units=GPU_UNITS), BookingWanted.AUTO, _HOUR_MS
    )


def _class(counted: ClassCount, price: Json | None) -> Json:
    return {
        "gpu_model": counted.gpu_class,
        "memory_bytes": counted.memory_bytes,
        "free": counted.free,
        "total": counted.total,
        "whole_nodes_free": counted.whole_nodes_free,
        "whole_nodes": counted.whole_nodes,
        "gpus_per_node": counted.gpus_per_node,
        "pending_jobs": counted.pending_jobs,
        "price": price,
        "held_by_tenant": gpu_count(counted.held_units),
    }
