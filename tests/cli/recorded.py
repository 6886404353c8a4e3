"""Answers as a server gave them, in the shapes of docs/api.md, about one small centre at one fixed time."""

import base64
import json
from typing import Any

from tests.cli.peer import Json, Peer, Reply, envelope, page

POOLS: list[dict[str, object]] = [
    {
        "name": "a100",
        "gpu_model": "A100-SXM",
        "nodes": 32,
        "nodes_up": 31,
        "gpus": 256,
        "gpus_free": 12,
        "is_paused": True,
        "reason": "power works",
    },
    {
        "name": "h100-ib",
        "gpu_model": "H100-SXM",
        "nodes": 64,
        "nodes_up": 64,
        "gpus": 512,
        "gpus_free": 40,
        "is_paused": False,
        "reason": None,
    },
]
PROPOSAL: dict[str, object] = {
    "job_id": 10482,
    "gpu_model": "H100-SXM",
    "nodes": ["gpu-011"],
    "lost_gpu_seconds": 7200,
    "moves": [
        {"job_id": 10470, "gpus": 2, "from_node": "gpu-011", "to_node": "gpu-017", "lost_gpu_seconds": 7200},
    ],
}
RESERVATION: dict[str, object] = {
    "name": "switch-works",
    "start": "2026-11-23T18:00:00Z",
    "end": "2026-11-23T22:00:00Z",
    "nodes": ["gpu-001", "gpu-002"],
    "account": None,
    "reason": "new switch",
    "created_by": "root",
    "created_at": "2026-11-23T12:00:00Z",
    "is_in_force": False,
    "ended_at": None,
}


def job(**said: Any) -> Json:
    """A job of Mei's; a test says only what it is about."""
    found: Json = {
        "id": 10482,
        "array_id": None,
        "array_index": None,
        "name": "dpo-run",
        "tenant": "acme",
        "project": "nlp",
        "user": "mei",
        "state": "pending",
        "reason": None,
        "detail": None,
        "hold": None,
        "gpus_per_node": 8,
        "nodes": 8,
        "gpus_total": 64,
        "gpu_model": "H100",
        "gpu_classes": ["H100"],
        "pool": "h100-ib",
        "booking": "auto",
        "priority": "normal",
        "time_limit_seconds": 43200,
        "submitted_at": "2026-11-23T11:27:02Z",
        "started_at": None,
        "ended_at": None,
        "exit_code": None,
        "attempt": 0,
        "retries_left": 0,
        "node_names": [],
        "elapsed_seconds": None,
        "position": 2,
        "reasons": [
            {"code": "capacity", "blocking": True, "need": 64, "free": 40, "slurm": "Resources", "detail": None}
        ],
        "start_estimate": {"p50": "2026-11-23T14:20:00Z", "p90": "2026-11-23T16:10:00Z"},
        "max_cost": {"amount": "1920.00", "currency": "USD"},
        "command": ["torchrun", "train.py"],
        "labels": {},
    }
    return found | said


