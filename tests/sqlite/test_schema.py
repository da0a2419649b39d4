"""Tables of another version than the code's: refused with the remedy, before anything is done."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlite_utils

from planton import InstructionEvent, Planton, ScheduleRequest, StorageError
from planton.testing.conformance._base import claim
from planton_sqlite import SQLiteStorage, _schema

SECOND = "ALTER TABLE planton_pending ADD COLUMN color TEXT NOT NULL DEFAULT 'red';"


@pytest.fixture
async def older(path, monkeypatch):
    """A database of the version before that of the code, with work at each stage."""
    async with SQLiteStorage(path) as storage:
        for name in "cba":
            await storage.enqueue("send", name)
        task = storage.queue_task("send", concurrency=2)
        dead, running = await claim(task)
        await storage.fail(dead.receipt, "broken")
        await storage.heartbeat(running.receipt)
    monkeypatch.setattr(_schema, "_MIGRATIONS", (*_schema._MIGRATIONS, SECOND))
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
        "complete": lambda: storage.complete("7.7"),
        "heartbeat": lambda: storage.heartbeat("7.7"),
        "release": lambda: storage.release("7.7"),
        "pause": lambda: storage.pause("send"),
        "retry": lambda: storage.retry("send"),
        "find": lambda: storage.find(),
        "stats": lambda: storage.stats(),
        "prune": lambda: storage.prune(),
    }


async def check_refused(path, match):
    database = sqlite_utils.Database(path)
    before = list(database.conn.iterdump())
    async with SQLiteStorage(path, migrate=False) as storage:
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
    with pytest.raises(StorageError, match="install a newer planton"):
        await storage.migrate()
    with pytest.raises(StorageError, match="install a newer planton"):
        async with SQLiteStorage(path):
            pass  # pragma: no cover


async def test_opening_brings_older_tables_up_to_date_with_all_that_is_in_them(older, rows):
    """Work that was under way goes on."""
    async with SQLiteStorage(older) as storage:
        assert 0 == await storage.migrate()
        (claimed,) = await claim(storage.queue_task("send", concurrency=2))

        assert ("a", 1) == (claimed.instruction, await storage.retry("send"))
        assert ["a", "b"] == sorted(await storage.get_active_instructions("send"))
    assert [(1,), (2,)] == rows("SELECT version FROM planton_schema")
    assert [("c", "red")] == rows("SELECT instruction, color FROM planton_pending")


async def test_the_storage_works_as_soon_as_somebody_has_migrated(older):
    """Another process may do it; nobody has to be started again."""
    async with (
        SQLiteStorage(older, migrate=False) as storage,
        SQLiteStorage(older, migrate=False) as other,
    ):
        with pytest.raises(StorageError, match="migrate"):
            await storage.stats()
        assert 1 == await other.migrate()

        assert 1 == {each.task_name: each.running for each in await storage.stats()}["send"]


async def test_what_is_inserted_by_sql_must_be_what_a_claim_can_use(storage, rows):
    """The table refuses it: one row that cannot be read would spoil the claims of others."""
    bad = {
        "task_name": ("''", "x'00'", "printf('%0501d', 1)"),
        "instruction": ("''", "x'00'", "printf('%02001d', 1)", "char(0)"),
        "payload": ("'{'", "x'00'", "''"),
        "priority": ("'high'", "1.5", "2147483648"),
        "run_at": ("'soon'", "NULL"),
        "tags": ("'a'", "'{}'", "NULL"),
        "retries": ("-1", "0.5", "2147483648", "'many'"),
        "timeout": ("0", "-1", "'long'", "9e999"),
        "delivery": ("-1", "2147483647", "'x'"),
        "partition": ("x'00'", "NULL"),
        "created_at": ("'yesterday'",),
    }
    for column, values in bad.items():
        columns = {"task_name": "'send'", "instruction": "'a'"}
        for value in values:
            columns[column] = value
            names = ", ".join(f'"{name}"' for name in columns)
            given = ", ".join(columns.values())
            with pytest.raises(sqlite3.DatabaseError):
                rows(f"INSERT INTO planton_pending ({names}) VALUES ({given})")

    assert [] == await storage.find()


async def test_a_missing_migration_is_told_in_one_line(path, caplog):
    """Attempt by attempt, without a traceback that leads nowhere."""
    async with SQLiteStorage(path, migrate=False) as storage:
        planton = Planton(tasks=[storage.queue_task("send")])
        planton.on(InstructionEvent, lambda event: None)
        await planton.attempt("send")
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
from planton import ErrorEvent, InstructionEvent, Planton
from planton_sqlite import SQLiteStorage

@asynccontextmanager
async def app():
    async with SQLiteStorage("app.db", migrate=False) as storage:
        planton = Planton(tasks=[storage.queue_task("send")])

        planton.on(InstructionEvent, lambda event: None)

        @planton.on(ErrorEvent)
        async def stop(event):
            await planton.terminate()

        yield planton
"""


def test_planton_run_says_so_too(path):
    """A line for the attempt, and no traceback."""
    (path.parent / "app.py").write_text(APP)
    command = [sys.executable, "-c", "from planton.cli import main; main()", "run", "app:app"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=path.parent)

    assert "has no planton tables" in done.stderr
    assert "call `await storage.migrate()` first" in done.stderr
    assert "Traceback" not in done.stderr
