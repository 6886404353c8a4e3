"""Tenants' secrets: set, list, remove. No route ever answers a value."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from scheduler.auth import Rights, Role
from scheduler.clock import iso_utc
from scheduler.refusal import RefusalCode, Refused
from scheduler.routes.bodies import body_of
from scheduler.routes.door import Door, answer
from scheduler.store.secrets import RemoveSecret, SetSecret, secrets_of
from scheduler.wire.problems import envelope, page
from scheduler.wire.requests import SecretBody, parse

USES_SECRETS = frozenset({Role.USER, Role.TENANT_ADMIN})
"""Tenants only: what an operator puts there, a tenant's jobs could read."""
SecretName = Annotated[str, Path(max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Project = Annotated[str | None, Query(max_length=256, description="Default: the token's account.")]


def secret_routes(door: Door) -> APIRouter:
    """Returns the routes of secrets."""
    router = APIRouter(tags=["secrets"])
    reader = door.allow(USES_SECRETS)
    changing = door.allow_change(USES_SECRETS)

    @router.get("/v1/secrets", summary="The names of the secrets that a project's jobs may use")
    async def listing(rights: Annotated[Rights, Depends(reader)], project: Project = None) -> Response:
        _require_kept(door)
        account = rights.submission_account(project)
        found = await door.read(lambda connection: secrets_of(connection, account))
        items = [
            {
                "name": each.name,
                "account": each.account,
                "updated_at": iso_utc(each.updated_ms),
                "updated_by": each.updated_by,
            }
            for each in found
        ]
        return answer(page("SecretList", door.now_ms, items))

    @router.put("/v1/secrets/{name}", summary="Keep a value under a name", openapi_extra=body_of(SecretBody))
    async def change(
        request: Request, name: SecretName, rights: Annotated[Rights, Depends(changing)], project: Project = None
    ) -> Response:
        _require_kept(door)
        account = rights.submission_account(project)
        value = parse(SecretBody, await request.body()).value
        is_new = await door.carry_out(SetSecret(account, name, value, rights.caller.user))
        return answer(envelope("Secret", door.now_ms, name=name, account=account, is_new=is_new))

    @router.delete("/v1/secrets/{name}", summary="Forget a secret")
    async def remove(
        name: SecretName, rights: Annotated[Rights, Depends(changing)], project: Project = None
    ) -> Response:
        _require_kept(door)
        account = rights.submission_account(project)
        await door.carry_out(RemoveSecret(account, name))
        return answer(envelope("SecretRemoved", door.now_ms, name=name, account=account))

    return router


def _require_kept(door: Door) -> None:
    if not door.settings.rules.keeps_secrets:
        raise Refused(
            RefusalCode.POLICY,
            "jobs of this centre take their secrets from Kubernetes",
            ("kubectl create secret generic NAME",),
        )