RUNNING = job(
    id=10431,
    name="llama-sft",
    state="running",
    nodes=4,
    gpus_total=32,
    started_at="2026-11-23T09:19:00Z",
    elapsed_seconds=11527,
    attempt=1,
    node_names=["gpu-011", "gpu-012", "gpu-013", "gpu-014"],
    reasons=[],
    start_estimate=None,
    booking="guaranteed",
)
ELEMENT = job(
    id="10490_7",
    array_id=10490,
    array_index=7,
    name="评测-sweep",
    user="ana",
    nodes=1,
    gpus_per_node=1,
    gpus_total=1,
    gpu_model="A100",
    gpu_classes=["A100"],
    time_limit_seconds=7200,
    reasons=[
        {"code": "quota_user", "blocking": True, "need": 1, "free": 0, "slurm": "QOSMaxGRESPerUser", "detail": None}
    ],
    start_estimate=None,
)
HELD = job(id=10493, name="nightly", state="held", hold="user", start_estimate=None, nodes=1, gpus_total=8) | {
    "reasons": [
        {"code": "held_user", "blocking": True, "need": None, "free": None, "slurm": "JobHeldUser", "detail": None}
    ]
}
FAILED = job(
    id=10400,
    name="=HYPERLINK(1)",
    state="failed",
    reason="exit_nonzero",
    exit_code=3,
    started_at="2026-11-22T10:00:00Z",
    ended_at="2026-11-22T11:30:00Z",
    elapsed_seconds=5400,
    attempt=1,
    reasons=[],
    start_estimate=None,
)
QUEUE = page(
    "JobList",
    [RUNNING, job(), ELEMENT, HELD],
    totals={"jobs": {"pending": 2, "held": 1, "running": 1}, "gpus_held": {"H100": 32}},
)
ME = envelope("Caller", token_id="01JD", role="user", account="acme", tenant="acme", user="mei", expires_at=None)
SUBMITTED = page("JobList", [job(position=None, reasons=[])], array_size=None, is_new=True)
WHY = envelope(
    "Explanation",
    job_id=10482,
    state="pending",
    reasons=[
        {"code": "capacity", "blocking": True, "need": 64, "free": 40, "slurm": "Resources", "detail": "5 whole nodes"},
        {"code": "order", "blocking": True, "need": None, "free": None, "slurm": "Priority", "detail": None},
    ],
    ahead_jobs=1,
    ahead_gpus=48,
    ahead=[{"id": 10477, "name": "pretrain", "account": "zen/base", "user": "li", "gpus_total": 48}],
    project_order={
        "account": "acme/nlp",
        "limit_weight": 0,
        "service_weight": 0,
        "slowdown_weight": 24,
        "takes_turns": False,
    },
    shares=[
        {
            "account": "acme",
            "gpu_model": "H100",
            "guarantee": 32,
            "limit": 128,
            "held": 32,
            "target": 88,
            "is_over_target": False,
            "debt_credits": "18.250000",
        }
    ],
    position=2,
    nodes_considered=64,
    nodes_fit=5,
    start_estimate={
        "p50": "2026-11-23T14:20:00Z",
        "p90": "2026-11-23T16:10:00Z",
        "assumed_used_ratio": 0.4,
        "is_promised": False,
        "is_measured": True,
        "pool": "h100-ib",
        "past_estimates": 200,
        "past_median_error_seconds": 240,
    },
    sooner=[
        {
            "flags": ["-N", "5", "-t", "1h"],
            "gpu_classes": ["H100"],
            "gpus_per_node": 8,
            "nodes": 5,
            "time_limit_seconds": 3600,
            "booking": "auto",
        }
    ],
)
GPUS = page(
    "GpuClassList",
    [
        {
            "gpu_model": "H100",
            "memory_bytes": 85520809984,
            "free": 40,
            "total": 512,
            "whole_nodes_free": 5,
            "whole_nodes": 64,
            "gpus_per_node": 8,
            "pending_jobs": 17,
            "price": {"amount": "2.50", "currency": "USD"},
            "held_by_tenant": 32,
        },
        {
            "gpu_model": "A100",
            "memory_bytes": 42949672960,
            "free": 0.5,
            "total": 256,
            "whole_nodes_free": 0,
            "whole_nodes": 32,
            "gpus_per_node": 8,
            "pending_jobs": 0,
            "price": None,
            "held_by_tenant": 0,
        },
    ],
)
NODES = page(
    "NodeList",
    [
        {
            "name": "gpu-011",
            "pool": "h100-ib",
            "gpu_model": "H100",
            "gpus": 8,
            "gpus_free": 0,
            "cpus": 96,
            "memory_bytes": 1_000_000_000_000,
            "availability": "up",
            "reason": None,
            "drained_by": None,
        },
        {
            "name": "gpu-017",
            "pool": "h100-ib",
            "gpu_model": "H100",
            "gpus": 8,
            "gpus_free": 8,
            "cpus": 96,
            "memory_bytes": 1_000_000_000_000,
            "availability": "draining",
            "reason": "fan 3 fails",
            "drained_by": "ops",
        },
    ],
)
EVENTS = page(
    "JobEventList",
    [
        {"at": "2026-11-23T09:00:00Z", "kind": "submitted", "detail": {}},
        {"at": "2026-11-23T09:19:00Z", "kind": "started", "detail": {"nodes": 4, "booking": "guaranteed"}},
    ],
)
ALLOCATIONS = page(
    "AllocationList",
    [
        {
            "id": "01JDA",
            "job_id": 10431,
            "attempt": 1,
            "gpu_model": "H100",
            "booking": "guaranteed",
            "phase": "running",
            "nodes": [{"name": f"gpu-0{n}", "gpus": 8, "cpus": 96, "memory_bytes": 1} for n in (11, 12, 13, 14)],
            "time_limit_seconds": 43200,
            "decided_at": "2026-11-23T09:31:07Z",
            "started_at": "2026-11-23T09:31:08Z",
            "stopping_at": None,
            "ended_at": None,
            "stop_reason": None,
            "end_reason": None,
            "exit_code": None,
            "detail": None,
        }
    ],
)
REPORT = page(
    "JobReport",
    ALLOCATIONS["items"],
    job_id=10431,
    name="llama-sft",
    account="acme/nlp",
    user="mei",
    state="completed",
    reason=None,
    exit_code=0,
    submitted_at="2026-11-23T08:50:00Z",
    waited_seconds=2460,
    time_limit_seconds=43200,
    ran_seconds=13200,
    gpu={
        "held_gpu_hours": "117.333333333",
        "measured_gpu_hours": "116.900000000",
        "coverage_ratio": 0.9963,
        "busy_percent": 91,
        "idle_gpu_hours": "2.400000000",
        "idle_percent": 2,
        "memory_max_bytes": 71_000_000_000,
        "memory_bytes": 80_000_000_000,
        "count": 32,
        "never_busy": 0,
    },
    energy={
        "kwh": "71.204000",
        "coverage_ratio": 0.9963,
        "is_estimate": True,
        "counter_restarts": 0,
        "epochs": [],
    },
    costs=[
        {
            "currency": "USD",
            "amount": "293.333333",
            "gpu_hours": "117.333333333",
            "preempted_gpu_hours": "0.000000000",
            "price_per_gpu_hour": "2.50",
            "price_book": "2026-10",
            "lines": 1,
        }
    ],
    advice=[
        {
            "code": "shorter_time",
            "message": "-t 5h would have been enough (3h40m of 12h used); shorter jobs fit into earlier gaps",
        }
    ],
)
ACCOUNTS = page(
    "AccountList",
    [
        {
            "id": "acme",
            "display_name": "Acme Robotics",
            "parent": None,
            "weight": 2,
            "guarantee": {"H100": 32},
            "limit": {"H100": 128},
            "user_limit": {"H100": 16},
            "running_limit": 200,
            "pending_limit": None,
            "high_limit": None,
            "limit_weight": 0,
            "service_weight": 0,
            "slowdown_weight": 0,
            "takes_turns": False,
            "guaranteed_yields": False,
            "is_suspended": False,
        },
        {
            "id": "acme/nlp",
            "display_name": "acme/nlp",
            "parent": "acme",
            "weight": 1,
            "guarantee": {},
            "limit": {},
            "user_limit": {},
            "running_limit": None,
            "pending_limit": None,
            "high_limit": None,
            "limit_weight": 0,
            "service_weight": 0,
            "slowdown_weight": 0,
            "takes_turns": False,
            "guaranteed_yields": False,
            "is_suspended": True,
        },
    ],
)
USERS = page(
    "UserList",
    [
        {"user": "mei", "account": "acme", "role": "tenant_admin", "may_use_high": False},
        {"user": "jon", "account": "acme/nlp", "role": "user", "may_use_high": True},
    ],
)
TOKENS = page(
    "TokenList",
    [
        {
            "id": "01JDT",
            "role": "operator",
            "account": "",
            "user": "ops",
            "created_at": "2026-11-01T00:00:00Z",
            "expires_at": None,
            "revoked_at": None,
        }
    ],
)
PRICES = page(
    "PriceBookList",
    [
        {
            "version": "2026-11",
            "effective_ms": 1793491200000,
            "currency": "USD",
            "state": "published",
            "sha256": "ab" * 32,
        }
    ],
)
AGENTS = page(
    "AgentList",
    [
        {
            "node": "gpu-017",
            "version": "1.0",
            "collector": "nvml",
            "driver_version": "570.86.15",
            "first_heard_at": "2026-11-01T00:00:00.000Z",
            "last_heard_at": "2026-11-23T12:31:00.000Z",
            "is_silent": False,
            "silent_after_seconds": 60,
            "clock_skew_seconds": 0.012,
            "gpus": 8,
            "gpus_ill": 1,
            "problems": ["GPU 3: XID 79"],
        }
    ],
)
NODE_HISTORY = page(
    "NodeHistory",
    [
        {
            "gpu": 0,
            "device": "GPU-1",
            "from": "2026-11-23T09:00:00Z",
            "to": "2026-11-23T12:00:00Z",
            "state": "allocated",
            "cause": None,
            "gpus": 1,
            "job_id": 10431,
            "tenant": "acme",
        }
    ],
)
SOUND = envelope("LedgerReport", is_sound=True, failures=[], counts={"rows": 1200, "devices": 64})
UNSOUND = envelope(
    "LedgerReport",
    is_sound=False,
    failures=[{"check": "chain", "where": "sequence 17", "what": "expected ab, found cd"}],
    counts={},
)


