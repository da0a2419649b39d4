"""SQLite keeps every promise of a storage."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from planton.testing import StorageConformance
from planton_sqlite import SQLiteStorage

# Lets time pass for all that is stored.
SET_BACK = """
UPDATE planton_cron SET next_fire_at = next_fire_at - :seconds;
UPDATE planton_pending SET run_at = run_at - :seconds, created_at = created_at - :seconds;
UPDATE planton_active SET created_at = created_at - :seconds, claimed_at = claimed_at - :seconds,
    lease_expires_at = lease_expires_at - :seconds;
UPDATE planton_dispatcher SET started_at = started_at - :seconds, seen_at = seen_at - :seconds,
    stop_requested_at = stop_requested_at - :seconds;
UPDATE planton_decision SET reported_at = reported_at - :seconds;
UPDATE planton_ended SET created_at = created_at - :seconds, claimed_at = claimed_at - :seconds,
    ended_at = ended_at - :seconds
"""


class TestSQLiteStorage(StorageConformance):
    claim_sql = """
    UPDATE item SET claimed = 1
    WHERE id IN (SELECT id FROM item WHERE NOT claimed ORDER BY id LIMIT :limit) RETURNING id
    """
    select_sql = "SELECT id FROM item ORDER BY id LIMIT :limit"
    partition_claim_sql = f"{claim_sql.rstrip()}, id / 10"
    partition_select_sql = "SELECT id, id / 10 FROM item ORDER BY id LIMIT :limit"

    @pytest.fixture
    async def storage(self, tmp_path: Path) -> AsyncIterator[SQLiteStorage]:
        async with SQLiteStorage(tmp_path / "app.db", synchronous="NORMAL") as storage:
            await storage.migrate()
            execute(
                storage, "CREATE TABLE item (id INTEGER PRIMARY KEY, claimed INTEGER DEFAULT 0)"
            )
            yield storage

    @pytest.fixture
    async def other(self, storage: SQLiteStorage) -> AsyncIterator[SQLiteStorage]:
        async with SQLiteStorage(storage.path, synchronous="NORMAL") as other:
            yield other

    async def advance(self, storage: Any, seconds: float) -> None:
        for statement in SET_BACK.split(";"):
            execute(storage, statement, {"seconds": seconds})

    @asynccontextmanager
    async def transaction(self, storage: Any) -> AsyncIterator[sqlite3.Connection]:
        with closing(sqlite3.connect(storage.path)) as connection, connection:
            yield connection

    @asynccontextmanager
    async def locked(self, storage: Any, task_name: str) -> AsyncIterator[None]:
        with closing(sqlite3.connect(storage.path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("COMMIT")

    async def add_rows(self, storage: Any, *ids: int) -> None:
        for row_id in ids:
            execute(storage, "INSERT OR REPLACE INTO item (id) VALUES (?)", (row_id,))

    async def remove_rows(self, storage: Any, *ids: int) -> None:
        for row_id in ids:
            execute(storage, "DELETE FROM item WHERE id = ?", (row_id,))

    async def insert(
        self, storage: Any, task_name: str, instruction: str, payload: str | None = None
    ) -> None:
        columns = {"task_name": task_name, "instruction": instruction}
        if payload is not None:
            columns["payload"] = payload
        marks = ", ".join("?" * len(columns))
        sql = f"INSERT INTO planton_pending ({', '.join(columns)}) VALUES ({marks})"
        execute(storage, sql, list(columns.values()))


def execute(storage: Any, sql: str, parameters: Any = ()) -> None:
    with closing(sqlite3.connect(storage.path)) as connection, connection:
        connection.execute(sql, parameters)
