"""Dispatchers that are played step by step against callbacks, and what that shows."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import attrs
import trio

from planton._errors import InvalidArgumentError, UnexpectedInstructionsError
from planton._events import InstructionEvent
from planton._loop.answers import claims_of
from planton._loop.callbacks import Callback
from planton._loop.entry import Entry
from planton._task import Claim, GetActiveInstructions, ScheduleRequest, Task
from planton.testing.callbacks._report import Guarantee
from planton.testing.callbacks._steps import Steps, call

# More than there ever is.
EVERYTHING = 1_000_000


@attrs.define(eq=False)
class Dispatcher:
    """One dispatcher, with callbacks of its own.

    Attributes:
        context: What its lock yielded; False while another dispatcher is within.
    """

    entry: Entry
    context: Any = None

    @classmethod
    def of(cls, task: object, get_active: GetActiveInstructions | None) -> "Dispatcher":
        if not isinstance(task, Task):
            remedy = "give a function that returns a planton.Task, or a context manager of one"
            raise InvalidArgumentError("dispatcher", task, remedy)
        return cls(Entry.of(task, get_active))

    @property
    def schedule(self) -> Callback:
        return self.entry.schedule

    async def active(self) -> list[str] | None:
        """Ask what is active; None if nothing tells."""
        if self.entry.get_active is None:
            return None
        return list(await call(self.entry.get_active, self.entry.task.name))

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[bool]:
        """Enter the task's lock, if it has one; whether that let it in."""
        task = self.entry.task
        if task.lock is None:
            yield True
            return
        async with _as_async(task.lock(task.name)) as self.context:
            yield self.context is not False


@attrs.define(eq=False, kw_only=True)
class Bench:
    """Plays dispatchers, and keeps what they claimed and which guarantees they broke.

    Attributes:
        held: What was handed out and has not ended, by instruction.
        running: What of it was handed out in this story.
        breaches: Evidence by guarantee.
        spare: Slots that earlier stories hold, by which the concurrency is raised.
        refused: What was wrong with the last answer of `schedule`, if Planton would refuse it.
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
    refused: UnexpectedInstructionsError | None = None

    def note(self, guarantee: Guarantee, evidence: str) -> None:
        """Keep the evidence that a guarantee is broken: of the first story, the last."""
        story, _ = self.breaches.get(guarantee, (self.story, ""))
        if story == self.story:
            self.breaches[guarantee] = (story, evidence)

    @asynccontextmanager
    async def dispatchers(self, count: int) -> AsyncIterator[list[Dispatcher]]:
        """Give dispatchers that know nothing of each other."""
        async with AsyncExitStack() as stack:
            made = []
            for _ in range(count):
                task = self.make()
                if hasattr(task, "__aenter__"):
                    task = await stack.enter_async_context(task)
                elif hasattr(task, "__enter__"):
                    task = stack.enter_context(task)
                made.append(Dispatcher.of(task, self.get_active))
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
                claims = await self.ask(who, EVERYTHING, EVERYTHING)
                new = {claim.instruction for claim in claims} - found
                fresh = new - set(self.held)
                await self.hold(who, claims)
                found |= new
                if not fresh:
                    return found

    async def attempt(
        self,
        who: Dispatcher,
        steps: Steps | None = None,
        scope: trio.CancelScope | None = None,
        pause: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint,
    ) -> set[str]:
        """Make an attempt: count, pause, claim in `scope`, and hand over; the names."""
        return await self.take(who, await self.claim(who, steps, scope, pause))

    async def claim(
        self,
        who: Dispatcher,
        steps: Steps | None = None,
        scope: trio.CancelScope | None = None,
        pause: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint,
    ) -> list[Claim]:
        """Count and claim, within the lock if there is one; hand nothing over yet."""
        claims: list[Claim] = []
        async with who.locked() as is_in:
            if is_in:
                active = await who.active()
                await pause()
                limit, concurrency = self.room(who, active)
                with scope or trio.CancelScope():
                    if limit > 0:
                        claims = await self._ask(who, active, limit, concurrency, steps)
        return claims

    def room(self, who: Dispatcher, active: Sequence[str] | None) -> tuple[int, int]:
        """Give the limit and the concurrency that Planton would ask with."""
        concurrency = self.concurrency + self.spare
        counted = len(active or ()) if who.entry.is_counted else 0
        return concurrency - counted, concurrency

    async def ask(self, who: Dispatcher, limit: int, concurrency: int) -> list[Claim]:
        """Claim so many, whatever is active."""
        async with who.locked() as is_in:
            return await self._ask(who, await who.active(), limit, concurrency) if is_in else []

    async def _ask(
        self,
        who: Dispatcher,
        active: Sequence[str] | None,
        limit: int,
        concurrency: int,
        steps: Steps | None = None,
    ) -> list[Claim]:
        """Call `schedule`; what Planton would hand over of its answer."""
        request = ScheduleRequest(
            task_name=who.entry.task.name,
            active_instructions=tuple(active or ()) if who.entry.is_counted else (),
            concurrency=concurrency,
            limit=limit,
            attempt_number=0,
            context=who.context,
        )
        answer = await call(who.schedule, request, steps)
        self.refused = None
        try:
            claims = claims_of(who.entry, answer)
        except UnexpectedInstructionsError as error:
            self.note("limit", str(error))
            self.refused = error
            claims, who.entry.undelivered = who.entry.undelivered, []
        if len(claims) > limit:
            self.note("limit", f"asked for {limit}, schedule returned {len(claims)}")
            await self.hold(who, claims[limit:])
        return claims[:limit]

    async def take(self, who: Dispatcher, claims: Sequence[Claim]) -> set[str]:
        """Be the consumer of claims, one of those that hold the task's slots."""
        await self.hold(who, claims)
        self.running |= (names := {claim.instruction for claim in claims})
        if len(self.running) > self.concurrency:
            self.note("cap", f"{len(self.running)} active with concurrency {self.concurrency}")
        return names

    async def hold(self, who: Dispatcher, claims: Sequence[Claim]) -> None:
        for claim in claims:
            if claim.instruction in self.held:
                self.note("once", f"{claim.instruction!r} was returned again while it is active")
            event = InstructionEvent.of(who.entry.task.name, claim)
            self.held[claim.instruction] = event
            if self.deliver is not None:
                await done(self.deliver(event))


async def done(value: Awaitable[Any] | Any) -> None:
    """Await what a helper of the user's returned, if it is to be awaited."""
    if inspect.isawaitable(value):
        await value


@asynccontextmanager
async def _as_async(manager: Any) -> AsyncIterator[Any]:
    """Enter a lock as Planton does: a sync one in a worker thread."""
    if hasattr(type(manager), "__aenter__"):
        async with manager as context:
            yield context
        return
    context = await trio.to_thread.run_sync(manager.__enter__)
    try:
        yield context
    except BaseException as error:
        with trio.CancelScope(shield=True):
            leave = partial(manager.__exit__, type(error), error, error.__traceback__)
            await trio.to_thread.run_sync(leave)
        raise
    await trio.to_thread.run_sync(manager.__exit__, None, None, None)
