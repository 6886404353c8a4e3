"""`turnstile`: the table of verbs, and what becomes of what goes wrong in them.

Every verb's module is loaded when the verb is typed, and not before. A verb whose module is not installed is not
shown. Exceptions end here: a CliError is printed with its exit status, Typer's complaints about the command line are
put into our words (exit 2), anything else is a bug (exit 1) whose trace goes to a file and not to the person.
"""

import os
import sys

import typer

from cli.errors import CliError, ExitCode, UsageProblem
from cli.render import FORMATS, Screen, Style, discard_output
from cli.session import Session
from cli.verbs import COMPLETION_VARIABLE, Verb, VerbGroup, group

_JOBS, _MONEY, _CLUSTER, _YOU, _LOCAL, _ADMIN = "JOBS", "MONEY", "CLUSTER", "YOU", "LOCAL", "ADMIN"

VERBS = (
    Verb("submit", "cli.commands.submit", "submit", _JOBS, "Submit a job", takes_command=True),
    Verb("run", "cli.commands.submit", "run", _JOBS, "Submit a job and stay with it", takes_command=True),
    Verb("queue", "cli.commands.jobs", "queue", _JOBS, "List jobs that wait or run"),
    Verb("show", "cli.commands.jobs", "show", _JOBS, "Tell all about one job"),
    Verb("why", "cli.commands.jobs", "why", _JOBS, "Tell why a job waits"),
    Verb("logs", "cli.commands.attend", "logs", _JOBS, "Print what a job wrote"),
    Verb("wait", "cli.commands.attend", "wait", _JOBS, "Wait until jobs have ended"),
    Verb("cancel", "cli.commands.act", "cancel", _JOBS, "Cancel jobs"),
    Verb("hold", "cli.commands.act", "hold", _JOBS, "Keep waiting jobs from starting"),
    Verb("release", "cli.commands.act", "release", _JOBS, "Let held jobs wait for their start again"),
    Verb("requeue", "cli.commands.act", "requeue", _JOBS, "Stop running jobs and queue them again"),
    Verb("checkpoint", "cli.commands.act", "checkpoint", _JOBS, "Say that a job's work is saved up to now"),
    Verb("update", "cli.commands.act", "update", _JOBS, "Give jobs other terms: time limit, priority …"),
    Verb("history", "cli.commands.jobs", "history", _JOBS, "List jobs that have ended, or what happened to one"),
    Verb("report", "cli.commands.jobs", "report", _JOBS, "Tell how well a job used its GPUs, and what it cost"),
    Verb("exec", "cli.commands.inside", "exec_", _JOBS, "Run a program inside a running job", takes_command=True),
    Verb("port-forward", "cli.commands.inside", "port_forward", _JOBS, "Reach a port of a running job from here"),
    Verb("top", "cli.commands.top", "top", _JOBS, "Watch jobs and GPUs, full screen"),
    Verb("quote", "cli.commands.submit", "quote", _MONEY, "Tell what a job may cost", takes_command=True),
    Verb("quota", "cli.commands.quota", "quota", _MONEY, "Tell what accounts may hold, hold, and should hold"),
    Verb("budget", "cli.commands.budgets", "budget", _MONEY, "Tell what is left of budgets"),
    Verb("usage", "cli.commands.money", "usage", _MONEY, "Tell what was used, and what it costs"),
    Verb("billing", "cli.commands.billing", "BILLING", _MONEY, "Your bills: list, download"),
    Verb("gpus", "cli.commands.cluster", "gpus", _CLUSTER, "List GPUs: what is free, what it costs"),
    Verb("nodes", "cli.commands.cluster", "nodes", _CLUSTER, "List nodes"),
    Verb("login", "cli.commands.you", "login", _YOU, "Keep a token for a server"),
    Verb("logout", "cli.commands.you", "logout", _YOU, "Remove the token from this machine"),
    Verb("whoami", "cli.commands.you", "whoami", _YOU, "Tell who the server takes you for"),
    Verb("token", "cli.commands.tokens", "OWN", _YOU, "Your tokens: create, list, revoke"),
    Verb("secret", "cli.commands.secret", "SECRET", _YOU, "Secrets for jobs: set, list, rm"),
    Verb("notify", "cli.commands.notify", "NOTIFY", _YOU, "Be told of jobs: set, show, test"),
    Verb("context", "cli.commands.you", "CONTEXT", _YOU, "Servers: list, use, show"),
    Verb("demo", "cli.commands.demo", "demo", _LOCAL, "Run the whole product once, here"),
    Verb("serve", "cli.commands.serve", "serve", _LOCAL, "Run the daemon"),
    Verb("agent", "cli.commands.agent", "agent", _LOCAL, "Run the agent of a GPU node"),
    Verb("doctor", "cli.commands.doctor", "doctor", _LOCAL, "Check what may keep this command from working"),
    Verb("schema", "cli.commands.schema", "SCHEMA", _LOCAL, "JSON Schemas, for editors"),
    Verb("completion", "cli.commands.you", "completion", _LOCAL, "Print a shell's completion script"),
    Verb("version", "cli.commands.you", "version", _LOCAL, "Tell the versions of client and server"),
    Verb("admin", "cli.commands.admin", "ADMIN", _ADMIN, "Accounts, tokens, nodes, prices, the ledger"),
    # What people already have in their fingers.
    Verb("sbatch", "cli.commands.submit", "submit", _JOBS, "submit", is_hidden=True, takes_command=True),
    Verb("srun", "cli.commands.submit", "run", _JOBS, "run", is_hidden=True, takes_command=True),
    Verb("squeue", "cli.commands.jobs", "queue", _JOBS, "queue", is_hidden=True),
    Verb("ps", "cli.commands.jobs", "queue", _JOBS, "queue", is_hidden=True),
    Verb("scancel", "cli.commands.act", "cancel", _JOBS, "cancel", is_hidden=True),
    Verb("sinfo", "cli.commands.cluster", "gpus", _CLUSTER, "gpus", is_hidden=True),
    Verb("sacct", "cli.commands.jobs", "history", _JOBS, "history", is_hidden=True),
    Verb("seff", "cli.commands.jobs", "report", _JOBS, "report", is_hidden=True),
)
"""The verbs. `serve`, `demo`, `agent` and `admin simulate` are functions of those names in their modules."""


