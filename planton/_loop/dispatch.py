"""Making attempts: asks the callbacks, hands over what was claimed, and plans what follows."""

import inspect
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import trio

from planton._errors import CallbackTimeoutError, UnexpectedDelayError
from planton._events import AttemptEvent, ErrorEvent, Stage
from planton._loop.attempt import Attempt, Question
from planton._loop.callbacks import Ask, Callback, ThreadCall, Threads
from planton._loop.delivery import Handover, claims_of
from planton._loop.entry import Entry
from planton._loop.explain import reason
from planton._loop.listeners import Listeners
from planton._task import to_seconds

FALLBACK_DELAY = 1.0
# How many tasks are begun, and asked about in one call of `many`, before other trio tasks have
# their turn: about ten milliseconds. More at a time is slower: so many objects live at once that
# the garbage collector takes half of the time.
TURN = 1000


class Plan(Protocol):
    """Who decides when and whether there is a next attempt."""

    def time_limit(self) -> AbstractContextManager[trio.CancelScope]:
        """Give a scope that is cancelled when consumers have had their time to take claims."""

    def is_stopping(self) -> bool:
        """Whether no attempts are to be begun and nothing is to be claimed any more."""

    def wants(self, entry: Entry) -> bool:
        """Tell whether there is to be a next attempt."""

    def plan(self, entry: Entry, due: float) -> None:
        """Make the next attempt due at `due`."""

    def wake(self, entry: Entry) -> None:
        """Make the next attempt due now, or follow at once on the one in hand."""


