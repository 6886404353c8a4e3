"""`demo`: the whole product once, for real, in about a minute: a daemon, three tenants, real processes, the bill.

Every step is the command that a person would type, run as a process of its own. What the demo expects it checks; when
something is not as it says, it ends with status 1. GPUs are this machine's where NVML finds some, else simulated ones.
"""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import CliError, ExitCode
from cli.render import Screen
from cli.session import Session

SIM = "2x8xH200"
READY_SECONDS = 60.0
ZONE = "Asia/Shanghai"
TENANTS = (
    ("acme", "Acme Robotics", "nlp", "mei"),
    ("birch", "Birch Vision", "vision", "jon"),
    ("chenxing", "晨星智能", "推理", "ana"),
)


class DemoFailed(CliError):
    """Something was not as the demo says."""

    exit_code = ExitCode.BUG

    def __init__(self, message: str) -> None:
        super().__init__(message, code="demo_failed")


@dataclass(slots=True)
class _Stage:
    """Where the demo plays: a folder, a daemon, and who types."""

    screen: Screen
    folder: Path
    port: int
    sim: str | None
    daemon: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def chapter(self, title: str) -> None:
        self.screen.plain("")
        self.screen.plain(f"── {title} " + "─" * max(3, 92 - len(title)))

    def remark(self, text: str) -> None:
        self.screen.plain(f"   {text}")

    def start_daemon(self) -> None:
        """Starts `turnstile serve` and waits until it is ready. Raises DemoFailed."""
        command = ["serve", "--data-dir", str(self.data), "--listen", f"127.0.0.1:{self.port}"]
        command += ["--sim", self.sim] if self.sim else []
        log = (self.folder / "daemon.log").open("ab")
        with log:
            self.daemon = subprocess.Popen(_turnstile(command), env=_environment({}), stdout=log, stderr=log)
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            if self.daemon.poll() is not None:
                break
            if self._is_ready():
                return
            time.sleep(0.05)
        raise DemoFailed(f"the daemon did not become ready; it says:\n{self.daemon_log()}")

    def _is_ready(self) -> bool:
        from http.client import HTTPConnection, HTTPException

        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200 and (self.data / "operator.token").exists()
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def daemon_log(self) -> str:
        return (self.folder / "daemon.log").read_text(encoding="utf-8", errors="replace")[-4000:]

    def stop_daemon(self, how: signal.Signals) -> None:
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.send_signal(how)
            self.daemon.wait(timeout=30)

    def type(self, who: str, *words: str, status: int = 0, is_shown: bool = True) -> str:
        """Runs a turnstile command as somebody, shows it and what it prints; returns its stdout."""
        token = self.data / "operator.token" if who == "operator" else self.folder / f"{who}.token"
        environment = _environment(
            {"TURNSTILE_URL": f"http://127.0.0.1:{self.port}", "TURNSTILE_TOKEN_FILE": str(token)}
        )
        if is_shown:
            self.screen.plain(f"{who}$ turnstile {shlex.join(words)}")
        done = subprocess.run(
            _turnstile(list(words)), env=environment, capture_output=True, cwd=self.folder, check=False, timeout=300
        )
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if is_shown or done.returncode != status:
            for line in (err + out).rstrip().splitlines():
                self.screen.plain(f"  {line}")
        self.expect(
            done.returncode == status, f"`turnstile {shlex.join(words)}` ended with {done.returncode}, not {status}"
        )
        return out.strip()

    def until(self, who: str, job: str, state: str) -> None:
        """Waits until a job is in a state. Raises DemoFailed when it takes too long."""
        import json

        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            if json.loads(self.type(who, "show", job, "-o", "json", is_shown=False))["state"] == state:
                return
            time.sleep(0.1)
        raise DemoFailed(f"job {job} is not {state} after {READY_SECONDS} s")

    def expect(self, is_so: bool, otherwise: str) -> None:
        if not is_so:
            raise DemoFailed(f"not as it should be: {otherwise}")


