"""Several processes on one file: the cap, crashes, and locks. Nothing here is mocked."""

import faulthandler
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
import trio

from planton import ScheduleRequest, StorageError
from planton_sqlite import SQLiteStorage

DISPATCHER = Path(__file__).parent / "dispatcher.py"
FILL = """
WITH RECURSIVE numbers (number) AS (
    SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < ?
)
INSERT INTO planton_pending (task_name, instruction) SELECT ?, number FROM numbers
"""
AGAIN = "SELECT count(*) FROM planton_instruction WHERE delivery > 1"


@pytest.fixture
def database(tmp_path):
    """An empty database with Planton's tables."""
    path = str(tmp_path / "work.db")

    async def migrate():
        async with SQLiteStorage(path) as storage:
            await storage.migrate()

    trio.run(migrate)
    return path


@pytest.fixture
def start(database):
    """Start a dispatcher; whatever still runs at the end is killed."""
    running = []

    def start(**options):
        command = [sys.executable, str(DISPATCHER), json.dumps({"path": database, **options})]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def query(path, sql, *parameters):
    with closing(sqlite3.connect(path, timeout=30)) as connection, connection:
        return connection.execute(sql, parameters).fetchall()


def finish(processes):
    """Wait for processes; what they noted."""
    notes = []
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert ("", 0) == (errors, process.returncode)
        notes += [json.loads(line) for line in out.splitlines()]
    return notes


def most_at_once(notes):
    """Count how many intervals overlapped at the worst instant; one that ends makes room."""
    moments = [(begun, 1) for *_, begun, _ in notes] + [(ended, -1) for *_, ended in notes]
    running = highest = 0
    for _, change in sorted(moments):
        running += change
        highest = max(highest, running)
    return highest


def check_caps(database, start, caps, *, count, **options):
    """Let four dispatchers work; look at every instant of every task."""
    for name in caps:
        query(database, FILL, count, name)
    notes = finish([start(caps=caps, **options) for _ in range(4)])
    for name, cap in caps.items():
        own = [note for note in notes if note[0] == name]
        ended = query(
            database, "SELECT instruction, status FROM planton_ended WHERE task_name = ?", name
        )

        assert most_at_once(own) == cap
        assert Counter((instruction, "succeeded") for _, instruction, *_ in own) == Counter(ended)
        assert 1 == max(Counter(ended).values()), "each ended once"
        begun, over = min(note[2] for note in own), max(note[3] for note in own)
        print(f"cap {cap}: {len(own) / (over - begun):.0f} a second, 4 dispatchers")

    assert [(0,)] == query(database, "SELECT count(*) FROM planton_active")
    total = query(database, "SELECT count(*) FROM planton_instruction")
    assert [(count * len(caps),)] == total, "nothing was lost"


