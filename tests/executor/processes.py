"""What the kernel says of processes, for tests that must not take the executor's word for it."""

import time
from collections.abc import Callable
from pathlib import Path

from tests.executor.rigs import DEADLINE_SECONDS


def exists(pid: int) -> bool:
    """True for a process that is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def zombie_children(parent: int) -> list[int]:
    """Returns the children of a process that nobody has collected."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] == "Z" and int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return found


def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for what another process does; fails after the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s: {what}"
        time.sleep(0.01)