def _turnstile(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "cli.main", *words]


def _environment(more: dict[str, str]) -> dict[str, str]:
    """The caller's environment without its own Turnstile settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TURNSTILE_")}
    return {**kept, "PYTHONSAFEPATH": "1", "NO_COLOR": "1", **more}


def demo(
    ctx: typer.Context,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="DIR", help="Leave database, logs and files here.")
    ] = None,
    sim: Annotated[str | None, typer.Option("--sim", metavar="SPEC", help="Simulate these GPUs: 2x8xH200.")] = None,
) -> int:
    """Show the whole product once, for real: submit, queue, why, run, crash, restart, meter, export, verify.

    Starts a daemon of its own on this machine and ends by itself in about a minute.

    Examples:
      turnstile demo
      turnstile demo --keep demo-out
    """
    session: Session = ctx.obj
    with _folder(keep) as folder:
        stage = _Stage(session.screen, folder, _free_port(), sim)
        if sim is None and not _has_gpus(session.screen):
            stage.sim = SIM
        try:
            _play(stage)
        finally:
            stage.stop_daemon(signal.SIGTERM)
        if keep is not None:
            session.screen.plain(f"\ndatabase and files are in {folder}")
    session.screen.plain("\nThat was Turnstile. Next: turnstile serve --dev, and docs/ for each of its users.")
    return ExitCode.DONE


@contextlib.contextmanager
def _folder(keep: str | None) -> Iterator[Path]:
    if keep is None:
        name = tempfile.mkdtemp(prefix="turnstile-demo-")
        try:
            yield Path(name)
        finally:
            shutil.rmtree(name, ignore_errors=True)
        return
    folder = Path(keep).absolute()
    if folder.exists() and any(folder.iterdir()):
        raise CliError(f"{folder} is not empty; name a new directory", code="invalid")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _has_gpus(screen: Screen) -> bool:
    from cli.daemon.gpus import real_gpus
    from cli.daemon.settings import Settings
    from scheduler.clock import LedgerClock

    gpus = real_gpus(Settings(), LedgerClock())
    try:
        gpus.poll()
        if any(snapshot.devices for snapshot in gpus.snapshots()):
            return True
        why = "; ".join(problem.message for problem in gpus.problems()) or "NVML lists none"
        screen.plain(f"No GPU on this machine ({why}).")
        screen.plain(f"Simulating {SIM}; every job below is a real process all the same.")
        return False
    finally:
        gpus.close()


def _play(stage: _Stage) -> None:
    stage.chapter("An operator sets up: three tenants, their people, prices")
    stage.start_daemon()
    gpu_class, nodes, per_node = _inventory(stage)
    _set_up(stage, gpu_class)
    jobs = _submit(stage, gpu_class, nodes, per_node)
    _watch(stage, jobs)
    _crash(stage)
    _finish(stage, jobs)
    _preempt(stage, gpu_class, nodes, per_node)
    _bill(stage)


def _inventory(stage: _Stage) -> tuple[str, int, int]:
    """Returns the class, the nodes and the GPUs per node that the jobs can count on."""
    import json

    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        found = json.loads(stage.type("operator", "gpus", "-o", "json", is_shown=False))["items"]
        if found:
            largest = max(found, key=lambda each: (each["total"], each["gpu_model"]))
            return largest["gpu_model"], largest["whole_nodes"], largest["gpus_per_node"]
        time.sleep(0.1)
    raise DemoFailed(f"the daemon found no GPUs; it says:\n{stage.daemon_log()}")


def _set_up(stage: _Stage, gpu_class: str) -> None:
    stage.type("operator", "nodes")
    for tenant, title, project, user in TENANTS:
        stage.type("operator", "admin", "tenant", "create", tenant, "--title", title)
        stage.type("operator", "admin", "project", "create", f"{tenant}/{project}")
        token = str(stage.folder / f"{user}.token")
        stage.type("operator", "admin", "token", "create", "-u", user, "-A", f"{tenant}/{project}", "--out", token)
    prices = stage.folder / "prices.toml"
    prices.write_text(
        'version = "demo-1"\ncurrency = "CNY"\neffective = 2026-01-01T00:00:00+08:00\ntax_rate = "0.06"\n'
        f'[prices."{gpu_class}"]\nguaranteed = "18.00"\nburst = "24.00"\nspot = "9.00"\n',
        encoding="utf-8",
    )
    stage.type("operator", "admin", "price", "import", str(prices), "--publish")
    stage.type("operator", "gpus")


def _submit(stage: _Stage, gpu_class: str, nodes: int, per_node: int) -> dict[str, str]:
    stage.chapter("Engineers submit: real processes, whole gangs, limits")
    ranks = 'echo "rank $TURNSTILE_NODE_RANK of $TURNSTILE_NODES on $CUDA_VISIBLE_DEVICES"; sleep 6'
    jobs = {}

    def submit(name: str, who: str, *words: str) -> None:
        jobs[name] = stage.type(who, "submit", "-n", name, *words)

    gang = ("-g", f"{gpu_class}:{per_node}", "-N", str(nodes), "-t", "10m")
    submit("pretrain", "mei", *gang, "--", "/bin/sh", "-c", ranks)
    submit("eval", "jon", "-g", f"{gpu_class}:1", "-t", "5m", "--", "/bin/sh", "-c", "sleep 3; echo accuracy 0.91")
    submit("typo", "jon", "-g", f"{gpu_class}:1", "-t", "5m", "--", "/bin/sh", "-c", "echo no such file >&2; exit 3")
    submit("runaway", "ana", "-g", f"{gpu_class}:1", "-t", "4s", "--grace", "1s", "--", "sleep", "600")
    submit("nightly", "ana", "-g", f"{gpu_class}:1", "-t", "1h", "--hold", "--", "sleep", "600")
    stage.remark("What can never run is refused at once, with the nearest thing that can:")
    too_many = per_node * 2
    stage.type("mei", "submit", "-g", f"{gpu_class}:{too_many}", "-t", "1h", "--", "true", status=3)
    stage.type("mei", "submit", "-g", f"{gpu_class}:1", "-t", "90", "--", "true", status=2)
    return jobs


def _watch(stage: _Stage, jobs: dict[str, str]) -> None:
    stage.chapter("Everybody sees their own, and why it waits")
    stage.type("operator", "queue")
    stage.type("jon", "queue")
    stage.type("jon", "why", jobs["eval"])
    stage.remark("Another tenant's job does not exist for jon:")
    stage.type("jon", "show", jobs["pretrain"], status=4)
    stage.type("ana", "cancel", jobs["nightly"])


def _crash(stage: _Stage) -> None:
    stage.chapter("The daemon is killed (SIGKILL) while a gang runs, and started again")
    stage.stop_daemon(signal.SIGKILL)
    stage.remark("Jobs go on under their own supervisors, and are found again.")
    stage.start_daemon()
    stage.type("operator", "queue")


def _finish(stage: _Stage, jobs: dict[str, str]) -> None:
    stage.chapter("The jobs end; their exit codes are the commands' own")
    stage.type("mei", "wait", jobs["pretrain"], "--timeout", "60s")
    stage.type("mei", "logs", jobs["pretrain"])
    stage.type("jon", "wait", jobs["eval"], "--timeout", "60s")
    stage.type("jon", "logs", jobs["eval"])
    stage.type("jon", "wait", jobs["typo"], "--timeout", "60s", status=3)
    stage.type("ana", "wait", jobs["runaway"], "--timeout", "60s", status=124)
    stage.type("operator", "history")
    stage.type("mei", "report", jobs["pretrain"])


def _preempt(stage: _Stage, gpu_class: str, nodes: int, per_node: int) -> None:
    stage.chapter("What was bought is had at once: a job beyond any guarantee makes room, and goes on later")
    tenant = TENANTS[0][0]
    stage.type("operator", "admin", "tenant", "set", tenant, "--guarantee", f"{gpu_class}={nodes * per_node}")
    gang = ("-g", f"{gpu_class}:{per_node}", "-N", str(nodes))
    saves = (
        'echo "attempt $TURNSTILE_ATTEMPT"; [ "$TURNSTILE_ATTEMPT" = 1 ] || exit 0; '
        "trap 'echo saving my work; sleep 4; touch \"$TURNSTILE_CHECKPOINT_FILE\"; exit 1' TERM; sleep 60 & wait"
    )
    sweep = stage.type("jon", "submit", "-n", "sweep", *gang, "-t", "1h", "--", "/bin/sh", "-c", saves)
    stage.until("jon", sweep, "running")
    urgent = stage.type(
        "mei", "submit", "-n", "urgent", *gang, "-t", "10m", "--", "/bin/sh", "-c", "sleep 2; echo done"
    )
    stage.until("jon", sweep, "stopping")
    stage.remark("While jon's job saves its work, mei's can say what it waits for:")
    stage.type("mei", "why", urgent)
    stage.type("mei", "wait", urgent, "--timeout", "60s")
    stage.remark(
        "jon's processes were told to end, saved their work, and wait again in their old place; then they go on:"
    )
    stage.type("jon", "wait", sweep, "--timeout", "60s")
    stage.type("jon", "logs", sweep)
    stage.type("jon", "show", sweep)
    stage.type("operator", "history")


def _bill(stage: _Stage) -> None:
    stage.chapter("Billing: usage lines that add up, and a ledger that proves itself")
    files = stage.folder / "files"
    today, tomorrow = _days()
    stage.type("operator", "admin", "ledger", "export", str(files), "--from", today, "--to", tomorrow, "--zone", ZONE)
    for name in sorted(path.name for path in files.iterdir()):
        stage.remark(f"{name}  {(files / name).stat().st_size} bytes")
    for line in _column(
        files,
        (*("line_type", "tenant_name", "job_name"), *("gpu_count", "gpu_ms", "unit_price", "amount", "end_reason")),
    ):
        stage.screen.plain(f"  {line}")
    stage.type("operator", "admin", "ledger", "verify")
    stage.type("operator", "admin", "ledger", "verify", str(files))
    stage.remark("Somebody makes a copy of the database and lengthens one interval by a second:")
    copy = _tampered_copy(stage)
    stage.type("operator", "admin", "ledger", "verify", "--copy", str(copy), status=1)


def _days() -> tuple[str, str]:
    """Returns today's and tomorrow's date in the demo's zone."""
    from datetime import datetime, timedelta
    from zoneinfo import ZoneInfo

    today = datetime.fromtimestamp(time.time(), tz=ZoneInfo(ZONE)).date()
    return today.isoformat(), (today + timedelta(days=1)).isoformat()


def _column(files: Path, names: tuple[str, ...]) -> list[str]:
    """Returns some columns of the usage lines, aligned."""
    import csv

    (usage,) = files.glob("usage_lines_*.csv")
    with usage.open(encoding="utf-8-sig", newline="") as file:
        rows = [list(names), *([row[name] for name in names] for row in csv.DictReader(file))]
    widths = [max(len(row[index]) for row in rows) for index in range(len(names))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _tampered_copy(stage: _Stage) -> Path:
    copy = stage.folder / "tampered.db"
    with (
        contextlib.closing(sqlite3.connect(stage.data / "turnstile.db")) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
        triggers = [row[0] for row in target.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
        for name in triggers:
            target.execute(f'DROP TRIGGER "{name}"')
        target.execute(
            "UPDATE occupancy SET to_ms = to_ms + 1000 WHERE sequence ="
            " (SELECT min(sequence) FROM occupancy WHERE phase = 'running')"
        )
        target.commit()
    return copy
