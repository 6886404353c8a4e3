"""Somebody with a script who submits one job after the other, through whatever happens to the daemons."""

import threading
import time

from tests.acceptance.daemons import Daemon


class Submitter(threading.Thread):
    """Submits each job until it is taken, through one daemon's address.

    Follows redirects as the command line does; a dead leader's address is a reason to ask again.
    """

    def __init__(self, ask: Daemon, others: list[Daemon], spec: dict[str, object], pause_seconds: float = 0.01) -> None:
        super().__init__()
        self.ask = ask
        self.spec = spec
        self.by_url = {each.url: each for each in others}
        self.pause_seconds = pause_seconds
        self.taken: dict[str, int] = {}
        self.refusals: set[int] = set()
        self.must_end = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.must_end.is_set():
            key = f"job {number}"
            identity = self._try(key)
            if identity is None:
                time.sleep(0.05)
                continue
            self.taken[key] = identity
            number += 1
            time.sleep(self.pause_seconds)

    def _try(self, key: str) -> int | None:
        try:
            answer = self.ask.request("POST", "/v1/jobs", self.spec, token="mei", key=key, seconds=20)
            if answer.status == 307:
                leader = self.by_url[answer.headers["location"].removesuffix("/v1/jobs")]
                there = self.ask.with_port(leader.port)
                answer = there.request("POST", "/v1/jobs", self.spec, token="mei", key=key, seconds=20)
        except OSError:
            return None
        if answer.status != 201:
            self.refusals.add(answer.status)
            return None
        return int(answer.item["id"])
