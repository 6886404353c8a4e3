"""Requests side by side: as many at once as there are hands, and no more of them once the server is away."""

import threading

from k8s.crew import Crew
from k8s.problems import KubernetesProblem, Unreachable
from scheduler.executor import StartRefused

HANDS = 4
SECONDS = 20.0


def test_requests_are_under_way_together_and_answers_come_in_order() -> None:
    all_here = threading.Barrier(HANDS)

    def meet(number: int) -> int:
        all_here.wait(SECONDS)
        return number

    crew = Crew(HANDS)
    assert crew.each([lambda number=number: meet(number) for number in range(2 * HANDS)]) == list(range(2 * HANDS))  # type: ignore[misc] # a lambda's default has no type
    crew.close()


def test_each_keeps_its_own_refusal() -> None:
    def refuse() -> str:
        raise StartRefused("no")

    crew = Crew(HANDS)
    first, second, third = crew.each([lambda: "yes", refuse, lambda: "yes"])
    assert (first, third) == ("yes", "yes")
    assert isinstance(second, StartRefused)
    crew.close()


def test_a_server_that_is_away_is_not_asked_a_hundred_times() -> None:
    asked = []

    def ask() -> None:
        asked.append(1)
        raise Unreachable("it does not answer")

    crew = Crew(HANDS)
    outcomes = crew.each([ask] * 100)
    assert all(isinstance(outcome, KubernetesProblem) for outcome in outcomes)
    assert 1 <= len(asked) <= HANDS
    crew.close()


def test_the_next_call_asks_again() -> None:
    def fail() -> str:
        raise Unreachable("it does not answer")

    crew = Crew(HANDS)
    crew.each([fail, fail])
    assert crew.each([lambda: "back", lambda: "back"]) == ["back", "back"]
    crew.close()
