"""End to end: a backlog is dispatched, consumed and ended, as a user's program does it.

    python benchmarks/drain.py [--storage postgres|sqlite] [--source queue|table] [--consumer …]
        [--caps 1,10,100,1000] [--rounds 3] [--rows 50000] [--work 0] [--uri postgresql://…]

A `Planton` with one task, strict cap, receipts, leases, history and durable commits claims `rows`
instructions; each is consumed by a no-op, or by a sleep of up to twice `work` seconds, and reported
by itself:

- `listener`: a listener that starts a trio task for each, which awaits `complete`;
- `executor`: `planton_executor`, with as many slots as the cap.

Printed are instructions a second and the CPU time of this process an instruction. In the same
round two bare statements move rows in a loop on one blocking connection, without a cap, a lease, a
receipt or a consumer (see postgres.py): the last column is the ratio to them, with its spread.
Compare ratios of one run only: machines are noisy.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from postgres import bare_claim, bare_end, server, statements

from planton import InstructionEvent, Planton
from planton_postgres import PostgresStorage
from planton_sqlite import SQLiteStorage

POSTGRES_FILL = """
TRUNCATE planton_pending, planton_active, planton_ended;
INSERT INTO planton_pending (task_name, instruction)
SELECT 'bench', n FROM generate_series(1, {rows}) AS n;
"""
POSTGRES_TABLE = """
TRUNCATE planton_pending, planton_active, planton_ended;
DROP TABLE IF EXISTS item;
CREATE TABLE item (id bigint PRIMARY KEY, claimed_at timestamptz);
INSERT INTO item SELECT n FROM generate_series(1, {rows}) AS n;
CREATE INDEX item_unclaimed ON item (id) WHERE claimed_at IS NULL;
"""
POSTGRES_CLAIM = """
UPDATE item SET claimed_at = %(now)s WHERE id = ANY (ARRAY(
    SELECT id FROM item WHERE claimed_at IS NULL ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)) RETURNING id
