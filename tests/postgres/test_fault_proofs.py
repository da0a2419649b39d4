"""Processes killed and stopped, a server that crashes: nothing lost, no late write accepted.

Each has a short version here; `pytest -m slow -s tests/postgres/test_fault_proofs.py` runs the
long ones and prints what it counted.
"""

import faulthandler
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
import trio

from planton import ErrorEvent, InstructionEvent, Planton, StorageError
from planton.testing import EventCollector
from planton_postgres import PostgresStorage, _wake

ZYGOTE = Path(__file__).with_name("zygote.py")
TABLES = """
CREATE TABLE inbox (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event text);
CREATE TABLE outcome (instruction text, receipt text, applied boolean);
"""
FILL = """
INSERT INTO planton_pending (task_name, instruction) SELECT 'work', n FROM generate_series(1, %s) n
"""
TERMINATE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND (query LIKE 'LISTEN%' OR query LIKE 'SELECT pg_notify(%')
"""


@pytest.fixture
def processes():
    """Start dispatchers and consumers, each in some milliseconds; gives the pid."""
    zygote = subprocess.Popen(
        [sys.executable, str(ZYGOTE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    pids = []

    def start(role, **options):
        zygote.stdin.write(json.dumps({"role": role, **options}) + "\n")
        zygote.stdin.flush()
        pids.append(int(zygote.stdout.readline()))
        return pids[-1]

    yield start
    zygote.kill()
    for pid in pids:
        kill(pid)  # they have its pipes open, too
    zygote.communicate()


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


@pytest.fixture
def database(postgres_dsn):
    """Planton's tables and those of the test."""

    async def migrate():
        async with PostgresStorage(postgres_dsn) as storage:
            await storage.migrate()

    trio.run(migrate)
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute(TABLES)
        yield connection


def value(connection, query, *parameters):
    return connection.execute(query, parameters or None).fetchone()[0]


@pytest.mark.parametrize(
    ("count", "kills"), ((300, 6), pytest.param(10_000, 200, marks=pytest.mark.slow))
)
def test_kills_at_any_moment_lose_nothing_and_let_no_late_write_in(
    postgres_dsn, database, processes, count, kills
):
    """Dispatchers and consumers, killed by chance: each instruction succeeds exactly once."""
    faulthandler.cancel_dump_traceback_later()
    database.execute(FILL, [count])
    options = {"dsn": postgres_dsn, "cap": 40, "lease": 1.0, "delay": 0.05, "hold": (0.002, 0.02)}
    running = [(role, processes(role, **options)) for role in ("dispatcher", "consumer") * 3]
    killed, deadline, ended, began = {"dispatcher": 0, "consumer": 0}, time.monotonic() + 60, 0, 0
    began = time.monotonic()
    while ended < count or sum(killed.values()) < kills:
        time.sleep(random.uniform(0.0, 0.25))
        if sum(killed.values()) < kills:
            role, victim = running.pop(random.randrange(len(running)))
            kill(victim)
            killed[role] += 1
            running.append((role, processes(role, **options)))
        before, ended = ended, value(database, "SELECT count(*) FROM planton_ended")
        deadline = time.monotonic() + 60 if ended > before else deadline
        assert time.monotonic() < deadline, f"it hangs, or {count - ended} were lost"
    for _, pid in running:
        kill(pid)
    again = value(database, "SELECT count(*) FROM planton_ended WHERE delivery > 1")
    late = value(database, "SELECT count(*) FROM outcome WHERE NOT applied")
    twice = "SELECT count(*) - count(DISTINCT instruction) FROM {} WHERE {}"
    print(
        f"\n{killed} killed in {time.monotonic() - began:.0f} s; of {count}, {again} delivered "
        f"again, {late} late writes, all refused"
    )

    assert count == value(database, "SELECT count(DISTINCT instruction) FROM planton_ended")
    assert 0 == value(database, twice.format("planton_ended", "status = 'succeeded'"))
    assert 0 == value(database, twice.format("outcome", "applied"))
    assert 0 == value(database, "SELECT count(*) FROM planton_pending")
    assert 0 == value(database, "SELECT count(*) FROM planton_active")
    assert again <= 40 * kills, "what was active when one was killed, at the most"


