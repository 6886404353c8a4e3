"""A tenant's statement as one HTML page: no script, no resource of another place, the same bytes each time it is made.

Every text from outside is escaped, and the page's own policy forbids a browser to load or run anything, so that a name
can do nothing. Printed, it is black on white with tables that keep together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from metering.charts import COLOURS, Series, shares, stacked
from metering.core.civil import local_text
from metering.core.quantity import AMOUNT_DECIMALS, GPU_HOURS_DECIMALS, fixed
from metering.core.rating import LineType
from metering.manifest import Manifest
from metering.spans import zone_of
from metering.statement import OF_INVOICE, Section, StatementFold, Sums

_CLOSED = "closed"
_KINDS: Mapping[str, str] = {
    LineType.USAGE: "Use of GPUs",
    LineType.MINIMUM: "Least charges",
    LineType.ENERGY: "Surcharge for power",
    LineType.PACKAGE: "Packages of GPU-hours",
    LineType.PACKAGE_UNUSED: "Packages: not used",
    LineType.RESERVED: "Monthly fees",
    LineType.RESERVED_UNUSED: "Monthly fees: not used",
    "credit": "Credits",
    "correction": "Corrections of closed periods",
    LineType.TAX: "Tax",
    LineType.ROUNDING: "Rounding",
}
_STYLE = """
body{font:14px/1.45 system-ui,"Noto Sans CJK SC","Microsoft YaHei",sans-serif;max-width:60rem;
margin:2rem auto;color:#111}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:1.6rem 0 .4rem;border-bottom:1px solid #999}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .5rem;text-align:left;border-bottom:1px solid #ddd;overflow-wrap:anywhere}
th{font-weight:600}.n{text-align:right;white-space:nowrap}.sum td{border-top:2px solid #444;font-weight:700}
small{color:#666}.draft{border:2px solid #b00;color:#b00;padding:.4rem .8rem;font-weight:700}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}dt{color:#555}dd{margin:0;overflow-wrap:anywhere}
svg{max-width:100%}svg text{font-size:11px}.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1rem;padding:0}
@media print{body{margin:0;max-width:none;font-size:11px}table,svg,figure{break-inside:avoid}h2{break-after:avoid}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}@page{margin:15mm}}
""".strip()


@dataclass(frozen=True, slots=True)
class Source:
    """The file that a statement is made of: its name and the SHA-256 of its bytes."""

    name: str
    sha256: str


def statement_page(fold: StatementFold, manifest: Manifest, source: Source) -> str:
    """Returns the page. Raises Refused for a zone that this machine does not know."""
    is_final = manifest.period_status == _CLOSED
    kind = "Statement" if is_final else "Draft statement"
    parts = [
        f"<h1>{kind} {escape(manifest.period)}</h1>",
        "" if is_final else '<p class="draft">Draft: this period is not closed; its figures may still change.</p>',
        _head(fold, manifest),
    ]
    for section in fold.sections:
        parts += _section(section, fold.names)
    if not fold.sections:
        parts.append("<p>Nothing was used in this period.</p>")
    parts.append(_proof(manifest, source))
    title = f"{kind} {manifest.period} {fold.tenant_name}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(filter(None, parts))
    ) + "\n</body></html>\n"


def amount_html(micros: int) -> str:
    """Returns an amount with every digit: those beyond the hundredths are small."""
    digits = fixed(abs(micros), AMOUNT_DECIMALS)
    whole, _, part = digits.partition(".")
    sign = "−" if micros < 0 else ""
    return f"{sign}{int(whole):,}.{part[:2]}<small>{part[2:]}</small>"


def _head(fold: StatementFold, manifest: Manifest) -> str:
    zone = zone_of(manifest.zone)
    facts = {
        "Tenant": f"{fold.tenant_name} ({fold.tenant})" if fold.tenant_name != fold.tenant else fold.tenant,
        "Issued by": manifest.invoice_issuer,
        "From": local_text(manifest.from_ms, zone),
        "To (exclusive)": local_text(manifest.to_ms, zone),
        "Time zone of days": manifest.zone,
        "Status": manifest.period_status,
    }
    told = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<dl>{told}</dl>"


def _section(section: Section, names: Mapping[str, str]) -> list[str]:
    if not section.currency:
        hours = sum(each.hours_nano for each in section.groups.values())
        return [
            "<h2>Use without a price</h2>",
            f"<p>{_hours(hours)} GPU-hours were used for which no price was published. They are on no invoice.</p>",
            _groups(section, names),
        ]
    code = escape(section.currency)
    return [
        f"<h2>To pay: {amount_html(section.payable_micros)} {code}</h2>",
        _summary(section),
        f"<h2>By project ({code})</h2>",
        _groups(section, names),
        *_charts(section, names),
        *_singles(section),
    ]


def _summary(section: Section) -> str:
    order = [kind for kind in _KINDS if kind in section.kinds]
    order += sorted(set(section.kinds) - set(order))
    rows = []
    for kind in order:
        if kind in OF_INVOICE:
            continue
        sums = section.kinds[kind]
        rows.append((_kind(kind), str(sums.lines), _hours(sums.hours_nano), amount_html(sums.micros)))
    table = [_row(each) for each in rows]
    table.append(_row(("Before tax", "", "", amount_html(section.subtotal_micros)), "sum"))
    for kind in order:
        if kind in OF_INVOICE:
            rates = ", ".join(sorted(section.tax_rates))
            told = f"Tax at {rates}" if kind == LineType.TAX and rates else _kind(kind)
            table.append(_row((told, "", "", amount_html(section.kinds[kind].micros))))
    table.append(_row((f"To pay ({section.currency})", "", "", amount_html(section.payable_micros)), "sum"))
    return _table(("What", "Lines", "GPU-hours", "Amount"), table)


def _groups(section: Section, names: Mapping[str, str]) -> str:
    rows = []
    total = Sums()
    for key in sorted(section.groups, key=lambda each: (each.project, each.gpu_model, each.booking)):
        sums = section.groups[key]
        total.hours_nano += sums.hours_nano
        total.micros += sums.micros
        rows.append(
            _row(
                (
                    _named(key.project, names),
                    key.gpu_model,
                    key.booking,
                    _hours(sums.hours_nano),
                    amount_html(sums.list_micros),
                    amount_html(sums.discount_micros),
                    amount_html(sums.micros),
                    "not measured" if sums.idle_percent is None else f"{sums.idle_percent} %",
                ),
                texts=3,
            )
        )
    rows.append(_row(("Sum", "", "", _hours(total.hours_nano), "", "", amount_html(total.micros), ""), "sum", texts=3))
    heads = ("Project", "GPU", "Booking", "GPU-hours", "List", "Discount", "Amount", "Idle")
    return _table(heads, rows, texts=3)


def _charts(section: Section, names: Mapping[str, str]) -> Iterable[str]:
    days = sorted({day for day, _ in section.days})
    ranked = sorted(section.projects, key=lambda each: (-abs(section.projects[each].micros), each))
    shown, rest = ranked[: len(COLOURS) - 1], ranked[len(COLOURS) - 1 :]

    def series(value: str) -> list[Series]:
        def of(projects: Sequence[str]) -> tuple[int, ...]:
            found = (tuple(section.days.get((day, each)) for each in projects) for day in days)
            return tuple(sum(getattr(sums, value) for sums in group if sums is not None) for group in found)

        made = [Series(_named(each, names), of([each])) for each in shown]
        return [*made, Series(f"{len(rest)} others", of(rest))] if rest else made

    labels = [day[5:] for day in days]
    idle = {_named(each, names): section.projects[each].idle_percent for each in ranked if each}
    for title, picture in (
        (
            f"Cost by day and project ({section.currency}, before tax)",
            stacked("Cost by day and project", labels, series("micros"), 10**AMOUNT_DECIMALS),
        ),
        (
            "GPU-hours by day and project",
            stacked("GPU-hours by day and project", labels, series("hours_nano"), 10**GPU_HOURS_DECIMALS),
        ),
        (
            "Idle share by project: of the measured GPU time, in how much no kernel ran. It is billed like all other.",
            shares("Idle share by project", dict(list(idle.items())[:20])),
        ),
    ):
        if picture:
            yield f"<figure><figcaption>{escape(title)}</figcaption>{picture}</figure>"


def _singles(section: Section) -> list[str]:
    if not section.singles:
        return []
    rows = [
        _row(
            (
                row["start_local"][:10],
                _kind(row["line_type"]),
                row["project_id"],
                row["package_id"] or row["corrects_line_id"] or row.get("incident_id", "") or row["line_id"],
                amount_html(int(row["amount"].replace(".", "") or 0)),
            ),
            texts=4,
        )
        for row in section.singles
    ]
    left = section.singles_left_out
    more = f"<p>… and {left} more, which are in the sums and in the lines' file.</p>" if left else ""
    heads = ("Day", "What", "Account", "Which", "Amount")
    return ["<h2>Fees, credits and corrections</h2>", _table(heads, rows, texts=4) + more]


def _proof(manifest: Manifest, source: Source) -> str:
    books = ", ".join(f"{version} ({sha256[:12]}…)" for version, sha256 in sorted(manifest.price_books.items()))
    facts = {
        "Made from": source.name,
        "SHA-256 of it": source.sha256,
        "Price books": books or "none",
        "Ledger up to": f"{manifest.last_sequence} ({manifest.chain_head})" if manifest.chain_head else "nothing ended",
        "Who pays, version": manifest.who_pays,
    }
    told = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return (
        f"<h2>How to check it</h2><dl>{told}</dl><p>Every amount here is a sum of lines of that file. Small digits are"
        " beyond the hundredths; only what is to be paid is rounded, once.</p>"
    )


def _kind(kind: str) -> str:
    return _KINDS.get(kind, kind)


def _named(project: str, names: Mapping[str, str]) -> str:
    name = names.get(project, "")
    return f"{name} ({project})" if name and name != project else project or "of the tenant"


def _hours(nano: int) -> str:
    whole, _, part = fixed(abs(nano), GPU_HOURS_DECIMALS).partition(".")
    return f"{'−' if nano < 0 else ''}{int(whole):,}.{part[:2]}<small>{part[2:]}</small>"


def _row(cells: Sequence[str], kind: str = "", *, texts: int = 1) -> str:
    """Returns a row; the first `texts` cells are anybody's text, the others are markup of ours."""
    told = [f"<td>{escape(cell)}</td>" for cell in cells[:texts]]
    told += [f'<td class="n">{cell}</td>' for cell in cells[texts:]]
    return f"<tr{f' class={kind!r}' if kind else ''}>{''.join(told)}</tr>"


def _table(heads: Sequence[str], rows: Sequence[str], *, texts: int = 1) -> str:
    told = "".join(f"<th{'' if i < texts else ' class=n'}>{escape(head)}</th>" for i, head in enumerate(heads))
    return f"<table><thead><tr>{told}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
