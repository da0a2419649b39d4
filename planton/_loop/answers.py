"""What `schedule` and `get_active_instructions` returned: checked, and sorted."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from planton._errors import UnexpectedInstructionsError
from planton._loop.entry import Entry
from planton._task import Batch, Claim, exact_text, to_claim
from planton._text import short_repr

_EXACT = frozenset((str, Claim))


def checked_active(entry: Entry, answer: Any) -> tuple[str, ...]:
    if isinstance(answer, list | tuple):
        members = tuple(answer)
        if all(isinstance(member, str) for member in members):
            return tuple(map(exact_text, members))
    problem = f"returned {short_repr(answer)}: it must return a list or tuple of str"
    name = entry.task.name
    raise UnexpectedInstructionsError(name, answer, None, f"get_active_instructions {problem}")


def checked_claims(entry: Entry, answer: Any, limit: int | None) -> Sequence[str | Claim]:
    """Return the members of an answer of `schedule`: a list or tuple of distinct str and Claim."""
    if isinstance(answer, list | tuple):
        # A subclass may be lazy: what it has is looked at once.
        members: Sequence[Any] = answer if type(answer) in (list, tuple) else list(answer)
        problem = _problem(members)
        if not problem:
            are_exact = _EXACT.issuperset(map(type, members))
            return members if are_exact else list(map(exact_text, members))
    else:
        problem = f"returned {short_repr(answer)}: it must return a list or tuple of str or Claim"
    name = entry.task.name
    raise UnexpectedInstructionsError(name, answer, limit, f"schedule {problem}")


def checked_many(answers: Any, number: int) -> Sequence[Any]:
    if isinstance(answers, list | tuple) and len(answers) == number:
        return answers
    raise TypeError(
        f"`many` was asked for {number} tasks and returned {short_repr(answers)}: it must "
        "return a list with a result or an exception for each, in the same order"
    )


def well_formed(answer: Any) -> list[Claim]:
    """Return the usable members of a malformed answer: they were claimed all the same."""
    if not isinstance(answer, list | tuple | set | frozenset):
        return []
    members: Iterable[Any] = answer
    claims: dict[str, Claim] = {}
    for member in members:
        if isinstance(member, str | Claim):
            claim = to_claim(member)
            claims.setdefault(claim.instruction, claim)
    return list(claims.values())


def claims_of(entry: Entry, answer: Any) -> list[Claim]:
    """Return all that an answer of `schedule` claimed; of a malformed one keep what is usable."""
    if isinstance(answer, Batch):
        answer = answer.claims
    try:
        return [to_claim(member) for member in checked_claims(entry, answer, None)]
    except UnexpectedInstructionsError:
        entry.keep(well_formed(answer))
        raise


def _problem(members: Sequence[Any]) -> str:
    """Return what is wrong with the members of an answer; an empty str when nothing is."""
    names = [member if type(member) is str else _name(member) for member in members]
    if len(set(names)) == len(names) and None not in names:
        return ""
    if None in names:
        stranger = short_repr(members[names.index(None)])
        return f"returned {stranger} among its instructions: members must be str or Claim"
    twice = next(name for name, number in Counter(names).items() if number > 1)
    return f"returned the instruction {twice!r} more than once"


def _name(member: Any) -> str | None:
    if isinstance(member, Claim):
        return member.instruction
    return exact_text(member) if isinstance(member, str) else None
