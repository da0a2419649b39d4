"""Claim and complete on SQLite: beside bare statements, and by several processes on one file.

    python benchmarks/sqlite.py [--rounds 5] [--seconds 2] [--synchronous FULL|NORMAL] [FOLDER …]

In each folder (the temporary one and /dev/shm, where a flush costs nothing, if none is given):

- what a flush of the disk takes, for it is most of a small transaction;
- a queue drained at each cap by the storage on trio, and by the same statements in a loop on one
  bare connection;
- one, two and four busy processes on one file: how long a claim takes, what the slowest gets of
  what the fastest gets, and what they do together compared with one alone.

Everything takes turns, round by round. Compare the ratios of one run only: machines are noisy.
"""

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import trio

from planton import ScheduleRequest
from planton_sqlite import SQLiteStorage
from planton_sqlite._claim import CLAIM
from planton_sqlite._reports import REPORTS

CAPS = (1, 10, 100, 1000)
PROCESSES = (1, 2, 4)
FILL = """
WITH RECURSIVE numbers (number) AS (
    SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < ?
)
INSERT INTO planton_pending (task_name, instruction) SELECT 'bench', number FROM numbers
"""


def connect(path: str, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    return connection


def fill(path: str, rows: int) -> None:
    connection = connect(path, "NORMAL")
    connection.execute("BEGIN IMMEDIATE")
    for table in ("pending", "active", "ended"):
        connection.execute(f"DELETE FROM planton_{table}")
    connection.execute(FILL, [rows])
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def flush_time(folder: Path) -> float:
    """Milliseconds of a flush, the median."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(50):
            os.write(file.fileno(), b"x" * 4096)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def request(cap: int, concurrency: int) -> ScheduleRequest:
    return ScheduleRequest(
        task_name="bench",
        active_instructions=(),
        concurrency=concurrency,
        limit=cap,
        attempt_number=0,
    )


async def with_storage(path: str, synchronous: str, cap: int, rows: int) -> float:
    """Rows a second, of a queue task and its reports."""
    async with SQLiteStorage(path, synchronous=synchronous) as storage:
        schedule: Any = storage.queue_task("bench", concurrency=cap).schedule
        asked, done, began = request(cap, cap), 0, time.perf_counter()
        while done < rows:
            batch = await schedule(asked)
            receipts = [claim.receipt for claim in batch.claims]
            done += len((await storage.complete(receipts)).applied)
        return rows / (time.perf_counter() - began)


def bare(path: str, synchronous: str, cap: int, rows: int) -> float:
    """Rows a second, of the same statements in a loop."""
    connection = connect(path, synchronous)
    asked: dict[str, Any] = {"task_name": "bench", "key": "*", "tags": "[]", "room": cap}
    asked |= {"lease": 60.0, "claimed_by": "bare", "token": 1, "keeps": True}
    done, began = 0, time.perf_counter()
    while done < rows:
        connection.execute("BEGIN IMMEDIATE")
        receipts = claim_by_hand(connection, {**asked, "now": time.time()})
        connection.execute("COMMIT")
        connection.execute("BEGIN IMMEDIATE")
        given = {"rows": json.dumps(receipts), "now": time.time(), "keeps": True}
        connection.execute(REPORTS["complete"], given)
        connection.execute(REPORTS["drop"], given).fetchall()
        connection.execute("COMMIT")
        done += len(receipts)
    seconds = time.perf_counter() - began
    connection.close()
    return rows / seconds


def claim_by_hand(connection: sqlite3.Connection, asked: dict[str, Any]) -> list[Any]:
    connection.execute(CLAIM["task"], asked).fetchone()
    connection.execute(CLAIM["count"], {**asked, "after": 0}).fetchone()
    level = connection.execute(CLAIM["next_level"], {**asked, "level": 2**62})
    (asked["level"],) = level.fetchone()
    due = connection.execute(CLAIM["due"], asked)
    asked["ids"] = json.dumps([row_id for (row_id,) in due])
    claims = connection.execute(CLAIM["record_due"], asked).fetchall()
    connection.execute(CLAIM["drop_due"], asked)
    return [(row_id, 1, None) for row_id, *_ in claims]


def measure_code(path: str, synchronous: str, rounds: int) -> None:
    print("\n| cap | storage, rows/s | bare statements, rows/s | ratio |")
    print("| --- | --- | --- | --- |")
    results: dict[int, list[tuple[float, float]]] = {cap: [] for cap in CAPS}
    for number in range(rounds):
        for cap in CAPS:
            rows = max(500, min(cap * 100, 20_000))
            contestants: list[Callable[[], float]] = [
                lambda cap=cap, rows=rows: trio.run(with_storage, path, synchronous, cap, rows),
                lambda cap=cap, rows=rows: bare(path, synchronous, cap, rows),
            ]
            found = {}
            for which in (0, 1) if number % 2 else (1, 0):
                fill(path, rows)
                found[which] = contestants[which]()
            results[cap].append((found[0], found[1]))
    for cap, pairs in results.items():
        ours, others = zip(*pairs, strict=True)
        rates = f"{statistics.median(ours):,.0f} | {statistics.median(others):,.0f}"
        print(f"| {cap} | {rates} | {spread([one / other for one, other in pairs])} |")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}..{max(values):.2f}]"


@attrs.frozen
class Share:
    """What one of several processes got: rows a second, and the seconds of each claim."""

    rate: float
    claims: list[float]


async def dispatch(path: str, synchronous: str, cap: int, seconds: float) -> Share:
    """Claim and complete without a pause; what one process of several does."""
    claims, done = [], 0
    async with SQLiteStorage(path, synchronous=synchronous) as storage:
        schedule: Any = storage.queue_task("bench", concurrency=cap).schedule
        asked = request(cap, 10 * cap)
        print("ready", flush=True)
        start_at = float(sys.stdin.readline())
        time.sleep(max(start_at - time.monotonic(), 0))
        while (began := time.monotonic()) < start_at + seconds:
            batch = await schedule(asked)
            claims.append(time.monotonic() - began)
            done += len(batch.claims)
            await storage.complete([claim.receipt for claim in batch.claims])
        assert batch.claims, "the rows did not last"
        return Share(done / (time.monotonic() - start_at), claims)


def compete(path: str, synchronous: str, cap: int, count: int, seconds: float) -> list[Share]:
    fill(path, int(max(20_000, cap * 2500) * seconds))
    options = json.dumps([path, synchronous, cap, seconds])
    command = [sys.executable, __file__, "--dispatch", options]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(count)]
    for process in running:
        process.stdout.readline()
    start_at = f"{time.monotonic() + 0.2}\n"
    for process in running:
        process.stdin.write(start_at)
        process.stdin.flush()
    return [Share(**json.loads(process.communicate()[0])) for process in running]


def measure_processes(path: str, synchronous: str, rounds: int, seconds: float) -> None:
    print("\n| claimed at once | processes | claim p50, ms | p99, ms | worst, ms | ", end="")
    print("slowest / fastest | together / one alone |\n| --- | --- | --- | --- | --- | --- | --- |")
    for cap in (1, 100):
        found: dict[int, list[list[Share]]] = {count: [] for count in PROCESSES}
        for _ in range(rounds):
            for count in PROCESSES:
                found[count].append(compete(path, synchronous, cap, count, seconds))
        alone = [share.rate for (share,) in found[1]]
        for count, shares in found.items():
            print(f"| {cap} | {count} | {times(shares)} | {fairness(shares, alone)} |", flush=True)


def times(rounds: list[list[Share]]) -> str:
    claims = sorted(seconds for shares in rounds for share in shares for seconds in share.claims)
    quantiles = [claims[int((len(claims) - 1) * share)] * 1000 for share in (0.5, 0.99, 1)]
    return " | ".join(f"{milliseconds:.1f}" for milliseconds in quantiles)


def fairness(rounds: list[list[Share]], alone: list[float]) -> str:
    rates = [[share.rate for share in shares] for shares in rounds]
    shares = spread([min(each) / max(each) for each in rates])
    return f"{shares} | {spread([sum(each) / one for each, one in zip(rates, alone, strict=True)])}"


async def migrate(path: str) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.migrate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--synchronous", default="FULL")
    parser.add_argument("--dispatch", help=argparse.SUPPRESS)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.dispatch:
        print(json.dumps(attrs.asdict(trio.run(dispatch, *json.loads(arguments.dispatch)))))
        return
    shared = [Path("/dev/shm")] if Path("/dev/shm").is_dir() else []
    for folder in arguments.folders or [Path(tempfile.gettempdir()), *shared]:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            path = os.path.join(own, "bench.db")
            trio.run(migrate, path)
            mode = arguments.synchronous
            print(f"\n{folder}: a flush takes {flush_time(Path(own)):.2f} ms, synchronous {mode}")
            measure_code(path, mode, arguments.rounds)
            measure_processes(path, mode, arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
