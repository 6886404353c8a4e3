"""The way into pods: what the streams carry, and what is said where there is no way.

The kubelet of our API server runs real programs; a real control plane's fake nodes have no kubelet to go to.
"""

import json
import os
import select

import pytest

from k8s.streaming import Outcome, outcome_of
from scheduler.executor import Entered, EntryRefused, Program
from tests.k8s.grounds import Ground, Rig, until


def read_all(entered: Entered, fd: int) -> bytes:
    """Everything that comes out, to its end."""
    found = b""
    while True:
        assert select.select([fd], [], [], 60)[0], found
        piece = os.read(fd, 4096)
        if not piece:
            return found
        found += piece


def status_of(entered: Entered) -> object:
    assert select.select([entered.control], [], [], 60)[0]
    return json.loads(entered.control.recv(4096))["exit_code"]


def test_a_server_without_v5_carries_programs_all_the_same(memory: Ground) -> None:
    assert memory.server is not None
    memory.server.stream_protocols = ["v4.channel.k8s.io"]
    rig = Rig(memory)
    order = rig.order()
    with pytest.raises(EntryRefused, match="does not run"):
        rig.executor.enter(order.allocation.id, 0, Program(("true",)))
    rig.start(order)
    script = 'echo "$WORD it\'s"; echo bad >&2; read line; echo "$line"; kill -USR1 $$'
    entered = rig.executor.enter(order.allocation.id, 0, Program(("sh", "-c", script), {"WORD": "says $HOME"}))
    os.write(entered.input_fd, b"typed\n")
    assert read_all(entered, entered.output_fd) == b"says $HOME it's\ntyped\n"
    assert entered.error_fd is not None
    assert read_all(entered, entered.error_fd) == b"bad\n"
    assert status_of(entered) == 128 + 10
    entered.close()

    asleep = rig.executor.enter(order.allocation.id, 0, Program(("sleep", "1000")))
    asleep.control.send(b'{"do": "signal", "number": 15}')
    assert status_of(asleep) == 128 + 15
    asleep.close()
    rig.close()


def test_where_the_way_is_barred_the_servers_own_words_say_why(rig: Rig) -> None:
    order = rig.order()
    rig.start(order)
    with pytest.raises(EntryRefused, match="no terminal"):
        rig.executor.attach(order.allocation.id, 0, (24, 80))
    if rig.ground.server is not None:
        # As an image without a shell says it.
        kubelet = rig.ground.server.kubelet
        kubelet.shell = "/no/such/sh"
        with pytest.raises(EntryRefused, match="an image needs /bin/sh for it"):
            rig.executor.enter(order.allocation.id, 0, Program(("true",)))
        kubelet.shell = "/bin/sh"
        return
    with pytest.raises(EntryRefused, match=r"pods/exec|opens no stream") as refused:
        rig.executor.enter(order.allocation.id, 0, Program(("true",)))
    assert "Traceback" not in str(refused.value)
    with pytest.raises(EntryRefused):
        rig.executor.reach(order.allocation.id, 0, 8888)


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (b'{"status": "Success"}', Outcome(0, "")),
        (
            b'{"status": "Failure", "message": "m", "details": {"causes": [{"reason": "ExitCode", "message": "7"}]}}',
            Outcome(7, "m"),
        ),
        (b'{"status": "Failure", "message": "no such container"}', Outcome(None, "no such container")),
        (b"plain words", Outcome(None, "plain words")),
    ],
)
def test_the_end_is_what_the_error_channel_says(said: bytes, outcome: Outcome) -> None:
    assert outcome_of(said) == outcome


def test_a_program_ends_when_its_caller_has_gone(memory: Ground) -> None:
    rig = Rig(memory)
    order = rig.order()
    rig.start(order)
    assert memory.server is not None
    kubelet = memory.server.kubelet
    entered = rig.executor.enter(order.allocation.id, 0, Program(("sleep", "1000")))
    (program,) = kubelet.programs
    entered.close()
    until(lambda: program.poll() is not None, "end of what its caller left", 60.0)
    rig.close()
