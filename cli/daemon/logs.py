"""The daemon's own log, on stderr: text for people, one JSON object a line for collectors. Secrets never come here."""

import json
import logging
import sys

from scheduler.clock import iso_utc

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_QUIET = ("apscheduler", "alembic", "uvicorn", "asyncio")
"""Libraries that tell at level info what is our business, not the reader's."""


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, and the trace when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        document = {
            "time": iso_utc(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["trace"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False)


class TextLines(logging.Formatter):
    """Time, level and message, as a person reads them."""

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
