"""What the server refuses and why it cannot be reached, as `ApiError` with the tabled exit status."""

import http.client
import json
import socket
import ssl

from cli.answers import BrokenAnswer, items, mapping, text
from cli.errors import CliError, ExitCode, Problem

_EXIT_CODES = {
    "invalid": ExitCode.REFUSED,
    "never_fits": ExitCode.REFUSED,
    "over_quota": ExitCode.REFUSED,
    "over_budget": ExitCode.REFUSED,
    "policy": ExitCode.REFUSED,
    "conflict": ExitCode.REFUSED,
    "too_large": ExitCode.REFUSED,
    "not_found": ExitCode.NOT_FOUND,
    "not_logged_in": ExitCode.NOT_ALLOWED,
    "not_allowed": ExitCode.NOT_ALLOWED,
    "wrong_state": ExitCode.WRONG_STATE,
    "too_many": ExitCode.UNREACHABLE,
    "unavailable": ExitCode.UNREACHABLE,
    "internal": ExitCode.BUG,
}
_CODES_OF_STATUS = {
    400: "invalid",
    401: "not_logged_in",
    403: "not_allowed",
    404: "not_found",
    409: "wrong_state",
    413: "too_large",
    422: "invalid",
    429: "too_many",
    502: "unavailable",
    503: "unavailable",
    504: "unavailable",
}


class ApiError(CliError):
    """The server refused, failed, or could not be reached; `exit_code` is the tabled one for its code."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        tries: tuple[str, ...] = (),
        problems: tuple[Problem, ...] = (),
        notes: tuple[str, ...] = (),
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, code=code, tries=tries, problems=problems, notes=notes)
        self.exit_code = _EXIT_CODES.get(code, ExitCode.BUG)
        self.request_id = request_id


def refusal(status: int, body: bytes, *, stranger: str, note: str) -> ApiError:
    """Returns the error that a problem document (RFC 9457) is; `stranger` is said of a body that is none."""
    try:
        problem = mapping(json.loads(body))
        said, code = text(problem, "detail") or text(problem, "title"), text(problem, "code")
        problems = tuple(
            Problem(text(each, "field") or "", text(each, "message") or "") for each in items(problem, "problems")
        )
        listed = problem.get("try")
        tries = tuple(str(each) for each in listed) if isinstance(listed, list) else ()
        request_id = text(problem, "request_id")
    except (ValueError, BrokenAnswer):
        said, code, problems, tries, request_id = None, None, (), (), None
    code = code or _CODES_OF_STATUS.get(status, "internal")
    if code == "not_logged_in" and not tries:
        tries = ("turnstile login",)
    notes = (note,) if said is None and note else ()
    return ApiError(code, said or stranger, tries=tries, problems=problems, notes=notes, request_id=request_id)


_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    # From the particular to the general: the first that fits is said.
    (ConnectionRefusedError, "connection refused"),
    (socket.gaierror, "no such host"),
    (TimeoutError, "no answer in time"),
    (ssl.SSLCertVerificationError, "its certificate is not trusted"),
    (ssl.SSLError, "it does not speak TLS"),
    (ConnectionResetError, "the connection broke off"),
    (BrokenPipeError, "the connection broke off"),
    (http.client.IncompleteRead, "the connection broke off"),
    (http.client.HTTPException, "it does not speak HTTP"),
)


def words(broken: BaseException) -> str:
    """Returns why a server could not be reached, in a few words."""
    for kind, said in _WORDS:
        if isinstance(broken, kind):
            return said
    if isinstance(broken, OSError) and broken.strerror:
        return broken.strerror.lower()
    return type(broken).__name__
