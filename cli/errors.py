"""What can go wrong for the person at the terminal, as exceptions with a sentence, a stable code and an exit status.

    CliError                    anything below; `main` prints it and exits with its status
    ├── UsageProblem            exit 2: the command line says something that cannot be meant
    ├── Refusal                 exit 3: refused before a request was made
    ├── NotFound                exit 4: a file or directory that was named is not there
    ├── ConfigProblem           exit 2: a context, a configuration file or a token file is not usable
    ├── NotLoggedIn             exit 5: no token to send
    ├── WaitedTooLong           exit 8: `wait --timeout` ran out
    └── cli.client.ApiError     what the server said, or that it could not be reached

No message ever holds a token or the value of an environment variable.
"""

from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Turnstile's own exit statuses; `run`, `wait` and `logs --exit-status` return the job's instead."""

    DONE = 0
    BUG = 1
    USAGE = 2
    REFUSED = 3
    NOT_FOUND = 4
    NOT_ALLOWED = 5
    WRONG_STATE = 6
    UNREACHABLE = 7
    WAITED_TOO_LONG = 8
    JOB_TIMEOUT = 124  # as timeout(1) has it
    JOB_NEVER_RAN = 125  # as `docker run` has it
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Problem:
    """One of several things that are wrong; `field` names the place, or is empty."""

    field: str
    message: str


class CliError(Exception):
    """A sentence for a person, with what would work instead."""

    exit_code: int = ExitCode.BUG

    def __init__(
        self,
        message: str,
        *,
        code: str,
        tries: tuple[str, ...] = (),
        problems: tuple[Problem, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.tries = tries
        self.problems = problems
        self.notes = notes
        """Facts printed under the sentence: which context, which file, which request."""


class UsageProblem(CliError):
    """The command line is wrong."""

    exit_code = ExitCode.USAGE

    def __init__(self, message: str, *tries: str) -> None:
        super().__init__(message, code="usage", tries=tries)


class Refusal(CliError):
    """Well-formed, but not something that Turnstile does; nothing was sent."""

    exit_code = ExitCode.REFUSED

    def __init__(self, message: str, *tries: str, code: str = "invalid") -> None:
        super().__init__(message, code=code, tries=tries)


class NotFound(CliError):
    """What was named on this machine is not there."""

    exit_code = ExitCode.NOT_FOUND

    def __init__(self, message: str, *tries: str) -> None:
        super().__init__(message, code="not_found", tries=tries)


def unreadable(typed: str, problem: OSError) -> CliError:
    """Returns the error that a file which cannot be read is: exit 4 where there is none, 3 where there is."""
    if isinstance(problem, FileNotFoundError | NotADirectoryError):
        return NotFound(f"there is no file {typed}")
    return Refusal(f"{typed} cannot be read: {problem.strerror}")


class ConfigProblem(CliError):
    """The client's own configuration cannot be used."""

    exit_code = ExitCode.USAGE

    def __init__(self, message: str, *tries: str) -> None:
        super().__init__(message, code="config", tries=tries)


class NotLoggedIn(CliError):
    """There is no token for this context."""

    exit_code = ExitCode.NOT_ALLOWED

    def __init__(self, message: str, *tries: str) -> None:
        super().__init__(message, code="not_logged_in", tries=tries)


class WaitedTooLong(CliError):
    """The time that the caller allowed is up, and the job goes on."""

    exit_code = ExitCode.WAITED_TOO_LONG

    def __init__(self, message: str, *tries: str) -> None:
        super().__init__(message, code="wait_timeout", tries=tries)
