"""Pools: what each holds, closing them to new starts, putting nodes into them."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from sqlalchemy.engine import Connection

from scheduler.auth import OPERATES, READS_JOBS, Rights
from scheduler.core.model import NodeAvailability, NodeName, PoolName
from scheduler.refusal import Refused
from scheduler.routes.bodies import body_of
from scheduler.routes.door import Door, answer
from scheduler.store.centre import PoolRecord, pools
from scheduler.store.lookups import NodeCount, node_counts
from scheduler.store.pools import AssignNodes, PausePools
from scheduler.wire.problems import Json, envelope, page
from scheduler.wire.requests import AssignBody, PauseBody, not_found, parse
from scheduler.wire.text import is_printable, shown

PoolRef = Annotated[str, Path(max_length=256)]


def pool_routes(door: Door) -> APIRouter:
    """Returns the routes of pools."""
    router = APIRouter(tags=["cluster"])
    reader = door.allow(READS_JOBS)
    changing = door.allow_change(OPERATES)

    @router.get("/v1/pools", summary="Pools: their nodes and GPUs, and which take no new jobs")
    async def listing(_: Annotated[Rights, Depends(reader)]) -> Response:
        return answer(page("PoolList", door.now_ms, await door.read(_pools)))

    @router.post("/v1/admin/pause", summary="Start no new jobs in pools; all for none named", openapi_extra=_PAUSE)
    async def pause(request: Request, _: Annotated[Rights, Depends(changing)]) -> Response:
        return await _set(door, parse(PauseBody, await request.body()), is_closed=True)

    @router.post("/v1/admin/resume", summary="Start jobs in pools again; in all for none named", openapi_extra=_PAUSE)
    async def resume(request: Request, _: Annotated[Rights, Depends(changing)]) -> Response:
        return await _set(door, parse(PauseBody, await request.body()), is_closed=False)

    @router.put("/v1/admin/pools/{name}/nodes", summary="Put nodes into a pool", openapi_extra=body_of(AssignBody))
    async def assign(request: Request, name: PoolRef, _: Annotated[Rights, Depends(changing)]) -> Response:
        asked = parse(AssignBody, await request.body())
        if not is_printable(name):
            raise not_found(f"there is no pool {shown(name)}")
        nodes = tuple(NodeName(each) for each in asked.nodes)
        moved = await door.carry_out(AssignNodes(nodes, PoolName(name)))
        return answer(envelope("PoolNodes", door.now_ms, name=name, moved=list(moved)))

    @router.post(
        "/v1/admin/pools/unassign", summary="Let nodes be in the pool that they say", openapi_extra=body_of(AssignBody)
    )
    async def unassign(request: Request, _: Annotated[Rights, Depends(changing)]) -> Response:
        asked = parse(AssignBody, await request.body())
        moved = await door.carry_out(AssignNodes(tuple(NodeName(each) for each in asked.nodes), None))
        return answer(envelope("PoolNodes", door.now_ms, name=None, moved=list(moved)))

    return router


_PAUSE = body_of(PauseBody)


async def _set(door: Door, asked: PauseBody, *, is_closed: bool) -> Response:
    names = None if asked.pools is None else tuple(PoolName(name) for name in asked.pools)
    try:
        changed = await door.carry_out(PausePools(names, is_closed, asked.reason))
    except Refused as refused:
        raise Refused(refused.code, shown(refused.message, 300)) from None
    return answer(page("PoolList", door.now_ms, await door.read(_pools), changed=list(changed)))


def _pools(connection: Connection) -> list[Json]:
    """Returns a row for each pool and GPU class in it; pools without nodes have one without a class."""
    counts: dict[tuple[str, str], list[NodeCount]] = defaultdict(list)
    for each in node_counts(connection):
        counts[each.node.pool, each.node.gpu_class].append(each)
    found = []
    for pool in pools(connection):
        models = sorted(model for name, model in counts if name == pool.name)
        found += [_row(pool, model, counts[pool.name, model]) for model in models] or [_row(pool, None, ())]
    return found


def _row(pool: PoolRecord, model: str | None, nodes: Sequence[NodeCount]) -> Json:
    states = Counter(each.node.availability for each in nodes)
    return {
        "name": pool.name,
        "gpu_model": model,
        "nodes": len(nodes),
        "nodes_up": states[NodeAvailability.UP],
        "gpus": sum(each.gpus for each in nodes),
        "gpus_free": sum(each.gpus_free for each in nodes),
        "is_paused": pool.is_closed,
        "reason": pool.reason,
    }