"""
SQLITE_FILL = """
DELETE FROM planton_pending; DELETE FROM planton_active; DELETE FROM planton_ended;
WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {rows})
INSERT INTO planton_pending (task_name, instruction) SELECT 'bench', n FROM n;
"""
SQLITE_TABLE = """
DELETE FROM planton_pending; DELETE FROM planton_active; DELETE FROM planton_ended;
DROP TABLE IF EXISTS item;
CREATE TABLE item (id INTEGER PRIMARY KEY, claimed_at REAL);
WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {rows})
INSERT INTO item (id) SELECT n FROM n;
CREATE INDEX item_unclaimed ON item (id) WHERE claimed_at IS NULL;
"""
SQLITE_CLAIM = """
UPDATE item SET claimed_at = :now WHERE id IN (
    SELECT id FROM item WHERE claimed_at IS NULL ORDER BY id LIMIT :limit
) RETURNING id
"""


async def fill_postgres(storage: PostgresStorage, sql: str) -> None:
    async with await psycopg_connect(storage.conninfo) as connection:
        await connection.execute(sql)


async def psycopg_connect(uri: str) -> Any:
    from planton_postgres._driver import TrioConnection

    return await TrioConnection.connect(uri)


async def fill_sqlite(storage: SQLiteStorage, sql: str) -> None:
    import sqlite3

    def run() -> None:
        connection = sqlite3.connect(storage.path, timeout=30)
        connection.executescript(sql)
        connection.close()

    await trio.to_thread.run_sync(run)


async def drained(
    storage: Any, source: str, consumer: str, cap: int, rows: int, work: float = 0.0
) -> tuple[float, float]:
    """Instructions a second, and microseconds of CPU an instruction."""
    is_postgres = isinstance(storage, PostgresStorage)
    options: dict[str, Any] = {"concurrency": cap, "delay": 0.05}
    if source == "queue":
        task = storage.queue_task("bench", **options)
    else:
        task = storage.claim_task(
            "bench", sql=POSTGRES_CLAIM if is_postgres else SQLITE_CLAIM, **options
        )
    done, over = 0, trio.Event()

    def note(count: int = 1) -> None:
        nonlocal done
        done += count
        if done >= rows:
            over.set()

    async def report(receipt: Any) -> None:
        if work:
            await trio.sleep(random.uniform(0, 2 * work))
        await storage.complete(receipt)
        note()

    async with trio.open_nursery() as nursery:
        services: list[Any] = [storage.serve]
        if consumer == "executor":
            from planton_executor import Executor

            executor = Executor(storage, concurrency=cap)
            executor.handler("bench")(handled(note, work))
            services.append(executor.serve)
        planton = Planton(tasks=[task], services=services)
        if consumer == "executor":
            planton.on(InstructionEvent, executor.submit)
        else:
            planton.on(InstructionEvent, lambda event: nursery.start_soon(report, event.receipt))
        cpu, began = time.process_time(), time.perf_counter()
        async with planton:
            planton.wake()
            await over.wait()
            seconds, used = time.perf_counter() - began, time.process_time() - cpu
    return rows / seconds, used / rows * 1e6


def handled(note: Callable[[], None], work: float) -> Callable[[Any], Any]:
    async def handler(_: Any) -> None:
        if work:
            await trio.sleep(random.uniform(0, 2 * work))
        note()

    return handler


@asynccontextmanager
async def opened(kind: str, uri: str, folder: str) -> AsyncIterator[Any]:
    storage: Any
    if kind == "postgres":
        storage = PostgresStorage(uri, statement_timeout=60, migrate=True)
    else:
        storage = SQLiteStorage(Path(folder) / "bench.db")
    async with storage:
        yield storage


async def measure(arguments: argparse.Namespace, uri: str, folder: str) -> None:
    async with opened(arguments.storage, uri, folder) as storage:
        is_postgres = arguments.storage == "postgres"
        fill = fill_postgres if is_postgres else fill_sqlite
        fills = {
            ("postgres", "queue"): POSTGRES_FILL,
            ("postgres", "table"): POSTGRES_TABLE,
            ("sqlite", "queue"): SQLITE_FILL,
            ("sqlite", "table"): SQLITE_TABLE,
        }
        sql = fills[arguments.storage, arguments.source]
        print(f"{arguments.storage}, {arguments.source}, {arguments.consumer}")
        print("| cap | instructions/s | CPU, µs | of bare statements |\n| --- | --- | --- | --- |")
        for cap in map(int, arguments.caps.split(",")):
            rows = max(cap, min(arguments.rows, cap * 500))
            results, ratios = [], []
            for _ in range(arguments.rounds):
                await fill(storage, sql.format(rows=rows))
                results.append(
                    await drained(
                        storage,
                        arguments.source,
                        arguments.consumer,
                        cap,
                        rows,
                        arguments.work,
                    )
                )
                if is_postgres:
                    few = max(cap, rows // 5)
                    bare, _, _ = statements(uri, cap, few, bare_claim, bare_end)
                    ratios.append(results[-1][0] / bare)
            rates, cpus = zip(*results, strict=True)
            spread = f"{statistics.median(rates):,.0f} [{min(rates):,.0f}..{max(rates):,.0f}]"
            beside = "-"
            if ratios:
                beside = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}..{max(ratios):.2f}]"
            print(f"| {cap} | {spread} | {statistics.median(cpus):.1f} | {beside} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--storage", choices=("postgres", "sqlite"), default="postgres")
    parser.add_argument("--source", choices=("queue", "table"), default="queue")
    parser.add_argument("--consumer", choices=("listener", "executor"), default="listener")
    parser.add_argument("--caps", default="1,10,100,1000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--work", type=float, default=0.0)
    parser.add_argument("--uri")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.storage == "sqlite":
            trio.run(measure, arguments, "", folder)
        else:
            with server(arguments.uri) as uri:
                trio.run(measure, arguments, uri, folder)


if __name__ == "__main__":
    main()
