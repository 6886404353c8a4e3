"""Kubernetes, as an operator prepares it: `admin k8s check`."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli.answers import Json, text
from cli.errors import CliError, ConfigProblem, ExitCode
from cli.layout import Column, View
from cli.render import listed
from cli.session import Session
from cli.verbs import Verb

if TYPE_CHECKING:
    from k8s.check import Finding


class NotReachable(CliError):
    """The cluster cannot be asked."""

    exit_code = ExitCode.UNREACHABLE


def check(
    ctx: typer.Context,
    kubeconfig: Annotated[
        str | None, typer.Option("--kubeconfig", metavar="FILE", help="The usual one, or the pod's, if left out.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("--context", metavar="NAME", help="A context of the kubeconfig.")
    ] = None,
) -> int:
    """Tell what a cluster lacks: version, rights, GPUs, labels, clock, Pod Security. Changes nothing.

    Rights are those of the user that the kubeconfig names: run it as the daemon's service account, or as yourself to
    see the rest. Exit status 0: nothing is missing; 3: something is; 7: the cluster does not answer.

    Examples:
      turnstile admin k8s check --kubeconfig ~/.kube/config
      turnstile admin k8s check -o json | jq '.items[] | select(.verdict != "fine")'
    """
    session: Session = ctx.obj
    from k8s.api import Access, Api
    from k8s.check import Verdict, check_cluster
    from k8s.problems import KubernetesProblem, NotConfigured
    from scheduler.clock import LedgerClock

    try:
        found = check_cluster(Api.connect(Access(kubeconfig, cluster)), LedgerClock())
    except NotConfigured as problem:
        raise ConfigProblem(str(problem), "--kubeconfig FILE") from problem
    except KubernetesProblem as problem:
        raise NotReachable(str(problem), code="unavailable") from problem
    session.screen.listing(listed("ClusterCheck", [_item(each) for each in found]), _FINDINGS)
    lacking = sum(each.verdict is Verdict.LACKS for each in found)
    if lacking:
        session.screen.say(f"{lacking} thing{'s' if lacking > 1 else ''} missing")
        return ExitCode.REFUSED
    session.screen.say("nothing is missing")
    return ExitCode.DONE


def _item(finding: "Finding") -> dict[str, object]:
    return {
        "check": finding.check,
        "verdict": finding.verdict.value,
        "message": finding.message,
        "advice": finding.advice,
    }


def _colour(item: Json) -> str | None:
    return {"fine": "green", "warns": "yellow", "lacks": "red"}.get(text(item, "verdict") or "")


_FINDINGS = View(
    columns=(
        Column("VERDICT", lambda each: text(each, "verdict"), paint=_colour),
        Column("CHECK", lambda each: text(each, "check")),
        Column("FOUND", lambda each: text(each, "message")),
        Column("DO", lambda each: text(each, "advice")),
    ),
    name=lambda each: text(each, "check"),
    fields=("check", "verdict", "message", "advice"),
    empty="nothing was looked at",
)
K8S = (Verb("check", __name__, "check", "KUBERNETES", "Tell what a cluster lacks"),)
