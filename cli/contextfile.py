"""Writes the user's contexts and token files. A file is whole or not written: a temporary one takes its place."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from cli.contexts import Context, Contexts, short, user_file
from cli.errors import ConfigProblem


def save_context(contexts: Contexts, context: Context, *, make_current: bool) -> Path:
    """Stores a context under its name in the user's file and returns that file."""
    path = user_file()
    mine = {name: each for name, each in contexts.known.items() if each.source == str(path)}
    mine[context.name] = replace(context, source=str(path))
    return _save(mine, context.name if make_current else contexts.current, path)


def use_context(contexts: Contexts, name: str) -> Path:
    """Makes a known context the current one in the user's file."""
    path = user_file()
    return _save({n: each for n, each in contexts.known.items() if each.source == str(path)}, name, path)


def save_token(context_name: str, token: str) -> Path:
    """Stores a token so that only its owner can read it; returns its file."""
    path = user_file().parent / "tokens" / f"{context_name}.token"
    return write_private(path, token + "\n")


def write_private(path: Path, content: str) -> Path:
    """Writes a file with mode 0600 in a directory with mode 0700, in one step."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp makes files with mode 0600, before anything is in them.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            Path(temporary).replace(path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as problem:
        raise ConfigProblem(f"{short(path)} cannot be written: {problem.strerror}") from None
    return path


def _save(contexts: dict[str, Context], current: str | None, path: Path) -> Path:
    lines = ["# Contexts of the turnstile command. `turnstile login` and `turnstile context use` write this file.\n"]
    if current is not None:
        lines.append(f"current = {_quoted(current)}\n")
    for name, context in sorted(contexts.items()):
        lines.append(f"\n[contexts.{_quoted(name)}]\n")
        for key in ("url", "token_file", "ca_file", "project"):
            value = getattr(context, key)
            if value is not None:
                lines.append(f"{key} = {_quoted(_relative(value, path) if key.endswith('_file') else value)}\n")
    return write_private(path, "".join(lines))


def _relative(file: str, config: Path) -> str:
    parent = f"{config.parent}{os.sep}"
    return file.removeprefix(parent)


def _quoted(text: str) -> str:
    """A TOML basic string: quotes, backslashes and control characters escaped."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'
