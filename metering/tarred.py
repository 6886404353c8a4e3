"""Exports as tar files that are streamed: nothing of one is left anywhere when a client hangs up."""

import shutil
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO

from fastapi.responses import StreamingResponse

from scheduler.routes.door import Door

_CHUNK_BYTES = 256 << 10


def tar_of(write: Callable[[Path], object]) -> IO[bytes]:
    """Returns a tar of the files that `write` makes in the folder it is given, read from its beginning.

    No file of it has a name any more. Raises what `write` raises.
    """
    folder = Path(tempfile.mkdtemp(prefix="turnstile-export-"))
    file = tempfile.TemporaryFile()  # noqa: SIM115  # it is closed by whoever streams it
    try:
        write(folder / "export")
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path in sorted((folder / "export").iterdir()):
                # Names and contents only: the same export again is the same bytes, whoever's daemon makes it.
                member = tarfile.TarInfo(path.name)
                member.size = path.stat().st_size
                member.mode = 0o644
                with path.open("rb") as content:
                    archive.addfile(member, content)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return file


def streamed(door: Door, file: IO[bytes], name: str) -> StreamingResponse:
    """Returns the answer that streams a tar and closes it."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(_chunks(door, file), media_type="application/x-tar", headers=headers)


async def _chunks(door: Door, file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        while chunk := await door.aside(file.read, _CHUNK_BYTES):
            yield chunk
