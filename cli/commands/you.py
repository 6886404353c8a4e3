"""Who one is and where: `login`, `logout`, `whoami`, `context list|use|show`, `version`, `completion`."""

from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from cli import answers, contextfile, contexts, phrases
from cli.answers import Json, text
from cli.client import Client, Endpoint
from cli.errors import ConfigProblem, UsageProblem
from cli.faults import ApiError
from cli.layout import Column, View
from cli.render import envelope, listed
from cli.session import Session
from cli.values import choice
from cli.verbs import COMPLETION_VARIABLE, Verb

DISTRIBUTION = "gpu-turnstile"


def login(
    ctx: typer.Context,
    server: Annotated[str | None, typer.Argument(metavar="[URL]", help="The server; else the current one.")] = None,
    project: Annotated[str | None, typer.Option("-A", "--project", help="Submit to this project by default.")] = None,
    ca_file: Annotated[str | None, typer.Option("--ca-file", help="Trust this certificate authority.")] = None,
) -> None:
    """Keep a token for a server, and make it the current context.

    The token is read from --token-file, from standard input, or asked for on a terminal: never from the command line,
    which others can see. It is kept in a file that only you can read.

    Examples:
      turnstile login https://turnstile.park.example
      turnstile login https://turnstile.park.example --context prod --token-file token.txt
      vault read -field=token turnstile | turnstile login https://turnstile.park.example
    """
    session: Session = ctx.obj
    known = session.contexts.known
    name = session.overrides.context or (None if server else session.contexts.current) or "default"
    before = known.get(name)
    url = server or session.overrides.url or (before.url if before is not None else None)
    if url is None:
        raise UsageProblem("say which server", "turnstile login https://turnstile.example")
    url = contexts.checked_url(url)
    trust = str(Path(ca_file).expanduser().absolute()) if ca_file else (before.ca_file if before is not None else None)
    token = _token(session)
    session.screen.conceal(token)
    client = Client(Endpoint(url, token, trust, f"context {name}"))
    try:
        answer = client.get("/v1/whoami")
    finally:
        client.close()
    kept = project or (before.project if before is not None else None)
    token_file = contextfile.save_token(name, token)
    context = contexts.Context(name, url, str(token_file), trust, kept)
    config = contextfile.save_context(session.contexts, context, make_current=True)
    session.screen.document(answer, _ME, [])
    session.screen.say(f"logged in to {url} as {_who(answer)}")
    session.screen.say(f"  context {name} in {contexts.short(config)}, token in {contexts.short(token_file)}")
    if url.startswith("http://") and "127.0.0.1" not in url and "localhost" not in url:
        session.screen.note(f"{url} is not encrypted: whoever is on the way can read the token")


def logout(ctx: typer.Context) -> None:
    """Remove the current context's token from this machine. The token itself stays valid until it expires.

    Examples:
      turnstile logout
      turnstile logout --context prod
    """
    session: Session = ctx.obj
    context = contexts.chosen(session.contexts, session.overrides)
    is_removed = False
    if context is None or context.token_file is None:
        session.screen.note("no token is kept here")
    else:
        is_removed = _removed(session, context.name, Path(context.token_file))
    if session.screen.style.is_machine:
        left = {"context": None if context is None else context.name, "is_removed": is_removed}
        session.screen.document(envelope("Logout", left), _LOGOUT, [])