def main() -> None:
    """Runs the command line of this process and exits with its status."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit status. Prints; never raises."""
    screen = Screen(os.environ)
    session = Session(screen)
    try:
        code = _carry_out(arguments, session)
        screen.flush()
    except BrokenPipeError:
        # The reader has seen enough, as in `turnstile queue | head`: what a shell says of a command killed by SIGPIPE.
        discard_output()
        return 128 + 13
    finally:
        session.close()
    return code


def _carry_out(arguments: list[str], session: Session) -> int:
    screen = session.screen
    try:
        root = group("turnstile", VERBS, "Submit GPU jobs, see why they wait, and what they cost.")
        if COMPLETION_VARIABLE in os.environ:
            return _complete(root, session)
        result = root.main(_words(arguments), prog_name="turnstile", standalone_mode=False, obj=session)
    except CliError as error:
        _set_style(screen, arguments)
        screen.error(error)
        return error.exit_code
    except typer.TyperException as complaint:
        _set_style(screen, arguments)
        screen.error(_in_our_words(complaint))
        return complaint.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # Typer makes a plain exit of a broken pipe, and exits for nothing else when it is not on its own.
        raise BrokenPipeError from None
    except Exception as bug:  # noqa: BLE001  (the edge: a person gets a sentence, the trace goes to a file)
        from cli.bugs import report

        _set_style(screen, arguments)
        screen.error(report(bug, screen))
        return ExitCode.BUG
    return result if isinstance(result, int) else ExitCode.DONE


def _words(arguments: list[str]) -> list[str]:
    """Returns what to carry out: help where nothing is said, the verb where a habit is typed."""
    if arguments == ["--version"]:
        return ["version"]
    return arguments or ["--help"]


def _complete(root: VerbGroup, session: Session) -> int:
    """Answers a shell that asks how a word could go on; Typer reads the question from the environment, and exits."""
    from typer._completion_classes import completion_init  # its only home: Typer calls it for apps of its own making

    completion_init()
    try:
        root.main([], prog_name="turnstile", complete_var=COMPLETION_VARIABLE, standalone_mode=False, obj=session)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else ExitCode.DONE
    return ExitCode.DONE


def _in_our_words(complaint: typer.TyperException) -> UsageProblem:
    """Typer's complaint as one of ours: one sentence, small letters, and where help is."""
    context = getattr(complaint, "ctx", None)
    said = complaint.format_message().strip()
    sentence = (said[:1].lower() + said[1:]).rstrip(".")
    return UsageProblem(sentence, *((f"{context.command_path} --help",) if context is not None else ()))


def _set_style(screen: Screen, arguments: list[str]) -> None:
    """Finds the format that was asked for, where the command line could not be read to its end."""
    if screen.style != Style():
        return
    for i, word in enumerate(arguments):
        if word == "--":
            return
        following = arguments[i + 1] if i + 1 < len(arguments) else ""
        asked = following if word in {"-o", "--format"} else word.removeprefix("--format=")
        if (word in {"-o", "--format"} or word.startswith("--format=")) and asked in FORMATS:
            screen.style = Style(format=asked)
            return


if __name__ == "__main__":
    main()
