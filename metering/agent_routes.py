"""Agents over HTTP: heartbeats and evidence by agents, a list and forgetting for operators."""

import hashlib
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Request, Response

from metering.agent_store import ForgetAgent, SaveAgents, TakeEvidence, Taken, agents
from metering.agent_wire import EvidenceBody, HeartbeatBody, XidSeen
from metering.agents import AgentDevice, AgentState, AgentWatch
from metering.inbox import WindowInbox
from metering.witness import Holding
from scheduler.auth import DELIVERS, OPERATES, Rights
from scheduler.clock import iso_utc
from scheduler.core.model import AllocationId, DeviceHealth, GpuClass, NodeName
from scheduler.refusal import Problem
from scheduler.routes.bodies import body_of
from scheduler.routes.door import Door, answer
from scheduler.store.nodes import load_nodes
from scheduler.wire.problems import Json, envelope, page
from scheduler.wire.requests import not_found, parse
from scheduler.wire.spec import invalid
from scheduler.wire.text import is_printable, shown

NodeRef = Annotated[str, Path(max_length=256)]
KeyHeader = Annotated[
    str | None,
    Header(alias="Idempotency-Key", max_length=64, description="Names the batch: again with it changes nothing."),
]


def agent_routes(watch: AgentWatch, inbox: WindowInbox, door: Door) -> APIRouter:
    """Returns the routes of agents. `inbox` gets the windows that were new."""
    router = APIRouter(tags=["agents"])
    operator = door.allow(OPERATES)
    operating = door.allow_change(OPERATES)
    delivering = door.allow_change(DELIVERS)

    @router.post("/v1/agents/{node}/heartbeat", summary="A node's agent lives", openapi_extra=body_of(HeartbeatBody))
    async def heartbeat(request: Request, node: NodeRef, rights: Annotated[Rights, Depends(delivering)]) -> Response:
        name = _own(node, rights)
        said = _state(name, parse(HeartbeatBody, await request.body()), door.now_ms)
        if not watch.is_loaded:
            watch.load(await door.read(agents), door.now_ms)
        heard = watch.hear(said)
        if heard.must_store:
            await door.carry_out(SaveAgents((heard.state,), heard.events))
        known = (await door.read(lambda connection: load_nodes(connection, [name]))).get(name)
        document = envelope(
            "AgentHeard",
            door.now_ms,
            node=name,
            daemon_ms=door.now_ms,
            skew_ms=heard.state.skew_ms,
            silent_after_seconds=watch.silent_ms // 1000,
            pool=None if known is None else known.node.pool,
            problems=list(heard.state.problems),
        )
        return answer(document)

    @router.post(
        "/v1/agents/{node}/evidence", summary="What a node's agent measured", openapi_extra=body_of(EvidenceBody)
    )
    async def evidence(
        request: Request, node: NodeRef, rights: Annotated[Rights, Depends(delivering)], key: KeyHeader = None
    ) -> Response:
        name = _own(node, rights)
        body = await request.body()
        if not key or not is_printable(key):
            raise invalid(
                (
                    Problem(
                        "is required: a word that names this batch, the same when it is sent again", "Idempotency-Key"
                    ),
                )
            )
        taken = await door.carry_out(_command(name, key, body, parse(EvidenceBody, body)))
        inbox.put(name, taken.windows)
        return answer(envelope("EvidenceTaken", door.now_ms, node=name, **_taken(taken)))

    @router.get("/v1/admin/agents", summary="The agents of nodes: when heard, what they see")
    async def listing(_: Annotated[Rights, Depends(operator)]) -> Response:
        states = watch.states() if watch.is_loaded else await door.read(agents)
        return answer(page("AgentList", door.now_ms, [_agent(state, watch) for state in states]))

    @router.delete("/v1/admin/agents/{node}", summary="Expect no agent on a node any more")
    async def forget(node: NodeRef, rights: Annotated[Rights, Depends(operating)]) -> Response:
        name = _name(node)
        await door.carry_out(ForgetAgent(name, rights.caller.user))
        watch.forget(name)
        return answer(envelope("AgentForgotten", door.now_ms, node=name))

    return router


def _name(text: str) -> NodeName:
    if not is_printable(text):
        raise not_found(f"there is no node {shown(text)}")
    return NodeName(text)


def _own(node: str, rights: Rights) -> NodeName:
    name = _name(node)
    rights.require_node(name)
    return name


def _state(node: NodeName, body: HeartbeatBody, now_ms: int) -> AgentState:
    devices = tuple(
        AgentDevice(**{**each.model_dump(), "gpu_class": GpuClass(each.gpu_class)}) for each in body.devices
    )
    return AgentState(
        node=node,
        instance=body.instance,
        version=body.version,
        collector=body.collector,
        driver_version=body.driver_version,
        first_ms=now_ms,
        heard_ms=now_ms,
        skew_ms=body.now_ms - now_ms,
        problems=body.problems,
        devices=devices,
    )


def _command(node: NodeName, key: str, body: bytes, read: EvidenceBody) -> TakeEvidence:
    return TakeEvidence(
        node=node,
        key=key,
        sha256=hashlib.sha256(body).hexdigest(),
        windows=tuple(each.window() for each in read.windows),
        xids=tuple(XidSeen(**each.model_dump()) for each in read.xids),
        holdings=tuple(
            Holding(**{**each.model_dump(), "allocation": AllocationId(each.allocation)}) for each in read.holdings
        ),
    )


def _taken(taken: Taken) -> Json:
    return {
        "windows": len(taken.windows),
        "xids": taken.xids,
        "holdings": taken.holdings,
        "refused": taken.refused,
        "reasons": list(taken.reasons),
        "is_repeat": taken.is_repeat,
    }


def _agent(state: AgentState, watch: AgentWatch) -> Json:
    ill = [device for device in state.devices if device.health is not DeviceHealth.OK]
    return {
        "node": state.node,
        "version": state.version,
        "collector": state.collector,
        "driver_version": state.driver_version,
        "first_heard_at": iso_utc(state.first_ms),
        "last_heard_at": iso_utc(state.heard_ms),
        "is_silent": state.silent_ms is not None,
        "silent_after_seconds": watch.silent_ms // 1000,
        "clock_skew_seconds": round(state.skew_ms / 1000, 3),
        "gpus": len(state.devices),
        "gpus_ill": len(ill),
        "problems": [*state.problems, *(f"GPU {each.position}: {each.reason or each.health.value}" for each in ill)],
    }
