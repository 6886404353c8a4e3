"""The tree of verbs, loaded one verb at a time, on top of Typer.

A verb is a row of a table: where its function stands and what `--help` says of it. Only the module of the verb that was
typed is imported, so that `turnstile queue` does not pay for `admin`. The flags that all verbs have (`-o`, `-q`,
`--context` …) are added to each and taken off again before its function is called; what they say is in the Session.
Read in order: Verb, Verbs, VerbCommand.
"""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from cli.contexts import Overrides
from cli.errors import UsageProblem
from cli.names import is_job_file
from cli.render import checked_style
from cli.session import Session
from cli.values import closest

if TYPE_CHECKING:
    # Typer carries its own copy of click; its names serve the type checker and nothing at run time.
    from typer._click import Command, Context, HelpFormatter

COMPLETION_VARIABLE = "_TURNSTILE_COMPLETE"
"""In the environment when a shell asks how a word could go on."""
F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Verb:
    """Where a verb's function stands and what help says of it. `module` and `function` are imported when it is typed.

    `function` names a function with Typer's annotations that returns an exit status or None, or a tuple of Verbs: then
    the verb has verbs of its own.
    """

    name: str
    module: str
    function: str
    panel: str
    summary: str
    is_hidden: bool = False
    takes_command: bool = False
    """What stands behind the first plain word belongs to a command that is not ours: no flag of ours is looked for."""


@dataclass(frozen=True, slots=True)
class CommonFlags:
    """The flags that every verb has."""

    form: Annotated[
        str, typer.Option("-o", "--format", metavar="FORMAT", help="table, wide, json, jsonl, csv or name.")
    ] = "table"
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Names only, one a line.")] = False
    no_header: Annotated[bool, typer.Option("--no-header", help="Rows only.")] = False
    color: Annotated[str, typer.Option("--color", metavar="WHEN", help="auto, always or never.")] = "auto"
    context: Annotated[
        str | None, typer.Option("--context", metavar="NAME", help="Use this context (TURNSTILE_CONTEXT).")
    ] = None
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="Use this server (TURNSTILE_URL).")] = None
    token_file: Annotated[
        str | None,
        typer.Option("--token-file", metavar="FILE", help="File that holds the token (TURNSTILE_TOKEN_FILE)."),
    ] = None


def with_flags(declared: type) -> Callable[[F], F]:
    """Adds the flags of a dataclass to a verb; its function finds the instance in `session.flags`."""

    def decorate(function: F) -> F:
        function.flags = declared  # type: ignore[attr-defined]
        return function

    return decorate


class _AsTyped:
    """Takes text as it was typed. Ours are read by `cli.values`, whose refusals say what would be right."""

    def coerce(self, value: object, param: Any, ctx: object) -> object:
        if value is None and (param.multiple or param.nargs == -1):
            return ()
        return value


def _take_as_typed(param: Any) -> Any:
    # Typer builds a pydantic adapter for each parameter, texts and --help included, which imports pydantic: 0.08 s of
    # the 0.25 s promised. This is where it keeps the adapter; a Typer that keeps it elsewhere is slower, not wrong.
    if param is not None:
        param._runtime_param = _AsTyped()  # noqa: SLF001
    return param


