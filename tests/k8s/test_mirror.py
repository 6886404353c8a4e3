"""A list and its watch, through all that may go wrong: nothing is lost, nothing is told twice."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from k8s.api import Access, Api, Json
from k8s.mirror import Mirror, MirrorLimits
from k8s.problems import Forbidden
from tests.k8s.apiserver import ApiServer, Fault
from tests.k8s.grounds import FAST_REQUESTS, until

LIMITS = MirrorLimits(watch_seconds=30, silence_seconds=0.3, first_wait_seconds=0.01, most_wait_seconds=0.05)
MirrorOf = Callable[..., Mirror[str]]


@pytest.fixture
def mirror_of(server: ApiServer, tmp_path: Path) -> Iterator[MirrorOf]:
    """Makes a mirror of Nodes by name and colour."""
    built: list[Mirror[str]] = []
    path = server.kubeconfig(tmp_path / "kubeconfig")

    def make(limits: MirrorLimits = LIMITS) -> Mirror[str]:
        api = Api.connect(Access(str(path)), FAST_REQUESTS)
        mirror = Mirror(api, "/api/v1/nodes", _shown, lambda: None, limits=limits)
        built.append(mirror)
        mirror.start()
        return mirror

    yield make
    for mirror in built:
        mirror.stop()


def _shown(item: Json) -> str | None:
    colour = item["metadata"].get("labels", {}).get("colour", "none")
    return None if colour == "hidden" else f"{item['metadata']['name']} {colour}"


def paint(server: ApiServer, name: str, colour: str) -> None:
    key = ("nodes", "", name)
    with server.store.lock:
        if key not in server.store.objects:
            server.store.create("nodes", "", {"metadata": {"name": name, "labels": {"colour": colour}}})
        else:
            server.store.update(key, lambda item: item["metadata"].update(labels={"colour": colour}))


def remove(server: ApiServer, name: str) -> None:
    with server.store.lock:
        server.store.remove(("nodes", "", name))


def shown(mirror: Mirror[str]) -> list[str]:
    return sorted(mirror.objects().values())


def until_shown(mirror: Mirror[str], *wanted: str) -> None:
    until(lambda: shown(mirror) == list(wanted), f"{wanted}, but {shown(mirror)}")


def test_a_list_of_many_pages_is_read_whole(server: ApiServer, mirror_of: MirrorOf) -> None:
    for number in range(1203):
        paint(server, f"n{number:04d}", "red")
    mirror = mirror_of()
    assert mirror.wait_until_synced(20)
    assert len(mirror.objects()) == 1203
    assert len(mirror.take_changes()) == 1203
    assert not mirror.take_changes()


def test_changes_are_told_once_each_and_only_when_something_of_ours_changed(
    server: ApiServer, mirror_of: MirrorOf
) -> None:
    paint(server, "a", "red")
    mirror = mirror_of()
    until_shown(mirror, "a red")
    mirror.take_changes()
    server.store.update(("nodes", "", "a"), lambda item: item["metadata"].update(annotations={"x": "y"}))
    paint(server, "b", "blue")
    until_shown(mirror, "a red", "b blue")
    assert [(change.value, change.is_gone) for change in mirror.take_changes()] == [("b blue", False)]
    remove(server, "b")
    until_shown(mirror, "a red")
    assert [(change.value, change.is_gone, change.is_seen) for change in mirror.take_changes()] == [
        ("b blue", True, True)
    ]


def test_an_object_that_is_no_longer_of_interest_is_told_as_gone(server: ApiServer, mirror_of: MirrorOf) -> None:
    paint(server, "a", "red")
    mirror = mirror_of()
    until_shown(mirror, "a red")
    paint(server, "a", "hidden")
    until_shown(mirror)


def test_a_cut_watch_resumes_where_it_was_without_a_new_list(server: ApiServer, mirror_of: MirrorOf) -> None:
    paint(server, "a", "red")
    mirror = mirror_of()
    until_shown(mirror, "a red")
    for colour in ("blue", "green"):
        server.cut_watches()
        paint(server, "a", colour)
        until_shown(mirror, f"a {colour}")
    assert mirror.relists == 1


def test_a_half_open_connection_is_noticed_by_its_silence(server: ApiServer, mirror_of: MirrorOf) -> None:
    paint(server, "a", "red")
    mirror = mirror_of()
    until_shown(mirror, "a red")
    watches = server.count("GET", "nodes")
    server.is_frozen = True
    paint(server, "a", "blue")
    until(lambda: server.count("GET", "nodes") > watches, "second watch")
    assert shown(mirror) == ["a red"]
    server.is_frozen = False
    until_shown(mirror, "a blue")


def test_an_expired_version_is_answered_by_a_new_list_that_tells_what_vanished(
    server: ApiServer, mirror_of: MirrorOf
) -> None:
    for name in ("a", "b"):
        paint(server, name, "red")
    mirror = mirror_of()
    until_shown(mirror, "a red", "b red")
    mirror.take_changes()
    server.is_frozen = True
    remove(server, "a")
    paint(server, "b", "blue")
    server.store.compact()
    server.is_frozen = False
    server.cut_watches()
    until_shown(mirror, "b blue")
    told = {(change.value, change.is_gone, change.is_seen) for change in mirror.take_changes()}
    assert told == {("a red", True, False), ("b blue", False, True)}
    assert mirror.relists == 2


def test_an_object_made_again_under_its_name_is_another_one(server: ApiServer, mirror_of: MirrorOf) -> None:
    paint(server, "a", "red")
    mirror = mirror_of()
    until_shown(mirror, "a red")
    mirror.take_changes()
    server.is_frozen = True
    remove(server, "a")
    paint(server, "a", "blue")
    server.store.compact()
    server.is_frozen = False
    server.cut_watches()
    until_shown(mirror, "a blue")
    told = mirror.take_changes()
    assert [(change.value, change.is_gone) for change in told] == [("a red", True), ("a blue", False)]
    assert told[0].uid != told[1].uid


def test_bookmarks_move_the_version_that_is_resumed_from(server: ApiServer, mirror_of: MirrorOf) -> None:
    server.bookmark_seconds = 0.05
    mirror = mirror_of()
    assert mirror.wait_until_synced(10)
    with server.store.lock:
        server.store.create("namespaces", "", {"metadata": {"name": "elsewhere"}})
        wanted = str(server.store.version)
    until(lambda: mirror._version == wanted, "bookmark")
    server.store.compact()
    server.cut_watches()
    paint(server, "a", "red")
    until_shown(mirror, "a red")
    assert mirror.relists == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_in_trouble_is_asked_again_until_it_is_not(
    server: ApiServer, mirror_of: MirrorOf, status: int
) -> None:
    paint(server, "a", "red")
    server.faults.append(Fault("GET", "/nodes", times=9, status=status))
    mirror = mirror_of()
    until_shown(mirror, "a red")
    server.faults.append(Fault("GET", "/nodes", times=9, status=status))
    server.cut_watches()
    paint(server, "a", "blue")
    until_shown(mirror, "a blue")
    until(lambda: mirror.failure is None, "order")


def test_a_missing_right_is_told_and_healed_when_it_is_granted(server: ApiServer, mirror_of: MirrorOf) -> None:
    paint(server, "a", "red")
    server.denied.add(("watch", "nodes"))
    mirror = mirror_of()
    failure = until(lambda: mirror.failure, "a failure")
    assert isinstance(failure, Forbidden)
    assert str(failure.right) == "watch nodes"
    server.denied.clear()
    paint(server, "a", "blue")
    until_shown(mirror, "a blue")
    until(lambda: mirror.failure is None, "order")
