"""What accounts may hold, hold and should hold: guarantee, limit, use, target, debt, as the planner has them now."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from scheduler.auth import READS_JOBS, Rights
from scheduler.core.fairshare import WEIGHT_STEPS
from scheduler.core.model import Account, AccountId, Booking, lineage
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

        def ask(state: ClusterState, _: Plan) -> list[Json]:
            shares = Shares(state, now_ms)
            seen = (
                each
                for each in shares.standings()
                if rights.may_see_account(each.account) and (account is None or _is_below(each.account, account))
            )
            return [standing_answer(state, shares, each) for each in seen]

        items = await door.ask(ask)
        return answer(page("QuotaList", now_ms, items))

    return router


def standing_answer(state: ClusterState, shares: Shares, standing: Standing) -> Json:
    """Returns what an account may hold, holds and should hold of a class, as `quota` and `why` tell it."""
    return {**_item(standing), **_use(state, shares, standing)}


def _use(state: ClusterState, shares: Shares, standing: Standing) -> Json:
    """Returns how what the account holds is booked, what it weighs, and its jobs beside their limits."""
    name, gpu_class = standing.account, standing.gpu_class
    terms = state.accounts.get(name) or Account(name)
    steps = shares.effective_weight(name)
    return {
        "guarantee_bought": terms.guarantee.get(gpu_class, 0),
        "held_guaranteed": gpu_count(state.held_by(name, gpu_class, Booking.GUARANTEED)),
        "held_burst": gpu_count(state.held_by(name, gpu_class, Booking.BURST)),
        "weight": terms.weight,
        "effective_weight": None if steps is None else _decimal(steps * 10**6 // WEIGHT_STEPS),
        "user_limit": terms.user_limit.get(gpu_class),
        "running_jobs": state.usage.gangs[name],
        "running_limit": terms.running_limit,
        "waiting_jobs": state.waiting_jobs[name],
        "pending_limit": terms.pending_limit,
        "guaranteed_yields": not state.waiting.yielding.isdisjoint(lineage(name)),
    }


def _decimal(millionths: int) -> str:
    whole, rest = divmod(millionths, 10**6)
    return f"{whole}.{rest:06d}"


def _is_below(account: AccountId, top: str) -> bool:
    return account == top or account.startswith(f"{top}/")


def _item(standing: Standing) -> Json:
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
        "debt_credits": _decimal(standing.debt_microcredits),
    }
