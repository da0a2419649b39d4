"""The world of a simulation: a storage, nodes that dispatch, consumers, and what befalls them."""

import random
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Any

import trio

from planton._errors import StorageError
from planton._events import InstructionEvent
from planton._planton import Planton
from planton.storage import Acknowledged
from planton.testing.simulation._ledger import Ledger, TaskPlan

# How likely it is that a fault strikes where it can.
FAULTS = {
    "callback raises": 0.05,
    "callback hangs": 0.03,
    "answer is lost": 0.03,  # the claim is committed, and `schedule` raises
    "node dies after its claim": 0.03,
    "node dies": 0.5,  # at the end of its time, instead of being terminated
    "wake-up is lost": 0.3,
    "clock is skewed": 0.5,
    "storage refuses": 0.5,
    "storage is slow": 0.3,
    "listener raises": 0.05,
    "listener is slow": 0.05,
    "consumer dies": 0.05,
    "consumer is late": 0.1,  # it works for longer than its lease, without heartbeats
}


class World:
    """All that there is, made from a seed.

    While `is_probing` tasks wait long between attempts, so that wake-ups and the times at which
    something becomes due are all they have.
    """

    nursery: trio.Nursery

    def __init__(
        self,
        seed: int,
        faults: Collection[str],
        storage: Callable[..., Any],
        planton: Callable[..., Planton],
    ) -> None:
        self.rng = rng = random.Random(seed)
        self.faults, self.make_planton = faults, planton
        self.trace: list[str] = []
        self.violation: str | None = None
        self.is_faulty, self.is_probing, self.is_closing = True, False, False
        self.outage: StorageError | None = None
        self.latency = rng.choice((0.0, 0.01, 0.2))
        start = datetime(2030, 1, 1, tzinfo=UTC)
        self.storage = storage(latency=self.latency, start=start)
        self.tasks = [
            TaskPlan(f"task{n}", rng.randint(1, 3), rng.uniform(5, 20), rng.choice((60, 300)))
            for n in range(rng.randint(1, 3))
        ]
        self.ledger = Ledger(self.fail, {task.name: task for task in self.tasks})
        self.storage.observe(self.ledger.commit)
        self.scope = trio.CancelScope()

    def log(self, who: str, what: str) -> None:
        self.trace.append(f"{trio.current_time():9.3f} {who:<9} {what}")

    def fail(self, violation: str) -> None:
        self.log("BROKEN", violation)
        self.violation = self.violation or violation
        self.scope.cancel()

    def strikes(self, fault: str, who: str) -> bool:
        if not self.is_faulty or fault not in self.faults or self.rng.random() >= FAULTS[fault]:
            return False
        self.ledger.counts[fault] += 1
        self.log(who, f"! {fault}")
        return True

    def reach_storage(self) -> None:
        if self.outage is not None:
            raise self.outage

    async def break_storage(self) -> None:
        while True:
            await trio.sleep(self.rng.uniform(0, 20))
            if self.strikes("storage refuses", "storage"):
                self.outage = StorageError("memory", "connection refused")
            if self.strikes("storage is slow", "storage"):
                self.storage.latency = self.rng.uniform(0.5, 6)
            await trio.sleep(self.rng.uniform(0, 8))
            self.mend_storage()

    def mend_storage(self) -> None:
        self.outage, self.storage.latency = None, self.latency

    async def produce(self, number: int, after: float) -> None:
        await trio.sleep(after)
        task, name, retries = self.rng.choice(self.tasks), str(number), self.rng.randint(0, 2)
        wait = self.rng.uniform(-10, 10) if self.rng.random() < 0.3 else None
        now = self.storage.to_datetime(trio.current_time())
        run_at = None if wait is None else now + timedelta(seconds=wait)
        # Noted before: the claim may come before the answer.
        self.ledger.enqueued((task.name, name), retries)
        self.log("producer", f"{task.name} {name}")
        while True:
            try:
                self.reach_storage()
                await self.storage.enqueue(task.name, name, retries=retries, run_at=run_at)
                return
            except StorageError:
                await trio.sleep(1)

    async def consume(self, node: str, event: InstructionEvent) -> None:
        """Do the work of an instruction, and report it."""
        who = f"{node} job"
        lease = self.ledger.tasks[event.task_name].lease
        if self.strikes("consumer dies", who):
            return
        pace = self.rng.uniform(0.1, 2) if self.strikes("clock is skewed", who) else 0.3
        if self.strikes("consumer is late", who):
            await trio.sleep(lease * self.rng.uniform(0.9, 2))
        else:
            work = self.rng.uniform(0, 2 * lease) if self.is_faulty else self.rng.uniform(0, 1)
            while work > 0:
                await trio.sleep(min(work, lease * pace))
                work -= lease * pace
                done = await self._report(who, event, "heartbeat")
                if done.stale:
                    return
        await self._end(who, event)

    async def _end(self, who: str, event: InstructionEvent) -> None:
        kind = self.rng.choice(("complete",) * 3 + ("fail", "release") * self.is_faulty)
        failure = {"error": "oh", "retry_in": self.rng.uniform(0, 5)}
        done = await self._report(who, event, kind, **(failure if kind == "fail" else {}))
        stale = " is stale" if done.stale else ""
        self.log(who, f"{kind} {event.task_name} {event.instruction}{stale}")
        self.ledger.counts["stale"] += len(done.stale)

    async def _report(
        self, who: str, event: InstructionEvent, kind: str, **values: Any
    ) -> Acknowledged:
        key, receipt = (event.task_name, event.instruction), str(event.receipt)
        while True:
            try:
                self.reach_storage()
                self.ledger.intend(kind, key, receipt)
                done: Acknowledged = await getattr(self.storage, kind)(receipt, **values)
            except StorageError:
                self.log(who, f"cannot report {' '.join(key)}")
                await trio.sleep(1)
            else:
                if done.applied:
                    self.ledger.acknowledged(receipt)
                return done
