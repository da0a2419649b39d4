"""A disk without room, and a file that may not be written, in the middle of a run."""

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio

from planton import ErrorEvent, InstructionEvent, Planton, StorageError
from planton.testing import EventCollector
from planton.testing.conformance._base import claim
from planton_sqlite import SQLiteStorage

COUNT = 200
SOON = 40


@contextmanager
def no_file_may_grow(_):
    """As on a disk that fails: files are at their limit. It takes no rights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # Less than there is already: the -wal file is written anew from its start now and then.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@contextmanager
def no_room_on_disk(path):
    """Another file takes all the room there is, and the -wal file has none of its own left."""
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            time.sleep(0.01)
    ballast = Path(path).parent / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    try:
        yield
    finally:
        ballast.unlink()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of twelve megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def run_through(path, trouble, words):
    """Let a dispatcher and its consumers run into trouble and out of it; its errors, the ends."""
    failed = []
    async with SQLiteStorage(path) as storage:
        await storage.migrate()
        for number in range(COUNT):
            await storage.enqueue("task", str(number), payload="x" * 500)
        task = storage.queue_task("task", concurrency=10, lease=1, delay=0.05)
        planton = Planton(tasks=[task], services=[storage.serve])
        seen = EventCollector(planton)

        async def work(event):
            await trio.sleep(0.01)
            try:
                await storage.complete(event.receipt)
            except StorageError as error:
                failed.append(error)  # it is delivered again when its lease is over

        async def ended():
            return (await storage.stats())[0].succeeded

        async with trio.open_nursery() as nursery:
            planton.on(InstructionEvent, lambda event: nursery.start_soon(work, event))
            async with planton:
                with trio.fail_after(SOON):
                    while await ended() < COUNT / 10:
                        await trio.sleep(0.005)
                with trouble(path):
                    with trio.fail_after(SOON):
                        # Which it is depends on who is about to write.
                        while not (failed or seen.of(ErrorEvent)):
                            await trio.sleep(0.01)
                        await trio.sleep(0.5)
                    during = await ended()
                    with pytest.raises(StorageError, match=words):
                        for number in range(1000):
                            await storage.enqueue("other", str(number), payload="x" * 5000)
                assert during < COUNT
                with trio.fail_after(2 * SOON):
                    while await ended() < COUNT:
                        await trio.sleep(0.02)
    return [*failed, *(event.error for event in seen.of(ErrorEvent))]


def check_all_ended_once(path):
    with closing(sqlite3.connect(path)) as connection:
        ended = connection.execute(
            "SELECT instruction, status FROM planton_ended WHERE task_name = 'task'"
        ).fetchall()

        assert Counter(ended) == Counter((str(number), "succeeded") for number in range(COUNT))
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
        assert [(0,)] == connection.execute(
            "SELECT count(*) FROM planton_instruction WHERE status IN ('running', 'dead')"
        ).fetchall()


def check_words(errors, path, words):
    assert errors
    for error in errors:
        assert isinstance(error, StorageError)
        assert str(path) in str(error)
        assert words in str(error)


async def test_writes_that_fail_lose_nothing_and_go_on_afterwards(path):
    """The error names the file and what to look at; what could not be reported comes again."""
    words = "look at the disk"
    check_words(await run_through(path, no_file_may_grow, words), path, words)
    check_all_ended_once(path)


async def test_a_full_disk_loses_nothing_and_it_goes_on_when_there_is_room(small_disk):
    """A real one."""
    path, words = small_disk / "app.db", "make room"
    check_words(await run_through(path, no_room_on_disk, words), path, words)
    check_all_ended_once(path)


async def test_a_log_that_fills_the_disk_is_written_back(small_disk):
    """A slow reader let the -wal file grow; when it is gone work goes on, with no more room."""
    path = small_disk / "app.db"
    async with SQLiteStorage(path) as storage:
        await storage.enqueue("task", "a")
        receipt = (await claim(storage.queue_task("task")))[0].receipt
        for length in (100_000, 50_000):  # until the file is as large as it is to be
            await storage.advance(receipt, "w" * length)
        with closing(sqlite3.connect(path)) as reader:
            reader.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM planton_active").fetchall()
            with pytest.raises(StorageError, match=r"disk is full.*make room"):
                for number in range(10_000):
                    await storage.advance(receipt, str(number % 10) * 50_000)
            with pytest.raises(StorageError, match=r"disk is full.*make room"):
                await storage.advance(receipt, "y" * 50_000)

        assert (receipt,) == (await storage.advance(receipt, "z" * 50_000)).applied
        assert 1_000_000 > Path(f"{path}-wal").stat().st_size


async def test_a_log_that_has_grown_shrinks_again(path, monkeypatch):
    """Once no slow reader needs it."""
    monkeypatch.setattr("planton_sqlite._open.JOURNAL_SIZE", 1_000_000)
    async with SQLiteStorage(path, synchronous="NORMAL") as storage:
        await storage.enqueue("task", "a")
        receipt = (await claim(storage.queue_task("task")))[0].receipt
        with closing(sqlite3.connect(path)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM planton_active").fetchall()
            for number in range(200):
                await storage.advance(receipt, str(number % 10) * 50_000)
            grown = Path(f"{path}-wal").stat().st_size
        for _ in range(3):
            await storage.heartbeat(receipt)

        assert 1_000_000 >= Path(f"{path}-wal").stat().st_size
        assert 10_000_000 < grown


@pytest.fixture
def folder():
    """A folder that nobody in particular may write to, and root as such a nobody."""
    folder = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)  # root may write to everything
    yield folder
    if is_root:
        os.seteuid(0)
    folder.chmod(0o700)
    shutil.rmtree(folder)


async def test_a_file_that_becomes_read_only_during_a_run(folder):
    """Who has it open goes on; who opens it is told, and goes on when it may be written again."""
    path = folder / "app.db"
    async with SQLiteStorage(path) as first:
        await first.migrate()
        for name in "abc":
            await first.enqueue("task", name)
        for file in folder.iterdir():
            file.chmod(0o444)
        async with SQLiteStorage(path) as second:
            planton = Planton(
                tasks=[second.queue_task("task", concurrency=9, delay=0.05)],
                services=[second.serve],
            )
            seen = EventCollector(planton)
            async with planton:
                with trio.fail_after(SOON):
                    while not seen.of(ErrorEvent):
                        await trio.sleep(0.01)
                await first.enqueue("task", "d")
                with pytest.raises(StorageError, match=r"readonly.*look at the permissions"):
                    await second.enqueue("task", "e")
                assert [] == seen.instructions
                for file in folder.iterdir():
                    file.chmod(0o644)
                with trio.fail_after(SOON):
                    while len(seen.instructions) < 4:
                        await trio.sleep(0.01)
            errors = [event.error for event in seen.of(ErrorEvent)]

    check_words(errors, path, "look at the permissions")
    assert ["a", "b", "c", "d"] == sorted(seen.instructions)
