"""`serve`: the daemon. This file is the thin part; what it puts together stands in `cli.daemon.app`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.contextfile import save_context
from cli.contexts import Context, short
from cli.errors import CliError, ExitCode, Problem
from cli.session import Session

if TYPE_CHECKING:
    from cli.daemon.app import Daemon
    from cli.daemon.settings import Settings

DEV_SIM = "1x8xH200"
"""What `serve --dev` simulates on a machine without GPUs: one usual node."""
DEV_TENANT, DEV_PROJECT = "dev", "dev/main"


class CannotServe(CliError):
    """The daemon does not start, for a reason that the person can remove."""

    exit_code = ExitCode.REFUSED

    def __init__(self, message: str, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message, code="cannot_serve", problems=problems)


def serve(
    ctx: typer.Context,
    config: Annotated[str | None, typer.Option("--config", metavar="FILE", help="Settings, in TOML.")] = None,
    listen: Annotated[str | None, typer.Option("--listen", metavar="HOST:PORT", help="Where the API answers.")] = None,
    data_dir: Annotated[
        str | None, typer.Option("--data-dir", metavar="DIR", help="Database, logs, run state.")
    ] = None,
    database: Annotated[
        str | None, typer.Option("--database", metavar="URL", help="sqlite:/// or postgresql://")
    ] = None,
    sim: Annotated[
        str | None, typer.Option("--sim", metavar="SPEC", help="Simulated GPUs, such as 2x8xH200; jobs are real.")
    ] = None,
    dev: Annotated[
        bool, typer.Option("--dev", help="For this machine: no settings, a tenant and a context made.")
    ] = False,
) -> int:
    """Run the daemon: scheduler, metering and API, until it is told to stop (SIGTERM, Ctrl-C). Jobs outlive it.

    Examples:
      turnstile serve --dev
      turnstile serve --dev --sim 2x8xH200
      turnstile serve --config /etc/turnstile/turnstile.toml
    """
    session: Session = ctx.obj
    given = {
        "server.listen": listen,
        "data_dir": data_dir,
        "database.url": database,
        "executor.sim": sim,
    }
    _serve(session, config, {key: value for key, value in given.items() if value is not None}, is_dev=dev)
    return ExitCode.DONE


def _serve(session: Session, config: str | None, given: dict[str, str], *, is_dev: bool) -> None:
    from cli.daemon.app import Daemon, StartProblem, bind, claim_data_dir, default_data_dir
    from cli.daemon.logs import set_up
    from cli.daemon.settings import SettingsProblem, load
    from scheduler.store.database import StoreError

    try:
        settings = load(Path(config) if config else None, session.environment, given)
        set_up(settings.logging.level, settings.logging.format)
        if is_dev and settings.executor.sim is None and not _has_gpus(session, settings):
            settings = load(Path(config) if config else None, session.environment, {**given, "executor.sim": DEV_SIM})
        folder = Path(settings.data_dir).absolute() if settings.data_dir else default_data_dir("dev" if is_dev else "")
        with claim_data_dir(folder), bind(settings) as listener:
            Daemon(settings, folder, listener).run(lambda daemon: _announce(session, daemon, is_dev=is_dev))
    except SettingsProblem as problem:
        found = tuple(Problem("", each) for each in problem.problems)
        raise CannotServe(f"the settings have {len(found)} problem{'s' if len(found) > 1 else ''}", found) from problem
    except (StartProblem, StoreError) as problem:
        raise CannotServe(str(problem)) from problem


def _has_gpus(session: Session, settings: "Settings") -> bool:
    """Reads NVML once; says why GPUs will be simulated if it finds none."""
    from cli.daemon.gpus import real_gpus
    from scheduler.clock import LedgerClock

    gpus = real_gpus(settings, LedgerClock())
    try:
        gpus.poll()
        found = any(snapshot.devices for snapshot in gpus.snapshots())
        if not found:
            words = "; ".join(problem.message for problem in gpus.problems()) or "NVML lists none"
            session.screen.note(f"no GPU here ({words}); simulating {DEV_SIM}. Jobs run as real processes")
        return found
    finally:
        gpus.close()


def _announce(session: Session, daemon: "Daemon", *, is_dev: bool) -> None:
    screen = session.screen
    screen.say(f"turnstile answers at {daemon.url}; data in {short(daemon.data_dir)}; stop it with Ctrl-C")
    if not is_dev:
        return
    from cli.daemon.bootstrap import OPERATOR_TOKEN, issue_token
    from scheduler.auth import Role
    from scheduler.core.model import Account, AccountId, UserName
    from scheduler.store.accounts import SaveAccount

    if not daemon.controller.is_leading:
        return
    token = daemon.data_dir / "dev.token"
    if not token.exists():
        for name in (DEV_TENANT, DEV_PROJECT):
            daemon.controller.carry_out(SaveAccount(Account(AccountId(name)), name)).result()
        issue_token(daemon.controller, token, Role.TENANT_ADMIN, AccountId(DEV_TENANT), UserName("dev"))
    operator = Context("dev-admin", daemon.url, str(daemon.data_dir / OPERATOR_TOKEN))
    save_context(session.contexts, operator, make_current=False)
    del session.contexts  # read again what was just written
    user = Context("dev", daemon.url, str(token), project=DEV_PROJECT)
    path = save_context(session.contexts, user, make_current=True)
    screen.say(f"contexts dev (current) and dev-admin are in {short(path)}")
    screen.say("try   turnstile submit -g 1 -t 5m -- nvidia-smi -L   ·   turnstile queue")
