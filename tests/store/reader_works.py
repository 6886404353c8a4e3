"""Works that the tests of readers give to processes, which must be able to import them."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from scheduler.refusal import RefusalCode, Refused
from scheduler.store.tables import ACCOUNT


@dataclass(frozen=True, slots=True)
class Accounts:
    """Counts accounts, and says which process does."""

    def begin(self, connection: Connection) -> Callable[[int], tuple[int, int, int]]:
        """Returns what counts them."""

        def count(task: int) -> tuple[int, int, int]:
            found = connection.execute(sa.select(sa.func.count()).select_from(ACCOUNT)).scalar_one()
            return task, int(found), os.getpid()

        return count


@dataclass(frozen=True, slots=True)
class Squares:
    """Squares numbers; refuses one of them, and dies of another."""

    refused: int = -1
    deadly: int = -1

    def begin(self, _: object) -> Callable[[int], bytes]:
        """Returns what squares, with a result that no pipe takes at once."""

        def square(number: int) -> bytes:
            if number == self.refused:
                raise Refused(RefusalCode.CONFLICT, f"{number} is refused")
            if number == self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return str(number * number).encode().ljust(300_000)

        return square
