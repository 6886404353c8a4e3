"""What a new installation needs before anybody can speak with it: the first operator's token."""

import logging
from pathlib import Path

from ulid import ULID

from cli.contextfile import write_private
from scheduler.auth import Role, new_secret, secret_hash
from scheduler.core.model import ROOT_ACCOUNT, AccountId, UserName
from scheduler.loop import Controller
from scheduler.refusal import Refused
from scheduler.store.centre import tokens
from scheduler.store.tokens import SaveToken

logger = logging.getLogger(__name__)

OPERATOR_TOKEN = "operator.token"  # noqa: S105 -- a file's name
SETTLE_SECONDS = 30.0
"""How long a start waits to lead before it goes on as a follower: longer than a dead leader's lease."""
FIRST_OPERATOR = UserName("operator")


def bootstrap(controller: Controller, data_dir: Path, wait_seconds: float = SETTLE_SECONDS) -> bool:
    """Makes the first operator's token when the installation has no token, and keeps it in the data directory.

    Returns False when that is not known yet, because this daemon does not lead: where it cannot, as without its
    cluster, the token is made once it can.

    The file is written before the token is stored: a crash between the two leaves a file that opens nothing and is
    written again, never a token that nobody has.
    """
    controller.wait_until_settled(wait_seconds)
    if not controller.is_leading:
        return False
    with controller.database.read() as connection:
        if tokens(connection):
            return True
    issue_token(controller, data_dir / OPERATOR_TOKEN, Role.OPERATOR, ROOT_ACCOUNT, FIRST_OPERATOR)
    logger.info("a first operator's token is in %s", data_dir / OPERATOR_TOKEN)
    return True


def issue_token(controller: Controller, path: Path, role: Role, account: AccountId, user: UserName) -> None:
    """Makes a token and writes it to a file that only its owner can read. Raises Refused, OSError."""
    secret = new_secret()
    write_private(path, secret + "\n")
    try:
        controller.carry_out(SaveToken(str(ULID()), secret_hash(secret), role.value, account, user)).result()
    except Refused:
        path.unlink(missing_ok=True)
        raise
