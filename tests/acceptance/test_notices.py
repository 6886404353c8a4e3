"""Notices of a real daemon, received by a real web server and a real mail server on this machine."""

import hashlib
import hmac
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tests.acceptance.conftest import MakeDaemon
from tests.acceptance.daemons import Daemon, Ran, until

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(200)]


@dataclass
class Inbox:
    """What was received; `answers` are the statuses to give, the last for ever."""

    answers: list[int] = field(default_factory=lambda: [200])
    posts: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    letters: list[str] = field(default_factory=list)
    hook: str = ""
    mail_port: int = 0

    def events(self) -> list[tuple[str, str]]:
        bodies: list[Any] = [json.loads(body) for _, body in self.posts]
        return [(body["event"], body["job"]["id"]) for body in bodies if body["job"] is not None]


@contextmanager
def receiving() -> Iterator[Inbox]:
    """Runs a web server and a mail server that keep what they get."""
    inbox = Inbox()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            inbox.posts.append((dict(self.headers), body))
            self.send_response(inbox.answers.pop(0) if len(inbox.answers) > 1 else inbox.answers[0])
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
            """Says nothing."""

    class Mail(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            while line := self.rfile.readline():
                word = line.split()[0].upper() if line.split() else b""
                if word == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines = iter(self.rfile.readline, b".\r\n")
                    inbox.letters.append(b"".join(lines).decode())
                self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 fine\r\n")

    web, mail = HTTPServer(("127.0.0.1", 0), Hook), socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail)
    servers: list[socketserver.BaseServer] = [web, mail]
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    inbox.hook = f"http://127.0.0.1:{web.server_port}/turnstile?team=nlp"
    inbox.mail_port = int(mail.socket.getsockname()[1])
    yield inbox
    for server in servers:
        server.shutdown()
        server.server_close()


def started(make_daemon: MakeDaemon, inbox: Inbox, *, private: str = "true") -> Daemon:
    settings = {
        "TURNSTILE_NOTIFY_PRIVATE_ADDRESSES": private,
        "TURNSTILE_NOTIFY_SMTP_HOST": "127.0.0.1",
        "TURNSTILE_NOTIFY_SMTP_PORT": str(inbox.mail_port),
        "TURNSTILE_NOTIFY_SMTP_FROM": "turnstile@park.example",
        "TURNSTILE_NOTIFY_SMTP_TLS": "false",
    }
    return make_daemon("centre", settings=settings).start().set_up()


def type_as_mei(daemon: Daemon, *words: str) -> Ran:
    return daemon.turnstile(*words, who="mei", code=None)


def test_notices_are_signed_tried_again_and_survive_the_daemon(make_daemon: MakeDaemon) -> None:
    with receiving() as inbox:
        inbox.answers = [503, 200]
        daemon = started(make_daemon, inbox)
        made = type_as_mei(daemon, "notify", "set", "--webhook", inbox.hook, "--events", "end,fail", "-o", "json")
        secret = made.json["secret"]
        assert secret not in type_as_mei(daemon, "notify", "show", "-o", "json").out
        job = daemon.submit("false", time_limit_seconds=60)["id"]
        daemon.wait_for(job, "failed")
        until(lambda: inbox.posts, "the first try")
        daemon.kill()
        daemon.start()
        until(lambda: len(inbox.posts) >= 2, "the second try")
        headers, body = inbox.posts[-1]
        assert len({post["Turnstile-Delivery"] for post, _ in inbox.posts}) == 1
        signed = f"{headers['Turnstile-Timestamp']}.".encode() + body
        expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
        assert headers["Turnstile-Signature"] == f"sha256={expected}"
        notice = json.loads(body)
        assert (notice["kind"], notice["event"], notice["id"]) == ("Notice", "fail", headers["Turnstile-Delivery"])
        told = notice["job"]
        assert (told["id"], told["reason"], told["exit_code"]) == (str(job), "exit_nonzero", 1)
        until(lambda: "delivered" in type_as_mei(daemon, "notify", "show").out, "the outcome is told")
        daemon.assert_no_trace_in_log()


def test_a_job_says_what_it_wants_told_and_e_mail_is_written(make_daemon: MakeDaemon) -> None:
    with receiving() as inbox:
        daemon = started(make_daemon, inbox)
        type_as_mei(daemon, "notify", "set", "--webhook", inbox.hook, "--email", "mei@acme.example", "--events", "fail")
        ran = type_as_mei(daemon, "submit", "-q", "-g", "1", "-t", "1m", "--notify", "start,end", "--", "true")
        job = ran.out.strip()
        until(lambda: len(inbox.posts) >= 2 and len(inbox.letters) >= 2, "start and end, both ways")
        assert sorted(inbox.events()) == [("end", job), ("start", job)]
        letter = next(each for each in inbox.letters if "ended" in each)
        assert f"Subject: Turnstile: ended: job {job} true" in letter
        assert "To: mei@acme.example" in letter
        assert type_as_mei(daemon, "notify", "test").code == 0
        until(lambda: len(inbox.letters) >= 3, "the test")


def test_a_webhook_never_reaches_into_the_centres_own_network_unless_it_is_allowed(make_daemon: MakeDaemon) -> None:
    with receiving() as inbox:
        daemon = started(make_daemon, inbox, private="false")
        type_as_mei(daemon, "notify", "set", "--webhook", inbox.hook)
        type_as_mei(daemon, "notify", "test")
        shown = until(
            lambda: "given up" in (out := type_as_mei(daemon, "notify", "show").out) and out, "it is given up"
        )
        assert "127.0.0.1 is not a public address" in str(shown)
        assert inbox.posts == []


REFUSED = (
    (("--webhook", "ftp://x.example"), 3, "must be an address such as https://"),
    (("--webhook", "https://me:pw@x.example"), 3, "must not hold a name or password"),
    (("--email", "nobody"), 3, "must be an address such as mei@"),
    (("--webhook", "https://x.example", "--events", "endd"), 2, "endd"),
    ((), 2, "--off"),
    (("--tenant", "--webhook", "https://x.example"), 5, "role"),
)


def test_what_cannot_be_meant_is_refused_in_words(daemon: Daemon) -> None:
    for words, code, said in REFUSED:
        ran = type_as_mei(daemon, "notify", "set", *words)
        assert ran.code == code, ran
        assert said in ran.err, ran
