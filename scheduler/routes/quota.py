"""What accounts may hold, hold and should hold: guarantee, limit, use, target, debt, as the planner has them now."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from scheduler.auth import READS_JOBS, Rights
from scheduler.core.debt import CREDIT
from scheduler.core.model import AccountId
from scheduler.core.plan import Plan
from scheduler.core.shares import Shares, Standing
from scheduler.core.state import ClusterState
from scheduler.routes.door import Door, answer
from scheduler.wire.answers import gpu_count
from scheduler.wire.problems import Json, page


def quota_routes(door: Door) -> APIRouter:
    """Returns the route of quotas."""
    router = APIRouter(tags=["cluster"])
    reader = door.allow(READS_JOBS)

    @router.get("/v1/quota", summary="Guarantee, limit, use, target and debt of accounts")
    async def quota(
        rights: Annotated[Rights, Depends(reader)],
        account: Annotated[str | None, Query(max_length=256, description="This account and those below it.")] = None,
    ) -> Response:
        now_ms = door.now_ms

        def ask(state: ClusterState, _: Plan) -> tuple[Standing, ...]:
            return tuple(Shares(state, now_ms).standings())

        standings = await door.ask(ask)
        items = [
            _item(each)
            for each in standings
            if rights.may_see_account(each.account) and (account is None or _is_below(each.account, account))
        ]
        return answer(page("QuotaList", now_ms, items))

    return router


def _is_below(account: AccountId, top: str) -> bool:
    return account == top or account.startswith(f"{top}/")


def _item(standing: Standing) -> Json:
    whole, rest = divmod(standing.debt_microcredits, CREDIT)
    return {
        "account": standing.account,
        "gpu_model": standing.gpu_class,
        "guarantee": gpu_count(standing.guarantee),
        "limit": None if standing.limit is None else gpu_count(standing.limit),
        "held": gpu_count(standing.held),
        "held_spot": gpu_count(standing.spot),
        "demand": gpu_count(standing.demand),
        "target": gpu_count(standing.target),
        "is_over_target": standing.is_over_target,
        "debt_credits": f"{whole}.{rest:06d}",
    }
