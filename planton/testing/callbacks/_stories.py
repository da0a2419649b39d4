"""The stories that are played: who does what in which order."""

from collections.abc import Awaitable, Callable
from typing import get_args

import attrs
import trio

from planton._errors import InvalidArgumentError
from planton.testing.callbacks._bench import EVERYTHING, Bench, Dispatcher, done
from planton.testing.callbacks._report import REMEDIES, CallbackReport, Finding, Guarantee
from planton.testing.callbacks._steps import Steps

# A claim that has more steps than that is held up at these only.
MOST_STEPS = 100
# How often all dispatchers claim at the same time, each as fast as it can.
ROUNDS = 10


@attrs.define(eq=False)
class Stories:
    """Plays all of them on a bench."""

    bench: Bench
    count: int  # of dispatchers that compete
    patience: float  # seconds after which one that waits is blocked by another
    kept: dict[str, str] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.kept = {
            "shown": "all that one claim returned",
            "limit": "asked for 1, for 2, for all there is",
            "crash": "what was claimed and never returned was handed out again",
        }

    async def tell(self, example: Dispatcher) -> CallbackReport:
        """Play all stories, that of the crash last: it leaves claims behind."""
        kept = self.kept
        absent = _not_applicable(example, self.bench)
        await self._alone()
        await self._limited()
        if "ended" not in absent:
            await self._ended()
            kept["ended"] = "it was no longer active, and others took its slot"
        await self._all_count_first()
        await self._undelivered()
        steps = await self._held_up()
        await self._all_at_once()
        kept["cap"] = kept["once"] = (
            f"{self.count} dispatchers {_counted(example)} before any of them claimed; one was "
            f"held up at each of the {steps} steps within its claim, and before it delivered, "
            f"while another attempted; {self.count} claimed at the same time, {ROUNDS} times"
        )
        if "cancellation" not in absent:
            kept["cancellation"] = f"cancelled at each of its {await self._cancelled()} steps"
        await self._crashed()
        return CallbackReport(tuple(self._finding(one, absent) for one in get_args(Guarantee)))

    def _finding(self, guarantee: Guarantee, absent: dict[str, str]) -> Finding:
        if guarantee in self.bench.breaches:
            evidence, remedy = ": ".join(self.bench.breaches[guarantee]), REMEDIES[guarantee]
            return Finding(guarantee=guarantee, outcome="broken", evidence=evidence, remedy=remedy)
        if guarantee in absent:
            return Finding(
                guarantee=guarantee, outcome="not applicable", evidence=absent[guarantee]
            )
        return Finding(guarantee=guarantee, outcome="kept", evidence=self.kept[guarantee])

    async def _alone(self) -> None:
        bench = self.bench
        await bench.begin("one attempt after the other", bench.concurrency + 1)
        async with bench.dispatchers(2) as (first, second):
            claims = await bench.claim(first)
            if not claims:
                if bench.refused is not None:
                    raise bench.refused
                remedy = "nothing was claimed after it: make so many due, for these callbacks"
                raise InvalidArgumentError("insert", bench.insert, remedy)
            at_once = await first.active()
            names = await bench.take(first, claims)
            active = await first.active()
            if active is not None and (missing := names - set(active)):
                bench.note("shown", f"{_some(missing)} returned, and not active afterwards")
            if not names <= set(at_once or ()):
                self.kept["shown"] = "not by schedule: only once `deliver` had recorded them"
            await bench.attempt(first)
            room = bench.concurrency + bench.spare + 1
            await bench.hold(second, await bench.ask(second, 1, room))

    async def _limited(self) -> None:
        bench = self.bench
        await bench.begin("more are due than may be claimed", 5)
        async with bench.dispatchers(1) as (who,):
            for limit in (1, 2):
                await bench.hold(who, await bench.ask(who, limit, EVERYTHING))

    async def _ended(self) -> None:
        bench = self.bench
        await bench.begin("the work was done", bench.concurrency)
        async with bench.dispatchers(1) as (who,):
            names = await bench.attempt(who)
            await bench.end_all()
            await bench.add(bench.concurrency)
            still = names & set(await who.active() or ())
            if still:
                bench.note("ended", f"{_some(still)} ended, and still active")
            if not await bench.attempt(who):
                bench.note("ended", "the slot is still taken: nothing more is claimed")

    async def _all_count_first(self) -> None:
        bench = self.bench
        story = f"{self.count} dispatchers counted before any of them claimed"
        await bench.begin(story, self.count * bench.concurrency)
        async with bench.dispatchers(self.count) as everyone, trio.open_nursery() as nursery:
            turns = [Turn() for _ in everyone]
            for who, turn in zip(everyone, turns, strict=True):
                nursery.start_soon(self._try, who, turn.over, None, None, turn.wait)
                await turn.come(self.patience)
            for turn in turns:
                turn.begin.set()
                await turn.over.wait()

    async def _undelivered(self) -> None:
        """What one has claimed must count before its consumer has recorded it."""
        bench = self.bench
        await bench.begin(
            "one dispatcher had claimed and not yet delivered, another attempted",
            2 * bench.concurrency,
        )
        async with bench.dispatchers(2) as (one, other):
            claims = await bench.claim(one)
            await bench.attempt(other)
            await bench.take(one, claims)

    async def _held_up(self) -> int:
        """Hold one up at each step of its claim; how many steps there are."""
        for number in range(1, MOST_STEPS + 1):
            if not await self._held_up_at(number):
                return number - 1
        return MOST_STEPS

    async def _held_up_at(self, number: int) -> bool:
        story = f"one dispatcher was held up at step {number} of its claim, another attempted"
        await self.bench.begin(story, 2 * self.bench.concurrency)
        reached, over, resume = trio.Event(), trio.Event(), trio.Event()

        async def hold_up() -> None:
            reached.set()
            with trio.CancelScope(shield=True):
                await resume.wait()

        steps = Steps(number, hold_up)
        async with self.bench.dispatchers(2) as (one, other), trio.open_nursery() as nursery:
            nursery.start_soon(self._try, one, reached, steps)
            try:
                await reached.wait()
                nursery.start_soon(self._try, other, over)
                with trio.move_on_after(self.patience):
                    await over.wait()
            finally:
                resume.set()
        return steps.count >= number

    async def _all_at_once(self) -> None:
        story = f"{self.count} dispatchers attempted at the same time"
        for _ in range(ROUNDS):
            await self.bench.begin(story, self.count * self.bench.concurrency)
            async with self.bench.dispatchers(self.count) as team, trio.open_nursery() as nursery:
                for who in team:
                    nursery.start_soon(self._try, who, trio.Event())

    async def _try(
        self,
        who: Dispatcher,
        over: trio.Event,
        steps: Steps | None = None,
        scope: trio.CancelScope | None = None,
        pause: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint,
    ) -> None:
        """Make an attempt that may fail, as in a deadlock or when the database is locked."""
        try:
            await self.bench.attempt(who, steps, scope, pause)
        except Exception:
            pass  # Planton reports it and attempts again; what it claimed all the same is missed
        finally:
            over.set()

    async def _cancelled(self) -> int:
        """Cancel a claim at each of its steps; how many there are."""
        for number in range(1, MOST_STEPS + 1):
            if not await self._cancelled_at(number):
                return number - 1
        return MOST_STEPS

    async def _cancelled_at(self, number: int) -> bool:
        bench, due, scope = self.bench, self.bench.concurrency, trio.CancelScope()
        await bench.begin(f"schedule was cancelled at step {number}", due)

        async def cancel() -> None:
            scope.cancel()
            # The callback is to hear of it, not this function, which stands in its midst.
            await trio.lowlevel.cancel_shielded_checkpoint()

        steps = Steps(number, cancel)
        async with bench.dispatchers(1) as (who,):
            await self._try(who, trio.Event(), steps, scope)
        lost = due - len(bench.running | await bench.drain())
        if lost:
            bench.note("cancellation", f"{lost} of {due} claimed, not returned, and not claimable")
        return steps.count >= number

    async def _crashed(self) -> None:
        bench = self.bench
        await bench.begin("a dispatcher died after its claim", bench.concurrency)
        async with bench.dispatchers(1) as (who,):
            claims = await bench.claim(who)
        names = {claim.instruction for claim in claims}
        async with bench.dispatchers(1) as (other,):
            shown = names & set(await other.active() or ())
        # What expires may be handed out again, also what is held from before.
        bench.held = {}
        if bench.expire is not None:
            await done(bench.expire())
        lost = names - await bench.drain()
        if lost:
            fate = "shown as active for ever" if shown else "not shown as active"
            when = ", also not after expire()" if bench.expire is not None else ""
            bench.note("crash", f"{_some(lost)} {fate} and not claimed again{when}")


