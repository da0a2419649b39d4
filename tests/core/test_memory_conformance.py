"""The storage in memory keeps every promise of a storage, in virtual time."""

from typing import Any

import pytest
import trio

from planton.testing import MemoryStorage, StorageConformance


class TestMemoryStorage(StorageConformance):
    claim_sql = """
    UPDATE item SET claimed = 1
    WHERE id IN (SELECT id FROM item WHERE NOT claimed ORDER BY id LIMIT :limit) RETURNING id
    """
    select_sql = "SELECT id FROM item ORDER BY id LIMIT :limit"
    partition_claim_sql = f"{claim_sql.rstrip()}, id / 10"
    partition_select_sql = "SELECT id, id / 10 FROM item ORDER BY id LIMIT :limit"

    @pytest.fixture
    def storage(self) -> MemoryStorage:
        storage = MemoryStorage()
        storage.connection.execute(
            "CREATE TABLE item (id INTEGER PRIMARY KEY, claimed INTEGER DEFAULT 0)"
        )
        return storage

    @pytest.fixture
    def other(self, storage: MemoryStorage) -> MemoryStorage:
        return storage

    async def advance(self, storage: Any, seconds: float) -> None:
        await trio.sleep(seconds)

    async def add_rows(self, storage: Any, *ids: int) -> None:
        for row_id in ids:
            storage.connection.execute("INSERT OR REPLACE INTO item (id) VALUES (?)", [row_id])

    async def remove_rows(self, storage: Any, *ids: int) -> None:
        for row_id in ids:
            storage.connection.execute("DELETE FROM item WHERE id = ?", [row_id])

    async def insert(
        self, storage: Any, task_name: str, instruction: str, payload: str | None = None
    ) -> None:
        columns = {"task_name": task_name, "instruction": instruction}
        if payload is not None:
            columns["payload"] = payload
        marks = ", ".join("?" * len(columns))
        sql = f"INSERT INTO planton_pending ({', '.join(columns)}) VALUES ({marks})"
        storage.connection.execute(sql, list(columns.values()))
