"""Real processes on one server: the cap at every instant, and what a SIGKILL leaves behind."""

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import trio

import planton_postgres
from planton.testing.conformance._base import claim, enqueue
from planton_postgres import PostgresStorage

DISPATCHER = """
import random, sys, trio
from planton import InstructionEvent, Planton
from planton_postgres import PostgresStorage

dsn, concurrency, where = sys.argv[1], int(sys.argv[2]), sys.argv[3]

async def main():
    async with PostgresStorage(dsn) as storage, trio.open_nursery() as consumers:
        task = storage.queue_task("work", concurrency=concurrency, lease=1.0, delay=0.002)
        planton = Planton(tasks=[task], services=[storage.serve])

        async def consume(event):
            if where == "handler":
                print("reached", flush=True)
                await trio.sleep_forever()
            await trio.sleep(random.uniform(0.005, 0.02))
            if where == "complete":
                print("reached", flush=True)
                await trio.sleep_forever()
            await storage.complete(event.receipt)

        async def deliver(event):
            if where == "delivery":
                print("reached", flush=True)
                await trio.sleep_forever()
            consumers.start_soon(consume, event)

        planton.on(InstructionEvent, deliver)
        print("ready", flush=True)
        await planton.run()

trio.run(main)
"""
# Every change of the active ones, with how many there are: seen by the server in one order,
# because the transactions that claim take turns and a trigger counts within each.
WATCH = """
CREATE TABLE watched (at timestamptz DEFAULT clock_timestamp(), active bigint);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO watched (active) SELECT count(*) FROM planton_active;
    RETURN NULL;
END $$;
CREATE TRIGGER watch AFTER INSERT ON planton_active
FOR EACH STATEMENT EXECUTE FUNCTION watch();
"""


@pytest.fixture
def start(tmp_path):
    """Start dispatchers; those that still run at the end are killed."""
    script = tmp_path / "dispatcher.py"
    script.write_text(DISPATCHER)
    running = []

    def start(dsn, concurrency, where="nowhere", clock=()):
        process = subprocess.Popen(
            [*clock, sys.executable, str(script), dsn, str(concurrency), where],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "FAKETIME_DONT_FAKE_MONOTONIC": "1"},
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
async def storage(schema_dsn):
    async with PostgresStorage(schema_dsn) as storage:
        await storage.migrate()
        yield storage


def wait_for(process, word):
    assert word == process.stdout.readline().strip()


@pytest.mark.parametrize(
    ("concurrency", "seconds"),
    (
        (1, 0.3),
        (3, 0.3),
        (10, 0.3),
        *(pytest.param(number, 60.0, marks=pytest.mark.slow) for number in (1, 3, 10)),
    ),
)
async def test_four_dispatchers_never_exceed_the_cap(
    storage, start, schema_dsn, concurrency, seconds
):
    """Not at one instant, and every instruction is ended once."""
    count = int(seconds * concurrency * 60)
    with psycopg.connect(schema_dsn, autocommit=True) as connection:
        connection.execute(WATCH)
        connection.execute(
            "INSERT INTO planton_pending (task_name, instruction)"
            " SELECT 'work', n FROM generate_series(1, %s) AS n",
            [count],
        )
        processes = [start(schema_dsn, concurrency) for _ in range(4)]
        for process in processes:
            await trio.to_thread.run_sync(wait_for, process, "ready")
        began, highest, ended = time.monotonic(), 0, 0
        with trio.fail_after(seconds * 4 + 20):
            while ended < count:
                await trio.sleep(0.02)
                query = "SELECT (SELECT count(*) FROM planton_active), count(*) FROM planton_ended"
                active, ended = connection.execute(query).fetchone()
                highest = max(highest, active)
        elapsed = time.monotonic() - began
        (most,) = connection.execute("SELECT max(active) FROM watched").fetchone()
        repeated = connection.execute(
            "SELECT instruction FROM planton_ended GROUP BY 1"
            " HAVING count(*) > 1 OR max(delivery) > 1"
        ).fetchall()
    print(f"\nconcurrency {concurrency}: {count / elapsed:.0f} a second, at most {most} active")

    assert concurrency >= most
    assert concurrency >= highest
    assert [] == repeated
    assert all(process.poll() is None for process in processes)


