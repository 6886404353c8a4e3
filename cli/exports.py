"""The files of an export on this machine: unpacked from what the server sent, and copied as Parquet on request."""

import shutil
import tarfile
from pathlib import Path
from typing import IO

from cli import answers
from cli.errors import Refusal


def unpacked(kept: IO[bytes], folder: Path) -> list[str]:
    """Writes the files of a tar into a folder, plain ones by their names alone, and returns their names, sorted.

    Raises BrokenAnswer for what is no tar, Refusal where the folder cannot be written.
    """
    kept.seek(0)
    names = []
    try:
        with tarfile.open(fileobj=kept, mode="r:*") as archive:
            folder.mkdir(parents=True, exist_ok=True)
            for member in archive:
                name = Path(member.name).name
                content = archive.extractfile(member) if member.isfile() and name else None
                if content is None:
                    continue
                with (folder / name).open("xb") as written:
                    shutil.copyfileobj(content, written)
                names.append(name)
    except tarfile.TarError:
        raise answers.BrokenAnswer("the export is not a tar file") from None
    except OSError as problem:
        raise Refusal(f"{folder} cannot be written: {problem.strerror}") from None
    return sorted(names)


def require_parquet() -> None:
    """Raises Refusal where Parquet cannot be written, before anything else is."""
    from metering.parquet import NoParquet
    from metering.parquet import require_parquet as require

    try:
        require()
    except NoParquet as problem:
        raise Refusal(
            str(problem), "pip install 'gpu-turnstile[parquet]'", "the CSV files, without --parquet"
        ) from None


def as_parquet(folder: Path) -> list[str]:
    """Writes the files of an export as Parquet beside them and returns the new names."""
    from metering.parquet import write_parquet

    try:
        return write_parquet(folder)
    except (OSError, ValueError) as problem:
        raise Refusal(f"{folder} cannot be written as Parquet: {problem}") from None
