"""`admin dashboards export`: writes the Grafana boards, the Prometheus rules and the runbooks that ship with Turnstile.

Needs no server. `files` is what Grafana's provisioning and Prometheus read from a disk; `configmap` is for clusters
where a sidecar collects ConfigMaps labelled `grafana_dashboard` and the Prometheus operator reads PrometheusRules.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cli import phrases
from cli.answers import text
from cli.errors import Refusal, UsageProblem
from cli.layout import View
from cli.render import envelope
from cli.session import Session
from cli.shipped import shipped
from cli.verbs import Verb

FORMATS = ("files", "configmap")
_RUNBOOKS = "docs/runbooks"
"""Where shipped boards and rules say that the runbooks are."""
_LABELS = {"app.kubernetes.io/name": "turnstile"}
_SIDECAR_LABELS = {**_LABELS, "grafana_dashboard": "1"}
"""The label is the default of the sidecar in Grafana's Helm chart."""


def export(
    ctx: typer.Context,
    out_dir: Annotated[
        str, typer.Argument(metavar="DIR", help="Made if missing; files of the same name are replaced.")
    ],
    kind: Annotated[str, typer.Option("--format", metavar="KIND", help="files or configmap.")] = "files",
    runbooks_url: Annotated[
        str | None,
        typer.Option("--runbooks-url", metavar="URL", help="Where you serve DIR/runbooks; alerts link there."),
    ] = None,
) -> None:
    """Write the Grafana boards, the alert rules and the runbooks, to be given to Grafana and Prometheus.

    Examples:
      turnstile admin dashboards export /etc/turnstile/monitoring
      turnstile admin dashboards export k8s/ --format configmap && kubectl apply -f k8s/
      turnstile admin dashboards export out/ --runbooks-url https://wiki.example/turnstile
    """
    session: Session = ctx.obj
    if kind not in FORMATS:
        raise UsageProblem(f"--format {kind}: not a kind of export", "--format files", "--format configmap")
    base = "runbooks" if runbooks_url is None else runbooks_url.rstrip("/")
    made = _files() if kind == "files" else _manifests()
    folder = Path(out_dir).expanduser()
    names: list[str] = []
    for name, content in [*made, *_runbooks()]:
        _write(folder / name, content.replace(_RUNBOOKS, base), out_dir)
        names.append(name)
    answer = envelope("DashboardExport", {"directory": str(folder), "format": kind, "files": names})
    session.screen.document(answer, _EXPORT, phrases.files(folder, names))


DASHBOARDS = (Verb("export", __name__, "export", "DASHBOARDS", "Write Grafana boards, alert rules and runbooks"),)
_EXPORT = View((), lambda each: text(each, "directory"), ("directory", "format", "files"))


def _files() -> Iterator[tuple[str, str]]:
    yield from _all("deploy/grafana/boards", "dashboards")
    yield from _all("deploy/grafana/provisioning", "provisioning")
    yield from _all("deploy/prometheus", "")
    yield from _all("deploy/prometheus/rules", "rules")


def _runbooks() -> Iterator[tuple[str, str]]:
    yield from _all(_RUNBOOKS, "runbooks")


def _manifests() -> Iterator[tuple[str, str]]:
    for path, content in _all("deploy/grafana/boards", ""):
        name = Path(path).stem
        head = _head("v1", "ConfigMap", name, _SIDECAR_LABELS)
        yield f"{name}.yaml", f"{head}data:\n  {path}: |\n{_indented(content, 4)}"
    for path, content in _all("deploy/prometheus/rules", ""):
        name = f"turnstile-{Path(path).stem}"
        head = _head("monitoring.coreos.com/v1", "PrometheusRule", name, _LABELS)
        yield f"{name}.yaml", f"{head}spec:\n{_indented(content, 2)}"


def _all(directory: str, into: str) -> Iterator[tuple[str, str]]:
    for path in sorted(shipped(directory).iterdir()):
        if path.is_file():
            yield str(Path(into) / path.name), path.read_text(encoding="utf-8")


def _head(version: str, kind: str, name: str, labels: dict[str, str]) -> str:
    shown = "".join(f'    {key}: "{value}"\n' for key, value in labels.items())
    return f"apiVersion: {version}\nkind: {kind}\nmetadata:\n  name: {name}\n  labels:\n{shown}"


def _indented(content: str, depth: int) -> str:
    return "".join(f"{' ' * depth}{line}" if line.strip() else line for line in content.splitlines(keepends=True))


def _write(path: Path, content: str, typed: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as problem:
        raise Refusal(f"{typed}: {path.name} cannot be written: {problem.strerror}", "another directory") from None