AN_HOUR_AHEAD = ("faketime", "-f", "+1h")


@pytest.mark.skipif(not shutil.which("faketime"), reason="there is no faketime")
async def test_dispatchers_whose_clocks_are_an_hour_apart(storage, start, schema_dsn):
    """Leases, due times and the order are by the server's clock: nothing is different."""
    later = datetime.now(UTC) + timedelta(minutes=30)
    await storage.enqueue("work", "later", run_at=later)
    with psycopg.connect(schema_dsn, autocommit=True) as connection:
        connection.execute(WATCH)
        connection.execute(
            "INSERT INTO planton_pending (task_name, instruction)"
            " SELECT 'work', n FROM generate_series(1, 200) AS n"
        )
        for clock in ((), AN_HOUR_AHEAD):
            process = start(schema_dsn, 3, clock=clock)
            await trio.to_thread.run_sync(wait_for, process, "ready")
        query = "SELECT count(*), max(delivery) FROM planton_ended"
        with trio.fail_after(30):
            while connection.execute(query).fetchone()[0] < 200:
                await trio.sleep(0.02)
        (most,) = connection.execute("SELECT max(active) FROM watched").fetchone()
        ended = connection.execute(query).fetchone()

    assert (200, 1) == ended
    assert most <= 3
    assert ["later"] == [found.instruction for found in await storage.find(status="queued")]


CLOCKS = {"now", "utcnow", "today", "time", "time_ns"}


def test_nothing_asks_this_machine_for_the_time():
    """What is stored or compared is by the server's clock."""
    folder = Path(planton_postgres.__file__).parent
    asked = {
        (path.name, node.attr)
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in CLOCKS
        if isinstance(node.value, ast.Name) and node.value.id in ("datetime", "time", "date")
    }

    assert set() == asked


@pytest.mark.parametrize("where", ("delivery", "handler", "complete"))
async def test_what_a_killed_process_had_is_delivered_again(storage, start, schema_dsn, where):
    """After its lease, with a new receipt; the old one changes nothing any more."""
    await enqueue(storage, "work", "a")
    process = start(schema_dsn, 1, where)
    await trio.to_thread.run_sync(wait_for, process, "ready")
    await trio.to_thread.run_sync(wait_for, process, "reached")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with psycopg.connect(schema_dsn) as connection:
        (old,) = connection.execute("SELECT id || '.' || token FROM planton_active").fetchone()
    task = storage.queue_task("work", lease=1.0)

    assert [] == await claim(task), "its lease is not over"
    with trio.fail_after(10):
        while not (claims := await claim(task)):
            await trio.sleep(0.05)
    assert [("a", 2)] == [(each.instruction, each.delivery) for each in claims]
    assert (old,) == (await storage.complete(old)).stale
    assert (claims[0].receipt,) == (await storage.complete(claims[0].receipt)).applied


async def test_a_process_killed_before_its_commit_has_claimed_nothing(
    storage, start, schema_dsn, observer
):
    """The server undoes it as soon as it notices that nobody is there."""
    await enqueue(storage, "work", "a")
    await claim(storage.queue_task("other"))
    await observer.execute("INSERT INTO planton_task (task_name) VALUES ('work')")
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    with trio.fail_after(20):
        async with observer.transaction():
            await observer.execute("LOCK TABLE planton_active IN SHARE ROW EXCLUSIVE MODE")
            process = start(schema_dsn, 1)
            with psycopg.connect(schema_dsn, autocommit=True) as connection:
                while connection.execute(waiting).fetchone() == (0,):
                    await trio.sleep(0.01)
            process.kill()
            process.wait()
        task = storage.queue_task("work")
        while not (claims := await claim(task)):
            await trio.sleep(0.05)

    assert ["a"] == [each.instruction for each in claims]
