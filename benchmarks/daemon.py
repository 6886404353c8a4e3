"""Starts a real daemon for a measurement, and speaks plain HTTP with it at little cost to the machine.

The client is a few lines over asyncio streams on purpose: on two cores a full HTTP client would be half of what is
measured. Every request and answer is a whole HTTP/1.1 exchange on a kept-alive connection.
"""

import asyncio
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Running:
    """A daemon that answers."""

    process: subprocess.Popen[bytes]
    folder: Path
    port: int
    token: str


@contextlib.contextmanager
def daemon(kind: str, sim: str) -> Iterator[Running]:
    """Runs `turnstile serve` with SQLite in a temporary directory until the block ends."""
    with tempfile.TemporaryDirectory(prefix="turnstile-bench-") as name:
        folder = Path(name)
        port = free_port()
        environment = {
            **os.environ,
            "TURNSTILE_SERVER_REQUESTS_PER_SECOND": "1000000",
            "TURNSTILE_EXECUTOR_KIND": kind,
            "TURNSTILE_LOGGING_LEVEL": "warning",
        }
        command = [sys.executable, "-m", "cli.main", "serve", "--data-dir", name, "--sim", sim]
        process = subprocess.Popen([*command, "--listen", f"127.0.0.1:{port}"], env=environment)
        try:
            wait_until_ready(process, port)
            yield Running(process, folder, port, (folder / "operator.token").read_text(encoding="ascii").strip())
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


def free_port() -> int:
    """Returns a port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(process: subprocess.Popen[bytes], port: int, seconds: float = READY_SECONDS) -> None:
    """Returns once the daemon is ready. Raises SystemExit when it ended, or is not in so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"the daemon ended with status {process.returncode}")
        with contextlib.suppress(URLError, OSError), urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
            return
        time.sleep(0.05)
    raise SystemExit("the daemon was not ready in time")


class Connection:
    """One kept-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> None:
        self._reader, self._writer, self._token = reader, writer, token

    @classmethod
    async def open(cls, running: Running) -> "Connection":
        """Connects."""
        return cls(*await asyncio.open_connection("127.0.0.1", running.port), running.token)

    async def request(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Returns the status and the JSON of one exchange."""
        payload = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        )
        self._writer.write(head.encode() + payload)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        length = next(int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length"))
        answer = json.loads(await self._reader.readexactly(length)) if length else None
        return int(lines[0].split()[1]), answer

    def close(self) -> None:
        """Hangs up."""
        self._writer.close()


async def set_up(running: Running) -> None:
    """Makes a tenant with a project, `bench/main`."""
    connection = await Connection.open(running)
    for path in ("bench", "bench/main"):
        status, answer = await connection.request("PUT", f"/v1/admin/accounts/{path}", {"display_name": path})
        assert status in {200, 201}, answer
    connection.close()


def machine() -> str:
    """Returns what the figures were measured on, in one line."""
    cores = len(os.sched_getaffinity(0))
    return f"CPython {platform.python_version()}, {platform.machine()}, {cores} cores, load {os.getloadavg()[0]:.1f}"
