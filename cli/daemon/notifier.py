"""Sends notices: webhooks over HTTP, e-mail over SMTP. What is sent when is the store's to say (`store.notices`).

A webhook's address comes from a tenant and is asked by the centre's own machine: unless the settings allow it, nothing
is sent to an address that is not public, whatever its name resolves to at that moment; redirects are not followed, and
nothing of the answer but its status is kept.
"""

import http.client
import ipaddress
import logging
import smtplib
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import urlsplit

from cli.daemon.settings import Notify, SettingsProblem
from scheduler.loop import Controller
from scheduler.notices import (
    DELIVERY_HEADER,
    EVENT_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    Channel,
    encoded,
    letter,
    signature,
)
from scheduler.store.notices import (
    MOST_AT_ONCE,
    Delivery,
    ForgetDeliveries,
    GatherNotices,
    Outcome,
    RecordOutcomes,
    due_deliveries,
    has_news,
)

logger = logging.getLogger(__name__)
MOST_SENT = 200
"""Deliveries of one round. With four senders of ten seconds at most, a round is over in nine minutes at the worst."""
SENDERS = 4
PATIENCE_SECONDS = 10.0
KEPT_MS = 30 * 86_400_000
"""How long it can be seen what became of a notice: a month."""
_TOO_MANY, _REQUEST_TIMEOUT = 429, 408


@dataclass(frozen=True, slots=True)
class Mail:
    """How e-mail leaves."""

    host: str
    port: int
    sender: str
    user: str | None = None
    password: str | None = None
    has_tls: bool = True


class Notifier:
    """Makes deliveries of what happened and sends those that are due, while this daemon leads."""

    def __init__(self, controller: Controller, mail: Mail | None, *, may_go_private: bool) -> None:
        self._controller = controller
        self._mail = mail
        self._may_go_private = may_go_private

    def look(self) -> None:
        """One round: gather, send, record."""
        controller = self._controller
        if not controller.is_leading:
            return
        while self._has_news():
            if controller.carry_out(GatherNotices()).result(timeout=30.0) < MOST_AT_ONCE:
                break
        now_ms = controller.clock.now_ms()
        with controller.database.read() as connection:
            due = due_deliveries(connection, now_ms, MOST_SENT)
        if not due:
            return
        with ThreadPoolExecutor(SENDERS, thread_name_prefix="notices") as senders:
            outcomes = tuple(senders.map(self._try, due))
        controller.carry_out(RecordOutcomes(outcomes)).result(timeout=30.0)

    def forget(self) -> None:
        """Drops what was done long ago."""
        if self._controller.is_leading:
            before_ms = self._controller.clock.now_ms() - KEPT_MS
            self._controller.carry_out(ForgetDeliveries(before_ms)).result(timeout=30.0)

    def _has_news(self) -> bool:
        with self._controller.database.read() as connection:
            return has_news(connection)

    def _try(self, delivery: Delivery) -> Outcome:
        if delivery.address is None:
            return Outcome(delivery.id, "nobody is told this way any more", is_final=True)
        send: Callable[[Delivery, str], str | None]
        send = self._post if delivery.channel is Channel.WEBHOOK else self._write
        try:
            error = send(delivery, delivery.address)
        except NotSent as problem:
            return Outcome(delivery.id, str(problem), is_final=True)
        except (OSError, http.client.HTTPException, smtplib.SMTPException) as problem:
            # Its text may repeat what a stranger's server said; the kind alone is ours to keep.
            error = _in_words(problem)
        if error is not None:
            logger.info("notice %s was not delivered, try %d: %s", delivery.id, delivery.tries + 1, error)
        return Outcome(delivery.id, error)

    def _post(self, delivery: Delivery, url: str) -> str | None:
        body = encoded(delivery.body, delivery.id)
        timestamp = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "turnstile",
            "Idempotency-Key": delivery.id,
            DELIVERY_HEADER: delivery.id,
            EVENT_HEADER: delivery.event.value,
            TIMESTAMP_HEADER: str(timestamp),
            SIGNATURE_HEADER: signature(delivery.secret or "", timestamp, body),
        }
        status = post(url, body, headers, may_go_private=self._may_go_private)
        if 200 <= status < 300:
            return None
        if 400 <= status < 500 and status not in {_TOO_MANY, _REQUEST_TIMEOUT}:
            raise NotSent(f"the receiver answered {status}")
        return f"the receiver answered {status}"

    def _write(self, delivery: Delivery, address: str) -> str | None:
        if self._mail is None:
            raise NotSent("this centre sends no e-mail")
        subject, text = letter(delivery.body)
        message = EmailMessage()
        message["Subject"], message["From"], message["To"] = subject, self._mail.sender, address
        message["Message-ID"] = f"<{delivery.id}@turnstile>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(text)
        with smtplib.SMTP(self._mail.host, self._mail.port, timeout=PATIENCE_SECONDS) as server:
            if self._mail.has_tls:
                server.starttls(context=ssl.create_default_context())
            if self._mail.user is not None:
                server.login(self._mail.user, self._mail.password or "")
            server.send_message(message)
        return None


