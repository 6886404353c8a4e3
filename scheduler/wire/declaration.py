"""The body of a declared centre: sections of entries, each entry only as far as it says something."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from scheduler.core.model import AccountId, NodeName, PoolName, UserName
from scheduler.refusal import Problem
from scheduler.store.declared import DeclaredAccount, DeclaredUser
from scheduler.store.declared_pools import DeclaredPool
from scheduler.wire.requests import AccountTerms, Strict
from scheduler.wire.spec import invalid
from scheduler.wire.text import AccountPath, Name, Words, problems_of

MOST_ENTRIES = 20_000
"""Of one section: a centre of thousands of projects in one file."""


class ApplyBody(Strict):
    """What is declared. Each section is read by the one that it belongs to."""

    sections: dict[str, list[Any]] = Field(max_length=32)  # Any: entries, which their sections check
    prune: bool = False
    force: bool = False
    expect: str | None = Field(None, max_length=64)
    """The digest of the differences that were shown: they are made only if they are still those."""


class AccountEntry(AccountTerms):
    """An account. A limit that is null is taken away; what is left out stays."""

    id: AccountPath
    display_name: Name | None = None
    weight: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = 1
    """Too small a one is told by the rules of the tree, together with all else that is wrong in them."""

    def declared(self) -> DeclaredAccount:
        """Returns what the entry says."""
        said = self.model_dump(include=self.model_fields_set - {"id", "display_name"})
        if "guarantee" in said:
            said["guarantee"] = {gpu_class: count for gpu_class, count in said["guarantee"].items() if count}
        return DeclaredAccount(AccountId(self.id), said, self.display_name)


class UserEntry(Strict):
    """A user of an account; what is left out stays."""

    account: AccountPath
    user: Name
    role: Literal["user", "tenant_admin", "billing"] | None = None
    may_use_high: bool | None = None

    def declared(self) -> DeclaredUser:
        """Returns what the entry says."""
        return DeclaredUser(AccountId(self.account), UserName(self.user), self.role, self.may_use_high)


class PoolEntry(Strict):
    """A pool; what is left out stays. `nodes` are all that are put into it whatever they say themselves."""

    name: Name
    nodes: tuple[Name, ...] | None = Field(None, max_length=100_000)
    is_paused: bool | None = None
    reason: Words | None = None

    def declared(self) -> DeclaredPool:
        """Returns what the entry says."""
        nodes = None if self.nodes is None else tuple(NodeName(name) for name in self.nodes)
        return DeclaredPool(PoolName(self.name), nodes, self.is_paused, self.reason)


def parse_entries(section: str, model: type[BaseModel], entries: list[Any]) -> tuple[list[Any], list[Problem]]:
    """Returns a section's entries as their model, and what is wrong with them: one of the two is empty."""
    if len(entries) > MOST_ENTRIES:
        raise invalid((Problem(f"has {len(entries)} entries; {MOST_ENTRIES} is the most", section),))
    try:
        adapter: TypeAdapter[list[Any]] = TypeAdapter(list[model])  # type: ignore[valid-type]  # a model given as a value
        # As JSON, for that is what was sent: from nothing else does a strict model take arrays and times.
        return adapter.validate_json(json.dumps(entries)), []
    except ValidationError as error:
        found = problems_of(error, tuple(model.model_fields))
        return [], [Problem(each.message, f"{section}.{each.field}") for each in found]
