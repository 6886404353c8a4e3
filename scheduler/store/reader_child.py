"""A process that reads beside another one: does the tasks that `readers` gives it, until its pipe ends.

Started as `python -m scheduler.store.reader_child FILENO`. The first message is the database's URL, or None where only
files are read; the URL may have a password, so it is never an argument. Then come `("look", snapshot)`, which begins to
read anew, `("work", work)` and `("task", task)`. A look and a task are answered by whether it was done, and what came
of it or was raised.
"""

import gc
import os
import pickle
import sys
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection as Pipe
from typing import Any

from sqlalchemy.engine import Connection

from scheduler.store.database import Database, StoreError
from scheduler.store.read_ahead import read_ahead

_NICE = 5
"""Who decides and answers beside these processes goes first."""
_GARBAGE = (50_000, 20, 100)
"""When Python looks for cycles: rows are many and have none, and looking through them took a tenth of all time."""


def main(fileno: int) -> int:
    """Serves until the pipe ends, which it does when the parent goes, in whatever way. Returns the exit status."""
    os.nice(_NICE)
    gc.set_threshold(*_GARBAGE)
    pipe = Pipe(fileno)
    try:
        serve(pipe)
    except (EOFError, OSError):
        # Nobody is there to answer; what is read was read only.
        os._exit(0)
    return 0


def serve(pipe: Pipe) -> None:
    """Answers messages. Raises EOFError or OSError when the parent is gone."""
    url: str | None = pipe.recv()
    if url is not None:
        read_ahead(url)
    database = None if url is None else Database.open(url)
    pipe.send((True, None))
    source: Connection | None = None
    opened = ExitStack()
    do: Callable[[Any], Any] | None = None
    problem: Exception | None = None
    while True:
        kind, what = pipe.recv()
        try:
            if kind == "look":
                assert database is not None, "only a database has snapshots"
                opened.close()
                source = opened.enter_context(database.read())
                _see(source, what)
                answer: tuple[bool, Any] = (True, None)
            elif kind == "work":
                do, problem = None, None
                do = what.begin(source)
                if not gc.get_freeze_count():
                    gc.freeze()  # modules stay; nobody need look at them again
                continue
            else:
                answer = _done(do, problem, what)
        except Exception as error:  # noqa: BLE001 -- the edge of the process: the parent raises it
            if kind == "work":
                problem = error
                continue
            answer = (False, error)
        _send(pipe, answer)


def _done(do: Callable[[Any], Any] | None, problem: Exception | None, task: object) -> tuple[bool, Any]:
    if problem is not None:
        return False, problem
    assert do is not None, "a work comes before its tasks"
    return True, do(task)


def _see(connection: Connection, snapshot: str | None) -> None:
    """Takes the snapshot: the parent's by its name (PostgreSQL), or the present one."""
    if snapshot is None:
        connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()
    else:
        quoted = snapshot.replace("'", "''")
        connection.exec_driver_sql(f"SET TRANSACTION SNAPSHOT '{quoted}'")


def _send(pipe: Pipe, answer: tuple[bool, Any]) -> None:
    is_done, value = answer
    if not is_done:
        try:
            pickle.loads(pickle.dumps(value))  # noqa: S301 -- what this process itself just made
        except Exception:  # noqa: BLE001 -- an error that cannot travel is told in words
            value = StoreError(f"reading failed: {type(value).__name__}: {value}")
    pipe.send((is_done, value))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
