"""One command line for each verb, and how it is refused: what `test_golden.py` carries out and writes down."""

import tarfile
from collections.abc import Callable
from dataclasses import dataclass

from cli.commands.you import installed_version
from tests.cli.conftest import Home
from tests.cli.peer import Peer, envelope, page, said
from tests.cli.recorded import AGENTS, FAILED, ended, on_one_node, stream
from tests.cli.test_ledger import tar

Words = tuple[str, ...]
SUBMIT = ("-g", "H100:8", "-N", "8", "-t", "12h", "-n", "dpo-run")
ADMIN_ACME = ("PUT", "/v1/admin/accounts/acme")
ACCOUNTS_ARE_READ = ("GET", "/v1/admin/accounts")
PRICES = 'version = "2026-12"\ncurrency = "USD"\neffective = 2026-12-01T00:00:00Z\n[prices.H100]\nburst = "2.50"\n'


def _nothing(_home: Home, _peer: Peer) -> None:
    """The recorded centre is telling enough."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is typed, how it ends, and what goes wrong in its error case: a request refused, or other words."""

    words: Words
    refused: tuple[str, str] | None = None
    """The request that a server refuses (`not_allowed`, exit 5)."""
    wrong: Words | None = None
    """What is typed instead where no server is asked, or where its refusal would say nothing of the verb."""
    code: int = 0
    wrong_code: int = 5
    prepare: Callable[[Home, Peer], None] = _nothing


def _history(_home: Home, peer: Peer) -> None:
    peer.answers("GET", "/v1/jobs", page("JobList", [FAILED]))


def _logs(_home: Home, peer: Peer) -> None:
    on_one_node(peer)


def _run(_home: Home, peer: Peer) -> None:
    on_one_node(peer)
    peer.answers("GET", "/v1/jobs/10482/logs", stream(b"epoch 1\n", b"epoch 2\n"))
    peer.answers("GET", "/v1/jobs/10482/wait", ended(state="failed", reason="exit_nonzero", exit_code=3))


def _doctor(_home: Home, peer: Peer) -> None:
    known = envelope("Version", version=installed_version(), api="turnstile/v1", is_leading=True)
    peer.answers("GET", "/v1/version", known)


def _tar(path: str) -> Callable[[Home, Peer], None]:
    def prepare(_home: Home, peer: Peer) -> None:
        members = ((tarfile.TarInfo(name), b"") for name in ("usage.csv", "manifest.json"))
        peer.answers("GET", path, tar(*members))

    return prepare


def _contexts(home: Home, peer: Peer) -> None:
    for name in ("lab", "prod"):
        home.turnstile("login", peer.url, "--context", name, "--token-file", str(home.token_file))


def _file(name: str, content: str) -> Callable[[Home, Peer], None]:
    def prepare(home: Home, _peer: Peer) -> None:
        (home.path / name).write_text(content)

    return prepare


def _new_account(path: str) -> Callable[[Home, Peer], None]:
    def prepare(_home: Home, peer: Peer) -> None:
        peer.answers("PUT", f"/v1/admin/accounts/{path}", envelope("Account", id=path, weight=1, is_suspended=False))
        peer.answers("DELETE", f"/v1/admin/accounts/{path}", envelope("AccountRemoved", id=path))

    return prepare


def _project(_home: Home, peer: Peer) -> None:
    terms = envelope("Account", id="acme/nlp", display_name="acme/nlp", weight=3, is_suspended=True)
    peer.answers("PUT", "/v1/admin/accounts/acme/nlp", terms)
    peer.answers("POST", "/v1/admin/accounts/acme/nlp/suspend", said(terms | {"jobs_stopped": 2}))


def _agent(_home: Home, peer: Peer) -> None:
    forgotten = envelope("AgentForgotten", **AGENTS["items"][0])
    peer.answers("DELETE", "/v1/admin/agents/gpu-017", forgotten)