def stream(*chunks: bytes, attempt: int = 1, start: int = 0, is_complete: bool = True) -> Reply:
    """A job's output as server-sent events; without an end event where the stream broke off."""
    events, offset = [], start
    for chunk in chunks:
        data = json.dumps({"offset": offset, "data_base64": base64.b64encode(chunk).decode()})
        offset += len(chunk)
        events.append(f"id: {offset}\ndata: {data}\n\n")
    if is_complete:
        events.append(f"event: end\nid: {offset}\ndata: {json.dumps({'offset': offset, 'attempt': attempt})}\n\n")
    return Reply(
        (": hello\n\n" + "".join(events)).encode(),
        headers={"Content-Type": "text/event-stream"},
        breaks_off=not is_complete,
    )


def ended(**how: Any) -> Json:
    """A job that has ended, as the wait answers it."""
    facts: Json = {"state": "completed", "exit_code": 0, "started_at": "2026-11-23T12:00:00Z", "attempt": 1}
    return envelope("Job", **(job(reasons=[], start_estimate=None) | facts | how))


def on_one_node(peer: Peer) -> None:
    """Lets job 10482, and what is submitted, take one node: its output has no ranks before its lines."""
    small = {"nodes": 1, "gpus_total": 8}
    peer.answers("GET", "/v1/jobs/10482", envelope("Job", **job(**small)))
    peer.answers("POST", "/v1/jobs", {**SUBMITTED, "items": [{**SUBMITTED["items"][0], **small}]})


