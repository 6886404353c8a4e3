"""Where the files lie that ship with the command: boards, rules and runbooks, in a wheel or in a checkout."""

from pathlib import Path

from cli.errors import Refusal

_PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """Returns the directory `name` (`deploy/grafana/boards`, `docs/runbooks`). Raises Refusal when it is not there."""
    # A wheel carries them inside the package, under the paths that they have in a checkout.
    for root in (_PACKAGE / "shipped_files", _PACKAGE.parent):
        found = root / name
        if found.is_dir():
            return found
    raise Refusal(f"{name} is not part of this installation", "install the wheel again, or run it from a checkout")