JOBS = {
    "submit": Case(("submit", *SUBMIT, "--", "torchrun", "train.py"), ("POST", "/v1/jobs")),
    "submit-dry-run": Case(("submit", "--dry-run", *SUBMIT, "--", "torchrun"), ("POST", "/v1/jobs")),
    "run": Case(("run", "-t", "1h", "--", "./x"), ("POST", "/v1/jobs"), code=3, prepare=_run),
    "quote": Case(("quote", *SUBMIT), ("POST", "/v1/jobs")),
    "queue": Case(("queue",), ("GET", "/v1/jobs")),
    "queue-wide": Case(("queue", "-o", "wide"), ("GET", "/v1/jobs")),
    "show": Case(("show", "10482"), ("GET", "/v1/jobs/10482")),
    "why": Case(("why", "10482"), ("GET", "/v1/jobs/10482/why")),
    "logs": Case(("logs", "10482"), ("GET", "/v1/jobs/10482/logs"), prepare=_logs),
    "history": Case(("history", "--since", "2026-11-16"), ("GET", "/v1/jobs"), prepare=_history),
    "history-of-one": Case(("history", "10431"), ("GET", "/v1/jobs/10431/events")),
    "report": Case(("report", "10431"), ("GET", "/v1/jobs/10431/report")),
    "wait": Case(("wait", "10482"), ("GET", "/v1/jobs/10482/wait"), code=3),
    "cancel": Case(("cancel", "-y", "10482"), ("POST", "/v1/jobs/cancel")),
    "hold": Case(("hold", "-y", "10482"), ("POST", "/v1/jobs/hold")),
    "release": Case(("release", "-y", "10482"), ("POST", "/v1/jobs/release")),
    "requeue": Case(("requeue", "-y", "10482"), ("POST", "/v1/jobs/requeue")),
    "checkpoint": Case(("checkpoint", "10482"), ("POST", "/v1/jobs/checkpoint")),
    "update": Case(("update", "10482", "-t", "2h"), ("POST", "/v1/jobs/update")),
    "exec": Case(("exec", "10482"), wrong=("exec", "10482"), wrong_code=2),
    "port-forward": Case(("port-forward", "10482", "0:8888"), ("GET", "/v1/jobs/10482/port")),
    "top": Case(("top",), wrong=("top", "--every", "5"), wrong_code=2),
    "quota": Case(("quota",), ("GET", "/v1/quota")),
    "quota-wide": Case(("quota", "-o", "wide"), ("GET", "/v1/quota")),
    "budget": Case(("budget",), ("GET", "/v1/budgets")),
    "usage": Case(("usage",), ("GET", "/v1/usage")),
    "billing-list": Case(("billing", "list"), ("GET", "/v1/billing")),
    "billing-download": Case(
        ("billing", "download", "2026-10", "october"),
        ("GET", "/v1/billing/2026-10"),
        prepare=_tar("/v1/billing/2026-10"),
    ),
    "gpus": Case(("gpus",), ("GET", "/v1/gpus")),
    "nodes": Case(("nodes",), ("GET", "/v1/nodes")),
}
YOURS = {
    "login": Case(
        ("login", "PEER", "--context", "prod", "--token-file", "token"),
        wrong=("login", "PEER", "--token-file", "none"),
        wrong_code=5,
    ),
    "logout": Case(("logout",), wrong=("logout", "--context", "nowhere"), wrong_code=2, prepare=_contexts),
    "whoami": Case(("whoami",), ("GET", "/v1/whoami")),
    "token-create": Case(("token", "create", "--expires", "30d"), ("POST", "/v1/tokens")),
    "token-list": Case(("token", "list"), ("GET", "/v1/tokens")),
    "token-revoke": Case(("token", "revoke", "01JDT"), ("DELETE", "/v1/tokens/01JDT")),
    "secret-set": Case(("secret", "set", "HF_TOKEN", "--from-file", "token"), ("PUT", "/v1/secrets/HF_TOKEN")),
    "secret-list": Case(("secret", "list"), ("GET", "/v1/secrets")),
    "secret-rm": Case(("secret", "rm", "HF_TOKEN"), ("DELETE", "/v1/secrets/HF_TOKEN")),
    "notify-set": Case(("notify", "set", "--webhook", "https://hooks.acme.example/t"), ("PUT", "/v1/notify")),
    "notify-show": Case(("notify", "show"), ("GET", "/v1/notify")),
    "notify-test": Case(("notify", "test"), ("POST", "/v1/notify/test")),
    "context-list": Case(("context", "list"), wrong=("context", "list", "--all"), wrong_code=2, prepare=_contexts),
    "context-use": Case(("context", "use", "lab"), wrong=("context", "use", "labb"), wrong_code=2, prepare=_contexts),
    "context-show": Case(
        ("context", "show"), wrong=("context", "show", "--context", "x"), wrong_code=2, prepare=_contexts
    ),
    "demo": Case(("demo",), wrong=("demo", "--keeep", "DIR"), wrong_code=2),
    "serve": Case(("serve",), wrong=("serve", "--config", "none.toml"), wrong_code=3),
    "agent": Case(("agent",), wrong=("agent", "--spool-limit", "many"), wrong_code=2),
    "doctor": Case(("doctor",), ("GET", "/v1/whoami"), prepare=_doctor),
    "schema-job": Case(("schema", "job"), wrong=("schema", "jobs"), wrong_code=2),
    "completion": Case(("completion", "bash"), wrong=("completion", "tcsh"), wrong_code=2),
    "version": Case(("version",), wrong=("version", "--short"), wrong_code=2),
}
ACCOUNTS = {
    "admin-tenant-create": Case(
        ("admin", "tenant", "create", "globex", "--weight", "1"),
        ("PUT", "/v1/admin/accounts/globex"),
        prepare=_new_account("globex"),
    ),
    "admin-tenant-list": Case(("admin", "tenant", "list"), ACCOUNTS_ARE_READ),
    "admin-tenant-show": Case(("admin", "tenant", "show", "acme"), ACCOUNTS_ARE_READ),
    "admin-tenant-set": Case(("admin", "tenant", "set", "acme", "--weight", "3"), ADMIN_ACME),
    "admin-tenant-suspend": Case(("admin", "tenant", "suspend", "acme"), ("POST", "/v1/admin/accounts/acme/suspend")),
    "admin-tenant-remove": Case(
        ("admin", "tenant", "remove", "globex"),
        ("DELETE", "/v1/admin/accounts/globex"),
        prepare=_new_account("globex"),
    ),
    "admin-project-create": Case(
        ("admin", "project", "create", "acme/speech"),
        ("PUT", "/v1/admin/accounts/acme/speech"),
        prepare=_new_account("acme/speech"),
    ),
    "admin-project-list": Case(("admin", "project", "list"), ACCOUNTS_ARE_READ),
    "admin-project-show": Case(("admin", "project", "show", "acme/nlp"), ACCOUNTS_ARE_READ),
    "admin-project-set": Case(
        ("admin", "project", "set", "acme/nlp", "--weight", "3"),
        ("PUT", "/v1/admin/accounts/acme/nlp"),
        prepare=_project,
    ),
    "admin-project-suspend": Case(
        ("admin", "project", "suspend", "acme/nlp", "--drain"),
        ("POST", "/v1/admin/accounts/acme/nlp/suspend"),
        prepare=_project,
    ),
    "admin-project-remove": Case(("admin", "project", "remove", "acme/old"), ("DELETE", "/v1/admin/accounts/acme/old")),
    "admin-quota-set": Case(("admin", "quota", "set", "acme", "--running", "200"), ADMIN_ACME),
    "admin-quota-list": Case(("admin", "quota", "list", "-o", "wide"), ACCOUNTS_ARE_READ),
    "admin-user-create": Case(("admin", "user", "create", "ana", "-A", "acme"), ("POST", "/v1/admin/tokens")),
    "admin-user-list": Case(("admin", "user", "list"), ("GET", "/v1/admin/users")),
    "admin-user-set": Case(("admin", "user", "set", "mei", "-A", "acme", "--high"), ("PUT", "/v1/admin/users")),
    "admin-user-remove": Case(("admin", "user", "remove", "mei", "-A", "acme"), ("DELETE", "/v1/admin/users")),
    "admin-apply": Case(
        ("admin", "apply", "-f", "centre.toml", "-y"),
        ("POST", "/v1/admin/apply"),
        prepare=_file("centre.toml", "[accounts.acme]\nguarantee = { H100 = 32 }\n"),
    ),
    "admin-token-create": Case(
        ("admin", "token", "create", "-u", "ops", "--role", "operator"), ("POST", "/v1/admin/tokens")
    ),
    "admin-token-list": Case(("admin", "token", "list"), ("GET", "/v1/admin/tokens")),
    "admin-token-revoke": Case(("admin", "token", "revoke", "01JDT"), ("DELETE", "/v1/admin/tokens/01JDT")),
}
CENTRE = {
    "admin-job-cancel": Case(("admin", "job", "cancel", "-y", "10482"), ("POST", "/v1/jobs/cancel")),
    "admin-job-requeue": Case(("admin", "job", "requeue", "-y", "10482"), ("POST", "/v1/jobs/requeue")),
    "admin-job-boost": Case(("admin", "job", "boost", "10482"), ("POST", "/v1/jobs/update")),
    "admin-job-explain": Case(("admin", "job", "explain", "10482"), ("GET", "/v1/jobs/10482/why")),
    "admin-node-list": Case(("admin", "node", "list"), ("GET", "/v1/nodes")),
    "admin-node-drain": Case(
        ("admin", "node", "drain", "gpu-017", "-r", "fan"), ("POST", "/v1/admin/nodes/gpu-017/drain")
    ),
    "admin-node-resume": Case(("admin", "node", "resume", "gpu-017"), ("POST", "/v1/admin/nodes/gpu-017/resume")),
    "admin-node-history": Case(("admin", "node", "history", "gpu-017"), ("GET", "/v1/admin/nodes/gpu-017/history")),
    "admin-k8s-check": Case(
        ("admin", "k8s", "check"), wrong=("admin", "k8s", "check", "--kubeconfig", "none"), wrong_code=2
    ),
    "admin-agent-list": Case(("admin", "agent", "list"), ("GET", "/v1/admin/agents")),
    "admin-agent-forget": Case(
        ("admin", "agent", "forget", "gpu-017"), ("DELETE", "/v1/admin/agents/gpu-017"), prepare=_agent
    ),
    "admin-pool-list": Case(("admin", "pool", "list"), ("GET", "/v1/pools")),
    "admin-pool-set": Case(
        ("admin", "pool", "set", "h100-ib", "--node", "gpu-001", "--node", "gpu-002"),
        ("PUT", "/v1/admin/pools/h100-ib/nodes"),
    ),
    "admin-pause": Case(("admin", "pause", "a100", "-r", "power works"), ("POST", "/v1/admin/pause")),
    "admin-resume": Case(("admin", "resume"), ("POST", "/v1/admin/resume")),
    "admin-defrag": Case(("admin", "defrag"), ("GET", "/v1/admin/defrag")),
    "admin-reserve-create": Case(
        ("admin", "reserve", "create", "switch-works", "--node", "gpu-001", "--node", "gpu-002", "--for", "4h"),
        ("POST", "/v1/admin/reservations"),
    ),
    "admin-reserve-list": Case(("admin", "reserve", "list"), ("GET", "/v1/reservations")),
    "admin-reserve-cancel": Case(
        ("admin", "reserve", "cancel", "switch-works"), ("DELETE", "/v1/admin/reservations/switch-works")
    ),
    "admin-dashboards-export": Case(
        ("admin", "dashboards", "export", "out"),
        wrong=("admin", "dashboards", "export", "out", "--format", "helm"),
        wrong_code=2,
    ),
    "admin-backup": Case(
        ("admin", "backup", "x.db"), wrong=("admin", "backup", "x.db", "--data-dir", "none"), wrong_code=4
    ),
    "admin-restore": Case(
        ("admin", "restore", "x.db"), wrong=("admin", "restore", "x.db", "--data-dir", "none"), wrong_code=4
    ),
    "admin-state-dump": Case(("admin", "state", "dump", "now.json"), ("GET", "/v1/admin/state")),
    "admin-state-load": Case(("admin", "state", "load", "x"), wrong=("admin", "state", "load", "x"), wrong_code=4),
    "admin-simulate": Case(
        ("admin", "simulate"), wrong=("admin", "simulate", "--cluster", "c.toml", "--jobs", "none.csv"), wrong_code=4
    ),
}
BILLING = {
    "admin-budget-set": Case(
        ("admin", "budget", "set", "acme/nlp", "--limit", "8841"), ("PUT", "/v1/admin/budgets/acme/nlp")
    ),
    "admin-budget-list": Case(("admin", "budget", "list"), ("GET", "/v1/budgets")),
    "admin-budget-topup": Case(
        ("admin", "budget", "topup", "acme/nlp", "500"), ("POST", "/v1/admin/budgets/acme/nlp/topup")
    ),
    "admin-budget-end": Case(("admin", "budget", "end", "acme/nlp"), ("DELETE", "/v1/admin/budgets/acme/nlp")),
    "admin-price-list": Case(("admin", "price", "list"), ("GET", "/v1/admin/prices")),
    "admin-price-show": Case(("admin", "price", "show", "2026-12"), ("GET", "/v1/admin/prices/2026-12")),
    "admin-price-import": Case(
        ("admin", "price", "import", "prices.toml"),
        ("POST", "/v1/admin/price-drafts"),
        prepare=_file("prices.toml", PRICES),
    ),
    "admin-price-diff": Case(("admin", "price", "diff", "2026-11", "2026-12"), ("GET", "/v1/admin/prices/2026-12")),
    "admin-price-publish": Case(
        ("admin", "price", "publish", "2026-12"), ("POST", "/v1/admin/price-drafts/2026-12/publish")
    ),
    "admin-price-withdraw": Case(
        ("admin", "price", "withdraw", "2026-12"), ("DELETE", "/v1/admin/price-drafts/2026-12")
    ),
    "admin-package-list": Case(("admin", "package", "list"), ("GET", "/v1/admin/packages")),
    "admin-package-sell": Case(
        (
            *("admin", "package", "sell", "acme-q4", "--tenant", "acme", "--class", "H100", "--gpu-hours", "10000"),
            *("--price", "90000 USD", "--from", "2026-12-01T00:00:00Z", "--to", "2027-04-01T00:00:00Z"),
        ),
        ("POST", "/v1/admin/packages"),
    ),
    "admin-ledger-verify": Case(("admin", "ledger", "verify"), ("GET", "/v1/admin/ledger/verify")),
    "admin-ledger-export": Case(
        ("admin", "ledger", "export", "november", "--month", "2026-11", "--zone", "UTC"),
        ("GET", "/v1/admin/ledger/export"),
        prepare=_tar("/v1/admin/ledger/export"),
    ),
    "admin-ledger-check-focus": Case(
        ("admin", "ledger", "check-focus", "focus.csv"),
        wrong=("admin", "ledger", "check-focus", "none.csv"),
        code=1,
        wrong_code=4,
        prepare=_file("focus.csv", "BilledCost\n1\n"),
    ),
    "admin-ledger-periods": Case(("admin", "ledger", "periods"), ("GET", "/v1/admin/ledger/periods")),
    "admin-ledger-close": Case(("admin", "ledger", "close", "--period", "2026-10"), ("POST", "/v1/admin/ledger/close")),
    "admin-ledger-correct": Case(
        ("admin", "ledger", "correct", "--period", "2026-10"), ("POST", "/v1/admin/ledger/correct")
    ),
    "admin-ledger-incidents": Case(("admin", "ledger", "incidents"), ("GET", "/v1/admin/ledger/incidents")),
    "admin-ledger-unknown": Case(("admin", "ledger", "unknown"), ("GET", "/v1/admin/ledger/unknown")),
    "admin-ledger-reclassify": Case(
        (
            *("admin", "ledger", "reclassify", "--allocation", "A", "--ended-at", "2026-11-02T09:00:00Z"),
            *("-r", "journal"),
        ),
        ("POST", "/v1/admin/ledger/reclassify"),
    ),
}
CASES: dict[str, Case] = JOBS | YOURS | ACCOUNTS | CENTRE | BILLING
"""By name: the verb's words, and what tells it from others of the same verb."""
NEVER_PLAIN = {
    "demo": "starts a daemon and plays a minute: tests/acceptance/test_newcomer.py",
    "serve": "runs until it is stopped: tests/acceptance",
    "agent": "runs until it is stopped: tests/acceptance and tests/metering",
    "top": "takes the screen: test_screen.py has it on a terminal",
    "exec": "needs a job that runs: tests/acceptance/test_inside.py",
    "port-forward": "needs a job that runs: tests/acceptance/test_inside.py",
    "admin-k8s-check": "needs a cluster: tests/k8s",
    "admin-backup": "needs a daemon's database: test_backup.py",
    "admin-restore": "needs a copy of one: test_backup.py",
    "admin-state-dump": "needs a state: tests/acceptance/test_simulating.py",
    "admin-state-load": "needs a state: tests/acceptance/test_simulating.py",
    "admin-simulate": "prints measured times: tests/acceptance/test_simulating.py",
}
"""Verbs whose success is not written down here, and where it is proved. What they refuse is written down."""