INCIDENT: Json = {
    "id": "node_lost/gpu-017/2026-11-22T08:00:00.250Z",
    "reason": "node_lost",
    "node": "gpu-017",
    "began_at": "2026-11-22T07:58:12.000Z",
    "tenants": ["acme", "globex"],
    "allocations": [
        {"allocation": f"01JD{n}", "job_id": 10400 + n, "account": account, "ended_at": "2026-11-22T07:58:12.000Z"}
        for n, account in enumerate(("acme/nlp", "globex/vision"))
    ],
}
UNKNOWN = page(
    "UnknownList",
    [
        {
            "device": "GPU-5e1f",
            "lane": 0,
            "gpu_model": "H100",
            "from": "2026-11-23T09:00:00.000Z",
            "to": "2026-11-23T09:12:30.500Z",
            "cause": "silent",
            "gpu_hours": "0.208472222",
            "sequence": 4711,
        }
    ],
)


PERIOD = {
    "period": "2026-10",
    "status": "closed",
    "from": "2026-09-30T16:00:00.000Z",
    "to": "2026-10-31T16:00:00.000Z",
    "zone": "Asia/Shanghai",
    "closes_from": "2026-11-03T16:00:00.000Z",
    "closed_at": "2026-11-04T01:30:00.000Z",
    "closed_by": "mei",
    "manifest_sha256": "5e1f" * 16,
    "seal": "a0b1" * 16,
}
OPEN_PERIOD = PERIOD | {
    "period": "2026-11",
    "status": "open",
    "from": "2026-10-31T16:00:00.000Z",
    "to": "2026-11-30T16:00:00.000Z",
    "closes_from": "2026-12-03T16:00:00.000Z",
    "closed_at": None,
    "closed_by": None,
    "manifest_sha256": None,
    "seal": None,
}


