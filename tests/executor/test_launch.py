"""From an order to what a supervisor is told."""

import socket

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import launch
from tests.executor.rigs import order


def test_the_rendezvous_port_of_an_allocation_is_the_same_each_time() -> None:
    assert launch.rendezvous_port("01A", ()) == launch.rendezvous_port("01A", ())


def test_a_port_that_is_taken_or_listened_on_is_passed_over() -> None:
    first = launch.rendezvous_port("01A", ())
    second = launch.rendezvous_port("01A", {first})
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", second))
        listener.listen()
        assert launch.rendezvous_port("01A", {first}) not in (first, second)


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(["PATH", "LC_ALL", "LANGX", "TURNSTILE_TOKEN", "PGPASSWORD"]), st.text()))
def test_only_named_variables_are_inherited(environment: dict[str, str]) -> None:
    kept = launch.inheritable(environment, launch.INHERITED_VARIABLES)
    assert kept == {name: value for name, value in environment.items() if name in ("PATH", "LC_ALL")}


def test_not_even_a_setting_can_make_the_daemons_own_settings_inheritable() -> None:
    assert launch.inheritable({"TURNSTILE_DATABASE_URL": "x", "A": "y"}, ["*"]) == {"A": "y"}


def test_a_jobs_name_cannot_lead_its_output_to_another_directory() -> None:
    job = order("true", name="../../etc/x")
    assert launch.output_path("%x.log", job, 0) == ".._.._etc_x.log"


def test_unknown_patterns_in_an_output_path_stay_as_they_are() -> None:
    assert launch.output_path("%z-%n%", order("true"), 3) == "%z-3%"
