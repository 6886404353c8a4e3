"""The daemon's own log, on stderr: text for people, one JSON object a line for collectors. Secrets never come here.

A line that is about a job, an allocation, a tenant or a decision carries their ids as fields of their own, given as
`extra` where it is logged: keys of the JSON object, `job=4711` at the end of a line of text.
"""

import json
import logging
import sys

from scheduler.clock import iso_utc

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_QUIET = ("apscheduler", "alembic", "uvicorn", "asyncio")
"""Libraries that tell at level info what is our business, not the reader's."""


IDS = ("tenant", "job", "allocation", "decision", "epoch", "node")
"""What a line may be about, in the order in which text tells it."""


def ids_of(record: logging.LogRecord) -> dict[str, object]:
    """Returns the ids that a line carries."""
    return {name: vars(record)[name] for name in IDS if vars(record).get(name) is not None}


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, and the trace when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        document = {
            "time": iso_utc(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **ids_of(record),
        }
        if record.exc_info:
            document["trace"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False)


class TextLines(logging.Formatter):
    """Time, level, message and ids, as a person reads them."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- as named there
        """Returns the line without a trace, its ids at the end."""
        ids = "".join(f" {name}={value}" for name, value in ids_of(record).items())
        # What users and other machines wrote may stand in a message: it begins no line of its own.
        return (super().formatMessage(record) + ids).replace("\n", "\\n").replace("\r", "\\r")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 -- as named there
        """Returns the time as RFC 3339 UTC."""
        return iso_utc(int(record.created * 1000))


def set_up(level: str, form: str) -> None:
    """Sends all logging of this process to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines("%(asctime)s %(levelname)-7s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(LEVELS[level], logging.WARNING))
