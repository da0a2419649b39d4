"""What trio as a guest of asyncio costs, beside plain trio.

    python benchmarks/asyncio_guest.py [--rounds 3] [--seconds 1]

`attempt`: one task without a delay whose async `schedule` finds nothing. `instruction`: 600 of
them in memory, 10 slots, an executor whose handler is a coroutine function of asyncio (of trio, in
plain trio) and never waits; the handler of `waiting` waits for one turn of its loop. `callback` and
`bridge`: one call from trio to asyncio, and from asyncio to trio; plain trio has none, so beside
them stands an asyncio task that does nothing, made and awaited. Each line is a process of its own;
the rounds are interleaved. Time is that of the best round, with the median in brackets; beside it
the CPU time of the process, which the targets are for, as others may use the machine too. "batched"
is what runs where the pump cannot.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import trio
import uvloop

from planton import InstructionEvent, Planton, ScheduleRequest, Task
from planton.asyncio import _pump, bridge, callback, running
from planton.testing import MemoryStorage
from planton_executor import Executor, Work

CASES = ("attempt", "instruction", "waiting", "callback", "bridge")
LOOPS = {"asyncio": asyncio.run, "uvloop": uvloop.run}
GUESTS = ("asyncio pump", "uvloop pump", "asyncio batched", "uvloop batched")
VARIANTS = {
    "attempt": ("trio", *GUESTS),
    "instruction": ("trio", *GUESTS),
    "waiting": ("trio", *GUESTS),
    "callback": ("asyncio task", *GUESTS),
    "bridge": ("asyncio task", *GUESTS),
}
# Times that of plain trio, or microseconds: of the CPU time.
TARGETS = {
    ("attempt", "pump"): 1.3,
    ("attempt", "batched"): 1.3,
    ("instruction", "pump"): 1.3,
    ("instruction", "batched"): 1.5,
    ("waiting", "pump"): 1.3,
    ("waiting", "batched"): 1.5,
    ("callback", "pump"): 25,
    ("bridge", "pump"): 50,
}
INSTRUCTIONS = 600
HOPS = 3000


class Times(NamedTuple):
    """Microseconds of one of them."""

    wall: float
    processor: float


class Watch:
    """Measures from when it is made."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def each(self, count: int) -> Times:
        wall, processor = self._began
        return Times(
            (time.perf_counter() - wall) / count * 1e6,
            (time.process_time() - processor) / count * 1e6,
        )


class Attempts:
    """Finds nothing, and counts."""

    def __init__(self) -> None:
        self.count = 0
        self.planton = Planton(
            get_active_instructions=self.none_active,
            tasks=[Task(name="task", schedule=self.schedule, delay=0)],
        )
        self.planton.on(InstructionEvent, print)  # a task that nobody takes is not claimed for

    async def none_active(self, task_name: str) -> list[str]:
        return []

    async def schedule(self, request: ScheduleRequest) -> list[str]:
        self.count += 1
        return []

    async def measure(self, sleep: Callable[[float], Awaitable[None]], seconds: float) -> Times:
        await sleep(0.2)
        before, watch = self.count, Watch()
        await sleep(seconds)
        return watch.each(self.count - before)


class Instructions:
    """Memory, and an executor that runs one function."""

    def __init__(
        self, wrap: Callable[[Any], Any], pause: Callable[[float], Awaitable[None]] | None
    ) -> None:
        self.count, self._pause = 0, pause
        storage = MemoryStorage()
        storage.add("task", *map(str, range(INSTRUCTIONS)))
        executor = Executor(storage, concurrency=10)
        executor.handler("task")(wrap(self.work))
        task = storage.queue_task("task", concurrency=10, delay=0.05)
        self.planton = Planton(tasks=[task], storages=[storage], consumers=[executor])

    async def work(self, work: Work) -> None:
        if self._pause is not None:
            await self._pause(0)
        self.count += 1

    async def measure(self, sleep: Callable[[float], Awaitable[None]], seconds: float) -> Times:
        watch = Watch()
        self.planton.wake()
        while self.count < INSTRUCTIONS:
            await sleep(0.005)
        return watch.each(INSTRUCTIONS)


class Hops:
    """Calls that do nothing."""

    async def from_trio(self) -> Times:
        function, watch = callback(self.nothing), Watch()
        for _ in range(HOPS):
            await function()
        return watch.each(HOPS)

    async def nothing(self) -> None:
        pass


async def measure_in_trio(case: str, seconds: float) -> Times:
    subject = subject_of(case, lambda function: function, trio.sleep)
    async with subject.planton:
        return await subject.measure(trio.sleep, seconds)


def subject_of(
    case: str, wrap: Callable[[Any], Any], sleep: Callable[[float], Awaitable[None]]
) -> Attempts | Instructions:
    if case == "attempt":
        return Attempts()
    return Instructions(wrap, sleep if case == "waiting" else None)


async def measure_as_guest(case: str, seconds: float) -> Times:
    if case not in ("callback", "bridge"):
        subject = subject_of(case, callback, asyncio.sleep)
        async with running(subject.planton):
            return await subject.measure(asyncio.sleep, seconds)
    async with running(Planton()):
        jobs = bridge(Hops())
        if case == "callback":
            return await jobs.from_trio()
        watch = Watch()
        for _ in range(HOPS):
            await jobs.nothing()
        return watch.each(HOPS)


async def measure_task() -> Times:
    watch = Watch()
    for _ in range(HOPS):
        await asyncio.create_task(Hops().nothing())
    return watch.each(HOPS)


def measure(case: str, variant: str, seconds: float) -> None:
    """One measurement, in this process; prints microseconds."""
    if variant == "trio":
        print(json.dumps(trio.run(measure_in_trio, case, seconds)))
        return
    loop, way = variant.split()
    if way == "task":
        print(json.dumps(asyncio.run(measure_task())))
        return
    if way == "batched":
        _pump.POLLERS = ()
    print(json.dumps(LOOPS[loop](measure_as_guest(case, seconds))))


def measured(case: str, variant: str, seconds: float) -> Times:
    command = [sys.executable, __file__, "--measure", case, variant, "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Times(*json.loads(done.stdout))


def compare(case: str, rounds: int, seconds: float) -> None:
    times: dict[str, list[Times]] = {variant: [] for variant in VARIANTS[case]}
    for _ in range(rounds):
        for variant in times:
            times[variant].append(measured(case, variant, seconds))
    for variant in times:
        print(line(case, variant, times), flush=True)


def line(case: str, variant: str, times: dict[str, list[Times]]) -> str:
    value, processor = (min(each) for each in zip(*times[variant], strict=True))
    median = statistics.median(each.wall for each in times[variant])
    text = f"{case:12s} {variant:16s} {value:8.1f} us ({median:.1f})  CPU {processor:8.1f} us"
    plain, plain_processor = (min(each) for each in zip(*next(iter(times.values())), strict=True))
    text += f"  x {value / plain:.2f}, CPU x {processor / plain_processor:.2f}"
    target = TARGETS.get((case, variant.split()[-1]))
    if target is not None:
        reached = processor / plain_processor if "trio" in times else processor
        text += f"  target {target}: {'met' if reached <= target else 'MISSED'}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--cases", nargs="*", default=CASES, choices=CASES)
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "VARIANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure, options.seconds)
        return
    for case in options.cases:
        compare(case, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
