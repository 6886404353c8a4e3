"""Asks the system to have a SQLite file in memory before it is read here and there.

A long reading follows indexes from page to page: on a disk each is a wait of its own, in which a core does nothing.
Read from one end to the other the same file takes a second a gigabyte, and while it comes, work can begin.
"""

import os
from pathlib import Path
from threading import Thread

from sqlalchemy.engine import make_url

MEMORY_SHARE = 4
"""A file larger than this part of the machine's memory is left alone: it would drive out what others need."""


def read_ahead(url: str) -> None:
    """Begins to read a SQLite database's file, in a thread; does nothing for another database, or a large file.

    Only for a process that has not opened the database yet. The file stays open to the process's end: to close it would
    let go of the locks that SQLite has on it (POSIX: locks are a process's, and go with any of its descriptors).
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database or not hasattr(os, "posix_fadvise"):
        return
    path = Path(parsed.database)
    try:
        size = path.stat().st_size
        if size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEMORY_SHARE:
            return
        handle = os.open(path, os.O_RDONLY)
    except (OSError, ValueError):
        return  # whoever opens the database says what is wrong with it
    Thread(target=os.posix_fadvise, args=(handle, 0, size, os.POSIX_FADV_WILLNEED), daemon=True).start()
