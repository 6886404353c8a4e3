"""`agent`: the agent of a GPU node. This file is the thin part; what it puts together stands in `cli.daemon.agent`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import contexts
from cli.answers import number, text
from cli.contexts import short
from cli.errors import CliError, ExitCode, UsageProblem
from cli.layout import Column, View
from cli.session import Session
from cli.values import duration, pair, size

if TYPE_CHECKING:
    from cli.daemon.agent import Agent, AgentSettings
    from k8s.api import Api
    from metering.holders import HolderWatch
    from scheduler.core.model import NodeName
    from scheduler.executor import DeviceWitness

DEFAULT_METRICS = "127.0.0.1:8471"
NODE_VARIABLE = "TURNSTILE_AGENT_NODE"


class CannotRun(CliError):
    """The agent does not start, for a reason that the person can remove."""

    exit_code = ExitCode.REFUSED

    def __init__(self, message: str, *tries: str) -> None:
        super().__init__(message, code="cannot_run", tries=tries)


class CannotDeliver(CliError):
    """The daemon does not take what the agent says."""

    def __init__(self, message: str, *, is_token: bool) -> None:
        code = "not_allowed" if is_token else "unavailable"
        super().__init__(message, code=code)
        self.exit_code = ExitCode.NOT_ALLOWED if is_token else ExitCode.UNREACHABLE


def agent(
    ctx: typer.Context,
    node: Annotated[
        str | None, typer.Option("--node", metavar="NAME", help=f"This node's name ({NODE_VARIABLE}); the host's.")
    ] = None,
    sim: Annotated[
        str | None, typer.Option("--sim", metavar="SPEC", help="Simulated GPUs instead of NVML's: 1x4xH200.")
    ] = None,
    metrics: Annotated[
        str, typer.Option("--metrics", metavar="HOST:PORT", help="Where /metrics answers; `none` for nowhere.")
    ] = DEFAULT_METRICS,
    spool: Annotated[
        str | None, typer.Option("--spool", metavar="DIR", help="What waits for the daemon is kept here.")
    ] = None,
    spool_limit: Annotated[str, typer.Option("--spool-limit", metavar="SIZE", help="The oldest goes first.")] = "256M",
    sample: Annotated[str, typer.Option("--sample", metavar="DUR", help="Between two readings.")] = "15s",
    window: Annotated[str, typer.Option("--window", metavar="DUR", help="Length of the windows sent.")] = "60s",
    gpu_class: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="PRODUCT=CLASS", help="What an NVML product is sold as; repeatable."),
    ] = None,
    kubelet: Annotated[
        str | None,
        typer.Option("--kubelet", metavar="SOCKET", help="The kubelet's PodResources socket: who holds which GPU."),
    ] = None,
    proc: Annotated[
        str | None,
        typer.Option("--proc", metavar="DIR", help="The host's /proc: whose processes compute, the second witness."),
    ] = None,
    wait_for_driver: Annotated[
        bool, typer.Option("--wait-for-driver", help="Go on where NVML does not work yet.")
    ] = False,
    log: Annotated[str, typer.Option("--log", metavar="FORMAT", help="text or json, on standard error.")] = "text",
    once: Annotated[bool, typer.Option("--once", help="Read, deliver, and end: whether all of it works.")] = False,
) -> int:
    """Run the agent of a GPU node: reads its GPUs, tells the daemon, keeps on disk what the daemon cannot take yet.

    It needs a token with the role agent, made for this node: turnstile admin token create --role agent -u NODE

    Examples:
      turnstile agent --url https://turnstile.example --token-file /etc/turnstile/agent.token
      turnstile agent --sim 1x4xH200 --once -o json
    """
    session: Session = ctx.obj
    from cli.daemon.agent import AgentProblem, AgentSettings, default_spool, node_name
    from cli.daemon.logs import set_up
    from metering.reporter import LinkProblem, LinkTrouble
    from scheduler.core.model import NodeName

    if log not in {"text", "json"}:
        raise UsageProblem(f"--log {log!r} is neither text nor json", "--log json")
    set_up("info", log)
    place = _address(metrics)
    overrides = session.overrides
    contexts.endpoint(session.contexts, overrides, session.environment)  # what is wrong with it is said before anything
    try:
        name = NodeName(node_name(node or session.environment.get(NODE_VARIABLE), sim))
        settings = AgentSettings(
            endpoint=lambda: contexts.endpoint(session.contexts, overrides, session.environment),
            node=name,
            spool=Path(spool).expanduser().absolute() if spool else default_spool(name),
            spool_bytes=size(spool_limit, "--spool-limit"),
            metrics=None if once else place,
            sim=sim,
            sample_seconds=duration(sample, "--sample"),
            window_seconds=duration(window, "--window"),
            waits_for_driver=wait_for_driver,
            classes=dict(pair(each, "--class") for each in gpu_class or ()),
        )
        _run(session, settings, _watch(kubelet, proc, name), is_once=once)
    except AgentProblem as problem:
        raise CannotRun(str(problem), "turnstile agent --sim 1x4xH200  (GPUs that do not exist)") from problem
    except LinkProblem as problem:
        raise CannotDeliver(str(problem), is_token=problem.trouble is LinkTrouble.NOT_ALLOWED) from problem
    return ExitCode.DONE


def _watch(kubelet: str | None, proc: str | None, node: str) -> "HolderWatch | None":
    """Returns what reads the kubelet of this node and the host's processes, as far as asked for.

    Their pods' labels come from the API server, by the usual access.
    """
    if kubelet is None and proc is None:
        return None
    if proc is not None and not (Path(proc) / "self/cgroup").exists():
        raise UsageProblem(f"--proc {proc}: there are no processes with cgroups", "--proc /proc")
    from k8s.api import Access, Api
    from k8s.problems import KubernetesProblem
    from k8s.processes import CgroupWitness, pods_on
    from metering.holders import HolderWatch
    from scheduler.clock import LedgerClock
    from scheduler.core.model import NodeName

    clock, name = LedgerClock(), NodeName(node)
    try:
        api = Api.connect(Access())
        given = None if kubelet is None else _witness(kubelet, api, name)
        used = None if proc is None else CgroupWitness(pods_on(api, name), clock, Path(proc))
    except KubernetesProblem as problem:
        raise CannotRun(str(problem)) from problem
    return HolderWatch(given, used)


def _witness(kubelet: str, api: "Api", node: "NodeName") -> "DeviceWitness":
    try:
        from k8s.podresources import Kubelet, PodResourcesWitness, owners_on
    except ImportError as missing:
        raise CannotRun(
            f"--kubelet needs the package {missing.name}, which is not installed",
            "pip install 'gpu-turnstile[kubernetes-agent]'",
        ) from missing
    from scheduler.clock import LedgerClock

    return PodResourcesWitness(node, Kubelet(kubelet), owners_on(api, node), LedgerClock())


def _run(session: Session, settings: "AgentSettings", watch: "HolderWatch | None", *, is_once: bool) -> None:
    from cli.daemon.agent import Agent

    made = Agent(settings, watch)
    if not is_once:
        made.run(lambda running: _announce(session, running))
        return
    made.once()
    session.screen.document(_answer(made), _REPORT, [f"node {settings.node}: delivered"])


def _announce(session: Session, running: "Agent") -> None:
    settings, snapshot = running.settings, running.reporter.snapshot
    where = f"; /metrics at {settings.metrics[0]}:{running.metrics_port}" if settings.metrics else ""
    session.screen.say(
        f"agent of {settings.node} reads {len(snapshot.devices)} GPUs ({snapshot.collector}); "
        f"spool in {short(settings.spool)}{where}; stop it with Ctrl-C"
    )


def _address(typed: str) -> tuple[str, int] | None:
    if typed == "none":
        return None
    host, colon, port = typed.rpartition(":")
    if not (host and colon and port.isdigit() and int(port) < 65_536):
        raise UsageProblem(f"--metrics {typed!r} is not host:port", f"--metrics {DEFAULT_METRICS}", "--metrics none")
    return host.strip("[]"), int(port)


def _answer(made: "Agent") -> dict[str, object]:
    snapshot, link = made.reporter.snapshot, made.reporter.link
    batches, size_bytes, dropped = made.reporter.spooled
    return {
        "apiVersion": "turnstile/v1",
        "kind": "AgentReport",
        "node": made.settings.node,
        "collector": snapshot.collector,
        "driver_version": snapshot.driver_version,
        "gpus": len(snapshot.devices),
        "clock_skew_seconds": None if link.skew_ms is None else round(link.skew_ms / 1000, 3),
        "batches_delivered": link.delivered,
        "facts_refused": link.refused,
        "spool_batches": batches,
        "spool_bytes": size_bytes,
        "batches_dropped": dropped,
        "problems": [problem.message for problem in snapshot.problems],
    }


_REPORT = View(
    columns=(
        Column("NODE", lambda each: text(each, "node")),
        Column("GPUS", lambda each: number(each, "gpus"), is_right=True),
        Column("COLLECTOR", lambda each: text(each, "collector")),
        Column("DRIVER", lambda each: text(each, "driver_version")),
        Column("DELIVERED", lambda each: number(each, "batches_delivered"), is_right=True),
        Column("WAITING", lambda each: number(each, "spool_batches"), is_right=True),
    ),
    name=lambda each: text(each, "node"),
    fields=(
        "node", "collector", "driver_version", "gpus", "clock_skew_seconds", "batches_delivered", "facts_refused",
        "spool_batches", "spool_bytes", "batches_dropped",
    ),
    empty="nothing was read",
)  # fmt: skip
