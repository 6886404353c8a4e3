"""What a job may cost, as the server says it without submitting: for `--max-cost` and `quote`."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import ROUND_DOWN, Decimal, InvalidOperation

from cli import answers, phrases, values
from cli.answers import BrokenAnswer, Json
from cli.errors import Refusal
from cli.session import job_in


@dataclass(frozen=True, slots=True)
class Most:
    """The most that something can cost. Exact: the server's digits, and whole multiples of them."""

    amount: Decimal
    currency: str

    def times(self, many: int) -> "Most":
        """Returns what so many of these cost."""
        return Most(self.amount * many, self.currency)

    def __str__(self) -> str:
        return phrases.money({"amount": f"{self.amount:f}", "currency": self.currency}) or ""


def most_of(answer: Json) -> Most | None:
    """Returns the most that a submission (a dry run's answer) can cost, all elements of an array; None without a price.

    Raises BrokenAnswer for what is no amount.
    """
    cost = answers.sub(job_in(answer), "max_cost")
    if cost is None:
        return None
    try:
        amount = Decimal(answers.text(cost, "amount") or "")
    except InvalidOperation:
        raise BrokenAnswer("max_cost is not an amount") from None
    return Most(amount, answers.text(cost, "currency") or "").times(answers.whole(answer, "array_size") or 1)


def check(limit: str, most: Most | None, count: int = 1) -> None:
    """Refuses what may cost more than `limit` (`--max-cost`); `most` is that of one of `count` submissions."""
    amount, currency = values.money(limit, "--max-cost")
    if most is None:
        raise Refusal(
            "--max-cost cannot be kept: no price is known for these GPUs", "without --max-cost", code="over_budget"
        )
    if currency is not None and currency != most.currency:
        raise Refusal(f"--max-cost {limit}: prices are in {most.currency}", f"--max-cost '{amount} {most.currency}'")
    whole = most.times(count)
    if whole.amount > amount:
        jobs = f" ({count} jobs, {most} each)" if count > 1 else ""
        raise Refusal(
            f"may cost {whole}{jobs}, but --max-cost allows {Most(amount, most.currency)}",
            "a shorter -t",
            f"--max-cost {whole.amount:f}",
            code="over_budget",
        )


def part(limit: str, count: int) -> dict[str, object]:
    """Returns what one of `count` submissions may cost of `--max-cost`, as the server takes it."""
    amount, currency = values.money(limit, "--max-cost")
    each = (amount / count).quantize(Decimal("0.000001"), rounding=ROUND_DOWN)
    return {"amount": f"{each:f}", "currency": currency}


def budget_lines(answer: Json, most: Most | None, *, is_dry_run: bool) -> list[str]:
    """Returns what an echo says of the budget: what it keeps when all is spent, or why it is too little."""
    found = answers.sub(answer, "budget")
    if found is None:
        return []
    if is_dry_run and found.get("fits") is False:
        return [f"  budget   no: {answers.text(found, 'message')}"]
    left, account = answers.sub(found, "left"), answers.text(found, "account")
    digits = None if left is None else answers.text(left, "amount")
    if left is None or digits is None or account is None:
        return []
    keeps = Decimal(digits) - (most.amount if most is not None else 0)
    noun = "project" if "/" in account else "tenant"
    ends = answers.text(found, "period_ends_at")
    for_month = ""
    if ends is not None and answers.text(found, "period") == "month":
        # The month is the one before the instant at which the next one begins.
        last = phrases.local(ends, answers.text(found, "zone")) - timedelta(seconds=1)
        for_month = f" for {last:%B}"
    soft = "" if found.get("is_hard") else " (soft)"
    shown = phrases.money({"amount": f"{keeps:f}", "currency": answers.text(left, "currency")})
    return [f"  budget   {noun} {account} keeps {shown}{for_month}{soft}"]


def quoted(answer: Json, count: int = 1) -> dict[str, object]:
    """Returns what `quote` says of a dry run's answer: size, hours, price, and the server's estimate of the start.

    `count`: of so many submissions, each with the elements of its array.
    """
    job = job_in(answer)
    limit, jobs = answers.whole(job, "time_limit_seconds"), count * (answers.whole(answer, "array_size") or 1)
    total = phrases.most_gpus(job) or answers.number(job, "gpus_total")
    hours = None if limit is None or total is None else Decimal(total) * jobs * limit / 3600
    one = most_of(answer)
    most = None if one is None else one.times(count)
    budget = answers.sub(answer, "budget")
    return {
        "gpus_total": job.get("gpus_total"),
        "gpu_model": job.get("gpu_model"),
        "nodes": job.get("nodes"),
        "nodes_min": job.get("nodes_min"),
        "nodes_max": job.get("nodes_max"),
        "time_limit_seconds": limit,
        "jobs": jobs,
        "gpu_hours": None if hours is None else _digits(hours),
        "max_cost": None if most is None else {"amount": f"{most.amount:f}", "currency": most.currency},
        "max_cost_at_nodes_min": _times(answers.sub(job, "max_cost_at_nodes_min"), jobs),
        "price_per_gpu_hour": _rate(most, hours),
        "start_estimate": job.get("start_estimate"),
        "reasons": job.get("reasons") or [],
        "fits_budget": None if budget is None else budget.get("fits"),
        "budget_problem": None if budget is None else budget.get("message"),
    }


def _times(cost: Json | None, count: int) -> Mapping[str, object] | None:
    """An amount for so many jobs."""
    if cost is None:
        return None
    amount = Decimal(answers.text(cost, "amount") or "0") * count
    return {"amount": f"{amount:f}", "currency": answers.text(cost, "currency")}


def _rate(most: Most | None, hours: Decimal | None) -> Mapping[str, object] | None:
    """The price of a GPU-hour, where the division says it exactly: a job that spans prices has no single one."""
    if most is None or not hours:
        return None
    rate = (most.amount / hours).quantize(Decimal("0.000001"))
    if abs(rate * hours - most.amount) > Decimal("0.01"):
        return None
    return {"amount": _digits(rate, least=2), "currency": most.currency}


def _digits(amount: Decimal, least: int = 0) -> str:
    """An amount with no more decimals than say something, and at least so many."""
    shown = f"{amount:.6f}".rstrip("0").rstrip(".")
    decimals = len(shown.partition(".")[2])
    return f"{amount:.{least}f}" if decimals < least else shown
