"""Which server, as whom: contexts, their files, and what overrides what.

Highest first: flags > environment (TURNSTILE_CONTEXT, TURNSTILE_URL, TURNSTILE_TOKEN_FILE, TURNSTILE_PROJECT) > the
project's `.turnstile.toml` (nearest one at or above the working directory) > the user's `config.toml` > the system's.

A project file may choose a context and a project and nothing else: it comes with code that somebody else wrote, so it
may not say where a token is sent. For the same reason a token that belongs to a context's URL is not sent to another
URL given by flag or environment. Tokens stand in files of their own that only their owner can read.
"""

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs

from cli.client import Endpoint
from cli.errors import ConfigProblem, NotLoggedIn, UsageProblem

PROJECT_FILE = ".turnstile.toml"
_CONTEXT_KEYS = ("url", "token_file", "ca_file", "project")
_PROJECT_FILE_KEYS = ("context", "project")


@dataclass(frozen=True, slots=True)
class Context:
    """A server that one works with, under a short name. Paths in it are absolute."""

    name: str
    url: str
    token_file: str | None = None
    ca_file: str | None = None
    project: str | None = None
    source: str = ""
    """The file that it stands in."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """What flags say; None where nothing was said."""

    context: str | None = None
    url: str | None = None
    token_file: str | None = None


@dataclass(frozen=True, slots=True)
class Contexts:
    """All that is configured: contexts by name, which one is current, and what chose it."""

    known: Mapping[str, Context] = field(default_factory=dict)
    current: str | None = None
    current_source: str = ""
    project: str | None = None
    """The project that jobs are submitted to unless a flag says otherwise."""


def user_file() -> Path:
    """Returns where the user's contexts stand, whether or not the file exists."""
    return Path(platformdirs.user_config_dir("turnstile")) / "config.toml"


def load(environment: Mapping[str, str], directory: Path) -> Contexts:
    """Reads the configuration that holds for a working directory. Raises ConfigProblem naming the file."""
    known: dict[str, Context] = {}
    current, current_source, project = None, "", None
    for path in (*_system_files(), user_file()):
        document = _read(path)
        known.update(_contexts_of(document, path))
        if (named := _text(document, "current", path)) is not None:
            current, current_source = named, str(path)
    if (near := _project_file(directory)) is not None:
        document = _read(near)
        _refuse_unknown(document, _PROJECT_FILE_KEYS, near)
        project = _text(document, "project", near)
        if (named := _text(document, "context", near)) is not None:
            current, current_source = named, str(near)
    if named := environment.get("TURNSTILE_CONTEXT"):
        current, current_source = named, "TURNSTILE_CONTEXT"
    project = environment.get("TURNSTILE_PROJECT") or project
    return Contexts(known, current, current_source, project)


def chosen(contexts: Contexts, overrides: Overrides) -> Context | None:
    """Returns the context in force, or None if none is chosen. Raises ConfigProblem if the chosen one is unknown."""
    name = overrides.context or contexts.current
    if name is None:
        return None
    if name not in contexts.known:
        by = "--context" if overrides.context else contexts.current_source
        raise ConfigProblem(f"no context '{name}' (named by {by})", "turnstile context list", "turnstile login URL")
    return contexts.known[name]


def endpoint(contexts: Contexts, overrides: Overrides, environment: Mapping[str, str]) -> Endpoint:
    """Returns where to send requests and the token to send, read from its file.

    Raises ConfigProblem when nothing says which server, or when a token file is missing or readable by others.
    """
    url = overrides.url or environment.get("TURNSTILE_URL")
    context = chosen(contexts, overrides) if url is None or overrides.context else _same_server(contexts, url)
    if url is None:
        if context is None:
            raise ConfigProblem("no server is configured", "turnstile login https://turnstile.example")
        url = context.url
    url = checked_url(url)
    token_file = overrides.token_file or environment.get("TURNSTILE_TOKEN_FILE")
    if token_file is None and context is not None and _origin(context.url) == _origin(url):
        token_file = context.token_file
    if context is not None:
        origin = f"context {context.name}, from {short(context.source)}"
    else:
        origin = "from --url" if overrides.url else "from TURNSTILE_URL"
    token = None if token_file is None else read_token(Path(token_file))
    return Endpoint(url, token, None if context is None else context.ca_file, origin)


