"""What the core costs without a database.

    python benchmarks/core.py [--seconds 5] [--rounds 3]

`attempts`: tasks without a delay, an async `schedule` that finds nothing. `events`: one task that
claims 100 at a time, a sync listener. `idle`: tasks with a one-second delay and nothing to do,
with and without `many`; CPU in percent of one core, drift of the interval, memory of the process.
Each line is a process of its own. Beside each runs the floor it is compared with: a bare loop on
trio that calls the same callbacks.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import trio

from planton import InstructionEvent, Planton, ScheduleRequest, Task

BATCH = [str(number) for number in range(100)]


async def none_active(task_name: str) -> list[str]:
    return []


class Nothing:
    """Finds nothing, counts how often it was asked, and when."""

    def __init__(self) -> None:
        self.asked = 0
        self.last: dict[str, float] = {}
        self.drift: list[float] = []

    async def __call__(self, request: ScheduleRequest) -> list[str]:
        self.asked += 1
        now = time.perf_counter()
        if request.task_name in self.last:
            self.drift.append(now - self.last[request.task_name] - 1)
        self.last[request.task_name] = now
        return []


class NothingForMany(Nothing):
    async def many(self, requests: list[ScheduleRequest]) -> list[list[str]]:
        return [await self(request) for request in requests]


class NoneActive:
    async def __call__(self, task_name: str) -> list[str]:
        return []

    async def many(self, names: list[str]) -> list[list[str]]:
        return [[] for _ in names]


def ignore(event: InstructionEvent) -> None:
    """Nothing is claimed for a task that nobody takes."""


async def attempts(tasks: int, seconds: float) -> dict[str, float]:
    schedule = Nothing()
    planton = Planton(
        get_active_instructions=none_active,
        tasks=[Task(name=str(i), schedule=schedule, delay=0) for i in range(tasks)],
    )
    planton.on(InstructionEvent, ignore)
    async with planton:
        began = time.perf_counter()
        await trio.sleep(seconds)
    return {"attempts/s": schedule.asked / (time.perf_counter() - began)}


async def attempts_floor(tasks: int, seconds: float) -> dict[str, float]:
    schedule = Nothing()
    request = ScheduleRequest(
        task_name="x", active_instructions=(), concurrency=1, limit=1, attempt_number=0
    )

    async def loop() -> None:
        while True:
            await trio.lowlevel.checkpoint()
            await none_active("x")
            await schedule(request)

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(loop)
    return {"attempts/s": schedule.asked / seconds}


async def events(tasks: int, seconds: float) -> dict[str, float]:
    async def schedule(request: ScheduleRequest) -> list[str]:
        return BATCH

    count = 0

    def listen(event: InstructionEvent) -> None:
        nonlocal count
        count += 1

    planton = Planton(
        get_active_instructions=none_active,
        tasks=[
            Task(name=str(i), schedule=schedule, delay=0, concurrency=100) for i in range(tasks)
        ],
    )
    planton.on(InstructionEvent, listen)
    async with planton:
        began = time.perf_counter()
        await trio.sleep(seconds)
    return {"events/s": count / (time.perf_counter() - began)}


async def idle(tasks: int, seconds: float, *, many: bool) -> dict[str, float]:
    schedule = NothingForMany() if many else Nothing()
    planton = Planton(
        get_active_instructions=NoneActive() if many else none_active,
        tasks=[Task(name=str(i), schedule=schedule, delay=1.0) for i in range(tasks)],
    )
    planton.on(InstructionEvent, ignore)
    async with planton:
        await trio.sleep(3)
        schedule.drift.clear()
        asked, cpu, began = schedule.asked, time.process_time(), time.perf_counter()
        await trio.sleep(seconds)
        took = time.perf_counter() - began
        cpu = (time.process_time() - cpu) / took * 100
        rate = (schedule.asked - asked) / took
    drift = sorted(schedule.drift)
    return {
        "attempts/s": rate,
        "cpu %": cpu,
        "drift p50 ms": drift[len(drift) // 2] * 1000,
        "drift p99 ms": drift[int(len(drift) * 0.99)] * 1000,
        "rss MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


async def idle_one_by_one(tasks: int, seconds: float) -> dict[str, float]:
    return await idle(tasks, seconds, many=False)


async def idle_many(tasks: int, seconds: float) -> dict[str, float]:
    return await idle(tasks, seconds, many=True)


async def idle_floor(tasks: int, seconds: float) -> dict[str, float]:
    schedule = Nothing()

    async def loop(name: str) -> None:
        request = ScheduleRequest(
            task_name=name, active_instructions=(), concurrency=1, limit=1, attempt_number=0
        )
        while True:
            await trio.sleep(1)
            await none_active(name)
            await schedule(request)

    async with trio.open_nursery() as nursery:
        for number in range(tasks):
            nursery.start_soon(loop, str(number))
        await trio.sleep(3)
        schedule.drift.clear()
        cpu, began = time.process_time(), time.perf_counter()
        await trio.sleep(seconds)
        cpu = (time.process_time() - cpu) / (time.perf_counter() - began) * 100
        nursery.cancel_scope.cancel()
    drift = sorted(schedule.drift)
    return {
        "cpu %": cpu,
        "drift p99 ms": drift[int(len(drift) * 0.99)] * 1000,
        "rss MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


CASES: dict[str, tuple[Callable[..., object], int]] = {
    "attempts, 1 task": (attempts, 1),
    "attempts, 100 tasks": (attempts, 100),
    "attempts, 100 tasks: bare loops": (attempts_floor, 100),
    "events, 1 task, 100 at a time": (events, 1),
    "idle, 10,000 tasks": (idle_one_by_one, 10_000),
    "idle, 10,000 tasks, many": (idle_many, 10_000),
    "idle, 10,000 tasks: bare loops": (idle_floor, 10_000),
}


def measure(case: str, seconds: float) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", case, "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", choices=CASES)
    options = parser.parse_args()
    if options.case:
        function, tasks = CASES[options.case]
        print(json.dumps(trio.run(function, tasks, options.seconds)))
        return
    results: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    for _ in range(options.rounds):  # interleaved: the machine is noisy
        for case, found in results.items():
            found.append(measure(case, options.seconds))
    for case, found in results.items():
        for name in found[0]:
            values = [one[name] for one in found]
            print(
                f"{case:34} {name:13} {statistics.median(values):12,.1f}"
                f"  [{min(values):,.1f} .. {max(values):,.1f}]"
            )


if __name__ == "__main__":
    main()