def test_a_dispatcher_that_was_stopped_for_longer_than_its_leases_does_no_harm(
    postgres_dsn, database, processes
):
    """What it delivers late is refused when it is reported; what it claims then is new."""
    options = {"dsn": postgres_dsn, "cap": 5, "lease": 0.5, "delay": 0.01, "hold": (0.01, 0.03)}
    stopped = processes("dispatcher", **options)
    database.execute(FILL, [200])
    # In the middle of a delivery: claimed, and not handed over yet.
    with database.transaction():
        database.execute("LOCK TABLE inbox IN ACCESS EXCLUSIVE MODE")
        wait(lambda: value(database, "SELECT count(*) FROM planton_active") == 5)
        os.kill(stopped, signal.SIGSTOP)
        held = value(database, "SELECT array_agg(id || '.' || token) FROM planton_active")
        processes("dispatcher", **options)
        # An INSERT that was sent before the stop goes on when it can: not before its claim is lost.
        query = "SELECT count(*) FROM planton_active WHERE id || '.' || token = ANY (%s)"
        wait(lambda: value(database, query, held) == 0)
    for _ in range(2):
        processes("consumer", **options)
    wait(lambda: value(database, "SELECT count(*) FROM planton_ended") == 200)
    database.execute(FILL.replace("n FROM", "n + 200 FROM"), [200])
    os.kill(stopped, signal.SIGCONT)
    wait(lambda: value(database, "SELECT count(*) FROM planton_ended") == 400)
    wait(lambda: value(database, "SELECT count(*) FROM inbox") == 0)
    wait(lambda: value(database, "SELECT count(*) FROM outcome") >= 401)
    query = "SELECT count(*) FROM outcome WHERE receipt = ANY (%s) AND {}"
    print(f"\n{value(database, query.format('NOT applied'), held)} late deliveries, all refused")

    assert 0 == value(database, query.format("applied"), held)
    assert 400 == value(database, "SELECT count(*) FROM outcome WHERE applied")
    assert 400 == value(database, "SELECT count(DISTINCT instruction) FROM planton_ended")


def wait(condition, seconds=40):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("times", (1, pytest.param(10, marks=pytest.mark.slow)))
async def test_a_server_that_crashes_is_dispatched_from_when_it_is_back(
    postgres_server, schema_dsn, proxy, monkeypatch, times
):
    """And where its listener was terminated, or its way is half open: by itself."""
    if not postgres_server.is_ours:  # pragma: no cover
        pytest.skip("the server is not ours to stop")
    faulthandler.cancel_dump_traceback_later()
    monkeypatch.setattr(_wake, "SILENCE", 1.0)
    monkeypatch.setattr(_wake, "PATIENCE", 1.0)
    resumed = {"crash": [], "terminated": [], "half open": []}
    async with PostgresStorage(schema_dsn, listen_dsn=proxy.dsn) as storage:
        await storage.migrate()
        task = storage.queue_task("work", concurrency=50, lease=2.0, delay=0.5)
        planton = Planton(tasks=[task], services=[storage.serve])
        seen = EventCollector(planton)
        produced, done, enough = [], set(), trio.Event()

        async def produce():
            while not enough.is_set():
                name = str(len(produced))
                try:
                    await storage.enqueue("work", name)
                except StorageError:
                    continue  # not known whether it was queued: again, under the same name
                produced.append(name)
                await trio.sleep(0.005)

        async def consume(events):
            async for event in events:
                nursery.start_soon(work, event)

        async def work(event):
            await trio.sleep(0.01)
            while True:
                try:
                    await storage.complete(event.receipt)
                    break
                except StorageError:
                    await trio.sleep(0.05)
            done.add(event.instruction)

        async def goes_on(kind, since):
            count = len(done)
            with trio.fail_after(60):
                while len(done) < count + 20:
                    await trio.sleep(0.01)
            resumed[kind].append(trio.current_time() - since)
            with trio.fail_after(60):
                while planton.status()[0].wake_ups != "live":
                    await trio.sleep(0.01)

        async with (
            trio.open_nursery() as nursery,
            planton,
            planton.events(InstructionEvent, buffer=100) as events,
        ):
            nursery.start_soon(consume, events)
            nursery.start_soon(produce)
            for _ in range(times):
                await trio.sleep(random.uniform(0.2, 0.6))
                await trio.to_thread.run_sync(postgres_server.stop, "immediate")
                await trio.to_thread.run_sync(postgres_server.start)
                await goes_on("crash", trio.current_time())
                with psycopg.connect(schema_dsn, autocommit=True) as connection:
                    connection.execute(TERMINATE)
                await goes_on("terminated", trio.current_time())
                proxy.block()
                with trio.fail_after(20):
                    while planton.status()[0].wake_ups == "live":
                        await trio.sleep(0.01)
                proxy.unblock()
                await goes_on("half open", trio.current_time())
            enough.set()
            with trio.fail_after(60):
                while not done >= set(produced):
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
    for kind, seconds in resumed.items():
        print(f"\n{kind}: resumed after {sorted(round(each, 2) for each in seconds)} s", end="")
    print(f"; {len(produced)} done, {len(seen.of(ErrorEvent))} errors told")

    assert done >= set(produced)
