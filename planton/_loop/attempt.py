"""One attempt as a generator: what to ask whom, and what follows from the answers. No I/O.

The generator yields a question, is sent the answer or has the callback's exception thrown into it,
and writes what it finds into the `Attempt`. Whoever drives it may ask for one task at a time, or
for all that are due together in one call.
"""

import inspect
import math
from collections.abc import Awaitable, Generator, Sequence
from typing import Any, NamedTuple, TypeAlias

import trio

from planton._errors import UnexpectedInstructionsError, UnexpectedLimitError
from planton._events import AttemptEvent, Outcome, Stage
from planton._failures import failure_of
from planton._loop.answers import checked_active, checked_claims, well_formed
from planton._loop.callbacks import Ask
from planton._loop.consumers import Slots, Takers
from planton._loop.entry import Entry
from planton._loop.plan import Plan
from planton._task import Batch, Claim, ScheduleRequest, is_int, to_claim, to_seconds


class Computing(NamedTuple):
    """What a callback that only computes returned, and has to be awaited."""

    awaitable: Awaitable[Any]


class Reserving(NamedTuple):
    """Slots of a consumer are awaited, for no longer than a moment."""

    awaitable: Awaitable[int]


Question: TypeAlias = Ask | Computing | Reserving
Steps: TypeAlias = Generator[Question, Any, None]


class Attempt:
    """An attempt and what is known of it so far.

    Defaults stand on the class: ten thousand of these are made every second by ten thousand idle
    tasks, and most never change more than one of them.

    Attributes:
        steps: The generator, suspended at its last question.
        outcome: How it ends, unless something changes that.
        stage: Callback that is being asked.
        active: How many are active, undelivered claims not counted.
        concurrency: Most active instructions that are in force.
        limit: How many may be claimed.
        slots: The consumer's, if one takes the task.
        reserved: How many of the slots are reserved for it.
        deliver: Claims to hand to consumers now.
        surplus: Claims to release, or to keep if they cannot be.
        handed_over: How many claims consumers have taken.
        detail: What to add to the outcome in `explain`.
        is_over: Whether it came to its end, and was not cut off.
    """

    steps: Steps
    outcome: Outcome = "nothing"
    stage: Stage = "concurrency"
    context: Any = None
    active: int | None = None
    concurrency: int | None = None
    limit: int | None = None
    slots: Slots | None = None
    reserved: int = 0
    deliver: Sequence[str | Claim] = ()
    surplus: Sequence[Claim] = ()
    errors: Sequence[tuple[Stage, Exception]] = ()
    next_in: float | None = None
    due_in: float | None = None
    handed_over: int = 0
    detail: str = ""
    is_over: bool = False
    event: AttemptEvent | None = None

    def __init__(self, entry: Entry, started_at: float) -> None:
        self.entry = entry
        self.attempt_number = entry.attempt_number
        self.started_at = started_at

    def fail(self, stage: Stage, error: Exception) -> None:
        self.errors = (*self.errors, (stage, error))

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is left to be handed over, released or reported."""
        return not (self.deliver or self.surplus or self.errors)

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the task's delay says when the next attempt is due."""
        has_times = self.next_in is not None or self.due_in is not None
        return not has_times and self.outcome not in ("locked", "full")

    def begin(self, plan: Plan, takers: Takers) -> Question | None:
        self.steps = _steps(self, plan, takers)
        return self.send(None)

    def send(self, answer: Any) -> Question | None:
        try:
            return self.steps.send(answer)
        except StopIteration:
            return None

    def throw(self, error: Exception) -> Question | None:
        try:
            return self.steps.throw(error)
        except StopIteration:
            return None

    def reserve_only(self, count: int) -> None:
        if self.reserved > count and self.slots is not None:
            spare, self.reserved = self.reserved - count, count
            self.slots.give_back(spare)

    def withhold(self) -> None:
        """Deliver nothing of what was claimed."""
        self.surplus = [*map(to_claim, self.deliver), *self.surplus]
        self.deliver = ()

    def keep_undelivered(self) -> None:
        """Move to the entry what is neither delivered nor released."""
        if self.deliver or self.surplus:
            self.withhold()
            self.entry.keep(self.surplus)
            self.surplus = ()

    def end(self, outcome: Outcome) -> AttemptEvent:
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


def _steps(attempt: Attempt, plan: Plan, takers: Takers) -> Steps:
    try:
        entry = attempt.entry
        concurrency = entry.concurrency
        if concurrency is None or entry.is_concurrency_asked:
            concurrency = entry.concurrency = yield from _concurrency(entry)
        attempt.concurrency = concurrency
        active: tuple[str, ...] = ()
        if entry.is_counted or (entry.undelivered and entry.get_active):
            attempt.stage = "get_active_instructions"
            active = _count(attempt, (yield entry.ask_active))
        limit = concurrency - (attempt.active or 0)
        if limit <= 0:
            attempt.outcome = "saturated"
            return
        if entry.is_limit_asked or not takers.are_only_listeners:
            limit = yield from _limit(attempt, takers, concurrency, active, limit)
        attempt.limit = limit
        if _may_claim(attempt, limit, plan):
            attempt.stage = "schedule"
            request = ScheduleRequest(
                task_name=entry.task.name,
                active_instructions=active,
                concurrency=concurrency,
                limit=limit,
                attempt_number=attempt.attempt_number,
                context=attempt.context,
            )
            _take(attempt, (yield Ask(entry.schedule, request)), limit)
    except BaseException as raised:  # noqa: ASYNC103  ours is raised again
        attempt.outcome = "error"
        attempt.fail(attempt.stage, failure_of(raised))
    finally:
        if attempt.reserved:
            attempt.reserve_only(len(attempt.deliver))