def _removed(session: Session, name: str, path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        session.screen.note(f"no token is kept for context {name}")
        return False
    except OSError as problem:
        raise ConfigProblem(f"{contexts.short(path)} cannot be removed: {problem.strerror}") from None
    session.screen.say(f"removed {contexts.short(path)}; the token stays valid until it expires or is revoked")
    return True


def whoami(ctx: typer.Context) -> None:
    """Tell who the server takes you for.

    Examples:
      turnstile whoami
    """
    session: Session = ctx.obj
    answer = session.client.get("/v1/whoami")
    expires = phrases.clock(text(answer, "expires_at"), phrases.answered_at(answer))
    told = [_who(answer), f"  server  {session.client.endpoint.url} ({session.client.endpoint.origin})"]
    session.screen.document(answer, _ME, [*told, f"  token   expires {expires}"] if expires else told)


def version(ctx: typer.Context) -> None:
    """Tell the versions of this command and of the server.

    Examples:
      turnstile version
    """
    session: Session = ctx.obj
    client_version = installed_version()
    try:
        server = text(session.client.get("/v1/version"), "version")
        why_not = None
    except (ApiError, ConfigProblem) as problem:
        server, why_not = None, problem.message
    answer = envelope("Version", {"client": client_version, "server": server})
    view = View((), lambda each: text(each, "client"), ("client", "server"))
    session.screen.document(answer, view, [f"client {client_version}", f"server {server or '-'}"])
    if why_not is not None:
        session.screen.note(why_not)


def installed_version() -> str:
    """Returns this distribution's version, or `unknown` where it runs without being installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def completion(
    ctx: typer.Context, shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]
) -> None:
    """Print the script that teaches a shell to complete this command.

    Examples:
      turnstile completion bash > ~/.local/share/bash-completion/completions/turnstile
    """
    from typer._completion_shared import get_completion_script  # its only home: Typer documents no other

    session: Session = ctx.obj
    chosen = choice(shell, "SHELL", ("bash", "zsh", "fish"))
    script = get_completion_script(prog_name="turnstile", complete_var=COMPLETION_VARIABLE, shell=chosen)
    session.screen.document(
        envelope("Completion", {"shell": chosen, "script": script}), _COMPLETION, script.split("\n")
    )


def context_list(ctx: typer.Context) -> None:
    """List the servers that are configured; * marks the current one.

    Examples:
      turnstile context list
    """
    session: Session = ctx.obj
    chosen = session.overrides.context or session.contexts.current
    found = [_context_item(each, chosen) for _, each in sorted(session.contexts.known.items())]
    session.screen.listing(listed("ContextList", found), _CONTEXTS)


def context_use(ctx: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Make a context the current one.

    Examples:
      turnstile context use prod
    """
    session: Session = ctx.obj
    chosen = contexts.chosen(session.contexts, contexts.Overrides(context=name))
    assert chosen is not None  # a name was given, and an unknown one was refused
    path = contextfile.use_context(session.contexts, name)
    session.screen.say(f"context {name} ({chosen.url}) is current, in {contexts.short(path)}")
    if session.screen.style.is_machine:
        session.screen.document(envelope("Context", _context_item(chosen, name)), _CONTEXTS, [])


def context_show(ctx: typer.Context) -> None:
    """Tell which server commands go to, and what chose it.

    Examples:
      turnstile context show
    """
    session: Session = ctx.obj
    chosen = contexts.chosen(session.contexts, session.overrides)
    if chosen is None:
        raise ConfigProblem("no context is chosen", "turnstile context list", "turnstile login URL")
    source = "--context" if session.overrides.context else session.contexts.current_source
    answer = envelope("Context", {**_context_item(chosen, chosen.name), "chosen_by": source})
    told = [
        f"{chosen.name}  {chosen.url}",
        f"  from     {contexts.short(chosen.source)}",
        f"  chosen   by {contexts.short(source)}",
        f"  token    {contexts.short(chosen.token_file) if chosen.token_file else 'none'}",
        f"  project  {session.project or '-'}",
    ]
    session.screen.document(answer, _CONTEXTS, told)


CONTEXT = (
    Verb("list", __name__, "context_list", "CONTEXTS", "List the servers that are configured"),
    Verb("use", __name__, "context_use", "CONTEXTS", "Make one the current one"),
    Verb("show", __name__, "context_show", "CONTEXTS", "Tell which one is current, and why"),
)
"""The verbs of `context`."""


def _token(session: Session) -> str:
    if session.overrides.token_file is not None:
        return contexts.read_token(Path(session.overrides.token_file))
    if session.screen.is_terminal_in:
        return contexts.checked_token(session.screen.ask_secret("token"), "what you typed")
    return contexts.checked_token(" ".join(session.screen.read_words()), "standard input")


def _who(answer: Json) -> str:
    account = text(answer, "account")
    return f"{text(answer, 'user') or '?'}  {text(answer, 'role') or '?'} of {account or 'the centre'}"


def _context_item(context: contexts.Context, current: str | None) -> dict[str, object]:
    return {
        "name": context.name,
        "url": context.url,
        "token_file": context.token_file,
        "ca_file": context.ca_file,
        "project": context.project,
        "source": context.source,
        "is_current": context.name == current,
    }


_ME = View((), lambda each: text(each, "user"), ("user", "role", "account", "expires_at"))
_LOGOUT = View((), lambda each: text(each, "context"), ("context", "is_removed"))
_COMPLETION = View((), lambda each: text(each, "shell"), ("shell", "script"))
_CONTEXTS = View(
    columns=(
        Column("", lambda each: "*" if answers.truth(each, "is_current") else " "),
        Column("NAME", lambda each: text(each, "name")),
        Column("URL", lambda each: text(each, "url")),
        Column("PROJECT", lambda each: text(each, "project")),
        Column("FROM", lambda each: contexts.short(text(each, "source") or "-"), is_wide=True),
    ),
    name=lambda each: text(each, "name"),
    fields=("name", "url", "project", "is_current", "source"),
    empty="no context is configured: turnstile login URL",
)
