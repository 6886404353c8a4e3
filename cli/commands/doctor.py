"""`doctor`: what may keep this command from working, checked one after the other, with what to do about it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import typer

from cli import answers, moments
from cli.answers import Json, items, text
from cli.commands.you import DISTRIBUTION, installed_version
from cli.errors import CliError, ExitCode
from cli.faults import ApiError
from cli.layout import Column, View
from cli.render import listed
from cli.session import Session

MOST_SKEW_SECONDS = 30.0
"""Clocks that differ by more make begin times, deadlines and ages misleading."""
PACKAGES = ("scheduler", "metering", "k8s", "cli")
"""The top-level packages of this distribution: plain names, which others could provide too."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, whether it is well, and what to do if not."""

    check: str
    is_ok: bool
    detail: str
    advice: str | None = None
    exit_code: int = ExitCode.DONE
    is_known: bool = True
    """False: it could not be told; that is not a failure of its own."""


def doctor(ctx: typer.Context) -> int:
    """Check what may keep this command from working: configuration, server, token, clocks, versions, packages.

    With an operator's token the daemon's own health too: lease, database, whether memory and database agree, planner,
    executor, disk, clock, agents, GPUs, ledger, billing, notices. Each line says what to do. The exit status is that of
    the first check that failed.

    Examples:
      turnstile doctor
      turnstile doctor -o json
    """
    session: Session = ctx.obj
    findings = [*_configuration(session), *_packages()]
    found: list[dict[str, object]] = [
        {
            "check": each.check,
            "is_ok": each.is_ok if each.is_known else None,
            "detail": each.detail,
            "try": each.advice,
        }
        for each in findings
    ]
    session.screen.listing(listed("DoctorReport", found), _VIEW)
    return next((each.exit_code for each in findings if not each.is_ok), ExitCode.DONE)


def _configuration(session: Session) -> Iterator[Finding]:
    """Checks one thing after the other, and stops where the next would say the same again."""
    try:
        known = session.contexts
        yield Finding(
            "configuration", is_ok=True, detail=f"{len(known.known)} contexts, current {known.current or '-'}"
        )
        client = session.client
    except CliError as problem:
        yield _failed("configuration", problem)
        return
    asked_at = time.time()
    try:
        server = client.get("/v1/version")
    except CliError as problem:
        yield _failed("server", problem)
        return
    answered_at = time.time()
    yield Finding(
        "server", is_ok=True, detail=f"{client.endpoint.url} answers in {(answered_at - asked_at) * 1000:.0f} ms"
    )
    yield _clock(server, (asked_at + answered_at) / 2)
    yield _versions(text(server, "version"))
    yield _readiness(session)
    try:
        me = client.get("/v1/whoami")
    except CliError as problem:
        yield _failed("token", problem)
        return
    yield Finding(
        "token", is_ok=True, detail=f"{text(me, 'user')}, {text(me, 'role')} of {text(me, 'account') or 'the centre'}"
    )
    if text(me, "role") == "operator":
        yield from _daemon(session)


def _daemon(session: Session) -> Iterator[Finding]:
    """Asks the daemon what it finds wrong with itself: an operator's business."""
    try:
        found = items(session.client.get("/v1/admin/health"), "items")
    except CliError as problem:
        yield _failed("daemon", problem)
        return
    for each in found:
        is_ok = each.get("is_ok")
        yield Finding(
            f"daemon: {text(each, 'check')}",
            is_ok=is_ok is not False,
            detail=text(each, "detail") or "",
            advice=text(each, "try"),
            exit_code=ExitCode.WRONG_STATE,
            is_known=is_ok is not None,
        )


def _clock(answer: Json, at_seconds: float) -> Finding:
    said = text(answer, "generated_at")
    if said is None:
        return Finding("clock", is_ok=False, detail="the server does not tell the time", exit_code=ExitCode.BUG)
    try:
        skew = moments.parse(said).timestamp() - at_seconds
    except ValueError:
        return Finding("clock", is_ok=False, detail="the server's time is not a time", exit_code=ExitCode.BUG)
    # A server that tells whole seconds cannot be compared more closely than that.
    if abs(skew) <= MOST_SKEW_SECONDS:
        return Finding("clock", is_ok=True, detail="agrees with the server's")
    direction = "behind" if skew > 0 else "ahead of"
    return Finding(
        "clock",
        is_ok=False,
        detail=f"this machine is {abs(skew):.0f} s {direction} the server",
        advice="set this machine's clock by NTP",
        exit_code=ExitCode.WRONG_STATE,
    )


def _versions(server: str | None) -> Finding:
    mine = installed_version()
    agrees = server is not None and server.split(".")[:2] == mine.split(".")[:2]
    if agrees or mine == "unknown":
        return Finding("versions", is_ok=True, detail=f"client {mine}, server {server or '-'}")
    return Finding(
        "versions",
        is_ok=False,
        detail=f"client {mine}, server {server or '-'}",
        advice=f"install {DISTRIBUTION} {server}" if server else None,
        exit_code=ExitCode.WRONG_STATE,
    )


def _readiness(session: Session) -> Finding:
    try:
        session.client.get("/readyz")
    except ApiError as problem:
        return Finding(
            "ready",
            is_ok=False,
            detail=problem.message,
            advice="the operator's log of the daemon says more",
            exit_code=problem.exit_code,
        )
    return Finding("ready", is_ok=True, detail="the daemon leads, and its database answers")


def _packages() -> Iterator[Finding]:
    """Another distribution with a package of the same name would be imported in our place, or we in its."""
    providers = metadata.packages_distributions()
    for package in PACKAGES:
        others = sorted({name for name in providers.get(package, []) if name != DISTRIBUTION})
        if others:
            yield Finding(
                "packages",
                is_ok=False,
                detail=f"{', '.join(others)} provides a package '{package}' too",
                advice=f"install {DISTRIBUTION} in an environment of its own (pipx, uv tool)",
                exit_code=ExitCode.USAGE,
            )
            return
    yield Finding("packages", is_ok=True, detail="no other distribution provides one of ours")


def _failed(check: str, problem: CliError) -> Finding:
    notes = "; ".join(problem.notes)
    advice = next((each for each in problem.tries if each != "turnstile doctor"), None)
    detail = f"{problem.message} ({notes})" if notes else problem.message
    return Finding(check, is_ok=False, detail=detail, advice=advice, exit_code=problem.exit_code)


def _mark(each: Json) -> str:
    if each.get("is_ok") is None:
        return "?"
    return "ok" if answers.truth(each, "is_ok") else "FAIL"


_VIEW = View(
    columns=(
        Column(
            "",
            _mark,
            paint=lambda each: {"ok": "green", "FAIL": "red"}.get(_mark(each)),
        ),
        Column("CHECK", lambda each: text(each, "check")),
        Column("FOUND", lambda each: text(each, "detail")),
        Column("TRY", lambda each: text(each, "try") or ""),
    ),
    name=lambda each: text(each, "check"),
    fields=("check", "is_ok", "detail", "try"),
)
