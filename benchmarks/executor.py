"""What the executor itself costs: CPU time of a no-op instruction.

    python benchmarks/executor.py [--rounds 5] [--rows 50000] [--caps 10,100,1000]

`own` executes events that are there already, for a storage that does nothing: the executor's own
share, from `submit` until the end is answered; beside it a trio task that does nothing, as the same
machine is faster or slower from day to day. The others are the whole way through a Planton:
claim, dispatch, handler, end, and the storage itself (`memory`: SQLite without a file or thread).
The time is that of the process, not of the clock, so that other programs do not count.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from planton import Claim, InstructionEvent, Planton
from planton.storage import Acknowledged
from planton.testing import MemoryStorage
from planton_executor import Executor, IdleEvent, SucceededEvent
from planton_sqlite import SQLiteStorage

Measure = Callable[[int, int], Awaitable[float]]


class Nothing:
    """A storage that answers at once and does nothing."""

    async def report_many(self, reports: Sequence[Any]) -> list[Acknowledged]:
        return [Acknowledged(tuple(receipts), ()) for _, receipts, _ in reports]

    async def heartbeat(self, receipts: Any) -> Acknowledged:
        return Acknowledged(tuple(receipts), ())

    complete = fail = advance = release = take_over = heartbeat


async def trio_tasks(cap: int, rows: int) -> float:
    """Microseconds of a trio task that does nothing."""
    began = time.process_time()
    for _ in range(rows // cap):
        async with trio.open_nursery() as nursery:
            for _ in range(cap):
                nursery.start_soon(no_op, None)
    return (time.process_time() - began) / rows * 1e6


async def own(cap: int, rows: int) -> float:
    """Microseconds of an instruction for a storage that does nothing."""
    return await execute(cap, rows, lambda executor: None)


async def own_with_listener(cap: int, rows: int) -> float:
    """The same with a listener of `SucceededEvent`."""
    return await execute(
        cap, rows, lambda executor: executor.on(SucceededEvent, lambda event: None)
    )


async def execute(cap: int, rows: int, prepare: Callable[[Executor], Any]) -> float:
    executor = Executor(Nothing(), concurrency=cap)
    prepare(executor)
    executor.handler("task")(no_op)
    idle = trio.Event()

    @executor.on(IdleEvent)
    def note(_: IdleEvent) -> None:
        idle.set()

    claims = [
        Claim(instruction=f"{n}", receipt=f"{n}.1", lease=600.0, claimed_at=trio.current_time())
        for n in range(cap)
    ]
    events = [InstructionEvent.of("task", claim) for claim in claims]
    async with executor:
        began = time.process_time()
        for _ in range(rows // cap):
            idle = trio.Event()
            for event in events:
                await executor.submit(event)
            await idle.wait()
        return (time.process_time() - began) / rows * 1e6


async def no_op(work: Any) -> None:
    """Does nothing."""


async def through_planton(storage: Any, cap: int, rows: int) -> float:
    """Microseconds of an instruction that is claimed, executed and ended."""
    left, done = rows, trio.Event()
    executor = Executor(storage, concurrency=cap)

    @executor.handler("task")
    async def count(work: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    for start in range(0, rows, 1000):
        new = [f"{number}" for number in range(start, min(start + 1000, rows))]
        await storage.enqueue_many("task", new)
    task = storage.queue_task("task", concurrency=cap, delay=0.05)
    planton = Planton(tasks=[task], storages=[storage], consumers=[executor])
    began = time.process_time()
    async with planton:
        await done.wait()
        return (time.process_time() - began) / rows * 1e6


async def memory(cap: int, rows: int) -> float:
    return await through_planton(MemoryStorage(), cap, rows)


async def sqlite(cap: int, rows: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        async with SQLiteStorage(Path(folder) / "bench.db") as storage:
            return await through_planton(storage, cap, rows)


MEASURES: dict[str, Measure] = {
    "a trio task": trio_tasks,
    "own": own,
    "own, a listener": own_with_listener,
    "memory": memory,
    "SQLite": sqlite,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--caps", default="10,100,1000")
    options = parser.parse_args()
    print("| | " + " | ".join(f"cap {cap}, µs" for cap in options.caps.split(",")) + " |")
    for name, measure in MEASURES.items():
        cells = []
        for cap in map(int, options.caps.split(",")):
            rows = min(options.rows, cap * 200)
            found = [trio.run(measure, cap, rows) for _ in range(options.rounds)]
            cells.append(f"{statistics.median(found):.1f} [{min(found):.1f}..{max(found):.1f}]")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
