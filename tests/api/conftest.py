"""A migrated SQLite database for each test, and a client of the whole app."""

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from fastapi import FastAPI

from scheduler.auth import Role
from scheduler.store.database import Database
from tests.api.centre import Centre, app_of, two_tenants
from tests.databases import opened_sqlite


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with opened_sqlite(tmp_path / "turnstile.db") as opened:
        yield opened


@pytest.fixture
def centre(database: Database) -> Centre:
    return two_tenants(database)


T = TypeVar("T")
DEADLINE_SECONDS = 60


class Http:
    """An app on an event loop of its own, spoken with from the test's thread; `address` is where clients sit."""

    def __init__(self, app: FastAPI, address: str = "127.0.0.1") -> None:
        self._app = app
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(address, 50_000))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://turnstile.example")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the app's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_SECONDS)

    def request(self, method: str, path: str, **rest: Any) -> httpx.Response:
        return self.run(self.client.request(method, path, **rest))

    def open_socket(self, path: str, headers: dict[str, str], *sent: str) -> tuple[int, list[dict[str, Any]]]:
        """Asks for a WebSocket and sends texts; returns 101 and all that came, or the refusal's status and document."""
        incoming = [{"type": "websocket.connect"}, *({"type": "websocket.receive", "text": each} for each in sent)]
        came: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return incoming.pop(0) if incoming else {"type": "websocket.disconnect", "code": 1000}

        async def send(message: Any) -> None:
            came.append(dict(message))

        scope = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 50_000),
            "server": ("turnstile.example", 80),
            "subprotocols": [],
            "state": {},
            "extensions": {"websocket.http.response": {}},
        }
        self.run(asyncio.wait_for(self._app(scope, receive, send), DEADLINE_SECONDS))
        if came[0]["type"] == "websocket.accept":
            return 101, [json.loads(each["text"]) for each in came if each.get("text")]
        body = b"".join(each.get("body", b"") for each in came)
        headers = {name.decode(): value.decode() for name, value in came[0]["headers"]}
        return int(came[0]["status"]), [json.loads(body) if body else headers]

    def close(self) -> None:
        async def end() -> None:
            await self.client.aclose()
            async with self._app.router.lifespan_context(self._app):
                pass
            await asyncio.get_running_loop().shutdown_default_executor()

        self.run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Client:
    """A person with a token, speaking with the app."""

    def __init__(self, http: Http, token: str | None) -> None:
        self.http = http
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def request(self, method: str, path: str, **rest: Any) -> httpx.Response:
        headers = {**self.headers, **rest.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **rest)

    def get(self, path: str, **rest: Any) -> httpx.Response:
        return self.request("GET", path, **rest)

    def post(self, path: str, **rest: Any) -> httpx.Response:
        return self.request("POST", path, **rest)

    def socket(self, path: str, *sent: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
        return self.http.open_socket(path, self.headers, *(json.dumps(each) for each in sent))

    def submit(self, **spec: Any) -> int:
        """Submits the smallest job, changed as the test says; returns its id."""
        answer = self.post("/v1/jobs", json=job_spec(**spec))
        assert answer.status_code == 201, answer.text
        return number_of(answer.json()["items"][0]["id"])


def job_spec(**changes: Any) -> dict[str, Any]:
    plain = {"command": ["true"], "gpus_per_node": 1, "time_limit_seconds": 3600, "project": "acme/vision"}
    return {key: value for key, value in {**plain, **changes}.items() if value is not None}


def number_of(id_: int | str) -> int:
    return int(str(id_).partition("_")[0])


class People:
    """Clients by role, made when a test asks."""

    def __init__(self, centre: Centre, http: Http) -> None:
        self._centre = centre
        self._http = http

    def user(self, name: str = "ana", account: str = "acme/vision") -> Client:
        return self.with_role(Role.USER, account, name)

    def admin(self, account: str = "acme") -> Client:
        return self.with_role(Role.TENANT_ADMIN, account, "ada")

    def operator(self) -> Client:
        return self.with_role(Role.OPERATOR, "", "olga")

    def with_role(self, role: Role, account: str, name: str) -> Client:
        return Client(self._http, self._centre.token(role, account, name))

    def stranger(self) -> Client:
        return Client(self._http, None)


@pytest.fixture
def http(centre: Centre) -> Iterator[Http]:
    served = Http(app_of(centre))
    yield served
    served.close()


@pytest.fixture
def people(centre: Centre, http: Http) -> People:
    return People(centre, http)
