"""Tables of another version than the code's: refused with the remedy, before anything is done."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlite_utils

from planton import Planton, ScheduleRequest, StorageError
from planton.storage import CronTimes
from planton.testing.conformance._base import claim
from planton_sqlite import SQLiteStorage, _schema
from planton_sqlite._receipts import to_receipt


@pytest.fixture
def older(path):
    """A database as the first version left it, with work at each stage."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(_schema.migrations()[0])
    connection.execute("CREATE TABLE planton_schema (version INTEGER NOT NULL)")
    connection.execute("INSERT INTO planton_schema VALUES (1)")
    connection.execute("INSERT INTO planton_pending (task_name, instruction) VALUES ('send', 'a')")
    connection.execute(
        "INSERT INTO planton_active (receipt, task_name, instruction, delivery, created_at, "
        "claimed_at, lease, lease_expires_at) VALUES (7, 'send', 'b', 1, 1, 1, 60, 9e9)"
    )
    connection.execute(
        "INSERT INTO planton_ended (task_name, instruction, delivery, status, created_at, "
        "claimed_at, ended_at) VALUES ('send', 'c', 1, 'dead', 1, 1, 9e9)"
    )
    connection.executemany(
        "INSERT INTO planton_ended (task_name, instruction, delivery, status, created_at, "
        "claimed_at, ended_at) VALUES ('failed', ?, 1, ?, 1, 1, 9e9)",
        [("x", "dead"), ("x", "succeeded"), ("y", "succeeded"), ("y", "dead"), ("z", "failed")],
    )
    connection.execute(
        "INSERT INTO planton_task (task_name, next_fire_at, cron) VALUES ('hourly', 3600, ?)",
        (CronTimes.of("0 * * * *", timezone="UTC", misfire="once").key,),
    )
    connection.close()
    return path


def methods(storage, connection=None):
    """One of each kind, by name."""
    task = storage.queue_task("send", concurrency=5)
    request = ScheduleRequest(
        task_name="send", active_instructions=(), concurrency=5, limit=5, attempt_number=0
    )
    return {
        "schedule": lambda: task.schedule(request),
        "many": lambda: task.schedule.many([request] * 2),
        "active": lambda: storage.get_active_instructions("send"),
        "enqueue": lambda: storage.enqueue("send", "x"),
        "enqueue within": lambda: storage.enqueue("send", "x", connection=connection),
        "complete": lambda: storage.complete(to_receipt(7)),
        "heartbeat": lambda: storage.heartbeat(to_receipt(7)),
        "release": lambda: storage.release(to_receipt(7)),
        "pause": lambda: storage.pause("send"),
        "retry": lambda: storage.retry("send"),
        "find": lambda: storage.find(),
        "stats": lambda: storage.stats(),
        "prune": lambda: storage.prune(),
    }


async def check_refused(path, match):
    database = sqlite_utils.Database(path)
    before = list(database.conn.iterdump())
    async with SQLiteStorage(path) as storage:
        for name, method in methods(storage, database).items():
            with pytest.raises(StorageError, match=match) as caught:
                await method()

            assert str(path) == caught.value.database, name

    assert before == list(database.conn.iterdump())
    database.close()


def test_every_migration_has_a_number_of_its_own():
    """Two that were written at the same time would be applied in the order of their names."""
    folder = Path(_schema.__file__).parent / "migrations"
    names = sorted(file.name for file in folder.glob("*.sql"))

    assert [f"{number:04}" for number in range(1, len(names) + 1)] == [name[:4] for name in names]


async def test_older_tables_are_refused_with_the_remedy(older):
    """By every method, and nothing is changed."""
    await check_refused(older, r"of version 1, .* needs version \d: call `await storage.migrate")


async def test_no_tables_are_refused_with_the_remedy(path):
    """The same of a database that was never migrated."""
    await check_refused(path, r"no planton tables, .* call `await storage.migrate\(\)` first")


async def test_newer_tables_are_refused_with_the_remedy(storage, path, rows):
    """An old program does not touch them, not even to migrate."""
    rows("INSERT INTO planton_schema VALUES (99)")
    await check_refused(path, "version 99, .* install a newer planton")
    async with SQLiteStorage(path) as late:
        with pytest.raises(StorageError, match="install a newer planton"):
            await late.migrate()


async def test_older_tables_are_migrated_with_all_that_is_in_them(older):
    """Work that was under way goes on."""
    async with SQLiteStorage(older) as storage:
        assert len(_schema.migrations()) - 1 == await storage.migrate()
        claimed = await methods(storage)["schedule"]()

        assert ["a"] == [each.instruction for each in claimed.claims]
        assert (to_receipt(7),) == (await storage.complete(to_receipt(7))).applied
        assert 1 == await storage.retry("send")
        (last,) = await claim(storage.cron_task("hourly", "0 * * * *"))
        assert last.instruction > "2026", "the last of those that were missed"


async def test_failures_before_a_success_are_past_in_older_tables_too(older, rows):
    """A plain SELECT finds their rows again."""
    async with SQLiteStorage(older) as storage:
        await storage.migrate()

    past = rows("SELECT instruction, status FROM planton_ended WHERE is_past ORDER BY id")
    assert [("x", "dead")] == past


async def test_the_storage_works_as_soon_as_somebody_has_migrated(older):
    """Another process may do it; nobody has to be started again."""
    async with SQLiteStorage(older) as storage, SQLiteStorage(older) as other:
        with pytest.raises(StorageError, match="migrate"):
            await storage.stats()
        await other.migrate()

        assert 1 == {each.task_name: each.running for each in await storage.stats()}["send"]


async def test_a_missing_migration_is_told_in_one_line(path, caplog):
    """Attempt by attempt, without a traceback that leads nowhere."""
    async with SQLiteStorage(path) as storage:
        await Planton(tasks=[storage.queue_task("send")]).attempt("send")
    (record,) = caplog.records

    assert "call `await storage.migrate()` first" in record.getMessage()
    assert record.exc_info is None


async def test_a_caller_may_have_rows_of_its_own_kind(storage, path):
    """The connection of a caller is used as it is."""
    connection = sqlite3.connect(path)
    connection.row_factory = lambda cursor, row: dict(enumerate(row))
    with connection:
        assert await storage.enqueue("send", "a", connection=connection)
    connection.close()


def test_the_demo_says_so_too(tmp_path):
    """In one line, and with the exit code of a mistake."""
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE planton_schema (version INTEGER NOT NULL)")
        connection.execute("INSERT INTO planton_schema VALUES (99)")
    connection.close()
    command = [sys.executable, "-c", "from planton.cli import main; main()", "demo", "--database"]
    done = subprocess.run([*command, path], capture_output=True, text=True, timeout=60)

    assert (2, "") == (done.returncode, done.stdout)
    assert "install a newer planton" in done.stderr
    assert "Traceback" not in done.stderr


APP = """
from contextlib import asynccontextmanager
from planton import ErrorEvent, Planton
from planton_sqlite import SQLiteStorage

@asynccontextmanager
async def app():
    async with SQLiteStorage("app.db") as storage:
        planton = Planton(tasks=[storage.queue_task("send")])

        @planton.on(ErrorEvent)
        async def stop(event):
            await planton.terminate()

        yield planton
"""


def test_planton_run_says_so_too(older):
    """A line for the attempt, and no traceback."""
    (older.parent / "app.py").write_text(APP)
    command = [sys.executable, "-c", "from planton.cli import main; main()", "run", "app:app"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=older.parent)

    assert "of version 1" in done.stderr
    assert "call `await storage.migrate()` first" in done.stderr
    assert "Traceback" not in done.stderr
