"""Making attempts: asks the callbacks, hands over what was claimed, and plans what follows."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import trio

from planton._events import AttemptEvent, ErrorEvent
from planton._failures import guarded
from planton._loop.after import count, delay_after, delay_before
from planton._loop.answers import checked_many
from planton._loop.attempt import Attempt
from planton._loop.caller import Caller
from planton._loop.consumers import Takers
from planton._loop.delivery import release, settle
from planton._loop.entry import Callback, Entry
from planton._loop.listeners import Listeners
from planton._loop.locks import claim_in_lock
from planton._loop.plan import Plan
from planton._loop.together import Asked, Cohort
from planton._task import ScheduleRequest

# How many tasks are begun, and asked about in one call of `many`, before other trio tasks have
# their turn: about ten milliseconds. More at a time is slower: so many objects live at once that
# the garbage collector takes half of the time.
TURN = 1000


class Dispatcher:
    """Makes attempts in a nursery; none of them waits for another.

    Tasks that are due together are asked for in one call where their callbacks have `many`, and
    in a trio task of their own where anything has to be awaited for each.
    """

    def __init__(
        self, plan: Plan, takers: Takers, listeners: Listeners, nursery: trio.Nursery
    ) -> None:
        self._plan = plan
        self._takers = takers
        self._listeners = listeners
        self._nursery = nursery
        self._caller = Caller(plan, listeners, nursery)

    async def start(self, entries: Sequence[Entry]) -> None:
        for first in range(0, len(entries), TURN):
            now = trio.current_time()
            together = []
            for entry in entries[first : first + TURN]:
                has_turn = entry.turn.try_take(self._plan)
                if has_turn and entry.is_batched and not entry.undelivered:
                    together.append(self.begin(entry, now))
                else:
                    self._nursery.start_soon(self._attempt_alone, entry, has_turn)
            self._go_on(together)
            await trio.lowlevel.checkpoint()

    def begin(self, entry: Entry, now: float | None = None) -> Attempt:
        if now is None:
            now = entry.due = trio.current_time()
        attempt = Attempt(entry, now)
        attempt.is_woken, entry.woken = entry.woken, False
        return attempt

    async def plan_first(self, entry: Entry, now: float | None) -> None:
        """Make the first attempt due, after its delay; the turn was taken for that."""
        entry.due, entry.saturated_since = trio.current_time(), None
        delay = await delay_before(self._caller, entry) if self._plan.wants(entry) else None
        self._end_attempt(entry, delay, trio.current_time() if now is None else now)

    @trio.lowlevel.enable_ki_protection
    async def release_undelivered(self, entry: Entry) -> None:
        if entry.undelivered and entry.task.release is not None:
            claims, entry.undelivered = entry.undelivered, ()
            await release(self._caller, entry, claims)

    # One attempt

    @trio.lowlevel.enable_ki_protection
    async def _attempt_alone(self, entry: Entry, has_turn: bool) -> None:
        """Make attempts for a task until the next one is due later, or is to be made with others.

        An attempt that is due at once follows in the same trio task: a task without a delay
        would otherwise pay for a new one every time.
        """
        if not has_turn:  # there is an attempt for a task of the same name
            await entry.turn.take(self._plan)
        entry.turn.trio_task = trio.lowlevel.current_task()
        while self._plan.wants(entry):
            attempt = self.begin(entry)
            await self._make(attempt)
            now = trio.current_time()
            if attempt.delay != 0 or entry.turn.is_awaited or entry.is_batched:
                self._plan_next(attempt, now)
                return
            self._explain(attempt, now)
            await trio.lowlevel.checkpoint()
        entry.end_attempt()

    @trio.lowlevel.enable_ki_protection
    async def make(self, attempt: Attempt, cohort: Cohort | None = None) -> None:
        """Make an attempt, or what is left of one, and plan the next."""
        attempt.entry.turn.trio_task = trio.lowlevel.current_task()
        await self._make(attempt, cohort)
        self._plan_next(attempt, trio.current_time())

    async def _make(self, attempt: Attempt, cohort: Cohort | None = None) -> None:
        try:
            if attempt.entry.task.lock is not None:
                await claim_in_lock(self._caller, attempt, partial(self._ask, attempt))
            elif not attempt.is_asked:
                await self._ask(attempt, cohort)
            await self._finish(attempt)
        except BaseException:
            attempt.keep_undelivered()
            raise

    async def _ask(self, attempt: Attempt, cohort: Cohort | None = None) -> None:
        """Ask what is active, if that is not known yet, and `schedule` for what there is room."""
        entry = attempt.entry
        try:
            with guarded:
                if attempt.active is None and entry.has_to_count:
                    attempt.stage = "get_active_instructions"
                    attempt.count(await self._caller.call(entry, entry.counter, entry.task.name))
                request = None if entry.is_computed else self._request(attempt)
                if not (request or attempt.is_asked):
                    request = attempt.request(await self._limit(attempt), self._plan)
                if request is not None and (cohort is None or cohort.is_closed):
                    attempt.take(await self._caller.call(entry, entry.schedule, request))
                elif request is not None and cohort is not None:
                    attempt.take(await cohort.ask(attempt, request))
        except Exception as error:
            attempt.fail(error)
        except BaseException:
            attempt.note_cut_off()
            raise
        finally:
            if cohort is not None:
                cohort.leave(attempt)
            if attempt.reserved:
                attempt.reserve_only(len(attempt.deliver))

    async def _limit(self, attempt: Attempt) -> int:
        """Return how many may be claimed, as the functions of the task say."""
        entry, task = attempt.entry, attempt.entry.task
        if callable(task.concurrency):
            entry.concurrency = await self._caller.compute(attempt, "concurrency", 1)
        limit = attempt.room()
        if not limit:
            return 0
        if task.limit is not None and task.cap == "advisory":
            arguments = (entry.concurrency, attempt.instructions)
            limit = await self._caller.compute(attempt, "limit", 0, *arguments)
            attempt.detail = "limit returned 0"
        if task.capacity is not None:
            capacity = await self._caller.compute(attempt, "capacity", 0)
            if capacity < limit:
                limit, attempt.detail = capacity, "capacity returned 0"
        attempt.stage = "capacity"
        found = attempt.reserve(self._takers, limit)
        return await attempt.wait_for_slots(limit) if found is None else found

    # Many attempts

    def _go_on(self, attempts: Iterable[Attempt]) -> None:
        """Ask what can be asked for many at once; the others go on by themselves."""
        groups: defaultdict[Any, list[Asked]] = defaultdict(list)
        asked: list[Attempt] = []
        apart: list[Attempt] = []
        for attempt in attempts:
            question = None if attempt.is_asked else self._question(attempt)
            if question is not None:
                groups[question[0].many, attempt.entry.timeout].append((attempt, *question))
            else:
                (asked if attempt.is_asked else apart).append(attempt)
        for members in groups.values():
            self._nursery.start_soon(self._ask_together, members)
        self._make_apart(apart)
        if asked:
            self._finish_together(asked)

    def _question(self, attempt: Attempt) -> tuple[Callback, Any] | None:
        """Return what can be asked for several tasks now: what is active, or to schedule."""
        entry = attempt.entry
        if attempt.active is None and entry.is_counted:
            attempt.stage = "get_active_instructions"
            return None if entry.counter.many is None else (entry.counter, entry.task.name)
        needs_more = entry.is_computed or entry.schedule.many is None
        if needs_more and (callable(entry.task.concurrency) or attempt.room()):
            return None
        try:
            request = self._request(attempt)
        except Exception as error:
            attempt.fail(error)
            return None
        return None if request is None else (entry.schedule, request)

    def _request(self, attempt: Attempt) -> ScheduleRequest | None:
        """Return what to ask `schedule` for; None if there is no room, or slots may become free."""
        room = attempt.room()
        limit = attempt.reserve(self._takers, room) if room else 0
        return None if limit is None else attempt.request(limit, self._plan)

    @trio.lowlevel.enable_ki_protection
    async def _ask_together(self, asked: Sequence[Asked]) -> None:
        for (attempt, _, _), answer in zip(asked, await self._answers(asked), strict=True):
            attempt.hear(answer)
            if attempt.reserved:
                attempt.reserve_only(len(attempt.deliver))
        self._go_on([attempt for attempt, _, _ in asked])

    async def _answers(self, asked: Sequence[Asked]) -> Sequence[Any]:
        """Return what a callback answers for some tasks, or the exceptions in its place."""
        trio_task = trio.lowlevel.current_task()
        for attempt, _, _ in asked:
            attempt.entry.turn.trio_task = trio_task
        entry, callback = asked[0][0].entry, asked[0][1]
        arguments = [argument for _, _, argument in asked]
        try:
            with guarded:
                if callback.many is None or len(arguments) == 1:
                    return [await self._caller.call(entry, callback, arguments[0])]
                many = callback.many(arguments)
                answers = await self._caller.within_timeout(entry, callback.name, many)
                return checked_many(answers, len(arguments))
        except Exception as error:
            return [error] * len(arguments)
        except BaseException:
            for attempt, _, _ in asked:
                attempt.note_cut_off()
            raise

    def _make_apart(self, attempts: Iterable[Attempt]) -> None:
        """Make attempts in trio tasks of their own, which meet again to ask their `schedule`."""
        groups: defaultdict[Any, list[Attempt]] = defaultdict(list)
        for attempt in attempts:
            groups[attempt.entry.schedule.many, attempt.entry.timeout].append(attempt)
        for (many, _), members in groups.items():
            cohort = Cohort(members, self._answers) if many and len(members) > 1 else None
            for attempt in members:
                self._nursery.start_soon(self.make, attempt, cohort)

    def _finish_together(self, attempts: Iterable[Attempt]) -> None:
        # Listeners of attempts, and of the errors of those, may take time.
        is_heard = bool(self._listeners.of(AttemptEvent))
        may_wait = is_heard and any(map(self._listeners.may_wait_for, (AttemptEvent, ErrorEvent)))
        quick = []
        for attempt in attempts:
            if attempt.is_quick and not may_wait:
                quick.append(attempt)
            else:
                # What holds claims has a trio task of its own, whatever befalls that of the others.
                self._nursery.start_soon(self.make, attempt)
        self._nursery.start_soon(self._finish_quick, quick)

    @trio.lowlevel.enable_ki_protection
    async def _finish_quick(self, attempts: Iterable[Attempt]) -> None:
        # One time for all of them: those that find nothing are due together again.
        now, trio_task = trio.current_time(), trio.lowlevel.current_task()
        for attempt in attempts:
            attempt.entry.turn.trio_task = trio_task
            await self._finish(attempt)
            self._plan_next(attempt, now)

    # What follows

    async def _finish(self, attempt: Attempt) -> None:
        """Settle and count an attempt, and find out how long to wait for the next."""
        if not attempt.is_quiet:
            await settle(self._caller, attempt)
        if attempt.reserved:
            attempt.reserve_only(0)
        count(attempt)
        attempt.is_over = True
        if self._listeners.of(AttemptEvent):
            await self._listeners.attempted(attempt.end(attempt.outcome))
        if self._plan.wants(attempt.entry):
            attempt.delay = await delay_after(self._caller, attempt)

    def _plan_next(self, attempt: Attempt, now: float) -> None:
        if attempt.entry.woken:
            attempt.delay = 0.0
        self._explain(attempt, now)
        self._end_attempt(attempt.entry, attempt.delay, now)

    def _explain(self, attempt: Attempt, now: float) -> None:
        entry = attempt.entry
        attempt.become_reason()
        entry.last_reason = attempt
        entry.decisions.add(attempt.outcome, attempt, entry.last_attempt_at or 0.0, now)

    def _end_attempt(self, entry: Entry, delay: float | None, now: float) -> None:
        entry.end_attempt()
        # Asked again: a pause or a stop may have come while `delay` was being called.
        if delay is not None and self._plan.wants(entry):
            self._plan.set(entry, now if entry.woken else now + delay)
