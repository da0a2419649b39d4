"""The file, or the folder, is another one all of a sudden; and what a command does to the owner."""

import os
import shutil
import sqlite3
import threading
import time
from contextlib import closing

import pytest
import trio

from planton import ErrorEvent, InstructionEvent, Planton, StorageError
from planton.testing import EventCollector
from planton_executor import Executor
from planton_sqlite import SQLiteStorage
from planton_sqlite._owner import Owner

SOON = 20


def replace(path):
    backup = path.with_suffix(".bak")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as copy:
        source.backup(copy)
    os.replace(backup, path)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@pytest.mark.parametrize("change", (replace, os.unlink, lambda path: path.rename(f"{path}.old")))
async def test_a_file_that_is_another_one_is_told_and_not_written(storage, path, change):
    """By attempts, by the watch, and to whoever calls; nothing hangs, and the stop is quick."""
    planton = Planton(tasks=[storage.queue_task("task", delay=0.05)], services=[storage.serve])
    seen = EventCollector(planton)
    async with planton:
        await trio.sleep(0.1)
        change(path)
        shutil.copy(path, path.with_suffix(".copy")) if path.exists() else None
        with trio.fail_after(SOON):
            while {event.stage for event in seen.of(ErrorEvent)} < {"schedule", "service"}:
                await trio.sleep(0.01)
        with pytest.raises(StorageError, match="replaced, moved or deleted"):
            await storage.enqueue("task", "a")
        (status,) = planton.status()
        assert "replaced, moved or deleted" in str(status.last_error)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert {True} == {"replaced" in str(event.error) for event in seen.of(ErrorEvent)}
    if path.exists():
        assert path.read_bytes() == path.with_suffix(".copy").read_bytes()


async def test_a_program_that_changes_its_folder_keeps_its_file(path, tmp_path, monkeypatch):
    """Before it opens the storage, and afterwards."""
    monkeypatch.chdir(tmp_path)
    storage = SQLiteStorage(path.name)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    async with storage:
        monkeypatch.chdir("/")
        await storage.enqueue("task", "a")
        with closing(sqlite3.connect(path)) as connection, connection:
            await storage.enqueue("task", "b", connection=connection)
        planton = Planton(
            tasks=[storage.claim_task("task", sql="SELECT id FROM user_account LIMIT :limit")]
        )
        seen = EventCollector(planton)
        await planton.attempt("task")

    assert ["a"] == seen.instructions
    assert [] == list(elsewhere.iterdir())


async def test_text_that_is_not_utf_8_is_shown_as_well_as_it_can_be(storage, rows):
    """It hides nothing else, and the owner of the connection goes on."""
    rows(
        "INSERT INTO planton_pending (task_name, instruction, error) VALUES "
        "('task', CAST(x'636166e9' AS TEXT), CAST(x'e9' AS TEXT)), ('task', 'good', NULL)"
    )
    task = storage.queue_task("task", concurrency=5, delay=0.01)
    planton = Planton(tasks=[task], services=[storage.serve])
    seen = EventCollector(planton)

    assert ["caf�", "good"] == [record.instruction for record in await storage.find()]
    assert 2 == (await storage.stats())[0].queued
    async with planton:
        for event in await seen.wait_for(InstructionEvent, 2):
            await storage.complete(event.receipt)

    assert ["caf�", "good"] == seen.instructions
    assert ["succeeded"] * 2 == [record.status for record in await storage.find()]


class Odd(BaseException):
    """What no handler expects."""


async def test_the_owner_survives_whatever_a_command_does(path):
    """Its caller is told; the others go on."""
    owner = Owner(lambda: sqlite3.connect(path, isolation_level=None), "app.db", str(path), 10.0)
    await owner.start()

    def fail(error):
        raise error

    for error in (Odd(), RecursionError(), SystemExit(3), KeyboardInterrupt(), MemoryError()):
        for run in (owner.read, owner.write):
            with pytest.raises(type(error)):
                await run(lambda _, error=error: fail(error))
        assert [(1,)] == await owner.write(lambda own: own.execute("SELECT 1").fetchall())
    await owner.close()


async def test_a_connection_that_cannot_be_opened_again_is_told(path, monkeypatch):
    """Whatever opening it raises."""
    is_first = True

    def connect():
        nonlocal is_first
        if not is_first:
            raise ZeroDivisionError
        is_first = False
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)

    owner = Owner(connect, "app.db", str(path), 10.0)
    await owner.start()
    for _ in range(2):
        with pytest.raises(StorageError, match="permissions"):
            await owner.write(lambda own: own.execute("DELETE FROM user_account"))
    await owner.close()


async def test_a_file_that_is_locked_does_not_keep_a_run_beyond_its_grace(storage, path):
    """Nor handlers with ends to store; then the storage is as patient as before."""
    executor = Executor(storage, concurrency=3)
    executor.handler("task")(at_once)
    task = storage.queue_task("task", concurrency=3, delay=0.05)
    await storage.enqueue("task", "a")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        async with Planton(tasks=[task], storages=[storage], consumers=[executor], grace=1):
            await trio.sleep(0.1)
            other.execute("BEGIN IMMEDIATE")
            await trio.sleep(0.1)
            began = trio.current_time()
        took = trio.current_time() - began

    assert took < 3
    assert await storage.enqueue("task", "b")


async def at_once(_):
    """Does nothing."""


async def test_closing_does_not_wait_for_a_lock(storage, path):
    """What waits for its turn is told, and the thread is gone."""
    waiting = []
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        async def enqueue():
            try:
                await storage.enqueue("task", "a")
            except StorageError as error:
                waiting.append(str(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(enqueue)
            await trio.sleep(0.1)
            began = time.monotonic()
            await storage.__aexit__(None, None, None)

    assert ["another process has been writing" in each for each in waiting] == [True]
    assert time.monotonic() - began < 4
    assert not [one for one in threading.enumerate() if one.name == "planton-sqlite"]


async def test_closing_does_not_wait_for_a_disk_that_hangs(path, monkeypatch):
    """The thread ends when it answers."""
    monkeypatch.setattr("planton_sqlite._owner._CLOSED_WITHIN", 0.1)
    answers, asked = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()
    owner = Owner(lambda: sqlite3.connect(path), "app.db", str(path), 10.0)
    await owner.start()

    def hang(_):
        token.run_sync_soon(asked.set)
        answers.wait(SOON)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(owner.read, hang)
        await asked.wait()
        began = time.monotonic()
        await owner.close()
        assert time.monotonic() - began < 5
        answers.set()