def _may_claim(attempt: Attempt, limit: int, plan: Plan) -> bool:
    """Return whether to call `schedule`; not before all that is undelivered was delivered."""
    entry = attempt.entry
    if limit == 0:
        attempt.outcome = "full"
    elif entry.undelivered:
        attempt.deliver, entry.undelivered = entry.undelivered[:limit], entry.undelivered[limit:]
    elif plan.is_stopping or entry.unregistered:
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
    """Count what is active; undelivered claims are with no consumer and hold no slot."""
    entry = attempt.entry
    if type(answer) is list and not answer and not entry.undelivered:
        attempt.active = 0  # as most attempts of most tasks find
        return ()
    active = checked_active(entry, answer)
    if entry.undelivered:
        if entry.task.lock is not None:
            # Counted in its lock, this is the truth: what is not active was rolled back.
            entry.undelivered = [one for one in entry.undelivered if one.instruction in active]
        undelivered = {claim.instruction for claim in entry.undelivered}
        active = tuple(one for one in active if one not in undelivered)
    attempt.active = len(active)
    return active


def _limit(
    attempt: Attempt, takers: Takers, concurrency: int, active: tuple[str, ...], limit: int
) -> Generator[Any, Any, int]:
    task = attempt.entry.task
    if task.limit is not None and task.cap == "advisory":
        attempt.stage = "limit"
        limit = _whole(task.name, "limit", (yield from _compute(task.limit, concurrency, active)))
        attempt.detail = "limit returned 0"
    attempt.stage = "capacity"
    if task.capacity is not None:
        capacity = _whole(task.name, "capacity", (yield from _compute(task.capacity)))
        if capacity < limit:
            limit, attempt.detail = capacity, "capacity returned 0"
    slots = attempt.slots = takers.slots_for(task.name)
    if slots is not None and limit:
        found = slots.try_reserve(task.name, limit)
        if found is None:
            found = yield Reserving(slots.reserve(task.name, limit))
        limit = attempt.reserved = found
        attempt.detail = "the consumer has no free slot"
    elif not takers.is_taken(task.name):
        limit, attempt.detail = 0, NOBODY
    return limit


NOBODY = "no consumer takes the task, and nothing listens to InstructionEvent"


def _whole(task_name: str, callback: str, value: Any) -> int:
    if not is_int(value, 0):
        raise UnexpectedLimitError(task_name, callback, value)
    return int(value)


def _compute(function: Any, *arguments: Any) -> Generator[Any, Any, Any]:
    value = function(*arguments)
    if type(value) is not int and inspect.isawaitable(value):
        value = yield Computing(value)
    return value


def _take(attempt: Attempt, answer: Any, limit: int) -> None:
    """Sort an answer of `schedule` into what to deliver and what is too much.

    Members of a malformed answer that are well-formed were claimed all the same, so they go
    where the surplus goes.
    """
    if isinstance(answer, Batch):
        _take_batch(attempt, answer)
        answer = answer.claims
    if type(answer) is list and not answer:
        claims: Sequence[str | Claim] = ()
    else:
        try:
            claims = checked_claims(attempt.entry, answer, limit)
        except UnexpectedInstructionsError:
            attempt.surplus = well_formed(answer)
            raise
    if len(claims) > limit:
        name = attempt.entry.task.name
        problem = f"schedule returned {len(claims)} instructions, more than the limit of {limit}"
        attempt.fail("schedule", UnexpectedInstructionsError(name, answer, limit, problem))
        attempt.surplus = [to_claim(member) for member in claims[limit:]]
    attempt.deliver = claims[:limit]
    if claims and isinstance(claims[0], Claim):
        attempt.entry.lease = claims[0].lease
    is_saturated = (attempt.active or 0) >= (attempt.concurrency or math.inf)
    if not claims and is_saturated and attempt.outcome == "nothing":
        attempt.outcome = "saturated"


def _take_batch(attempt: Attempt, batch: Batch) -> None:
    attempt.next_in = to_seconds(batch.next_in)
    attempt.due_in = to_seconds(batch.due_in)
    if batch.active is not None:
        attempt.active = batch.active
    if batch.concurrency is not None:
        attempt.concurrency = batch.concurrency
    if batch.outcome is not None:
        attempt.outcome = batch.outcome
        attempt.detail = SOURCE_SAYS[batch.outcome]


SOURCE_SAYS = {
    "locked": "another dispatcher is claiming",
    "paused": "in the source",
    "limited": "what is due waits for a limit of the source, such as full partitions",
}
