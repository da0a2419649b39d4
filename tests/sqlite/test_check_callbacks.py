"""`check_callbacks` on the storage for SQLite."""

import itertools
import sqlite3
from contextlib import asynccontextmanager, closing

import attrs

from planton.testing import check_callbacks
from planton_sqlite import SQLiteStorage


async def test_the_storage_keeps_everything(tmp_path):
    """Several storages on one file, claims cancelled at every step."""
    path = tmp_path / "app.db"
    inserted = itertools.count()

    @asynccontextmanager
    async def dispatcher():
        async with SQLiteStorage(path) as own:
            yield attrs.evolve(
                own.queue_task("task", lease=3600, concurrency=2),
                get_active_instructions=own.get_active_instructions,
            )

    def expire():
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE planton_active SET lease_expires_at = 0")

    async with SQLiteStorage(path) as storage:
        await storage.migrate()

        async def insert(count):
            for _ in range(count):
                await storage.enqueue("task", str(next(inserted)))

        async def end(event):
            await storage.complete(event.receipt)

        report = await check_callbacks(dispatcher, insert=insert, end=end, expire=expire)

    assert {"kept"} == {finding.outcome for finding in report}
