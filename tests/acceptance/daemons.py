"""Real daemons as processes, with what tests ask of them: start, kill, speak HTTP, type commands.

Nothing here looks inside a daemon: it is started as a person would, in a directory of its own, on a loopback port, with
simulated GPUs; its jobs are real processes of this machine. Every command line that is typed is checked for what no
person may ever see: a stack trace.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import cli

READY_SECONDS = 60.0
"""How long a test waits for what takes a second on an idle machine."""
SOURCES = str(Path(cli.__file__).parents[1])
"""Where the packages under test lie; the daemon must be made of the same."""
SIM = "2x4xH200"
TENANT, PROJECT = "acme", "acme/nlp"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # Any: JSON
        return json.loads(self.body)

    @property
    def item(self) -> Any:  # Any: JSON
        """The first item of a list, such as the job of a submission."""
        return self.json["items"][0]


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command printed and its exit status."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # Any: JSON
        return json.loads(self.out)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(
    condition: Callable[[], T], what: str, seconds: float = READY_SECONDS, also: Callable[[], str] = lambda: ""
) -> T:
    """Waits for what another process does and returns what became true; fails after the deadline, saying `also`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}\n{also()}"
        time.sleep(0.02)
    return found


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of everything started here: no setting of the person who runs the tests has a say in it.

    A size of the window in the environment (the tests' runner puts one there) would hide the terminal's own.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TURNSTILE_", "XDG_")) and name not in {"COLUMNS", "LINES"}
    }
    ours = {"HOME": str(home), "PYTHONPATH": SOURCES, "PYTHONSAFEPATH": "1", "NO_COLOR": "1", "TERM": "dumb"}
    return {**kept, **ours, **(more or {})}


