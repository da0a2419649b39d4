"""A node of a simulation: a real Planton, which lives, dies, and is started again."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs
import trio

from planton._events import AttemptEvent, ErrorEvent, InstructionEvent
from planton._loop.run import LAST_WORDS
from planton._planton import Planton
from planton._task import Batch, Claim, ScheduleRequest, Task
from planton.testing.simulation._ledger import TaskPlan
from planton.testing.simulation._world import World

GRACE = 5.0
TIMEOUT = 4.0  # of callbacks
HANG = 30.0


class Node:
    """One process with a dispatcher, which has some consumers within."""

    planton: Planton
    nursery: trio.Nursery

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.is_dead = False
        self.rate = 1.0
        self.claiming: dict[str, Any] = {}
        self._closed = trio.Event()

    async def run(self) -> None:
        """Live again and again, until the world closes."""
        while not self.world.is_closing:
            self.is_dead, self._closed = False, trio.Event()
            await self._live()
            await trio.sleep(self.world.rng.uniform(0, 5))

    def close(self) -> None:
        self._closed.set()

    def die(self) -> None:
        """From here on nothing of this process happens any more."""
        self.is_dead = True
        self.planton.abort()
        self._closed.set()

    async def _live(self) -> None:
        rng, world = self.world.rng, self.world
        is_skewed = world.strikes("clock is skewed", self.name)
        self.rate = rng.uniform(0.5, 2) if is_skewed else 1.0
        self.planton = world.make_planton(
            tasks=[self._task(plan) for plan in world.tasks], services=[self._serve], grace=GRACE
        )
        self.planton.on(InstructionEvent, self._deliver)
        self.planton.on(ErrorEvent, self._on_error)
        self.planton.on(AttemptEvent, self._on_attempt)
        world.log(self.name, "starts")
        async with trio.open_nursery() as self.nursery:
            over = trio.Event()
            self.nursery.start_soon(self._run, over)
            await self._wait_for_the_end()
            if self.is_dead or (not world.is_closing and world.strikes("node dies", self.name)):
                self.die()
            else:
                await self._terminate(over)
            self.nursery.cancel_scope.cancel()

    async def _run(self, over: trio.Event) -> None:
        await self.planton.run()
        over.set()

    async def _wait_for_the_end(self) -> None:
        with trio.move_on_after(self.world.rng.uniform(5, 60)):
            await self._closed.wait()
        if not self.world.is_faulty:
            await self._closed.wait()

    async def _terminate(self, over: trio.Event) -> None:
        self.world.log(self.name, "terminates")
        asked = trio.current_time()
        with trio.move_on_after(GRACE + LAST_WORDS + 1):
            await self.planton.terminate()
            returned = trio.current_time()
            await over.wait()
        # Sums of floats: a drain that takes all of its grace ends a few picoseconds later.
        if not over.is_set() or returned > asked + GRACE + 1e-6:
            self.world.fail(f"terminate of {self.name} did not return within its grace")
        self.world.log(self.name, "is terminated")

    def _task(self, plan: TaskPlan) -> Task:
        task: Task = self.world.storage.queue_task(
            plan.name,
            concurrency=plan.concurrency,
            lease=plan.lease,
            delay=partial(self._delay, plan),
            timeout=TIMEOUT,
        )
        self.claiming[plan.name] = task.schedule
        release = partial(self._release, plan, task.release)
        return attrs.evolve(task, schedule=self, release=release)

    def _delay(self, plan: TaskPlan, number: int) -> float:
        is_short = not self.world.is_probing
        return self.rate * (min(0.5 * 2 ** min(number, 10), plan.delay) if is_short else plan.delay)

    async def _release(self, plan: TaskPlan, release: Any, claims: Sequence[Claim]) -> None:
        world = self.world
        world.reach_storage()
        for claim in claims:
            world.log(self.name, f"releases {plan.name} {claim.instruction}")
            key = (plan.name, claim.instruction)
            world.ledger.intend("release", key, str(claim.receipt))
        await release(claims)

    async def _serve(self, planton: Planton, *, task_status: "trio.TaskStatus[None]") -> None:
        waker: Any = _Waker(self, planton)
        await self.world.storage.serve(waker, task_status=task_status)

    async def _deliver(self, event: InstructionEvent) -> None:
        world = self.world
        if world.strikes("listener is slow", self.name):
            await trio.sleep(world.rng.uniform(0, HANG))
        # One whose node has just died may still be told, in the same turn of the loop.
        if self.is_dead or world.strikes("listener raises", self.name):
            raise OSError("the consumer is not there")
        key = (event.task_name, event.instruction)
        world.log(self.name, f"delivers {' '.join(key)} ({event.delivery})")
        world.ledger.handed_over(key, str(event.receipt))
        nursery = world.rng.choice((self.nursery, world.nursery))
        nursery.start_soon(world.consume, self.name, event)

    def _on_error(self, event: ErrorEvent) -> None:
        self.world.log(self.name, f"{event.task_name} {event.stage}: {event.error}")

    def _on_attempt(self, event: AttemptEvent) -> None:
        self.world.log(self.name, f"{event.task_name} {event.outcome} {event.attempt_number}")

    # The `schedule` of all its tasks, with what can go wrong before and after the claim

    async def __call__(self, request: ScheduleRequest) -> Batch:
        (batch,) = await self.many([request])
        return batch

    async def many(self, requests: Sequence[ScheduleRequest]) -> list[Batch]:
        world = self.world
        if world.strikes("callback raises", self.name):
            raise OSError("no such luck")
        if world.strikes("callback hangs", self.name):
            await trio.sleep(HANG)
        batches = [await self._claim(request) for request in requests]
        if world.strikes("answer is lost", self.name):
            raise OSError("connection reset after the commit")
        has_claimed = any(batch.claims for batch in batches)
        if has_claimed and world.strikes("node dies after its claim", self.name):
            self.die()
            await trio.sleep_forever()
        return batches

    async def _claim(self, request: ScheduleRequest) -> Batch:
        world = self.world
        world.reach_storage()
        batch: Batch = await self.claiming[request.task_name](request)
        with trio.CancelScope(shield=True):
            # Answers overtake each other: what was enqueued after this claim may wake first.
            await trio.sleep(world.rng.uniform(0, world.latency))
        claims = [claim for claim in batch.claims if isinstance(claim, Claim)]
        names = " ".join(claim.instruction for claim in claims)
        world.log(self.name, f"claims {request.task_name} {names or 'nothing'}")
        return batch


@attrs.define(eq=False)
class _Waker:
    """Stands for a Planton where the storage wakes it, and may lose what it is told."""

    node: Node
    planton: Planton

    def wake(self, name: str) -> None:
        if not self.node.world.strikes("wake-up is lost", self.node.name):
            self.planton.wake(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.planton, name)
