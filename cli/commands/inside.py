"""Inside running jobs: `exec` and `port-forward`."""

import contextlib
import os
import socket
from typing import Annotated

import typer

from cli.channel import channel
from cli.client import step
from cli.errors import ExitCode, UsageProblem
from cli.layout import View
from cli.render import envelope
from cli.seat import sit, size
from cli.session import Session
from cli.tunnel import Tunnel, listen
from cli.values import count

_SHELL = ("/bin/sh", "-c", 'exec "${SHELL:-/bin/sh}"')
"""What runs at a terminal when no command is named: the job user's own shell."""

Job = Annotated[str, typer.Argument(metavar="JOB", help="10482, 10482_7, a name, @")]


def exec_(
    ctx: typer.Context,
    job: Job,
    command: Annotated[list[str] | None, typer.Argument(metavar="[--] COMMAND...", help="What runs there.")] = None,
    pty: Annotated[bool, typer.Option("-t", "--pty", help="At a terminal: for a shell, for top.")] = False,
    rank: Annotated[str, typer.Option("--rank", metavar="N", help="On this node of the job.")] = "0",
) -> int:
    """Run a program inside a running job: as its user, in its directory, with its environment and its GPUs.

    Its exit status is this command's. It ends with the job, and with this command; nothing of it is kept as output.
    With -t and no command it is a shell. Flags stand before the job.

    Examples:
      turnstile exec 10482 -- nvidia-smi
      turnstile exec -t 10482
      turnstile exec --rank 3 @ -- py-spy dump --pid 4711
    """
    session: Session = ctx.obj
    words = command or []
    if words[:1] == ["--"]:
        words = words[1:]
    elif words and words[0].startswith("-"):
        raise UsageProblem(f"flags stand before the job: {words[0]}", f"turnstile exec {words[0]} {job} -- COMMAND")
    if not words and not pty:
        raise UsageProblem("say what to run", f"turnstile exec {job} -- nvidia-smi", f"turnstile exec -t {job}")
    if pty and not session.screen.is_terminal_in:
        raise UsageProblem("-t needs a terminal, and standard input is none", f"turnstile exec {job} -- COMMAND")
    asked: dict[str, object] = {"command": words or list(_SHELL), "rank": count(rank, "--rank", least=0)}
    if pty:
        asked |= {"terminal": size(), "term": os.environ.get("TERM") or "dumb"}
    with channel(session.client, f"/v1/jobs/{step(session.reference(job))}/exec", asked) as opened:
        code = sit(opened, session.screen, is_terminal=pty)
    return ExitCode.JOB_NEVER_RAN if code is None else code


FORWARD = View((), lambda each: str(each["local_port"]), ("job", "host", "local_port", "remote_port"))


def port_forward(
    ctx: typer.Context,
    job: Job,
    ports: Annotated[list[str], typer.Argument(metavar="LOCAL[:REMOTE]...", help="8888, 8080:8888, 0:8888")],
    rank: Annotated[str, typer.Option("--rank", metavar="N", help="On this node of the job.")] = "0",
) -> int:
    """Reach ports that a running job listens on, from this machine alone, until Ctrl-C or the job's end.

    Only ports that a process of the job itself listens on can be reached. LOCAL 0 takes any free port.

    Examples:
      turnstile port-forward 10482 8888
      turnstile port-forward notebook 8080:8888
      turnstile port-forward 10482 0:6006 -o json | jq .local_port
    """
    session: Session = ctx.obj
    pairs = [_ports(each) for each in ports]
    reference = session.reference(job)
    node = count(rank, "--rank", least=0)
    with contextlib.ExitStack() as opened:
        tunnels = []
        for local, remote in pairs:
            listener = opened.enter_context(contextlib.closing(_listener(job, local, remote)))
            tunnels.append(Tunnel(session.client, session.screen, reference, listener, remote, node))
        for tunnel in tunnels:
            tunnel.check()
            found = {"job": reference, "host": "127.0.0.1", "local_port": tunnel.local, "remote_port": tunnel.remote}
            told = f"127.0.0.1:{tunnel.local} is port {tunnel.remote} of job {reference}; Ctrl-C ends it"
            session.screen.document(envelope("PortForward", found), FORWARD, [told])
        session.screen.flush()
        return Tunnel.serve(tunnels)


def _listener(job: str, local: int, remote: int) -> socket.socket:
    try:
        return listen(local)
    except OSError as taken:
        raise UsageProblem(
            f"port {local} of this machine cannot be had: {os.strerror(taken.errno or 0).lower()}",
            f"turnstile port-forward {job} 0:{remote}",
        ) from None


def _ports(text: str) -> tuple[int, int]:
    local, colon, remote = text.partition(":")
    found = [
        int(each) if each.isascii() and each.isdigit() and len(each) < 6 else -1 for each in (local, remote or local)
    ]
    if found[0] not in range(65_536) or found[1] not in range(1, 65_536) or (colon and not remote):
        raise UsageProblem(f"{text!r} names no ports", "8888", "8080:8888", "0:8888")
    return found[0], found[1]
