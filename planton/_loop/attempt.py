"""One attempt as a generator: what to ask whom, and what follows from the answers. No I/O.

The generator yields an `Ask` (or an awaitable that a sync callback returned), is sent the answer
or has the callback's exception thrown into it, and writes what it finds into the `Attempt`.
Whoever drives it may ask for one task at a time, or for all that are due together in one call.
"""

import inspect
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from typing import Any, TypeAlias

import trio

from planton._errors import UnexpectedInstructionsError, UnexpectedLimitError
from planton._events import AttemptEvent, Outcome, Stage
from planton._loop.callbacks import Ask
from planton._loop.entry import Entry
from planton._task import Batch, Claim, is_int, make_request, to_claim, to_seconds

Question: TypeAlias = Ask | Awaitable[Any]
Steps: TypeAlias = Generator[Question, Any, None]


class Attempt:
    """An attempt and what is known of it so far.

    Defaults stand on the class: ten thousand of these are made every second by ten thousand idle
    tasks, and most never change more than one of them.

    Attributes:
        entry: Task that it is made for.
        attempt_number: Attempts in a row, before this one, that dispatched nothing.
        started_at: When it began (trio's clock).
        steps: The generator, suspended at its last question.
        outcome: How it ends, unless something changes that.
        stage: Callback that is being asked.
        active: How many are active, claims that were kept not counted; None if not known.
        limit: How many may be claimed; None if it did not get that far.
        deliver: Claims to hand to consumers now.
        surplus: Claims to give back, or to keep if they cannot be.
        errors: What went wrong, and where.
        next_in: Seconds until the next attempt, if `schedule` knew.
        due_in: Seconds until the next attempt at the latest, if `schedule` knew.
        handed_over: How many claims consumers have taken.
        why: What to add to the outcome in `explain`.
        is_over: Whether it came to its end, and was not cut off.
        event: What its listeners are told, once it is over.
    """

    steps: Steps
    outcome: Outcome = "nothing"
    stage: Stage = "concurrency"
    active: int | None = None
    limit: int | None = None
    deliver: Sequence[str | Claim] = ()
    surplus: Sequence[Claim] = ()
    errors: Sequence[tuple[Stage, Exception]] = ()
    next_in: float | None = None
    due_in: float | None = None
    handed_over: int = 0
    why: str = ""
    is_over: bool = False
    event: AttemptEvent | None = None

    def __init__(self, entry: Entry, started_at: float) -> None:
        self.entry = entry
        self.attempt_number = entry.attempt_number
        self.started_at = started_at

    def fail(self, stage: Stage, error: Exception) -> None:
        """Note an error."""
        self.errors = (*self.errors, (stage, error))

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is left to be handed over, given back or reported."""
        return not (self.deliver or self.surplus or self.errors)

    def begin(self, is_stopping: Callable[[], bool]) -> Question | None:
        """Give the first question, or None if there is none."""
        self.steps = _steps(self, is_stopping)
        return self.send(None)

    def send(self, answer: Any) -> Question | None:
        """Give the answer to the last question; the next question, or None at the end."""
        try:
            return self.steps.send(answer)
        except StopIteration:
            return None

    def throw(self, error: Exception) -> Question | None:
        """Tell that the last question failed; the next question, or None at the end."""
        try:
            return self.steps.throw(error)
        except StopIteration:
            return None

    def end(self, outcome: Outcome) -> AttemptEvent:
        """Say how it ended."""
        self.event = AttemptEvent(
            task_name=self.entry.task.name,
            attempt_number=self.attempt_number,
            outcome=outcome,
            active=self.active,
            limit=self.limit,
            claimed=self.handed_over,
            duration=trio.current_time() - self.started_at,
        )
        return self.event


def _steps(attempt: Attempt, is_stopping: Callable[[], bool]) -> Steps:
    try:
        entry = attempt.entry
        concurrency = entry.concurrency
        if concurrency is None or entry.is_concurrency_asked:
            concurrency = entry.concurrency = yield from _concurrency(entry)
        active: tuple[str, ...] = ()
        if entry.is_counted or (entry.kept and entry.get_active):
            attempt.stage = "get_active_instructions"
            active = _count(attempt, (yield entry.ask_active))
        limit = concurrency - (attempt.active or 0)
        if limit <= 0:
            attempt.outcome = "saturated"
            return
        if entry.is_limit_asked:
            limit = yield from _limit(attempt, concurrency, active, limit)
        attempt.limit = limit
        if _may_claim(attempt, limit, is_stopping):
            attempt.stage = "schedule"
            request = make_request(
                entry.task.name, active, concurrency, limit, attempt.attempt_number
            )
            take(attempt, (yield Ask(entry.schedule, request)), limit)
    except Exception as error:
        attempt.outcome = "error"
        attempt.fail(attempt.stage, error)


def _may_claim(attempt: Attempt, limit: int, is_stopping: Callable[[], bool]) -> bool:
    """Tell whether `schedule` is to be called; not before all that is kept has been delivered."""
    entry = attempt.entry
    if limit == 0:
        attempt.outcome = "full"
    elif entry.kept:
        attempt.deliver, entry.kept = entry.kept[:limit], entry.kept[limit:]
    elif is_stopping() or entry.leaving:
        attempt.outcome = "stopping"
    else:
        return True
    return False


def _concurrency(entry: Entry) -> Generator[Any, Any, int]:
    value = yield from _compute(entry.task.concurrency)
    if not is_int(value, 1):
        raise UnexpectedLimitError(entry.task.name, "concurrency", value, minimum=1)
    return int(value)


def _count(attempt: Attempt, answer: Any) -> tuple[str, ...]:
    """Take what is active; claims that were kept are with no consumer and hold no slot."""
    entry = attempt.entry
    if answer == []:  # what most attempts of most tasks find
        attempt.active = 0
        return ()
    if not isinstance(answer, list | tuple) or not all(isinstance(one, str) for one in answer):
        problem = f"returned {_short(answer)}: it must return a list or tuple of str"
        raise UnexpectedInstructionsError(
            entry.task.name, answer, None, f"get_active_instructions {problem}"
        )
    kept = {claim.instruction for claim in entry.kept}
    attempt.active = sum(one not in kept for one in answer) if kept else len(answer)
    return tuple(answer)


def _limit(
    attempt: Attempt, concurrency: int, active: tuple[str, ...], limit: int
) -> Generator[Any, Any, int]:
    task = attempt.entry.task
    if task.limit is not None and task.cap == "advisory":
        attempt.stage = "limit"
        limit = _whole(task.name, "limit", (yield from _compute(task.limit, concurrency, active)))
        attempt.why = "limit gave 0"
    if task.capacity is not None:
        attempt.stage = "capacity"
        capacity = _whole(task.name, "capacity", (yield from _compute(task.capacity)))
        if capacity < limit:
            limit, attempt.why = capacity, "capacity gave 0"
    return limit


def _whole(task_name: str, callback: str, value: Any) -> int:
    if not is_int(value, 0):
        raise UnexpectedLimitError(task_name, callback, value)
    return int(value)


def _compute(function: Any, *arguments: Any) -> Generator[Any, Any, Any]:
    value = function(*arguments)
    if type(value) is not int and inspect.isawaitable(value):
        value = yield value
    return value


def take(attempt: Attempt, answer: Any, limit: int | None) -> None:
    """Sort what `schedule` returned into what to deliver and what is too much.

    Members of a malformed answer that are well-formed were claimed all the same, so they go
    where the surplus goes.

    Args:
        attempt: Attempt that asked.
        answer: What was returned.
        limit: How many it was asked for; None to take them all.
    """
    if isinstance(answer, Batch):
        attempt.next_in = to_seconds(answer.next_in)
        attempt.due_in = to_seconds(answer.due_in)
        attempt.active = attempt.active if answer.active is None else answer.active
        answer = answer.claims
    problem = _problem(answer)
    name = attempt.entry.task.name
    if problem:
        attempt.outcome = "error"
        attempt.surplus = _salvage(answer)
        error = UnexpectedInstructionsError(name, answer, limit, f"schedule {problem}")
        attempt.fail("schedule", error)
    elif limit is not None and len(answer) > limit:
        attempt.deliver = answer[:limit]
        attempt.surplus = [to_claim(member) for member in answer[limit:]]
        problem = f"schedule returned {len(answer)} instructions, more than the limit of {limit}"
        attempt.fail("schedule", UnexpectedInstructionsError(name, answer, limit, problem))
    elif answer:
        attempt.deliver = answer
    elif (attempt.active or 0) >= (attempt.entry.concurrency or 1):
        attempt.outcome = "saturated"


def _problem(answer: Any) -> str | None:
    """Say what is wrong with an answer of `schedule`; None when nothing is."""
    if not isinstance(answer, list | tuple):
        return f"returned {_short(answer)}: it must return a list or tuple of str or Claim"
    if not answer:
        return None
    names = [member if type(member) is str else _name(member) for member in answer]
    if None in names:
        stranger = answer[names.index(None)]
        return f"returned {_short(stranger)} among its instructions: members must be str or Claim"
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        return f"returned the instruction {twice!r} more than once"
    return None


def _name(member: Any) -> str | None:
    if isinstance(member, Claim):
        return member.instruction
    return member if isinstance(member, str) else None


def _salvage(answer: Any) -> list[Claim]:
    if not isinstance(answer, list | tuple | set | frozenset):
        return []
    members: Iterable[Any] = answer
    claims: dict[str, Claim] = {}
    for member in members:
        if isinstance(member, str | Claim):
            claim = to_claim(member)
            claims.setdefault(claim.instruction, claim)
    return list(claims.values())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
