"""What an agent measured and the daemon has not yet taken in, on the node's disk: bounded, whole or absent, in order.

A batch is one file, written beside its name, synced, and then renamed: a crash leaves it whole or not at all. The name
holds its place in the order and its idempotency key, so that it is sent under the same key however often the agent or
the daemon dies. When the spool is full the oldest batch goes: what is new says more about the node.
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulid import ULID

logger = logging.getLogger(__name__)

MOST_BYTES = 256 * 1024 * 1024
"""Default size of a spool: a node of 8 GPUs writes 4 KB a minute, so this is about a month and a half of them; the
daemon takes in a week's."""
_NAME = re.compile(r"(\d{12})-([0-9A-Z]{26})\.json\Z")


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that waits. `document` is as it was added."""

    key: str
    document: Mapping[str, Any]  # Any: JSON


class Spool:
    """A folder of batches. For one thread at a time; one process a folder."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        """Opens the folder, which is made if it is not there. Raises OSError."""
        self._folder = folder
        self._most_bytes = most_bytes
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sizes: dict[str, int] = {}
        for path in sorted(folder.iterdir()):
            if _NAME.match(path.name):
                self._sizes[path.name] = path.stat().st_size
            elif path.name.endswith(".part"):
                path.unlink(missing_ok=True)  # the write that a crash cut off
        self._next = 1 + max((int(name[:12]) for name in self._sizes), default=0)
        self.dropped = 0
        """Batches that were lost since the start: no room, or not readable."""

    @property
    def batches(self) -> int:
        """How many wait."""
        return len(self._sizes)

    @property
    def size_bytes(self) -> int:
        """What they take on disk."""
        return sum(self._sizes.values())

    def add(self, document: Mapping[str, Any]) -> None:
        """Keeps a batch durably; the oldest make room for it. Raises OSError when the disk takes nothing."""
        content = json.dumps(document, separators=(",", ":")).encode()
        name = f"{self._next:012d}-{ULID()}.json"
        while self._sizes and self.size_bytes + len(content) > self._most_bytes:
            oldest = min(self._sizes)
            logger.warning("the spool is full (%d bytes): batch %s is dropped", self._most_bytes, oldest)
            self._remove(oldest)
            self.dropped += 1
        part = self._folder / f"{name}.part"
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.rename(self._folder / name)
        except OSError:
            self.dropped += 1
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        self._next += 1
        self._sizes[name] = len(content)

    def oldest(self) -> Batch | None:
        """Returns the batch that is to be sent next; None when none waits. What cannot be read is dropped."""
        while self._sizes:
            name = min(self._sizes)
            found = _NAME.match(name)
            assert found is not None, "only such names are kept"
            try:
                document = json.loads((self._folder / name).read_bytes())
            except (OSError, ValueError) as problem:
                logger.warning("batch %s cannot be read and is dropped: %s", name, problem)
                document = None
            if isinstance(document, dict):
                return Batch(found[2], document)
            self._remove(name)
            self.dropped += 1
        return None

    def done(self, key: str) -> None:
        """Removes a batch that was taken in, or will never be."""
        for name in [name for name in self._sizes if name[13:39] == key]:
            self._remove(name)

    def _remove(self, name: str) -> None:
        del self._sizes[name]
        (self._folder / name).unlink(missing_ok=True)