@dataclass(slots=True)
class Daemon:
    """One daemon, which may be stopped, killed and started again on its port and its data directory."""

    folder: Path
    port: int
    flags: tuple[str, ...] = ("--sim", SIM)
    settings: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = (sys.executable, "-m", "cli.main")
    sources: str = SOURCES
    """Where its packages are looked for first; empty for those that are installed."""
    process: "subprocess.Popen[bytes] | None" = None
    kills: int = 0

    @classmethod
    def at(cls, folder: Path, *flags: str, settings: Mapping[str, str] | None = None) -> "Daemon":
        """Returns a daemon, not yet started, whose data lies in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        # A tenant that sends as fast as it can is what most of these tests are: the rate limit has tests of its own.
        quick = {"TURNSTILE_SERVER_REQUESTS_PER_SECOND": "100000"}
        return cls(folder, free_port(), flags or ("--sim", SIM), {**quick, **(settings or {})})

    # ---- its life ---------------------------------------------------------------------------------------------------

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def database(self) -> Path:
        return self.data / "turnstile.db"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        path = self.folder / "daemon.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    @property
    def serve_words(self) -> list[str]:
        return ["serve", "--data-dir", str(self.data), "--listen", f"127.0.0.1:{self.port}", *self.flags]

    def start(self, *, wait: bool = True) -> "Daemon":
        """Starts the process and, unless told otherwise, waits until it is ready."""
        assert self.process is None or self.process.poll() is not None, "it runs"
        with (self.folder / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, *self.serve_words],
                env=environment(self.folder, {"PYTHONPATH": self.sources, **self.settings}),
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        if wait:
            self.wait_until_ready()
        return self

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> None:
        until(self.is_ready, "the daemon is ready", seconds, also=self.state_of_health)

    def wait_until_it_answers(self) -> None:
        until(lambda: self.probe("/healthz") == 200, "the daemon answers", also=self.state_of_health)

    def state_of_health(self) -> str:
        """What the daemon says of itself: for the message of a test that fails."""
        try:
            said = self.request("GET", "/readyz", token=None, seconds=5).body.decode()
        except (OSError, http.client.HTTPException) as problem:
            said = repr(problem)
        return f"/readyz says {said}; its log:\n{self.log[-6000:]}"

    def is_ready(self) -> bool:
        assert self.process is not None, "started"
        assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}; it says:\n{self.log}"
        return self.probe("/readyz") == 200

    def probe(self, path: str) -> int | None:
        """Returns the status of a GET, None when nobody answers."""
        try:
            return self.request("GET", path, token=None, seconds=5).status
        except (OSError, http.client.HTTPException):
            return None

    def kill(self) -> None:
        """kill -9, and waits until the process is gone."""
        assert self.process is not None, "started"
        assert self.process.poll() is None, f"the daemon ended by itself; it says:\n{self.log}"
        self.process.kill()
        self.process.wait(timeout=30)
        self.kills += 1

    def terminate(self) -> float:
        """SIGTERM; returns the seconds that it took to end. It must end by itself, with status 0."""
        assert self.process is not None, "started"
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        assert code == 0, f"the daemon ended with {code}; it says:\n{self.log}"
        return time.monotonic() - began

    def close(self) -> None:
        """Ends the process, and whatever of its jobs is left, whatever state the test left them in."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout=20)
        for pid in processes_of(self.data):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # ---- speaking with it -------------------------------------------------------------------------------------------

    def token(self, who: str = "operator") -> Path:
        return (self.data if who == "operator" else self.folder) / f"{who}.token"

    def with_port(self, port: int) -> "Daemon":
        """Returns the same tokens for another address: what a client does that is redirected."""
        return replace(self, port=port)

    def share_tokens_of(self, other: "Daemon") -> None:
        """Copies the token files of another daemon on the same database."""
        for who in ("operator", "mei"):
            path = self.token(who)
            path.touch(mode=0o600)
            path.write_bytes(other.token(who).read_bytes())

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = "operator",
        key: str | None = None,
        seconds: float = 60.0,
    ) -> Answer:
        """One HTTP exchange on a connection of its own; redirects are not followed. `body` is JSON, or bytes as is."""
        payload = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {self.token(token).read_text(encoding='ascii').strip()}"
        if key is not None:
            headers["Idempotency-Key"] = key
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, path, body=payload or None, headers=headers)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, token: str = "operator") -> Any:  # Any: JSON
        """Returns the JSON of a GET that must succeed."""
        answer = self.request("GET", path, token=token)
        assert answer.status == 200, (path, answer)
        return answer.json

    def turnstile(self, *words: str, who: str | None = "operator", code: int | None = 0, **more: str) -> Ran:
        """Types a command as somebody. It must end with `code` (None: any), and show nobody a stack trace."""
        own = {"TURNSTILE_URL": self.url, "PYTHONPATH": self.sources}
        if who is not None:
            own["TURNSTILE_TOKEN_FILE"] = str(self.token(who))
        return typed(self.folder, *words, code=code, command=self.command, more={**own, **more})

    # ---- what most tests begin with ---------------------------------------------------------------------------------

    def set_up(self) -> "Daemon":
        """Makes the tenant acme with its project nlp, and mei's token of it."""
        for path in (TENANT, PROJECT):
            answer = self.request("PUT", f"/v1/admin/accounts/{path}", {"display_name": path})
            assert answer.status in {200, 201}, answer
        made = self.request("POST", "/v1/admin/tokens", {"role": "user", "account": PROJECT, "user": "mei"})
        self.token("mei").touch(mode=0o600)
        self.token("mei").write_text(made.json["secret"], encoding="ascii")
        until(lambda: self.get("/v1/gpus")["items"], "the inventory is known")
        return self

    def submit(self, *command: str, key: str | None = None, **spec: object) -> Any:  # Any: JSON
        """Submits one job as mei and returns it. `spec` are JobSpec's fields."""
        answer = self.request("POST", "/v1/jobs", job(*command, **spec), token="mei", key=key)
        assert answer.status == 201, answer
        return answer.item

    def job(self, reference: object) -> Any:  # Any: JSON
        return self.get(f"/v1/jobs/{reference}")

    def wait_for(self, reference: object, *states: str, seconds: float = READY_SECONDS) -> Any:  # Any: JSON
        """Waits until a job is in one of these states and returns it."""

        def found() -> Any:  # Any: JSON
            now = self.job(reference)
            return now if now["state"] in states else None

        return until(found, f"job {reference} is {' or '.join(states)}", seconds)

    def assert_no_trace_in_log(self) -> None:
        assert "Traceback" not in self.log, self.log


def typed(
    folder: Path,
    *words: str,
    code: int | None = 0,
    command: Iterable[str] = (sys.executable, "-m", "cli.main"),
    more: Mapping[str, str] | None = None,
) -> Ran:
    """Types a command in a folder. It must end with `code` (None: any), and show nobody a stack trace."""
    done = subprocess.run(
        [*command, *words],
        env=environment(folder, more),
        capture_output=True,
        cwd=folder,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    ran = Ran(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
    assert "Traceback" not in ran.out + ran.err, ran
    assert code is None or ran.code == code, f"turnstile {' '.join(words)}: {ran}"
    return ran


def job(*command: str, **spec: object) -> dict[str, object]:
    """The JSON of a small job: one GPU, a minute."""
    return {"command": list(command) or ["true"], "gpus_per_node": 1, "time_limit_seconds": 60, **spec}


def is_running(pid: int | str) -> bool:
    """True for a process that is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_of(folder: Path) -> list[int]:
    """Returns the processes whose command line or environment names a folder: supervisors and jobs of a daemon."""
    mark = str(folder).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid() or not is_running(entry.name):
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile
            if mark in (entry / "cmdline").read_bytes() or mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found