class Dispatcher:
    """Makes attempts in a nursery; none of them waits for another."""

    def __init__(self, plan: Plan, listeners: Listeners, nursery: trio.Nursery) -> None:
        self._plan = plan
        self._listeners = listeners
        self._nursery = nursery
        self._threads = Threads(nursery)
        self._handover = Handover(listeners, plan.time_limit, self.ask)

    async def start(self, entries: Sequence[Entry]) -> None:
        """Begin the attempts of tasks that are due together."""
        for first in range(0, len(entries), TURN):
            now = trio.current_time()
            together = []
            for entry in entries[first : first + TURN]:
                entry.in_hand = True
                if entry.is_batched:
                    attempt = Attempt(entry, now)
                    together.append((attempt, attempt.begin(self._plan.is_stopping)))
                else:
                    self._nursery.start_soon(self._attempt_alone, entry)
            self._go_on(together)
            await trio.lowlevel.checkpoint()

    def begin(self, entry: Entry) -> Attempt:
        """Take an attempt in hand."""
        entry.in_hand = True
        entry.due = trio.current_time()
        return Attempt(entry, entry.due)

    async def make(self, attempt: Attempt) -> None:
        """Make an attempt that was begun, to its end."""
        self._plan_next(attempt, await self._make(attempt))

    async def plan_first(self, entry: Entry, now: float) -> None:
        """Make the first attempt due, after its delay from `now`."""
        entry.in_hand, entry.due = True, now
        self._let_go(entry, await self._next_delay(entry), now)

    @trio.lowlevel.enable_ki_protection
    async def give_back_kept(self, entry: Entry) -> None:
        """Release what `entry` keeps, if it can be released."""
        if entry.kept and entry.task.release is not None:
            claims, entry.kept = entry.kept, []
            await self._handover.give_back(entry, claims)

    async def ask(self, entry: Entry, callback: Callback, argument: Any) -> Any:
        """Call a callback of a task, within its timeout; raises what it raises.

        Raises:
            CallbackTimeoutError: If it takes too long.
        """
        if not callback.is_async:
            value = await self._ask_thread(entry, callback, argument)
            if not inspect.isawaitable(value):
                return value
            return await self._within(entry, callback.name, lambda: value)
        if entry.timeout is None:
            return await callback.function(argument)
        return await self._within(entry, callback.name, partial(callback.function, argument))

    @trio.lowlevel.enable_ki_protection
    async def _attempt_alone(self, entry: Entry) -> None:
        """Make attempts for a task until the next one is due later, or is to be made with others.

        An attempt that is due at once follows in the same trio task: a task without a delay
        would otherwise pay for a new one every time.
        """
        while True:
            attempt = Attempt(entry, trio.current_time())
            delay = await self._make(attempt)
            if delay or delay is None or entry.ended is not None:
                return self._plan_next(attempt, delay)
            entry.decisions.add(attempt.outcome, reason(attempt, 0.0))
            entry.due = trio.current_time()
            await trio.lowlevel.checkpoint()
            if not self._plan.wants(entry):
                return self._let_go(entry, None)

    async def _make(self, attempt: Attempt, question: Question | None = None) -> float | None:
        """Make an attempt, or go on with one; the seconds until the next, None if there is none."""
        attempt.entry.flyer = trio.lowlevel.current_task()
        question = question or attempt.begin(self._plan.is_stopping)
        while question is not None:
            question = await self._answer(attempt, question)
        return await self._finish(attempt)

    async def _answer(self, attempt: Attempt, question: Question) -> Question | None:
        try:
            if not isinstance(question, Ask):
                answer = await self._within(attempt.entry, attempt.stage, lambda: question)
            elif question.callback.is_async and attempt.entry.timeout is None:
                # As `ask` does, without a call in between: most attempts are made like this.
                answer = await question.callback.function(question.argument)
            else:
                answer = await self.ask(attempt.entry, *question)
        except Exception as error:
            return attempt.throw(error)
        except trio.Cancelled:
            _note_cut_off(attempt)
            raise
        return attempt.send(answer)

    def _go_on(self, attempts: Iterable[tuple[Attempt, Question | None]]) -> None:
        """Answer what can be answered for many at once; the others are made one by one."""
        together: dict[Any, list[tuple[Attempt, Ask]]] = {}
        for attempt, question in attempts:
            if isinstance(question, Ask) and question.callback.many is not None:
                key = (question.callback.many, attempt.entry.timeout)
                together.setdefault(key, []).append((attempt, question))
            else:
                self._nursery.start_soon(self._go_on_alone, attempt, question)
        for members in together.values():
            if len(members) == 1:
                self._nursery.start_soon(self._go_on_alone, *members[0])
            else:
                self._nursery.start_soon(self._ask_many, members)

    @trio.lowlevel.enable_ki_protection
    async def _go_on_alone(self, attempt: Attempt, question: Question | None) -> None:
        if question is None:
            attempt.entry.flyer = trio.lowlevel.current_task()
            delay = await self._finish(attempt)
        else:
            delay = await self._make(attempt, question)
        self._plan_next(attempt, delay)

    @trio.lowlevel.enable_ki_protection
    async def _ask_many(self, members: Sequence[tuple[Attempt, Ask]]) -> None:
        answers = await self._answers(members)
        # One time for all of them: those that find nothing are due together again.
        now = trio.current_time()
        ended, ongoing = [], []
        for (attempt, _), answer in zip(members, answers, strict=True):
            is_error = isinstance(answer, Exception)
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
        ask = partial(callback.many, [argument for _, (_, argument) in members])
        try:
            return _checked(await self._within(attempt.entry, callback.name, ask), len(members))
        except Exception as error:
            return [error] * len(members)
        except trio.Cancelled:
            for attempt, _ in members:
                _note_cut_off(attempt)
            raise

    def _is_quick(self, attempt: Attempt) -> bool:
        """Whether the attempt can be finished without waiting for anything of the user's."""
        return (
            attempt.is_quiet
            and attempt.entry.fixed_delay is not None
            and not (self._listeners.of(AttemptEvent) and self._may_wait())
        )

    def _may_wait(self) -> bool:
        """Whether telling of an attempt may take time: so may an error of a listener of them."""
        return any(map(self._listeners.may_wait_for, (AttemptEvent, ErrorEvent)))

    async def _within(self, entry: Entry, name: str, function: Callable[[], Awaitable[Any]]) -> Any:
        if entry.timeout is None:
            return await function()
        with trio.move_on_after(entry.timeout):
            return await function()
        raise CallbackTimeoutError(entry.task.name, name, entry.timeout)

    async def _ask_thread(self, entry: Entry, callback: Callback, argument: Any) -> Any:
        timeout = entry.timeout
        if callback.name not in entry.late:
            call = await self._threads.call(callback.function, argument, timeout=timeout)
            if call.done.is_set():
                return call.unwrap()
            entry.late[callback.name] = call
            call.when_late = partial(self._came_late, entry, callback)
        remedy = "; it goes on in its thread, and the task waits for it before it calls it again"
        raise CallbackTimeoutError(entry.task.name, callback.name, timeout, remedy)

    async def _came_late(self, entry: Entry, callback: Callback, call: ThreadCall) -> None:
        """Take what a `schedule` that outlived its timeout claimed in the end."""
        del entry.late[callback.name]
        if callback.name != "schedule":
            return
        try:
            value = call.unwrap()
            entry.keep(claims_of(entry, await value if inspect.isawaitable(value) else value))
        except Exception as error:
            await self._report(entry, "schedule", error)
        self._plan.wake(entry)

    async def _finish(self, attempt: Attempt) -> float | None:
        """Settle and count an attempt; the seconds until the next, None if there is none."""
        entry = attempt.entry
        if not attempt.is_quiet:
            await self._handover.settle(attempt)
        _count(attempt)
        attempt.is_over = True
        if self._listeners.of(AttemptEvent):
            await self._listeners.attempted(attempt.end(attempt.outcome))
        is_plain = attempt.next_in is None and attempt.due_in is None and not entry.woken
        if is_plain and entry.fixed_delay is not None:
            return entry.fixed_delay if self._plan.wants(entry) else None
        return await self._next_delay(entry, attempt.next_in, attempt.due_in)

    def _plan_next(self, attempt: Attempt, delay: float | None, now: float | None = None) -> None:
        attempt.entry.decisions.add(attempt.outcome, reason(attempt, delay))
        self._let_go(attempt.entry, delay, now)

    async def _next_delay(
        self, entry: Entry, next_in: float | None = None, due_in: float | None = None
    ) -> float | None:
        if not self._plan.wants(entry):
            return None
        delay = await self._delay(entry) if next_in is None else next_in
        if due_in is not None and due_in < delay:
            delay = due_in
        if entry.woken:
            entry.woken, delay = False, 0.0
        return delay

    def _let_go(self, entry: Entry, delay: float | None, now: float | None = None) -> None:
        entry.let_go()
        # Asked again: a pause or a stop may have come while `delay` was being called.
        if delay is not None and self._plan.wants(entry):
            self._plan.plan(entry, (now or trio.current_time()) + delay)

    async def _delay(self, entry: Entry) -> float:
        delay: Any = entry.task.delay
        try:
            if callable(delay):
                delay = await self._called_delay(entry, delay)
            seconds = to_seconds(delay)
            if seconds is None:
                raise UnexpectedDelayError(entry.task.name, delay)
        except Exception as error:
            entry.count_error(error)
            await self._report(entry, "delay", error)
            return FALLBACK_DELAY
        return seconds

    async def _called_delay(self, entry: Entry, delay: Callable[[int], Any]) -> Any:
        value = delay(entry.attempt_number)
        if inspect.isawaitable(value):
            value = await self._within(entry, "delay", lambda: value)
        return value

    async def _report(self, entry: Entry, stage: Stage, error: Exception) -> None:
        event = ErrorEvent(task_name=entry.task.name, error=error, stage=stage)
        await self._listeners.report(event)


def _checked(answers: Any, count: int) -> Sequence[Any]:
    if isinstance(answers, list | tuple) and len(answers) == count:
        return answers
    raise TypeError(
        f"`many` was asked for {count} tasks and returned {answers!r:.100}: it must "
        "return a list with a result or an exception for each, in the same order"
    )


def _note_cut_off(attempt: Attempt) -> None:
    """Put on record that a claim was interrupted, with what it had claimed unknown."""
    attempt.entry.cut_off = attempt.stage == "schedule"


def _count(attempt: Attempt) -> None:
    entry = attempt.entry
    entry.attempt_number = 0 if attempt.outcome == "dispatched" else entry.attempt_number + 1
    entry.consecutive_errors = entry.consecutive_errors + 1 if attempt.outcome == "error" else 0
    if attempt.errors:
        entry.note_error(attempt.errors[-1][1])
    if attempt.active is not None:
        entry.active = attempt.active + attempt.handed_over
    entry.last_attempt_at = time.time()
