"""How soon SQLite's wake-ups come from another process, and what they cost.

Run `python benchmarks/sqlite_wake.py`.

Another process commits; what is measured is the time from the end of its commit to the handler
in this one, beside a bare loop that looks at `PRAGMA data_version` every millisecond, in turns.
"""

import argparse
import json
import sqlite3
import statistics
import sys
import tempfile
import time

import trio

from planton import InstructionEvent, Planton
from planton_sqlite import SQLiteStorage

WRITER = """
import json, sqlite3, sys, time
path, count, rate, table = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
connection = sqlite3.connect(path, isolation_level=None, timeout=30)
connection.execute("PRAGMA synchronous = FULL")
times, begun = [], time.monotonic()
for number in range(count):
    time.sleep(max(0, begun + number / rate - time.monotonic()))
    if table == "queue":
        connection.execute(
            "INSERT INTO planton_pending (task_name, instruction) VALUES ('task0', ?)", (number,)
        )
    else:
        connection.execute("INSERT INTO other VALUES (?)", (number,))
    times.append(time.monotonic())
print(json.dumps(times))
"""


async def write(path: str, count: int, rate: float, table: str = "queue") -> list[float]:
    command = [sys.executable, "-c", WRITER, path, str(count), str(rate), table]
    done = await trio.run_process(command, capture_stdout=True)
    return json.loads(done.stdout)


async def wake_ups(path: str, tasks: int, count: int, rate: float) -> list[float]:
    """Seconds from each commit to its handler."""
    heard: dict[str, float] = {}
    async with SQLiteStorage(path) as storage:
        await storage.migrate()
        planton = Planton(
            tasks=[
                storage.queue_task(f"task{number}", delay=1.0, concurrency=count)
                for number in range(tasks)
            ],
            storages=[storage],
        )

        @planton.on(InstructionEvent)
        def handle(event: InstructionEvent) -> None:
            heard[event.instruction] = time.monotonic()

        async with planton:
            await trio.sleep(2)
            times = await write(path, count, rate)
            await trio.sleep(2)
    return [heard[str(number)] - at for number, at in enumerate(times)]


async def bare(path: str, count: int, rate: float) -> list[float]:
    """Seconds from each commit until a bare loop sees it."""
    async with SQLiteStorage(path) as storage:
        await storage.migrate()
    seen: list[float] = []
    connection = sqlite3.connect(path, isolation_level=None)
    result: list[float] = []
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            result.extend(await write(path, count, rate))
            nursery.cancel_scope.cancel()

        nursery.start_soon(run)
        before = connection.execute("PRAGMA data_version").fetchone()
        while True:
            await trio.sleep(0.001)
            now = connection.execute("PRAGMA data_version").fetchone()
            if now != before:
                seen.append(time.monotonic())
                before = now
    connection.close()
    return [at - committed for committed, at in zip(result, seen, strict=False)]


async def cost(path: str, tasks: int, rate: float, seconds: float) -> float:
    """Share of a core that a dispatcher takes while others commit what does not concern it."""
    async with SQLiteStorage(path) as storage:
        await storage.migrate()
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS other (number INTEGER)")
        connection.close()
        planton = Planton(
            tasks=[storage.queue_task(f"task{number}", delay=1.0) for number in range(tasks)],
            storages=[storage],
        )
        async with planton, trio.open_nursery() as nursery:
            if rate:
                nursery.start_soon(write, path, int(rate * seconds), rate, "other")
            await trio.sleep(2)
            before, begun = time.process_time(), time.monotonic()
            await trio.sleep(seconds - 3)
            used, elapsed = time.process_time() - before, time.monotonic() - begun
    return used / elapsed


def show(name: str, seconds: list[float]) -> None:
    centiles = statistics.quantiles(seconds, n=100)
    print(f"{name:52} p50 {centiles[49] * 1000:6.1f} ms   p99 {centiles[98] * 1000:6.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rate", type=float, default=20.0, help="commits a second")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement of cost")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one, many, seen = [], [], []
        for number in range(options.rounds):
            rate = (options.count, options.rate)
            one += trio.run(wake_ups, f"{folder}/one{number}.db", 1, *rate)
            many += trio.run(wake_ups, f"{folder}/many{number}.db", 100, *rate)
            seen += trio.run(bare, f"{folder}/bare{number}.db", *rate)
        show("commit → seen, a bare loop that looks every 1 ms", seen)
        show("commit → handler, 1 task", one)
        show("commit → handler, 100 tasks", many)
        for tasks, rate in ((1, 0.0), (100, 0.0), (1, 500.0), (100, 500.0)):
            path = f"{folder}/cost{tasks}-{rate}.db"
            share = trio.run(cost, path, tasks, rate, options.seconds)
            print(f"{tasks} idle tasks, {rate:g} commits a second of others: {share:.2%} of a core")


if __name__ == "__main__":
    main()
