"""A rank's output on disk: written by its supervisor within a cap, read by offset from anywhere, live or later.

The first half of the cap is kept, and a ring of segments keeps the newest rest. Each file is named by the offset of its
first byte in the whole stream, so what was dropped is a gap between names, and the reader puts the marker line there.
Shared with the supervisor, which must start fast: imports stay few.
"""

import contextlib
import os
import stat
import time

from scheduler.processes import LaunchError, rights_of
from scheduler.rundir import Order

TAIL_SEGMENTS = 4
LEAST_LIMIT_BYTES = 4096
"""A smaller cap is raised to this: one segment then still holds a few lines."""


class LogWriter:
    """The writer's side. Nothing here ever fails the job: bytes that the disk refuses are a gap."""

    def __init__(self, directory: str, limit_bytes: int) -> None:
        self._directory = directory
        limit_bytes = max(limit_bytes, LEAST_LIMIT_BYTES)
        self._segment_bytes = limit_bytes // (2 * TAIL_SEGMENTS)
        self._head_bytes = limit_bytes - TAIL_SEGMENTS * self._segment_bytes
        self._offset = 0
        self._fd = -1
        self._path = ""
        self._segment_start = self._segment_end = self._written_end = 0
        self._tail: list[str] = []
        self._retry_at = 0.0

    def write(self, data: bytes) -> None:
        """Appends, dropping from the middle what does not fit."""
        view = memoryview(data)
        while view:
            beyond = len(view) - TAIL_SEGMENTS * self._segment_bytes
            if self._offset >= self._head_bytes and beyond > 0:
                self._close()  # the ring would be overwritten before anyone reads it
                self._offset += beyond
                view = view[beyond:]
            if self._fd < 0 and not self._open():
                self._offset += len(view)
                return
            try:
                count = os.write(self._fd, view[: self._segment_end - self._offset])
            except OSError:
                self._give_up()
                self._offset += len(view)
                return
            self._offset = self._written_end = self._offset + count
            view = view[count:]
            if self._offset == self._segment_end:
                self._close()

    def close(self) -> None:
        """Ends the log; a gap at its very end is made visible by an empty last segment."""
        self._close()
        if self._written_end < self._offset:
            self._retry_at = 0.0
            self._open()
            self._close()

    def _open(self) -> bool:
        if time.monotonic() < self._retry_at:
            return False
        self._path = f"{self._directory}/{self._offset:020d}.log"
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError:
            self._retry_at = time.monotonic() + 1.0
            return False
        self._segment_start = self._offset
        if self._offset < self._head_bytes:
            self._segment_end = self._head_bytes
        else:
            self._segment_end = self._offset + self._segment_bytes
            self._tail.append(self._path)
            while len(self._tail) > TAIL_SEGMENTS:
                with contextlib.suppress(OSError):
                    os.unlink(self._tail.pop(0))  # noqa: PTH108
        return True

    def _close(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # a delayed ENOSPC of a network disk: the bytes are gone either way
                os.close(self._fd)
            self._fd = -1

    def _give_up(self) -> None:
        is_empty = self._offset == self._segment_start
        self._close()
        self._retry_at = time.monotonic() + 1.0
        if is_empty:
            with contextlib.suppress(OSError):
                os.unlink(self._path)  # noqa: PTH108
            if self._path in self._tail:
                self._tail.remove(self._path)


class OutputCopy:
    """The file that the job's owner named for its output: opened with the owner's rights, ended at the log's cap."""

    def __init__(self, order: Order) -> None:
        self._left_bytes = order["log_limit_bytes"]
        self._fd = -1
        if order["output"] in (None, os.devnull):
            return
        path = os.path.join(order["workdir"], order["output"] or "")  # noqa: PTH118
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            with rights_of(order):
                self._fd = os.open(path, flags, 0o644)
        except OSError as error:
            raise LaunchError(f"cannot open the output file {path}: {os.strerror(error.errno or 0)}") from None
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            self.close()
            raise LaunchError(f"cannot open the output file {path}: it is not a regular file")

    def write(self, data: bytes) -> None:
        """Appends; a full disk or the cap ends the copy, and the kept log goes on."""
        if self._fd < 0:
            return
        try:
            os.write(self._fd, data[: self._left_bytes])
            self._left_bytes -= len(data)
            if self._left_bytes <= 0:
                os.write(self._fd, b"\n[turnstile: the cap is reached; the newest output is in the job's log]\n")
                self.close()
        except OSError:
            self.close()

    def close(self) -> None:
        """Closes the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_log(directory: str, offset: int, limit_bytes: int) -> tuple[bytes, int, bool]:
    """Returns up to `limit_bytes` of the stream from `offset`, the next offset, and whether anything was dropped.

    Where bytes were dropped the data holds one marker line and the offset jumps over the gap. Raises OSError.
    """
    while True:
        try:
            return _read_segments(directory, offset, limit_bytes)
        except FileNotFoundError:
            if not os.path.isdir(directory):  # noqa: PTH112
                raise
            # The ring dropped a segment between our listing and our reading; the next listing no longer has it.


def _read_segments(directory: str, offset: int, limit_bytes: int) -> tuple[bytes, int, bool]:
    names = sorted(name for name in os.listdir(directory) if name.endswith(".log"))  # noqa: PTH208
    data = bytearray()
    position, end, is_truncated = offset, 0, False
    for name in names:
        start = int(name.removesuffix(".log"))
        size = os.stat(f"{directory}/{name}").st_size  # noqa: PTH116
        is_truncated |= start > end
        end = start + size
        if len(data) >= limit_bytes or (end <= position and start <= position):
            continue
        if start > position:
            marker = f"\n[turnstile: {start - position} bytes dropped here: the log's cap]\n".encode()
            if data and len(data) + len(marker) > limit_bytes:
                limit_bytes = len(data)  # the marker is not cut in two: it opens the next piece
                continue
            data += marker[:limit_bytes]
            position = start
        with open(f"{directory}/{name}", "rb") as file:  # noqa: PTH123
            file.seek(position - start)
            piece = file.read(min(limit_bytes - len(data), size - (position - start)))
        data += piece
        position += len(piece)
    return bytes(data), position, is_truncated
