"""Processes that read together: one snapshot, results in order, and a clear end when one fails or dies."""

import os
import threading
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from scheduler.refusal import Refused
from scheduler.store.database import Database, StoreUnavailable
from scheduler.store.readers import Alone, reading, working
from scheduler.store.tables import ACCOUNT
from tests.store.reader_works import Accounts, Squares

MakeDatabase = Callable[[], Database]
NUMBERS = range(25)


def add_account(database: Database, name: str) -> None:
    row = {"id": name, "display_name": name, "weight": 1, "guarantee": {}, "limit": {}, "is_suspended": False}
    with database.write() as connection:
        connection.execute(sa.insert(ACCOUNT).values(**row, created_ms=0, changed_ms=0, terms={}))


def test_all_readers_see_the_one_snapshot_whatever_is_committed_meanwhile(make_database: MakeDatabase) -> None:
    database = make_database()
    is_over = threading.Event()
    number = 0

    def commit() -> None:
        nonlocal number
        while not is_over.wait(0.002):
            number += 1
            add_account(database, f"during-{number}")

    writer = threading.Thread(target=commit)
    writer.start()
    try:
        with reading(database, 2) as readers:
            seen = readers.source.execute(sa.select(sa.func.count()).select_from(ACCOUNT)).scalar_one()
            found = list(readers.each(Accounts(), range(40)))
            again = list(readers.each(Accounts(), range(3)))
    finally:
        is_over.set()
        writer.join()
    assert [task for task, _, _ in found] == list(range(40))
    assert {count for _, count, _ in (*found, *again)} == {seen}
    processes = {process for _, _, process in (*found, *again)}
    assert len(processes) == 2
    assert os.getpid() not in processes
    database.dispose()


def test_results_are_what_one_alone_gives_in_the_order_of_the_tasks() -> None:
    with working(2) as readers:
        assert list(readers.each(Squares(), NUMBERS)) == list(Alone(None).each(Squares(), NUMBERS))
        partly = readers.each(Squares(), NUMBERS)
        assert next(partly).strip() == b"0"
        del partly  # what was not fetched is in nobody's way
        assert [each.strip() for each in readers.each(Squares(), (7, 8))] == [b"49", b"64"]


def test_what_a_task_raises_is_raised_at_its_turn_and_a_death_is_told() -> None:
    with working(2) as readers:
        results = readers.each(Squares(refused=9), NUMBERS)
        assert len([next(results) for _ in range(9)]) == 9
        with pytest.raises(Refused, match="9 is refused"):
            next(results)
        with pytest.raises(StoreUnavailable, match=r"exit status -9.*nothing was written"):
            list(readers.each(Squares(deadly=3), NUMBERS))


def test_one_process_is_the_caller_itself(make_database: MakeDatabase) -> None:
    database = make_database()
    with reading(database, 1) as readers:
        assert {process for _, _, process in readers.each(Accounts(), range(3))} == {os.getpid()}
    database.dispose()
