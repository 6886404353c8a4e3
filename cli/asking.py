"""What `submit`, `run` and `quote` ask for: the flags, over a job file or the `#SBATCH` lines of a script."""

from dataclasses import dataclass

from cli import scripts
from cli.errors import UsageProblem
from cli.jobflags import JobFlags, layered, spec_of
from cli.session import Session


@dataclass(frozen=True, slots=True)
class Asked:
    """All that was asked for, wherever it stood, and what is to be sent for it: one job, or one for each of a sweep."""

    flags: JobFlags
    spec: dict[str, object]
    specs: tuple[dict[str, object], ...]


def asked(session: Session, flags: JobFlags, words: list[str] | None, *, needs_work: bool = True) -> Asked:
    """Returns what the command line asks for. Says what a script's lines were read as.

    `needs_work` is False where nothing is started, so that there need not be a command. Raises UsageProblem, Refusal,
    FileProblems, NotSupported.
    """
    work: dict[str, object] = {}
    if session.job_file is not None:
        flags, work = _of_file(session, session.job_file, flags, words)
    elif words or needs_work:
        flags, work = _of_command(session, flags, words)
    if not work:
        if needs_work:
            raise UsageProblem(
                f"{session.job_file} has neither command nor script", f"turnstile submit {session.job_file} -- COMMAND"
            )
        work = {"command": ["true"]}
    spec = spec_of(flags, work, session.project, session.environment)
    if isinstance(after := spec.get("after"), list):
        spec["after"] = _numbered(session, after)
    if not flags.sweep:
        return Asked(flags, spec, (spec,))
    from cli.sweeps import swept

    return Asked(flags, spec, tuple(swept(spec, flags.sweep)))


def _numbered(session: Session, after: list[str]) -> list[str]:
    """Puts numbers in the place of names and `@`: the server knows dependencies by their numbers alone."""
    found = []
    for each in after:
        word, colon, job = each.partition(":")
        found.append(f"{word}:{session.numbers([job])[0]}" if colon else each)
    return found


def _of_file(
    session: Session, name: str, flags: JobFlags, words: list[str] | None
) -> tuple[JobFlags, dict[str, object]]:
    from cli.jobfile import load

    file = load(name)
    if not words:
        return layered(flags, file.flags), file.work
    typed = scripts.typed_command(words, session.typed)
    if not typed.has_dashes:
        raise UsageProblem(
            f"{words[0]!r} stands behind {name}: flags may, and a command behind --",
            f"turnstile submit {name} -- {words[0]} …",
        )
    return layered(flags, file.flags), {"command": scripts.argv_of(typed)}


def _of_command(session: Session, flags: JobFlags, words: list[str] | None) -> tuple[JobFlags, dict[str, object]]:
    typed = scripts.typed_command(words, session.typed)
    for option in scripts.misplaced(typed, session.known_options):
        session.screen.note(
            f"{option} stands behind the command and goes to {typed.words[0]}; "
            f"flags for Turnstile stand before it (write -- before the command if this is meant)"
        )
    return _with_directives(session, flags, typed), {"command": scripts.argv_of(typed)}


def _with_directives(session: Session, flags: JobFlags, typed: scripts.Typed) -> JobFlags:
    """The flags over the `#SBATCH` lines of a script, which are printed back as what they were read as."""
    path = scripts.script_of(typed)
    if path is None or not scripts.mentions_slurm(path):
        return flags
    from cli import slurm

    found = slurm.directives(path)
    name = typed.words[0]
    if found.unsupported and not flags.lenient:
        raise slurm.NotSupported(name, found.unsupported)
    if found.is_empty:
        return flags
    if found.typed:
        session.screen.say(f"read from {name}: {' '.join(found.typed)}")
    for note in found.notes:
        session.screen.note(note)
    for each in found.unsupported:
        session.screen.note(f"left out, {each.field}: {each.message}")
    return layered(flags, found.flags)
