"""Making attempts: asks the callbacks, hands over what was claimed, and plans what follows."""

from collections.abc import Awaitable, Iterable, Sequence
from functools import partial
from typing import Any

import trio

from planton._events import AttemptEvent, ErrorEvent
from planton._failures import guarded
from planton._loop.attempt import Attempt, Question, Reserving
from planton._loop.callbacks import Ask
from planton._loop.caller import Caller
from planton._loop.consumers import Takers
from planton._loop.count import count, reason
from planton._loop.delay import Delays
from planton._loop.delivery import Delivery
from planton._loop.entry import Entry
from planton._loop.listeners import Listeners
from planton._loop.locks import claim_in_lock
from planton._loop.plan import Plan
from planton._loop.together import Cohort, Member
from planton._text import short_repr

# How many tasks are begun, and asked about in one call of `many`, before other trio tasks have
# their turn: about ten milliseconds. More at a time is slower: so many objects live at once that
# the garbage collector takes half of the time.
TURN = 1000


class Dispatcher:
    """Makes attempts in a nursery; none of them waits for another."""

    def __init__(
        self, plan: Plan, takers: Takers, listeners: Listeners, nursery: trio.Nursery
    ) -> None:
        self._plan = plan
        self._takers = takers
        self._listeners = listeners
        self._nursery = nursery
        self._caller = Caller(plan, listeners, nursery)
        self._delays = Delays(self._caller, listeners)
        self._delivery = Delivery(plan, listeners, self._caller)

    async def start(self, entries: Sequence[Entry]) -> None:
        for first in range(0, len(entries), TURN):
            now = trio.current_time()
            together = []
            for entry in entries[first : first + TURN]:
                has_turn = entry.turn.try_take(self._plan)
                if has_turn and entry.is_batched:
                    attempt = Attempt(entry, now)
                    together.append((attempt, attempt.begin(self._plan, self._takers)))
                else:
                    self._nursery.start_soon(self._attempt_alone, entry, has_turn)
            self._go_on(together)
            await trio.lowlevel.checkpoint()

    def begin(self, entry: Entry) -> Attempt:
        entry.due = trio.current_time()
        return Attempt(entry, entry.due)

    async def make(self, attempt: Attempt) -> None:
        self._plan_next(attempt, await self._make(attempt))

    async def plan_first(self, entry: Entry, now: float | None) -> None:
        """Make the first attempt due, after its delay; the turn was taken for that."""
        entry.due, entry.saturated_since = trio.current_time(), None
        delay = await self._delays.before(entry) if self._plan.wants(entry) else None
        self._end_attempt(entry, delay, now)

    @trio.lowlevel.enable_ki_protection
    async def release_undelivered(self, entry: Entry) -> None:
        if entry.undelivered and entry.task.release is not None:
            claims, entry.undelivered = entry.undelivered, []
            await self._delivery.release(entry, claims)

    @trio.lowlevel.enable_ki_protection
    async def _attempt_alone(self, entry: Entry, has_turn: bool) -> None:
        """Make attempts for a task until the next one is due later, or is to be made with others.

        An attempt that is due at once follows in the same trio task: a task without a delay
        would otherwise pay for a new one every time.
        """
        if not has_turn:  # there is an attempt for a task of the same name
            await entry.turn.take(self._plan)
        while self._plan.wants(entry):
            attempt = self.begin(entry)
            delay = await self._make(attempt)
            if delay or delay is None or entry.turn.is_awaited or entry.is_batched:
                self._plan_next(attempt, delay)
                return
            self._explain(attempt, 0.0)
            await trio.lowlevel.checkpoint()
        entry.end_attempt()

    async def _make(self, attempt: Attempt) -> float | None:
        """Make an attempt; the seconds until the next, None if there is none."""
        entry = attempt.entry
        entry.turn.trio_task = trio.lowlevel.current_task()
        try:
            if entry.task.lock is None:
                await self._begin(attempt)
            else:
                await claim_in_lock(self._caller, attempt, partial(self._begin, attempt))
            return await self._finish(attempt)
        except BaseException:
            attempt.keep_undelivered()
            raise

    async def _begin(self, attempt: Attempt) -> None:
        await self._go_through(attempt, attempt.begin(self._plan, self._takers))

    async def _go_through(self, attempt: Attempt, question: Question | None) -> None:
        while question is not None:
            question = await self._answer(attempt, question)

    async def _answer(self, attempt: Attempt, question: Question) -> Question | None:
        try:
            with guarded:
                answer = await self._ask(attempt, question)
        except Exception as error:
            return attempt.throw(error)
        except BaseException:
            _note_cut_off(attempt)
            raise
        return attempt.send(answer)

    def _ask(self, attempt: Attempt, question: Question) -> Awaitable[Any]:
        entry = attempt.entry
        if not isinstance(question, Ask):
            awaitable = question.awaitable
            if isinstance(question, Reserving):
                return awaitable
            return self._caller.within_timeout(entry, attempt.stage, lambda: awaitable)
        if question.callback.is_async and entry.timeout is None:
            # Without a call in between: most attempts are made like this.
            asked: Awaitable[Any] = question.callback.function(question.argument)
            return asked
        return self._caller.call(entry, *question)

    def _go_on(self, attempts: Iterable[Member]) -> None:
        """Ask what can be asked for many at once; the others are asked one by one."""
        together: dict[Any, list[tuple[Attempt, Ask]]] = {}
        plain: list[tuple[Attempt, Question]] = []
        for attempt, question in attempts:
            if isinstance(question, Ask) and question.callback.many is not None:
                key = (question.callback.many, attempt.entry.timeout)
                together.setdefault(key, []).append((attempt, question))
            elif question is not None and attempt.entry.schedule.many is not None:
                plain.append((attempt, question))
            else:
                self._nursery.start_soon(self._go_on_alone, attempt, question)
        for members in together.values():
            if len(members) == 1:
                self._nursery.start_soon(self._go_on_alone, *members[0])
            else:
                self._nursery.start_soon(self._ask_many, members)
        if plain:
            self._ask_each(plain)

    def _ask_each(self, members: Sequence[tuple[Attempt, Question]]) -> None:
        """Ask a plain function for each of some tasks whose `schedule` is then asked for all."""
        if len(members) == 1:
            self._nursery.start_soon(self._go_on_alone, *members[0])
            return
        cohort = Cohort(len(members))
        for number, (attempt, question) in enumerate(members):
            self._nursery.start_soon(self._go_on_in, cohort, number, attempt, question)
        self._nursery.start_soon(self._go_on_with, cohort)

    @trio.lowlevel.enable_ki_protection
    async def _go_on_in(
        self, cohort: Cohort, number: int, attempt: Attempt, question: Question
    ) -> None:
        attempt.entry.turn.trio_task = trio.lowlevel.current_task()
        following = await self._answer(attempt, question)
        if not cohort.add(number, attempt, following):
            await self._go_on_alone(attempt, following)

    @trio.lowlevel.enable_ki_protection
    async def _go_on_with(self, cohort: Cohort) -> None:
        self._go_on(await cohort.close())

    @trio.lowlevel.enable_ki_protection
    async def _go_on_alone(self, attempt: Attempt, question: Question | None) -> None:
        attempt.entry.turn.trio_task = trio.lowlevel.current_task()
        try:
            await self._go_through(attempt, question)
            delay = await self._finish(attempt)
        except BaseException:
            attempt.keep_undelivered()
            raise
        self._plan_next(attempt, delay)

    @trio.lowlevel.enable_ki_protection
    async def _ask_many(self, members: Sequence[tuple[Attempt, Ask]]) -> None:
        answers = await self._answers(members)
        # One time for all of them: those that find nothing are due together again.
        now = trio.current_time()
        ended, ongoing = [], []
        for (attempt, _), answer in zip(members, answers, strict=True):
            is_error = isinstance(answer, BaseException)
            question = attempt.throw(answer) if is_error else attempt.send(answer)
            if question is None and self._is_quick(attempt):
                ended.append(attempt)
            else:
                ongoing.append((attempt, question))
        # First those that hold claims: each gets a trio task that hands them over or keeps them,
        # whatever befalls this one.
        self._go_on(ongoing)
        for attempt in ended:
            self._plan_next(attempt, await self._finish(attempt), now)

    async def _answers(self, members: Sequence[tuple[Attempt, Ask]]) -> Sequence[Any]:
        attempt, (callback, _) = members[0]
        assert callback.many is not None
        trio_task = trio.lowlevel.current_task()
        for each, _ in members:
            each.entry.turn.trio_task = trio_task
        ask = partial(callback.many, [argument for _, (_, argument) in members])
        try:
            with guarded:
                answers = await self._caller.within_timeout(attempt.entry, callback.name, ask)
                return _checked(answers, len(members))
        except Exception as error:
            return [error] * len(members)
        except BaseException:
            for each, _ in members:
                _note_cut_off(each)
            raise

    def _is_quick(self, attempt: Attempt) -> bool:
        """Return whether the attempt can be finished without waiting for a function of users."""
        return (
            attempt.is_quiet
            and attempt.entry.is_delay_quick
            and not (self._listeners.of(AttemptEvent) and self._may_wait())
        )

    def _may_wait(self) -> bool:
        """Return whether listeners of attempts, or of the errors of those, may take time."""
        return any(map(self._listeners.may_wait_for, (AttemptEvent, ErrorEvent)))

    async def _finish(self, attempt: Attempt) -> float | None:
        """Settle and count an attempt; the seconds until the next, None if there is none."""
        entry = attempt.entry
        if not attempt.is_quiet:
            await self._delivery.settle(attempt)
        if attempt.reserved:
            attempt.reserve_only(0)
        count(attempt)
        attempt.is_over = True
        if self._listeners.of(AttemptEvent):
            await self._listeners.attempted(attempt.end(attempt.outcome))
        if not self._plan.wants(entry):
            return None
        if entry.woken:
            entry.woken = False
            return 0.0
        if entry.fixed_delay is not None and attempt.is_plain:
            entry.early_attempts = 0
            return entry.fixed_delay
        return await self._delays.after(attempt)

    def _plan_next(self, attempt: Attempt, delay: float | None, now: float | None = None) -> None:
        entry = attempt.entry
        self._explain(attempt, 0.0 if entry.woken else delay)
        self._end_attempt(entry, delay, now)

    def _explain(self, attempt: Attempt, delay: float | None) -> None:
        entry = attempt.entry
        entry.last_reason = reason(attempt, delay)
        entry.decisions.add(attempt.outcome, entry.last_reason, trio.current_time())

    def _end_attempt(self, entry: Entry, delay: float | None, now: float | None) -> None:
        entry.end_attempt()
        # Asked again: a pause or a stop may have come while `delay` was being called.
        if delay is not None and self._plan.wants(entry):
            if entry.woken:
                entry.woken, delay = False, 0.0
            self._plan.set(entry, (trio.current_time() if now is None else now) + delay)


def _checked(answers: Any, number: int) -> Sequence[Any]:
    if isinstance(answers, list | tuple) and len(answers) == number:
        return answers
    raise TypeError(
        f"`many` was asked for {number} tasks and returned {short_repr(answers)}: it must "
        "return a list with a result or an exception for each, in the same order"
    )


def _note_cut_off(attempt: Attempt) -> None:
    """Record that a claim was interrupted: it is not known whether it claimed."""
    attempt.entry.is_schedule_cut_off = attempt.stage == "schedule"
