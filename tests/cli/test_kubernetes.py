"""`admin k8s check` where there is no cluster: what a person reads, and the exit status."""

import socket
from pathlib import Path

import pytest

from tests.cli.conftest import Home

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: dev
clusters: [{name: dev, cluster: {server: "http://127.0.0.1:PORT"}}]
users: [{name: dev, user: {token: secret-token}}]
contexts: [{name: dev, context: {cluster: dev, user: dev}}]
"""


def test_no_kubeconfig_is_a_wrong_configuration(home: Home) -> None:
    done = home.turnstile("admin", "k8s", "check", "--kubeconfig", str(home.path / "none"))
    assert (done.code, "there is no kubeconfig at" in done.err) == (2, True), done


def test_a_context_that_is_not_there_is_said_with_those_that_are(home: Home) -> None:
    path = home.path / "config"
    path.write_text(KUBECONFIG)
    done = home.turnstile("admin", "k8s", "check", "--kubeconfig", str(path), "--context", "prod", "-o", "json")
    assert done.code == 2, done
    assert "no context 'prod'; it has: dev" in done.out


@pytest.mark.timeout(120)
def test_a_cluster_that_does_not_answer_is_unreachable_and_no_token_is_told(home: Home, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        path = home.path / "config"
        path.write_text(KUBECONFIG.replace("PORT", str(taken.getsockname()[1])))
        done = home.turnstile("admin", "k8s", "check", "--kubeconfig", str(path))
    assert (done.code, "does not answer" in done.err) == (7, True), done
    assert "secret-token" not in done.err + done.out