def test_four_dispatchers_never_exceed_the_cap(database, start):
    """Not at one instant, and each instruction ends exactly once."""
    check_caps(database, start, {"one": 1, "three": 3, "ten": 10}, count=5000, seconds=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("cap", (1, 3, 10))
def test_four_dispatchers_never_exceed_the_cap_for_a_minute(database, start, cap):
    """The same for longer, durable to a power failure."""
    faulthandler.cancel_dump_traceback_later()  # this may take longer than a minute
    options = {"count": 100_000, "seconds": 60, "synchronous": "FULL"}
    check_caps(database, start, {"task": cap}, **options)


@pytest.mark.parametrize("point", ("before delivery", "before complete"))
def test_what_a_killed_process_held_is_delivered_again(database, start, point):
    """After the lease, not before; a late report by its receipt is refused."""
    query(database, "INSERT INTO planton_pending (task_name, instruction) VALUES ('task', 'a')")
    process = start(die=point, lease=1.5)
    receipt = process.stdout.readline().strip()

    assert -signal.SIGKILL == process.wait(30)

    async def take_over():
        async with SQLiteStorage(database) as storage:
            task = storage.queue_task("task", lease=30)
            assert [] == (await task.schedule(request(task))).claims
            with trio.fail_after(10):
                while not (claims := (await task.schedule(request(task))).claims):
                    await trio.sleep(0.05)
            late = await storage.complete(receipt)
            done = await storage.complete(claims[0].receipt)
            return claims[0].delivery, late.stale, done.stale

    assert (2, (receipt,), ()) == trio.run(take_over)
    assert [("a", "succeeded", 2)] == query(
        database, "SELECT instruction, status, delivery FROM planton_ended"
    )


def request(task):
    return ScheduleRequest(
        task_name=task.name,
        active_instructions=(),
        concurrency=task.concurrency,
        limit=task.concurrency,
        attempt_number=0,
    )


def progress(database, count):
    """Tell how many have ended, again and again, until all have."""
    ended, deadline = -1, time.monotonic() + 30
    while ended < count:
        before, ((ended,),) = ended, query(database, "SELECT count(*) FROM planton_ended")
        deadline = time.monotonic() + 30 if ended > before else deadline
        assert time.monotonic() < deadline, f"it hangs, or {count - ended} were lost"
        yield ended
        time.sleep(0.05)


def check_kills(database, start, count, kills):
    """Kill the oldest of three dispatchers at a moment of chance, again and again.

    Until one of them had work in hand: another may have had all the slots at that moment.
    """
    query(database, FILL, count, "task")
    options = {"caps": {"task": 6}, "lease": 0.5, "hold": (0.01, 0.03)}
    running = [(time.monotonic(), start(**options)) for _ in range(3)]
    killed = before = 0
    for ended in progress(database, count):
        # One that has lived that long is at work; a younger one may still be importing.
        is_ripe = ended > before and time.monotonic() - running[0][0] > 1.5
        if is_ripe and (killed < kills or not query(database, AGAIN)[0][0]):
            time.sleep(random.uniform(0.0, 0.1))
            _, victim = running.pop(0)
            victim.kill()
            victim.communicate()
            running.append((time.monotonic(), start(**options)))
            killed, before = killed + 1, ended
    again = query(database, AGAIN)

    assert [(count,)] == query(database, "SELECT count(DISTINCT instruction) FROM planton_ended")
    assert [(0,)] == query(
        database,
        "SELECT count(*) FROM planton_instruction WHERE status IN ('queued', 'running')",
    )
    assert [("ok",)] == query(database, "PRAGMA integrity_check")
    assert killed >= kills
    assert again[0][0] > 0, "some were in hand when their process was killed"
    print(f"{killed} kills, {again[0][0]} of {count} delivered again")


def test_dispatchers_killed_at_any_moment_lose_nothing(database, start):
    """Before the commit, after it, while handlers run, between handler and report."""
    check_kills(database, start, count=500, kills=3)


@pytest.mark.slow
def test_many_kills_lose_nothing(database, start):
    """The same, often."""
    faulthandler.cancel_dump_traceback_later()  # this may take longer than a minute
    check_kills(database, start, count=8000, kills=100)


def test_a_transaction_in_the_way_of_all_dispatchers_only_delays_them(database, start):
    """Somebody holds the database for a while: nothing is lost, nothing hangs."""
    query(database, FILL, 20_000, "task")
    processes = [start(caps={"task": 2}, seconds=1.5) for _ in range(2)]
    with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
        for _ in range(3):
            time.sleep(0.3)
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(0.3)
            connection.execute("ROLLBACK")
    notes = finish(processes)
    ended = query(database, "SELECT instruction FROM planton_ended")

    assert most_at_once(notes) <= 2
    assert Counter(name for _, name, *_ in notes) == Counter(name for (name,) in ended)
    assert [(0,)] == query(database, "SELECT count(*) FROM planton_active")


def test_many_processes_migrate_at_once(tmp_path, start):
    """All of them start; the tables are made once."""
    path = str(tmp_path / "new.db")
    finish([start(path=path, seconds=0.1) for _ in range(4)])
    versions = query(path, "SELECT version FROM planton_schema")

    assert [(number,) for number in range(1, len(versions) + 1)] == versions


async def forked(path):
    """Open a storage, and use it in a process that is forked then; its exit code."""
    async with SQLiteStorage(path) as storage:
        pid = os.fork()
        if not pid:
            try:
                await storage.find()
            except StorageError as error:
                os._exit(7 if "is not open" in str(error) else 8)
            os._exit(9)
        _, status = await trio.to_thread.run_sync(os.waitpid, pid, 0)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
async def test_a_process_that_was_forked_is_told_that_it_has_no_storage(database):
    """Its thread is not there, and it would wait for ever."""
    with trio.fail_after(20):
        code = await forked(database)

    assert 7 == code
