"""The stories that are played: who does what in which order."""

import math
from collections.abc import Awaitable, Callable
from typing import get_args

import attrs
import trio

from planton._errors import InvalidArgumentError
from planton._functions import is_async
from planton.testing.callbacks._bench import EVERYTHING, Bench, Dispatcher
from planton.testing.callbacks._moments import CLAIMED, COUNTED, Moment, cancel, done
from planton.testing.callbacks._report import REMEDIES, CallbackReport, Finding, Guarantee

# A claim that has more steps than that is held up at these only.
MOST_STEPS = 100
# How often all dispatchers claim at the same time, each as fast as it can.
ROUNDS = 10
KEPT = {
    "shown": "all that one claim returned",
    "limit": "asked for 1, for 2, for all there is",
    "ended": "it was no longer active, and others took its slot",
    "crash": "what was claimed and never returned was handed out again",
}


@attrs.define(eq=False, kw_only=True)
class Stories(Bench):
    """Plays all of them."""

    count: int  # of dispatchers that compete
    patience: float  # seconds after which one that waits is blocked by another
    kept: dict[str, str] = attrs.field(factory=KEPT.copy)

    async def tell(self, example: Dispatcher) -> CallbackReport:
        """Play all stories, that of the crash last: it leaves claims behind."""
        absent = self._not_applicable(example)
        await self._alone()
        await self._limited()
        if "ended" not in absent:
            await self._ended()
        story = f"{self.count} dispatchers counted before any of them claimed"
        await self._held_up(story, COUNTED, self.count, 0)
        undelivered = "one dispatcher had claimed and not yet delivered, another attempted"
        await self._held_up(undelivered, CLAIMED, 1, 1)
        steps = await _at_each_step(self._held_up_at)
        await self._all_at_once()
        # With a lock, not all of them may count.
        counted = "counted" if example.task.lock is None else "asked for the lock"
        self.kept["cap"] = self.kept["once"] = (
            f"{self.count} dispatchers {counted} before any of them claimed; one was "
            f"held up at each of the {steps} steps within its claim, and before it delivered, "
            f"while another attempted; {self.count} claimed at the same time, {ROUNDS} times"
        )
        if "cancellation" not in absent:
            steps = await _at_each_step(self._cancelled_at)
            self.kept["cancellation"] = f"cancelled at each of its {steps} steps"
        await self._crashed()
        return CallbackReport(tuple(self._finding(one, absent) for one in get_args(Guarantee)))

    def _finding(self, guarantee: Guarantee, absent: dict[str, str]) -> Finding:
        if guarantee in self.breaches:
            evidence, remedy = ": ".join(self.breaches[guarantee]), REMEDIES[guarantee]
            return Finding(guarantee=guarantee, outcome="broken", evidence=evidence, remedy=remedy)
        if guarantee in absent:
            return Finding(
                guarantee=guarantee, outcome="not applicable", evidence=absent[guarantee]
            )
        return Finding(guarantee=guarantee, outcome="kept", evidence=self.kept[guarantee])

    async def _alone(self) -> None:
        await self.begin("one attempt after the other", self.concurrency + 1)
        at_once: list[str] = []

        async def look(_: Moment) -> None:
            at_once.extend(await first.active() or ())

        async with self.dispatchers(2) as (first, second):
            names = await first.attempt(Moment(CLAIMED, look))
            if not names:
                remedy = "nothing was claimed after it: make so many due, for these callbacks"
                raise first.refused or InvalidArgumentError("insert", self.insert, remedy)
            active = await first.active()
            if active is not None and (missing := names - set(active)):
                self.note("shown", f"{_some(missing)} returned, and not active afterwards")
            if not names <= set(at_once):
                self.kept["shown"] = "not by schedule: only once `deliver` had recorded them"
            await first.attempt()
            await second.attempt(limit=1, concurrency=self.concurrency + self.spare + 1)

    async def _limited(self) -> None:
        await self.begin("more are due than may be claimed", 5)
        async with self.dispatchers(1) as (who,):
            for limit in (1, 2):
                await who.attempt(limit=limit, concurrency=EVERYTHING)

    async def _ended(self) -> None:
        await self.begin("the work was done", self.concurrency)
        async with self.dispatchers(1) as (who,):
            names = await who.attempt()
            await self.end_all()
            await self.add(self.concurrency)
            still = names & set(await who.active() or ())
            if still:
                self.note("ended", f"{_some(still)} ended, and still active")
            if not await who.attempt():
                self.note("ended", "the slot is still taken: nothing more is claimed")

    async def _held_up(self, story: str, number: int, held: int, others: int) -> int:
        """Hold some up at a moment, one after the other, while others attempt; how many steps."""
        await self.begin(story, (held + others) * self.concurrency)
        async with self.dispatchers(held + others) as team, trio.open_nursery() as nursery:
            moments = [Moment(number if place < held else None) for place in range(len(team))]
            try:
                patience = math.inf  # the first waits for nobody
                for who, moment in zip(team, moments, strict=True):
                    nursery.start_soon(_attempt, who, moment)
                    with trio.move_on_after(patience):
                        await moment.reached.wait()
                    patience = self.patience  # one that comes later may be blocked by a lock
                for moment in moments:
                    moment.resume.set()
                    await moment.over.wait()
            finally:
                for moment in moments:
                    moment.resume.set()
        return moments[0].steps

    async def _held_up_at(self, step: int) -> int:
        story = f"one dispatcher was held up at step {step} of its claim, another attempted"
        return await self._held_up(story, step, 1, 1)

    async def _all_at_once(self) -> None:
        story = f"{self.count} dispatchers attempted at the same time"
        for _ in range(ROUNDS):
            await self.begin(story, self.count * self.concurrency)
            async with self.dispatchers(self.count) as team, trio.open_nursery() as nursery:
                for who in team:
                    nursery.start_soon(_attempt, who, Moment())

    async def _cancelled_at(self, step: int) -> int:
        due = self.concurrency
        await self.begin(f"schedule was cancelled at step {step}", due)
        async with self.dispatchers(1) as (who,):
            moment = Moment(step, cancel)
            await _attempt(who, moment)
        lost = due - len(self.running | await self.drain())
        if lost:
            self.note("cancellation", f"{lost} of {due} claimed, not returned, and not claimable")
        return moment.steps

    async def _crashed(self) -> None:
        await self.begin("a dispatcher died after its claim", self.concurrency)
        deliver, self.deliver = self.deliver, None
        async with self.dispatchers(1) as (who,):
            names = await who.attempt()
        self.deliver = deliver
        async with self.dispatchers(1) as (other,):
            shown = names & set(await other.active() or ())
        # What expires may be handed out again, also what is held from before.
        self.held = {}
        if self.expire is not None:
            await done(self.expire())
        lost = names - await self.drain()
        if lost:
            fate = "shown as active for ever" if shown else "not shown as active"
            when = ", also not after expire()" if self.expire is not None else ""
            self.note("crash", f"{_some(lost)} {fate} and not claimed again{when}")

    def _not_applicable(self, example: Dispatcher) -> dict[str, str]:
        absent = {}
        if example.get_active is None:
            absent["shown"] = "the task is strict, and no get_active_instructions was given"
        if self.end is None:
            absent["ended"] = "`end` was not given"
        if not is_async(example.task.schedule):
            absent["cancellation"] = (
                "schedule is not async: its worker thread is never cancelled, and Planton delivers "
                "what it returns late"
            )
        return absent


async def _attempt(who: Dispatcher, moment: Moment) -> None:
    """Make an attempt that may fail, as in a deadlock or when the database is locked."""
    try:
        await who.attempt(moment)
    except Exception:
        pass  # Planton reports it and attempts again; what it claimed all the same is missed
    finally:
        moment.reached.set()
        moment.over.set()


async def _at_each_step(play: Callable[[int], Awaitable[int]]) -> int:
    """Play a story at each step of a claim; how many there are, which it returns, too."""
    for step in range(1, MOST_STEPS + 1):
        if await play(step) < step:
            return step - 1
    return MOST_STEPS


def _some(names: set[str]) -> str:
    shown = ", ".join(map(repr, sorted(names)[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
