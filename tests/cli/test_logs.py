"""The daemon's log: ids are fields of their own, and a name that users chose cannot forge a line."""

import json
import logging

import pytest

from cli.daemon.logs import JsonLines, TextLines


def record(**ids: object) -> logging.LogRecord:
    return logging.getLogger("tests").makeRecord(
        "tests", logging.INFO, "here", 1, "it %s", ("starts\nFATAL forged",), None, extra=ids
    )


def test_ids_stand_in_fields_of_their_own() -> None:
    line = JsonLines().format(record(job=4711, tenant="acme", decision=88213, allocation="01K", unknown="x"))
    found = json.loads(line)
    assert "\n" not in line
    assert {name: found[name] for name in ("job", "tenant", "decision", "allocation")} == {
        "job": 4711, "tenant": "acme", "decision": 88213, "allocation": "01K",
    }  # fmt: skip
    assert "unknown" not in found


@pytest.mark.parametrize("ids", [{}, {"job": 4711, "tenant": "acme"}])
def test_text_is_one_line_that_ends_with_the_ids(ids: dict[str, object]) -> None:
    line = TextLines("%(levelname)s %(message)s").format(record(**ids))
    assert line.endswith("tenant=acme job=4711" if ids else "forged")
    assert len(line.splitlines()) == 1