@attrs.define(eq=False)
class Turn:
    """When a dispatcher has counted, may claim, and is done."""

    counted: trio.Event = attrs.field(factory=trio.Event)
    begin: trio.Event = attrs.field(factory=trio.Event)
    over: trio.Event = attrs.field(factory=trio.Event)

    async def wait(self) -> None:
        """Let the others count, too."""
        self.counted.set()
        await self.begin.wait()

    async def come(self, patience: float) -> None:
        """Wait until it has counted, was turned away, or is blocked."""
        with trio.move_on_after(patience):
            async with trio.open_nursery() as nursery:
                for event in (self.counted, self.over):
                    nursery.start_soon(self._first, event, nursery.cancel_scope)

    async def _first(self, event: trio.Event, scope: trio.CancelScope) -> None:
        await event.wait()
        scope.cancel()


def _counted(example: Dispatcher) -> str:
    """Return what dispatchers did first: with a lock, not all of them may count."""
    return "counted" if example.entry.task.lock is None else "asked for the lock"


def _not_applicable(example: Dispatcher, bench: Bench) -> dict[str, str]:
    absent = {}
    if example.entry.get_active is None:
        absent["shown"] = "the task is strict, and no get_active_instructions was given"
    if bench.end is None:
        absent["ended"] = "`end` was not given"
    if not example.schedule.is_async:
        absent["cancellation"] = (
            "schedule is not async: its worker thread is never cancelled, and Planton delivers "
            "what it returns late"
        )
    return absent


def _some(names: set[str]) -> str:
    shown = ", ".join(map(repr, sorted(names)[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
