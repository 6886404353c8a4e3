"""Finding jobs for a caller: by what was typed, by a filter; never outside of what the caller may see."""

import base64
import binascii
from collections.abc import Iterable, Sequence

from sqlalchemy.engine import Connection

from scheduler.auth import Rights, is_within
from scheduler.core.model import AccountId, Dependency, JobId, PoolName, UserName, tenant_of
from scheduler.refusal import Problem, RefusalCode, Refused
from scheduler.store import queries
from scheduler.store.lookups import JobOwner, owners
from scheduler.store.queries import JobFilter, JobRecord
from scheduler.wire.requests import (
    LIVE_STATES,
    JobFilterBody,
    JobListQuery,
    not_found,
    parse_ref,
    parse_states,
    parse_time,
)
from scheduler.wire.spec import invalid, parse_after
from scheduler.wire.text import shown

_MOST_NAMED = 5
"""Unknown ids that a refusal names."""


def no_job(ref: str, rights: Rights) -> Refused:
    """Returns the refusal for a job that is not there, or not the caller's to see."""
    tenant = rights.caller.tenant
    return not_found(f"no job {shown(ref)}" + (f" in tenant {tenant}" if tenant else ""))


def found_job(connection: Connection, rights: Rights, ref: str) -> JobRecord:
    """Returns the job that `4711`, `4711_3` or a name means: of a name, the caller's newest. Raises Refused."""
    parsed = parse_ref(ref)
    if parsed is None:
        job = queries.newest_job_named(connection, rights.visible_root, rights.caller.user, ref)
    elif parsed[1] is None:
        job = queries.job(connection, parsed[0])
    else:
        job = queries.array_element(connection, parsed[0], parsed[1])
    if job is None or not rights.may_see_account(job.job.account):
        raise no_job(ref, rights)
    return job


def filter_of(asked: JobListQuery | JobFilterBody, rights: Rights) -> JobFilter | None:
    """Returns the filter of a list within what the caller may see; None when nothing can match. Raises Refused."""
    root = _root(asked.tenant, asked.project, rights)
    if root is None:
        return None
    is_prefix = asked.name is not None and asked.name.endswith("*")
    return JobFilter(
        under=root,
        states=tuple(sorted(parse_states(asked.state))),
        users=None if asked.user is None else (UserName(asked.user),),
        pool=None if asked.pool is None else PoolName(asked.pool),
        name=None if is_prefix else asked.name,
        name_prefix=asked.name[:-1] if asked.name is not None and is_prefix else None,
        since_ms=None if asked.since is None else parse_time(asked.since, "since"),
        array=None if asked.array is None else JobId(asked.array),
    )


def _root(tenant: str | None, project: str | None, rights: Rights) -> AccountId | None:
    """Returns the account below which to look: the narrowest that was asked for, if the caller may see it."""
    own = rights.visible_root
    root = own
    if tenant is not None:
        root = AccountId(tenant)
        if not is_within(root, own) and not is_within(own, root):
            return None
        root = root if is_within(root, own) else own
    if project is None:
        return root
    base = root if tenant is not None else rights.caller.tenant
    for candidate in (project, f"{base}/{project}" if base else project):
        if is_within(AccountId(candidate), root):
            return AccountId(candidate)
    return None


def is_newest_last(asked: JobFilter) -> bool:
    """True for lists of live jobs, which read like a queue; lists with ended jobs begin with the newest."""
    return frozenset(asked.states) <= frozenset(LIVE_STATES)


def cursor_text(last: JobId) -> str:
    """Returns the opaque cursor of the page after a job."""
    return base64.urlsafe_b64encode(f"job:{last}".encode()).rstrip(b"=").decode()


def cursor_job(text: str | None) -> JobId | None:
    """Returns the job after which a page begins. Raises Refused for what is no cursor of ours."""
    if text is None:
        return None
    try:
        kind, _, number = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii").partition(":")
        if kind == "job" and number.isdigit() and len(number) <= 18:
            return JobId(int(number))
    except (ValueError, binascii.Error):
        pass
    raise invalid((Problem("is not a cursor; take next_page of the answer before", "page"),))


def owned_jobs(connection: Connection, rights: Rights, refs: Sequence[str]) -> tuple[JobOwner, ...]:
    """Returns the jobs that refs mean, in order and each once: an array's own id means all of its elements.

    Raises Refused: `not_found` with the refs that mean nothing to the caller, `not_allowed` for others' jobs.
    """
    parsed = [(ref, parse_ref(ref)) for ref in dict.fromkeys(refs)]
    wrong = [ref for ref, found in parsed if found is None]
    if wrong:
        raise invalid((Problem(f"{_some(wrong)}: an id is written 4711 or 4711_3", "ids"),))
    meant = owners(connection, (found for _, found in parsed if found is not None))
    seen: dict[JobId, JobOwner] = {}
    missing: list[str] = []
    for ref, found in parsed:
        assert found is not None, "refs that are no ids were refused above"
        mine = [owner for owner in meant.get(found, ()) if rights.may_see_account(owner.account)]
        if not mine:
            missing.append(ref)
        seen.update((owner.id, owner) for owner in mine)
    if missing:
        raise no_job(_some(missing), rights)
    check_may_act(seen.values(), rights)
    return tuple(seen.values())


def dependencies(
    connection: Connection, rights: Rights, account: AccountId, texts: Sequence[str]
) -> tuple[Dependency, ...]:
    """Returns what a submission for an account waits for, each once. The texts are right as `parse_spec` has them.

    An array's own id means all of its elements. Raises Refused: `not_found` for jobs that the caller may not see, and
    for those of another tenant than the account's, whoever asks.
    """
    tenant = tenant_of(account)
    parsed = [(text, parse_after(text)) for text in dict.fromkeys(texts)]
    refs = [found[1] for _, found in parsed if found is not None and found[1] is not None]
    meant = owners(connection, refs)
    found_: list[Dependency] = []
    missing: list[str] = []
    for text, found in parsed:
        assert found is not None, "parse_spec lets no other text pass"
        kind, ref = found
        if ref is None:
            found_.append(Dependency(kind))
            continue
        mine = [
            owner
            for owner in meant.get(ref, ())
            if rights.may_see_account(owner.account) and tenant_of(owner.account) == tenant
        ]
        if not mine:
            missing.append(text.rpartition(":")[2])
        elif ref[1] is None and mine[0].array_id == ref[0]:
            found_.append(Dependency(kind, ref[0], ref[0]))
        else:
            found_.append(Dependency(kind, mine[0].id, mine[0].array_id, mine[0].array_index))
    if missing:
        raise no_job(_some(missing), rights)
    return tuple(dict.fromkeys(found_))


def check_may_act(jobs: Iterable[JobOwner], rights: Rights) -> None:
    """Raises Refused (`not_allowed`) when one of the jobs is not the caller's to change."""
    others = [str(job.id) for job in jobs if not rights.may_act_on_job(job.account, job.user)]
    if others:
        raise Refused(
            RefusalCode.NOT_ALLOWED,
            f"job {_some(others)} is another user's; its owner or a tenant admin can do that",
        )


def _some(refs: Sequence[str]) -> str:
    """Returns the first few of the refs, as people read them."""
    named = ", ".join(shown(ref, longest=24) for ref in refs[:_MOST_NAMED])
    return named if len(refs) <= _MOST_NAMED else f"{named} and {len(refs) - _MOST_NAMED} more"