def centre(peer: Peer) -> None:
    """Lets a peer answer as the whole of the small centre."""
    peer.answers("GET", "/v1/whoami", ME)
    peer.answers("GET", "/v1/version", envelope("Version", version="0.1.0", api="turnstile/v1", is_leading=True))
    peer.answers("GET", "/readyz", envelope("Health", is_ready=True, problems=[]))
    peer.answers("GET", "/v1/jobs", QUEUE)
    peer.answers("POST", "/v1/jobs", SUBMITTED)
    peer.answers("GET", "/v1/jobs/10482", envelope("Job", **job()))
    peer.answers("GET", "/v1/jobs/10431", envelope("Job", **RUNNING))
    peer.answers("GET", "/v1/jobs/10482/why", WHY)
    peer.answers("GET", "/v1/jobs/10431/events", EVENTS)
    peer.answers("GET", "/v1/jobs/10431/allocations", ALLOCATIONS)
    peer.answers("GET", "/v1/jobs/10431/report", REPORT)
    peer.answers("GET", "/v1/jobs/10482/wait", ended(state="failed", reason="exit_nonzero", exit_code=3))
    peer.answers(
        "GET",
        "/v1/jobs/10482/logs",
        Reply(b"epoch 1\nepoch 2\n", headers={"Turnstile-Next-Offset": "16", "Turnstile-Log-Complete": "false"}),
        Reply(b"", headers={"Turnstile-Next-Offset": "16", "Turnstile-Log-Complete": "true"}),
    )
    for verb, did in (
        ("cancel", "cancelled"),
        ("hold", "held"),
        ("release", "released"),
        ("requeue", "requeued"),
        ("checkpoint", "checkpointed"),
        ("update", "changed"),
    ):
        peer.answers(
            "POST", f"/v1/jobs/{verb}", page("JobActionList", [{"id": 10482, "did": did, "state": "cancelled"}])
        )
    peer.answers("GET", "/v1/gpus", GPUS)
    peer.answers("GET", "/v1/nodes", NODES)
    peer.answers("GET", "/v1/admin/accounts", ACCOUNTS)
    for name, terms in (("acme", ACCOUNTS["items"][0]), ("acme/vision", {}), ("beta", {})):
        peer.answers("PUT", f"/v1/admin/accounts/{name}", envelope("Account", **{**terms, "id": name}))
    for verb, is_suspended in (("suspend", True), ("resume", False)):
        terms = {**ACCOUNTS["items"][0], "is_suspended": is_suspended}
        peer.answers("POST", f"/v1/admin/accounts/acme/{verb}", envelope("Account", **terms, jobs_stopped=0))
    peer.answers("DELETE", "/v1/admin/accounts/acme/old", envelope("AccountRemoved", id="acme/old"))
    peer.answers("GET", "/v1/admin/users", USERS)
    peer.answers("PUT", "/v1/admin/users", envelope("User", **USERS["items"][0], did_change=True))
    removed = envelope("UserRemoved", account="acme", user="mei", tokens_revoked=2)
    peer.answers("DELETE", "/v1/admin/users", removed)
    for path in ("/v1/tokens", "/v1/admin/tokens"):
        peer.answers("GET", path, TOKENS)
        peer.answers("POST", path, envelope("Token", **TOKENS["items"][0], secret="tst_made-just-now"))
        peer.answers("DELETE", f"{path}/01JDT", envelope("TokenRevoked", id="01JDT", was_valid=True))
    peer.answers("GET", "/v1/admin/prices", PRICES)
    peer.answers("POST", "/v1/admin/prices", envelope("PriceBook", **PRICES["items"][0]))
    for verb in ("drain", "resume"):
        peer.answers("POST", f"/v1/admin/nodes/gpu-017/{verb}", envelope("NodeDrain", name="gpu-017", reason=None))
    peer.answers("GET", "/v1/admin/nodes/gpu-017/history", NODE_HISTORY)
    peer.answers("GET", "/v1/admin/agents", AGENTS)
    peer.answers("GET", "/v1/pools", page("PoolList", POOLS))
    for verb in ("pause", "resume"):
        peer.answers("POST", f"/v1/admin/{verb}", page("PoolList", POOLS, changed=["a100"]))
    moved = envelope("PoolNodes", name="h100-ib", moved=["gpu-001", "gpu-002"])
    peer.answers("PUT", "/v1/admin/pools/h100-ib/nodes", moved)
    peer.answers("GET", "/v1/admin/defrag", page("DefragProposalList", [PROPOSAL]))
    peer.answers("GET", "/v1/reservations", page("ReservationList", [RESERVATION]))
    peer.answers("POST", "/v1/admin/reservations", envelope("Reservation", **RESERVATION, overrunning_jobs=[10431]))
    peer.answers("DELETE", "/v1/admin/reservations/switch-works", envelope("Reservation", **RESERVATION))
    peer.answers("GET", "/v1/admin/ledger/verify", SOUND)
    peer.answers("GET", "/v1/admin/ledger/unknown", UNKNOWN)
    peer.answers("GET", "/v1/admin/ledger/incidents", page("IncidentList", [INCIDENT]))
    peer.answers("GET", "/v1/admin/ledger/periods", page("PeriodList", [PERIOD, OPEN_PERIOD]))
    peer.answers("POST", "/v1/admin/ledger/close", envelope("Period", **PERIOD))
    peer.answers("POST", "/v1/admin/ledger/correct", envelope("Corrected", corrections=2, line_id=None))
    peer.answers("POST", "/v1/admin/ledger/reclassify", envelope("Reclassified", did_change=True))
