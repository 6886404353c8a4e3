"""What every route goes through: who asks, whether this daemon may write, the way to the store, and back.

Queries run in a few threads of their own, on snapshots of the database; commands and questions go to the controller
and come back as futures. The event loop never waits for either.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from fastapi import Request, Response
from sqlalchemy.engine import Connection
from starlette.requests import HTTPConnection

from scheduler.auth import Caller, Rights, Role, TokenCache, bearer_secret, secret_hash, unknown_token
from scheduler.core.model import AccountId, UserName
from scheduler.core.plan import Plan
from scheduler.core.state import ClusterState
from scheduler.refusal import RefusalCode, Refused
from scheduler.routes.limits import Rates, TooFast
from scheduler.routes.needs import ApiSettings, Controller
from scheduler.store import centre
from scheduler.store.write import Command
from scheduler.wire.problems import encode

T = TypeVar("T")
JSON_TYPE = "application/json"


class LedElsewhere(Exception):
    """A write came to a daemon that does not lead; `url` is where the leader answers, if that is known."""

    def __init__(self, url: str | None) -> None:
        super().__init__("another daemon leads")
        self.url = url


class Door:
    """Shared by all routes of one app. Belongs to one event loop."""

    def __init__(self, controller: Controller, settings: ApiSettings) -> None:
        self.controller = controller
        self.settings = settings
        self.tokens = TokenCache()
        self._lookups: dict[str, asyncio.Task[Caller]] = {}
        self._rates = Rates(settings.requests_per_second, settings.requests_burst)
        self._failed_logins = Rates(settings.failed_logins_per_second, settings.failed_logins_burst)
        self._threads = ThreadPoolExecutor(settings.read_threads, thread_name_prefix="reads")
        self._aside = ThreadPoolExecutor(settings.aside_threads, thread_name_prefix="aside")
        self._reads_waiting = 0

    def close(self) -> None:
        """Lets the threads go; what they do is finished."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._aside.shutdown(wait=False, cancel_futures=True)

    @property
    def now_ms(self) -> int:
        """The ledger's time."""
        return self.controller.clock.now_ms()

    # ---- who asks ---------------------------------------------------------------------------------------------------

    def allow(self, roles: frozenset[Role]) -> Callable[[Request], Awaitable[Rights]]:
        """Returns the dependency of a route that answers these roles."""

        async def rights(request: Request) -> Rights:
            return await self.rights(request, roles)

        return rights

    def allow_change(
        self, roles: frozenset[Role], *, even_suspended: bool = False
    ) -> Callable[[Request], Awaitable[Rights]]:
        """Returns the dependency of a route that writes: besides, this daemon must lead, and the caller's account not
        be suspended. Raises LedElsewhere."""

        async def rights(request: Request) -> Rights:
            return await self.rights_to_change(request, roles, even_suspended=even_suspended)

        return rights

    async def rights(self, request: HTTPConnection, roles: frozenset[Role]) -> Rights:
        """Returns what the caller may see and do. Raises Refused unless it has one of the roles."""
        found = Rights(await self.caller(request))
        found.require(roles)
        return found

    async def rights_to_change(
        self, request: HTTPConnection, roles: frozenset[Role], *, even_suspended: bool = False
    ) -> Rights:
        """As `rights`, for what `allow_change` guards. Raises LedElsewhere too."""
        found = await self.rights(request, roles)
        if not even_suspended:
            found.require_unsuspended()
        if not self.controller.is_leading:
            raise LedElsewhere(await self.aside(lambda: self.controller.leader_url))
        return found

    async def caller(self, request: HTTPConnection) -> Caller:
        """Returns who asks. Raises Refused: `not_logged_in`, or TooFast when the token's rate is spent."""
        now_ms = self.now_ms
        try:
            hashed = secret_hash(bearer_secret(request.headers.get("authorization")))
            caller = self.tokens.get(hashed, now_ms) or await self._look_up(hashed, request)
            if caller.expires_ms is not None and caller.expires_ms <= now_ms:
                raise unknown_token()
        except Refused as refused:
            if refused.code is RefusalCode.NOT_LOGGED_IN:
                self._failed_logins.spend(_address(request), now_ms)
            raise
        if not self._rates.spend(caller.token_id, now_ms):
            wait_seconds = self._rates.wait_seconds(caller.token_id, now_ms)
            limit = self.settings.requests_per_second
            raise TooFast(f"this token may send {limit:g} requests a second; wait a moment", int(wait_seconds) + 1)
        return caller

    async def _look_up(self, hashed: str, request: HTTPConnection) -> Caller:
        """Reads the token from the store; requests that come together share one look-up."""
        if self._failed_logins.wait_seconds(_address(request), self.now_ms) > 0:
            raise TooFast("too many requests without a valid token from this address; wait a moment", 5)
        task = self._lookups.get(hashed)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._read_caller(hashed))
            self._lookups[hashed] = task
            task.add_done_callback(lambda done: self._forget_lookup(hashed, done))
        return await asyncio.shield(task)

    def _forget_lookup(self, hashed: str, done: asyncio.Task[Caller]) -> None:
        self._lookups.pop(hashed, None)
        if not done.cancelled():
            done.exception()  # those who waited have it; when all of them went away, nobody else asks

    async def _read_caller(self, hashed: str) -> Caller:
        began_ms = self.now_ms
        found = await self.read(lambda connection: centre.token_by_hash(connection, hashed))
        if found is None or found[0].revoked_ms is not None:
            raise unknown_token()
        record, suspended = found
        caller = Caller(
            record.id, Role(record.role), AccountId(record.account), UserName(record.user), record.expires_ms, suspended
        )
        self.tokens.put(hashed, caller, began_ms)
        return caller

    # ---- the store and the controller -------------------------------------------------------------------------------

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Runs a query on a snapshot, in a thread. Raises StoreUnavailable; Refused when too many wait."""
        if self._reads_waiting >= self.settings.most_reads_waiting:
            raise TooFast("the daemon is busy with queries; try again in a moment", 1)
        self._reads_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._snapshot, query)
        finally:
            self._reads_waiting -= 1

    def _snapshot(self, query: Callable[[Connection], T]) -> T:
        with self.controller.database.read() as connection:
            return query(connection)

    async def carry_out(self, command: Command[T]) -> T:
        """Returns a command's outcome once it is durable. Raises Refused, StoreUnavailable, Fenced."""
        return await asyncio.wrap_future(self.controller.carry_out(command))

    async def ask(self, question: Callable[[ClusterState, Plan], T]) -> T:
        """Returns the planner's answer between two ticks."""
        return await asyncio.wrap_future(self.controller.ask(question))

    async def aside(self, work: Callable[..., T], *arguments: object) -> T:
        """Runs something that may block, in threads apart from those of the queries."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, partial(work, *arguments))


def _address(request: HTTPConnection) -> str:
    return request.client.host if request.client is not None else ""


def answer(document: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Returns a JSON answer. What it says is about one caller, so no cache may keep it."""
    return Response(encode(document), status, {"Cache-Control": "no-store", **(headers or {})}, JSON_TYPE)
