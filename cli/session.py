"""What every command is given: the screen, the configuration in force and the server, each made when asked for."""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from cli import answers
from cli.answers import Json
from cli.client import Client, step
from cli.contexts import Contexts, Overrides, chosen, endpoint, load
from cli.errors import CliError, UsageProblem
from cli.render import Screen
from cli.values import Last, Named, Numbered, job_reference

MOST_LISTED = 1000
"""The most jobs that the API lists in one answer."""
_MOST_PAGES = 100
"""The most pages that are read to find the caller's newest jobs: one array can fill a hundred."""


class Session:
    """One run of the command. Nothing is read or connected before a command needs it."""

    def __init__(self, screen: Screen, environment: Mapping[str, str] = os.environ) -> None:
        self.screen = screen
        self.environment = environment
        self.overrides = Overrides()
        self.flags: object = None
        """The flags that a verb shares with others: an instance of the dataclass that declares them."""
        self.typed: tuple[str, ...] = ()
        """The arguments behind the verb, as they were typed."""
        self.known_options: frozenset[str] = frozenset()
        self.early: tuple[str, ...] = ()
        """Flags of all verbs that were typed before the verb: `turnstile --context prod queue`."""
        self.job_file: str | None = None
        """The job file that stood in the place of a command."""

    @cached_property
    def contexts(self) -> Contexts:
        """The configuration that holds here. Raises ConfigProblem."""
        return load(self.environment, Path.cwd())

    @cached_property
    def client(self) -> Client:
        """The server in force, with its token. Raises ConfigProblem or NotLoggedIn."""
        place = endpoint(self.contexts, self.overrides, self.environment)
        self.screen.conceal(place.token)
        return Client(place)

    @cached_property
    def me(self) -> Json:
        """Who the server says that the caller is."""
        return self.client.get("/v1/whoami")

    @property
    def project(self) -> str | None:
        """The project to submit to where no flag names one."""
        if self.contexts.project is not None:
            return self.contexts.project
        if self.overrides.token_file is not None or self.environment.get("TURNSTILE_TOKEN_FILE"):
            return None  # a context's project goes with its own token: another's may not know it
        context = chosen(self.contexts, self.overrides)
        return None if context is None else context.project

    def close(self) -> None:
        """Drops the connection, if there is one."""
        if "client" in self.__dict__:
            self.client.close()

    def reference(self, typed: str) -> str:
        """Returns what the API takes for a job that was named in any of the ways there are: a number or a name."""
        found = job_reference(typed)
        return self._newest(found) if isinstance(found, Last) else str(found)

    def numbers(self, typed: list[str], read_stdin: list[str] | None = None) -> list[str]:
        """Returns the jobs' numbers, in order and each once; `-` stands for those in `read_stdin`."""
        words = [word for each in typed for word in ((read_stdin or []) if each == "-" else [each])]
        if not words and "-" not in typed:
            raise UsageProblem("say which jobs", "10482", "@", "a job's name", "- (ids on standard input)")
        return list(dict.fromkeys(self._number(word) for word in words))

    def job(self, typed: str) -> Json:
        """Returns a job as the server has it. Raises ApiError (`not_found`)."""
        return job_in(self.client.get(f"/v1/jobs/{step(self.reference(typed))}"))

    def _number(self, word: str) -> str:
        found = job_reference(word)
        if isinstance(found, Numbered):
            return str(found)
        if isinstance(found, Named):
            named = self.job(word)
            return number_of(named)
        return self._newest(found)

    def _newest(self, wanted: Last) -> str:
        """The caller's newest job but `back`, an array counting once. Reads pages, newest first, until it is found."""
        query = {"user": answers.text(self.me, "user"), "state": "all", "limit": MOST_LISTED}
        seen: set[int] = set()
        page: str | None = None
        for _ in range(_MOST_PAGES):
            answer = self.client.get("/v1/jobs", {**query, "page": page})
            found = answers.items(answer)
            seen.update(answers.whole(job, "array_id") or answers.whole(job, "id") or 0 for job in found)
            page = answers.text(answer, "next_page")
            if page is None or len(seen) > wanted.back:
                break
        if wanted.back < len(seen):
            return str(sorted(seen, reverse=True)[wanted.back])
        said = f"you have no job that far back ({len(seen)} found)" if seen else "you have no job"
        raise NoSuchJob(f"{said}: {wanted}", code="not_found", tries=("turnstile history",))


class NoSuchJob(CliError):
    """A reference that only this client understands names nothing."""

    exit_code = 4


def job_in(answer: Json) -> Json:
    """Returns the job of an answer about one job: the answer itself, or its first item."""
    listed = answer.get("items")
    if isinstance(listed, list):
        found = answers.items(answer)
        if not found:
            raise answers.BrokenAnswer("it lists no job")
        return found[0]
    return answer


def number_of(job: Json) -> str:
    """Returns how a job's number is sent: `10482`, `10490_7`."""
    array, index = answers.whole(job, "array_id"), answers.whole(job, "array_index")
    if array is not None and index is not None:
        return f"{array}_{index}"
    found = answers.text(job, "id")
    if found is None:
        raise answers.BrokenAnswer("a job has no id")
    return found