def _same_server(contexts: Contexts, url: str) -> Context | None:
    """The context in force, if its server is the one that a flag or the environment names."""
    name = contexts.current
    context = contexts.known.get(name) if name is not None else None
    return context if context is not None and _origin(context.url) == _origin(url) else None


def checked_url(url: str) -> str:
    """Returns an http or https URL without its last slash. Raises UsageProblem on anything else."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in {"http", "https"} or not host:
        raise UsageProblem("that is not the URL of a server", "https://turnstile.example", "http://127.0.0.1:8642")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageProblem("a server's URL holds no user name, query or fragment", f"{parts.scheme}://{host}")
    return url.rstrip("/")


def read_token(path: Path) -> str:
    """Returns the token in a file. Raises NotLoggedIn if there is none, ConfigProblem if others can read it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotLoggedIn(f"there is no token file {short(path)}", "turnstile login") from None
    except OSError as problem:
        raise ConfigProblem(f"token file {short(path)} cannot be read: {problem.strerror}") from None
    with os.fdopen(descriptor, "rb") as opened:
        # Asked of the open file, not of the path: the path may be another file by the time it is read.
        mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
        if mode & 0o077:
            raise ConfigProblem(
                f"token file {short(path)} can be read by others (mode {mode:04o})", f"chmod 600 {short(path)}"
            )
        try:
            content = opened.read(65_536)
        except OSError as problem:
            raise ConfigProblem(f"token file {short(path)} cannot be read: {problem.strerror}") from None
    return checked_token(content.decode("utf-8", "replace"), f"token file {short(path)}")


def checked_token(text: str, where: str) -> str:
    """Returns a token without the white space around it; what is wrong with one is said without showing it."""
    token = text.strip()
    if not token:
        raise NotLoggedIn(f"{where} is empty", "turnstile login")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigProblem(f"{where} does not hold a token: one word of plain letters, digits and signs")
    return token


def short(path: str | Path) -> str:
    """Returns a path as people write it, with ~ for the home directory."""
    text, home = str(path), str(Path.home())
    return f"~{text[len(home) :]}" if text.startswith(home + os.sep) else text


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _system_files() -> list[Path]:
    # Least important last on the search path, so the most important is read last and wins.
    directories = platformdirs.site_config_dir("turnstile", multipath=True).split(os.pathsep)
    return [Path(each) / "config.toml" for each in reversed(directories)]


def _project_file(directory: Path) -> Path | None:
    return next((d / PROJECT_FILE for d in (directory, *directory.parents) if (d / PROJECT_FILE).is_file()), None)


def _read(path: Path) -> dict[str, object]:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as problem:
        raise ConfigProblem(f"{short(path)} cannot be read: {problem.strerror}") from None
    try:
        return tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise ConfigProblem(f"{short(path)} is not TOML: {problem}") from None


def _contexts_of(document: Mapping[str, object], path: Path) -> dict[str, Context]:
    _refuse_unknown(document, ("current", "contexts"), path)
    tables = document.get("contexts", {})
    if not isinstance(tables, dict):
        raise ConfigProblem(f"{short(path)}: contexts is not a table", '[contexts.prod]  url = "https://…"')
    found = {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigProblem(f"{short(path)}: contexts.{name} is not a table", f"[contexts.{name}]")
        _refuse_unknown(table, _CONTEXT_KEYS, path)
        url = _text(table, "url", path)
        if url is None:
            raise ConfigProblem(f"{short(path)}: contexts.{name} has no url", 'url = "https://turnstile.example"')
        files = {key: _text(table, key, path) for key in ("token_file", "ca_file")}
        # Relative to the file that says so, wherever the command is run.
        placed = {
            key: None if file is None else str(path.parent / Path(file).expanduser()) for key, file in files.items()
        }
        found[name] = Context(name, url, **placed, project=_text(table, "project", path), source=str(path))
    return found


def _text(table: Mapping[str, object], key: str, path: Path) -> str | None:
    value = table.get(key)
    if value is None or isinstance(value, str):
        return value
    raise ConfigProblem(f"{short(path)}: {key} is not text", f'{key} = "…"')


def _refuse_unknown(table: Mapping[str, object], keys: tuple[str, ...], path: Path) -> None:
    for key in table:
        if key not in keys:
            raise ConfigProblem(f"{short(path)}: unknown key '{key}'; there are {', '.join(keys)}")
