"""Dispatchers that are played against callbacks, moment by moment, and what that shows."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import attrs
import trio

from planton._errors import InvalidArgumentError, UnexpectedInstructionsError
from planton._events import ErrorEvent, InstructionEvent
from planton._functions import is_async
from planton._planton import Planton
from planton._task import Claim, GetActiveInstructions, ScheduleRequest, Task
from planton.testing.callbacks._moments import CLAIMED, COUNTED, Moment, done
from planton.testing.callbacks._report import Guarantee

# More than there ever is.
EVERYTHING = 1_000_000


@attrs.define(eq=False, kw_only=True)
class Bench:
    """Keeps what dispatchers claimed and which guarantees they broke.

    Attributes:
        held: What was handed out and has not ended, by instruction.
        running: What of it was handed out in this story.
        breaches: Evidence by guarantee.
        spare: Slots that earlier stories hold, by which the concurrency is raised.
    """

    make: Callable[[], Any]
    get_active: GetActiveInstructions | None
    concurrency: int
    insert: Callable[[int], Any]
    deliver: Callable[[InstructionEvent], Any] | None
    end: Callable[[InstructionEvent], Any] | None
    expire: Callable[[], Any] | None
    story: str = ""
    held: dict[str, InstructionEvent] = attrs.field(factory=dict)
    running: set[str] = attrs.field(factory=set)
    breaches: dict[Guarantee, tuple[str, str]] = attrs.field(factory=dict)
    spare: int = 0
    outstanding: int = 0

    def note(self, guarantee: Guarantee, evidence: str) -> None:
        """Keep the evidence that a guarantee is broken: of the first story, the last."""
        story, _ = self.breaches.get(guarantee, (self.story, ""))
        if story == self.story:
            self.breaches[guarantee] = (story, evidence)

    @asynccontextmanager
    async def dispatchers(self, count: int) -> AsyncIterator[list["Dispatcher"]]:
        """Yield dispatchers that know nothing of each other."""
        async with AsyncExitStack() as stack:
            made = []
            for _ in range(count):
                task = self.make()
                if hasattr(task, "__aenter__"):
                    task = await stack.enter_async_context(task)
                elif hasattr(task, "__enter__"):
                    task = stack.enter_context(task)
                made.append(Dispatcher(self, task))
            yield made

    async def begin(self, story: str, due: int) -> None:
        """Begin a story: nothing is due but `due` new instructions."""
        await self.drain()
        await self.end_all()
        self.story, self.running = story, set()
        await self.add(due)
        async with self.dispatchers(1) as (someone,):
            active = await someone.active()
        self.spare = self.outstanding - due if active is None else len(active)

    async def add(self, due: int) -> None:
        await done(self.insert(due))
        self.outstanding += due

    async def end_all(self) -> None:
        """End all that was handed out, if the user said how."""
        if self.end is not None:
            for event in self.held.values():
                await done(self.end(event))
            self.outstanding -= len(self.held)
            self.held, self.running = {}, set()

    async def drain(self) -> set[str]:
        """Claim all that is left, by a dispatcher without a cap; what was found."""
        found: set[str] = set()
        async with self.dispatchers(1) as (who,):
            while True:
                before = set(self.held)
                found |= (names := await who.attempt(limit=EVERYTHING, concurrency=EVERYTHING))
                if names <= before:
                    return found

    async def hold(self, event: InstructionEvent, *, runs: bool) -> None:
        """Be the consumer of a claim; one that `runs` holds one of the task's slots."""
        if event.instruction in self.held:
            self.note("once", f"{event.instruction!r} was returned again while it is active")
        self.held[event.instruction] = event
        if self.deliver is not None:
            await done(self.deliver(event))
        if runs:
            self.running.add(event.instruction)
        if len(self.running) > self.concurrency:
            self.note("cap", f"{len(self.running)} active with concurrency {self.concurrency}")


class Dispatcher:
    """A Planton with callbacks of its own, which makes attempts that can be held up.

    Attributes:
        refused: What was wrong with the last answer of `schedule`, if Planton refused it.
    """

    def __init__(self, bench: Bench, task: object) -> None:
        if not isinstance(task, Task):
            remedy = "give a function that returns a planton.Task, or a context manager of one"
            raise InvalidArgumentError("dispatcher", task, remedy)
        self.task, self._bench = task, bench
        self.get_active = task.get_active_instructions or bench.get_active
        self.refused: UnexpectedInstructionsError | None = None
        self._moment, self._errors, self._names = Moment(), list[ErrorEvent](), set[str]()
        self._limit = self._concurrency = 0
        self._runs = True
        played = attrs.evolve(
            task,
            schedule=self._schedule if is_async(task.schedule) else self._schedule_in_thread,
            concurrency=lambda: self._concurrency,
            capacity=lambda: self._limit,
            release=self._release,
            limit=None,
            timeout=None,
        )
        self._planton = Planton(tasks=[played], get_active_instructions=bench.get_active)
        self._planton.on(InstructionEvent, self._take)
        self._planton.on(ErrorEvent, self._errors.append)

    async def active(self) -> list[str] | None:
        """Ask what is active; None if nothing tells."""
        function: Any = self.get_active
        if function is None:
            return None
        if is_async(function):
            return list(await function(self.task.name))
        (answer,) = await trio.to_thread.run_sync(lambda: (function(self.task.name),))
        return list(await done(answer))

    async def attempt(
        self,
        moment: Moment | None = None,
        *,
        limit: int | None = None,
        concurrency: int | None = None,
    ) -> set[str]:
        """Make an attempt; what it claimed. With a limit of its own it does not count as running.

        Raises:
            Exception: What a callback raised.
        """
        bench = self._bench
        self._moment, self.refused = moment or Moment(), None
        self._runs, self._limit = limit is None, limit or EVERYTHING
        self._concurrency = concurrency or bench.concurrency + bench.spare
        self._names.clear()
        self._errors.clear()
        await self._planton.attempt(self.task.name)
        for each in self._errors:
            if not isinstance(each.error, UnexpectedInstructionsError):
                raise each.error
            bench.note("limit", str(each.error))
            self.refused = each.error
        return set(self._names)

    async def _schedule(self, request: ScheduleRequest) -> Any:
        moment, schedule = self._moment, cast(Callable[..., Any], self.task.schedule)
        await moment.reach(COUNTED)
        with moment.scope:
            return await moment.stepwise(schedule(request))
        return []

    def _schedule_in_thread(self, request: ScheduleRequest) -> Any:
        return self._moment.call(self.task.schedule, request)

    async def _take(self, event: InstructionEvent) -> None:
        if not self._names:
            await self._moment.reach(CLAIMED)
        self._names.add(event.instruction)
        await self._bench.hold(event, runs=self._runs)

    async def _release(self, claims: Sequence[Claim]) -> None:
        """Take what was too much, and was claimed all the same."""
        for claim in claims:
            self._names.add(claim.instruction)
            await self._bench.hold(InstructionEvent.of(self.task.name, claim), runs=False)