def notifier_of(settings: Notify, controller: Controller) -> Notifier:
    """Returns the notifier of the settings. Raises SettingsProblem when the password's file cannot be read."""
    mail = None
    if settings.smtp_host is not None:
        password = None
        if settings.smtp_password_file is not None:
            try:
                password = Path(settings.smtp_password_file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                raise SettingsProblem(
                    [f"notify.smtp_password_file: {settings.smtp_password_file} cannot be read as text"]
                ) from None
        sender = settings.smtp_from or ""  # settings without one are refused
        mail = Mail(settings.smtp_host, settings.smtp_port, sender, settings.smtp_user, password, settings.smtp_tls)
    return Notifier(controller, mail, may_go_private=settings.private_addresses)


class NotSent(Exception):
    """A notice that no later try could deliver."""


def post(url: str, body: bytes, headers: dict[str, str], *, may_go_private: bool) -> int:
    """Returns the status of a POST. Raises NotSent for an address that is not to be asked, OSError, HTTPException."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    address = _address_of(host, port, may_go_private=may_go_private)
    connection = (_PinnedHTTPS if parts.scheme == "https" else _Pinned)(host, port, address)
    try:
        connection.request("POST", f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}", body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def _address_of(host: str, port: int, *, may_go_private: bool) -> str:
    """Returns the one address to connect to: looked up once, so that what was checked is what is asked."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as problem:
        raise OSError(f"no address is known for {host}") from problem
    address = str(found[0][4][0])
    if not may_go_private and not ipaddress.ip_address(address.partition("%")[0]).is_global:
        raise NotSent(f"{host} is not a public address")
    return address


class _Pinned(http.client.HTTPConnection):
    """A connection to one address, by the host's name."""

    def __init__(self, host: str, port: int, address: str) -> None:
        super().__init__(host, port, timeout=PATIENCE_SECONDS)
        self._address = address

    def connect(self) -> None:
        """Connects to the address that was checked."""
        self.sock = socket.create_connection((self._address, self.port), self.timeout)


class _PinnedHTTPS(http.client.HTTPSConnection):
    """The same over TLS: the certificate is the host's."""

    def __init__(self, host: str, port: int, address: str) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(host, port, timeout=PATIENCE_SECONDS, context=self._tls)
        self._address = address

    def connect(self) -> None:
        """Connects to the address that was checked."""
        plain = socket.create_connection((self._address, self.port), self.timeout)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)


def _in_words(problem: Exception) -> str:
    if isinstance(problem, TimeoutError):
        return "no answer in time"
    if isinstance(problem, ssl.SSLError):
        return "the receiver's certificate is not trusted"
    if isinstance(problem, ConnectionError):
        return "the connection was refused or broke"
    if isinstance(problem, smtplib.SMTPAuthenticationError):
        return "the mail server refused our name or password"
    if isinstance(problem, smtplib.SMTPException):
        return f"the mail server refused it ({type(problem).__name__})"
    return f"it could not be sent ({type(problem).__name__})"
