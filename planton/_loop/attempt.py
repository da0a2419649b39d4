"""One attempt: what it has found so far, and what follows from the answers. No I/O."""

import math
from collections.abc import Sequence
from typing import Any

import trio

from planton._errors import UnexpectedInstructionsError
from planton._events import AttemptEvent, Outcome, Stage
from planton._failures import failure_of
from planton._loop.answers import checked_active, checked_claims, well_formed
from planton._loop.consumers import Slots, Takers
from planton._loop.entry import Entry
from planton._loop.plan import Plan
from planton._loop.reason import Reason
from planton._task import Batch, Claim, ScheduleRequest, to_claim, to_seconds
from planton._text import describe, on_one_line

NOBODY = "no consumer takes the task, and nothing listens to InstructionEvent"
SOURCE_SAYS = {
    "locked": "another dispatcher is claiming",
    "paused": "in the source",
    "limited": "what is due waits for a limit of the source, such as full partitions",
}


class Attempt(Reason):
    """An attempt and what is known of it so far; in the end it is its own reason.

    Defaults stand on the class: ten thousand of these are made every second by ten thousand idle
    tasks, and most never change more than a few of them.

    Attributes:
        stage: Callback that is being asked.
        instructions: The active instructions, undelivered ones not among them.
        slots: The consumer's, if one takes the task.
        reserved: How many of the slots are reserved for it.
        deliver: Claims to hand to consumers now.
        surplus: Claims to release, or to keep if they cannot be.
        is_asked: Whether nothing is left to ask.
        is_over: Whether it came to its end, and was not cut off.
        is_woken: Whether a wake-up asked for it.
    """

    stage: Stage = "capacity"
    context: Any = None
    instructions: tuple[str, ...] = ()
    slots: Slots | None = None
    reserved: int = 0
    deliver: Sequence[str | Claim] = ()
    surplus: Sequence[Claim] = ()
    errors: Sequence[tuple[Stage, Exception]] = ()
    next_in: float | None = None
    is_asked: bool = False
    is_over: bool = False
    is_woken: bool = False
    event: AttemptEvent | None = None

    def __init__(self, entry: Entry, started_at: float) -> None:
        self.entry = entry
        self.attempt_number = entry.attempt_number
        self.started_at = started_at

    @property
    def is_quick(self) -> bool:
        """Whether it can be finished without waiting for a function of users."""
        return self.is_quiet and self.entry.is_delay_quick

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is left to be handed over, released or reported."""
        return not (self.deliver or self.surplus or self.errors)

    def note(self, stage: Stage, error: Exception) -> None:
        self.errors = (*self.errors, (stage, error))

    def fail(self, error: Exception, stage: Stage | None = None) -> None:
        self.outcome, self.is_asked = "error", True
        self.note(stage or self.stage, error)

    def hear(self, answer: Any) -> None:
        """Take in what a callback answered, or the exception that is there in its place."""
        try:
            if isinstance(answer, BaseException):
                raise answer
            (self.take if self.stage == "schedule" else self.count)(answer)
        except BaseException as raised:  # noqa: ASYNC103  ours is raised again
            self.fail(failure_of(raised))

    def count(self, answer: Any) -> None:
        """Count what is active; undelivered claims are with no consumer and hold no slot."""
        entry = self.entry
        if type(answer) is list and not answer and not entry.undelivered:
            self.active = 0  # as most attempts of most tasks find
            return
        active = checked_active(entry, answer)
        if entry.undelivered:
            if entry.task.lock is not None:
                # Counted in its lock, this is the truth: what is not active was rolled back.
                counted = set(active)
                kept = (one for one in entry.undelivered if one.instruction in counted)
                entry.undelivered = tuple(kept)
            undelivered = {claim.instruction for claim in entry.undelivered}
            active = tuple(one for one in active if one not in undelivered)
        self.active, self.instructions = len(active), active

    def room(self) -> int:
        """Return how many more may be active; 0 if the task is saturated."""
        concurrency = self.concurrency = self.entry.concurrency or 0
        room = concurrency - (self.active or 0)
        if room > 0:
            return room
        self.outcome = "saturated"
        return 0

    def reserve(self, takers: Takers, limit: int) -> int | None:
        """Return how many may be claimed for who takes them; None if it has to wait for slots."""
        if takers.are_only_listeners:
            return limit
        name = self.entry.task.name
        slots = self.slots = takers.slots_for(name)
        if slots is not None and limit:
            self.detail = "the consumer has no free slot"
            found = slots.try_reserve(name, limit)
            self.reserved = found or 0
            return found
        if slots is None and not takers.is_taken(name):
            self.detail = NOBODY
            return 0
        return limit

    async def wait_for_slots(self, limit: int) -> int:
        assert self.slots is not None
        self.reserved = await self.slots.reserve(self.entry.task.name, limit)
        return self.reserved

    def request(self, limit: int, plan: Plan) -> ScheduleRequest | None:
        """Return what to ask `schedule` for, once all that is undelivered was delivered."""
        if self.outcome == "saturated":
            self.is_asked = True
            return None
        self.limit = limit
        entry = self.entry
        if limit == 0:
            self.outcome = "full"
        elif entry.undelivered:
            self.deliver, entry.undelivered = entry.undelivered[:limit], entry.undelivered[limit:]
        elif plan.is_stopping or entry.unregistered:
            self.outcome, self.detail = "stopping", "nothing more is claimed"
        else:
            self.stage = "schedule"
            return ScheduleRequest(
                task_name=entry.task.name,
                active_instructions=self.instructions,
                concurrency=self.concurrency or 0,
                limit=limit,
                attempt_number=self.attempt_number,
                context=self.context,
            )
        self.is_asked = True
        return None

    def take(self, answer: Any) -> None:
        """Sort an answer of `schedule` into what to deliver and what is too much.

        Members of a malformed answer that are well-formed were claimed all the same, so they go
        where the surplus goes.
        """
        self.is_asked = True
        if isinstance(answer, Batch):
            self._take_batch(answer)
            answer = answer.claims
        if type(answer) is not list or answer:
            try:
                self._take_claims(checked_claims(self.entry, answer, self.limit), answer)
            except UnexpectedInstructionsError:
                self.surplus = well_formed(answer)
                raise
        if not self.deliver and self.outcome == "nothing" and self._is_saturated:
            self.outcome = "saturated"

    def _take_claims(self, claims: Sequence[str | Claim], answer: Any) -> None:
        limit, found = self.limit or 0, len(claims)
        if found > limit:
            name = self.entry.task.name
            problem = f"schedule returned {found} instructions, more than the limit of {limit}"
            self.note("schedule", UnexpectedInstructionsError(name, answer, limit, problem))
            self.surplus = [to_claim(member) for member in claims[limit:]]
        self.deliver = claims[:limit]
        if claims and isinstance(claims[0], Claim):
            self.entry.lease = claims[0].lease

    def _take_batch(self, batch: Batch) -> None:
        self.next_in = to_seconds(batch.next_in)
        self.due_in = to_seconds(batch.due_in)
        if batch.active is not None:
            self.active = batch.active
        if batch.concurrency is not None:
            self.concurrency = batch.concurrency
        if batch.outcome is not None:
            self.outcome = batch.outcome
            self.detail = SOURCE_SAYS[batch.outcome]

    @property
    def _is_saturated(self) -> bool:
        return (self.active or 0) >= (self.concurrency or math.inf)

    def note_cut_off(self) -> None:
        """Record that a claim was interrupted: it is not known whether it claimed."""
        self.entry.is_schedule_cut_off = self.stage == "schedule"

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

    def become_reason(self) -> None:
        """Let go of what it worked with, and keep why it ended as it did."""
        self.in_a_row = self.entry.attempt_number
        if self.outcome == "error":
            stage, error = self.errors[0]
            self.detail = f"{stage}: {on_one_line(describe(error))}"
        if self.errors:
            self.errors = ()
        if self.instructions or self.context is not None:
            self.instructions, self.context = (), None