class VerbCommand(TyperCommand):
    """A verb that does something: the flags of its function and those of all verbs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._declared: list[type] = [CommonFlags]
        if (more := getattr(self.callback, "flags", None)) is not None:
            self._declared.insert(0, more)
        own = {name for param in self.params for name in param.opts}
        for declared in self._declared:
            for param in _params_of(declared):
                # `dashboards export --format` says what is written; `-o` still says how that is told.
                param.opts = [name for name in param.opts if name not in own]
                self.params.append(param)
        for param in self.params:
            _take_as_typed(param)
            if COMPLETION_VARIABLE in os.environ:
                from cli.completing import offer_live

                offer_live(param, self.name or "")

    def get_help_option(self, ctx: "Context") -> Any:
        """Returns `--help`, which is taken as it is typed too."""
        return _take_as_typed(super().get_help_option(ctx))

    def parse_args(self, ctx: "Context", args: list[str]) -> list[str]:
        """Reads the flags, and remembers what was typed: whether `--` stood before the job's command matters."""
        session = ctx.obj
        assert isinstance(session, Session)  # main() put it there
        args = [*session.early, *args]
        if not ctx.allow_interspersed_args:
            args = self._without_job_file(ctx, session, args)
        session.typed = tuple(args)
        return super().parse_args(ctx, args)

    def _without_job_file(self, ctx: "Context", session: Session, args: list[str]) -> list[str]:
        """Takes a job file out of the words, so that flags behind it are ours: a file, unlike a command, has none."""
        if ctx.resilient_parsing:
            return args
        read, _, _ = self.make_parser(ctx).parse_args(list(args))
        words = read.get(next(param.name for param in self.params if param.param_type_name == "argument")) or ()
        at = len(args) - len(words)
        if not words or (at > 0 and args[at - 1] == "--") or not is_job_file(words[0]):
            return args
        session.job_file = words[0]
        return [*args[:at], *words[1:]]

    def invoke(self, ctx: "Context") -> Any:
        """Sets up the session from the flags that are not the function's own, and calls it with those that are."""
        session = ctx.obj
        assert isinstance(session, Session)
        for declared in self._declared:
            flags = declared(**{field.name: _value(ctx.params.pop(field.name)) for field in fields(declared)})
            if isinstance(flags, CommonFlags):
                session.overrides = Overrides(flags.context, flags.url, flags.token_file)
                session.screen.style = checked_style(
                    flags.form, is_quiet=flags.quiet, has_header=not flags.no_header, colour=flags.color
                )
            else:
                session.flags = flags
        session.known_options = frozenset(name for param in self.params for name in param.opts)
        return super().invoke(ctx)

    def format_help_text(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        """Writes the docstring; lines that are indented stand as they are (examples, tables)."""
        formatter.write("\n")
        for line in (self.help or "").splitlines():
            formatter.write(f"  {line}".rstrip() + "\n")


class VerbGroup(TyperGroup):
    """Verbs by name. Imports the module of the one that is typed."""

    table: tuple[Verb, ...] = ()

    def parse_args(self, ctx: "Context", args: list[str]) -> list[str]:
        """Keeps flags of all verbs that stand before the verb for it: `turnstile --context prod queue`."""
        at = _common_flags_end(args)
        if ctx.resilient_parsing:  # a shell asks for names; nothing is carried out
            return super().parse_args(ctx, args[at:])
        session = ctx.obj
        assert isinstance(session, Session)  # main() put it there
        session.early += tuple(args[:at])
        return super().parse_args(ctx, args[at:] or ["--help"])

    def get_help_option(self, ctx: "Context") -> Any:
        """Returns `--help`, which is taken as it is typed."""
        return _take_as_typed(super().get_help_option(ctx))

    def get_command(self, ctx: "Context", cmd_name: str) -> "Command | None":
        """Returns the verb's command, or None if there is none of that name."""
        verb = next((each for each in self.table if each.name == cmd_name), None)
        if verb is None or not _exists(verb.module):
            return None
        return _load(verb)

    def list_commands(self, ctx: "Context") -> list[str]:
        """Returns the names that help and completion show."""
        return [verb.name for verb in self._shown()]

    def resolve_command(self, ctx: "Context", args: list[str]) -> "tuple[str | None, Command | None, list[str]]":
        """Finds the verb that was typed. Raises UsageProblem with the one that it looks like."""
        command = self.get_command(ctx, args[0])
        if command is None and not ctx.resilient_parsing and not args[0].startswith("-"):
            near = closest(args[0], self.list_commands(ctx))
            hint = f". Did you mean '{near[0]}'?" if near else ""
            raise UsageProblem(f"no command '{args[0]}'{hint}", *(() if near else (f"{ctx.command_path} --help",)))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        """Writes the verbs under their headings, without importing one of them."""
        shown = self._shown()
        for panel in dict.fromkeys(verb.panel for verb in shown):
            with formatter.section(panel or "Commands"):
                formatter.write_dl([(verb.name, verb.summary) for verb in shown if verb.panel == panel])

    def _shown(self) -> list[Verb]:
        return [verb for verb in self.table if not verb.is_hidden and _exists(verb.module)]


def group(name: str, table: tuple[Verb, ...], summary: str) -> VerbGroup:
    """Returns a verb that has verbs of its own."""
    made = VerbGroup(
        name=name,
        help=summary,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.table = table
    return made


def _load(verb: Verb) -> "Command":
    loaded = getattr(importlib.import_module(verb.module), verb.function)
    if isinstance(loaded, tuple):
        return group(verb.name, loaded, verb.summary)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    settings = {"help_option_names": ["-h", "--help"], "allow_interspersed_args": not verb.takes_command}
    app.command(verb.name, cls=VerbCommand, context_settings=settings, hidden=verb.is_hidden)(loaded)
    return typer.main.get_command(app)


def _common_flags_end(args: list[str]) -> int:
    """Returns how many of the first words are flags that all verbs have, with their values. Raises UsageProblem."""
    if not args or not args[0].startswith("-"):
        return 0
    takes_value = {name: not param.is_flag for param in _params_of(CommonFlags) for name in param.opts}
    at = 0
    while at < len(args):
        name, equals, _ = args[at].partition("=")
        if name not in takes_value or (equals and not (takes_value[name] and name.startswith("--"))):
            break
        at += 2 if takes_value[name] and not equals else 1
    if at > len(args):
        raise UsageProblem(f"option '{args[-1]}' requires an argument", "turnstile --help")
    return at


def _value(value: object) -> object:
    return (list(value) or None) if isinstance(value, tuple) else value


def _params_of(declared: type) -> list[Any]:
    app = typer.Typer(add_completion=False)
    app.command("flags")(declared)
    return typer.main.get_command(app).params


def _exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
