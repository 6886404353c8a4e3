"""`notify set|show|test`: where one wants to be told of jobs, and of what."""

from typing import Annotated

import typer

from cli import answers, phrases
from cli.answers import Json, number, text, texts
from cli.errors import UsageProblem
from cli.layout import Column, View
from cli.render import listed
from cli.session import Session
from cli.values import notice_events
from cli.verbs import Verb

OfTenant = Annotated[bool, typer.Option("--tenant", help="For all jobs of the tenant; its admins only.")]


def change(
    ctx: typer.Context,
    webhook: Annotated[str | None, typer.Option("--webhook", metavar="URL", help="POST notices here.")] = None,
    email: Annotated[str | None, typer.Option("--email", metavar="ADDRESS", help="Write here.")] = None,
    events: Annotated[
        str | None, typer.Option("--events", metavar="EVENT[,EVENT]", help="Of what, where a job does not say.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Be told of nothing.")] = False,
    tenant: OfTenant = False,
) -> None:
    """Say where you want to be told of your jobs, and of what. What is not named stays as it is.

    Webhooks are signed: the secret to check them with is shown once, when the webhook is set.

    Events:
      submit start end fail timeout preempt requeue idle budget80 budget100 node

    Examples:
      turnstile notify set --email mei@acme.example --events end,preempt,idle
      turnstile notify set --webhook https://hooks.acme.example/turnstile --tenant
      turnstile notify set --off
    """
    session: Session = ctx.obj
    if off == any(each is not None for each in (webhook, email, events)):
        raise UsageProblem("say what to set, or --off", "turnstile notify set --email mei@acme.example")
    query = {"tenant": "true"} if tenant else {}
    body: dict[str, object] = {}
    if not off:
        now = session.client.get("/v1/notify", query)
        body = {"webhook": webhook or text(now, "webhook"), "email": email or text(now, "email")}
        if events is not None:
            body["events"] = list(notice_events(events, "--events"))
        elif texts(now, "events"):
            body["events"] = texts(now, "events")
        if body["webhook"] is None and body["email"] is None:
            raise UsageProblem("say where to", "--webhook URL", "--email ADDRESS")
    answer = session.client.put("/v1/notify", body, query)
    lines = ["nobody is told any more"] if off else _told(answer)
    if (secret := text(answer, "secret")) is not None:
        lines.append(f"secret   {secret}   (checks webhooks; it is not shown again)")
    session.screen.document(answer, _TARGET, lines)


def show(ctx: typer.Context, tenant: OfTenant = False) -> None:
    """Tell where you are told of jobs, of what, and what became of the last notices.

    Examples:
      turnstile notify show
      turnstile notify show --tenant -o json
    """
    session: Session = ctx.obj
    answer = session.client.get("/v1/notify", {"tenant": "true"} if tenant else {})
    if session.screen.style.is_machine:
        session.screen.document(answer, _TARGET, [])
        return
    session.screen.document(answer, _TARGET, _told(answer))
    sent = answers.items(answer, "deliveries")
    if sent:
        session.screen.listing(listed("DeliveryList", [dict(each) for each in sent]), _deliveries(answer))


def send_test(ctx: typer.Context, tenant: OfTenant = False) -> None:
    """Send a test notice; `notify show` tells what became of it.

    Examples:
      turnstile notify test
    """
    session: Session = ctx.obj
    # A test that is sent twice does no harm, but the query belongs to the address.
    answer = session.client.post("/v1/notify/test", {}, query={"tenant": "true"} if tenant else {})
    count = len(texts(answer, "deliveries"))
    session.screen.document(
        answer, _TARGET, [f"{phrases.plural(count, 'test notice')} on the way: turnstile notify show"]
    )


def _told(answer: Json) -> list[str]:
    places = [f"webhook  {text(answer, 'webhook')}"] if text(answer, "webhook") else []
    places += [f"e-mail   {text(answer, 'email')}"] if text(answer, "email") else []
    if not places:
        return ["nobody is told of your jobs; try: turnstile notify set --email ADDRESS"]
    return [*places, f"events   {', '.join(texts(answer, 'events')) or 'none but what jobs ask for'}"]


def _deliveries(answer: Json) -> View:
    now = phrases.answered_at(answer)
    return View(
        columns=(
            Column("AT", lambda each: phrases.clock(text(each, "made_at"), now, has_seconds=True)),
            Column("EVENT", lambda each: text(each, "event")),
            Column("JOB", lambda each: text(each, "job_id"), is_right=True),
            Column("BY", lambda each: text(each, "channel")),
            Column("TRIES", lambda each: number(each, "tries"), is_right=True),
            Column("OUTCOME", _outcome),
        ),
        name=lambda each: text(each, "id"),
        fields=("id", "made_at", "event", "job_id", "channel", "tries", "done_at", "error"),
        empty="no notices yet",
    )


def _outcome(item: Json) -> str:
    error, is_done = text(item, "error"), text(item, "done_at") is not None
    if error is None:
        return "delivered" if is_done else "on its way"
    return f"given up: {error}" if is_done else f"tried again later: {error}"


_TARGET = View(
    columns=(
        Column("WEBHOOK", lambda each: text(each, "webhook")),
        Column("E-MAIL", lambda each: text(each, "email")),
    ),
    name=lambda each: text(each, "webhook") or text(each, "email"),
    fields=("webhook", "email", "events"),
    empty="nobody is told",
)
NOTIFY = (
    Verb("set", __name__, "change", "NOTICES", "Say where you want to be told, and of what"),
    Verb("show", __name__, "show", "NOTICES", "Tell where you are told, and of what"),
    Verb("test", __name__, "send_test", "NOTICES", "Send a test notice"),
)
"""The verbs of `notify`."""
