"""The in-memory storage keeps every promise of a storage, in virtual time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from planton.testing import MemoryStorage, StorageConformance


class TestMemoryStorage(StorageConformance):
    has_transactions = True
    has_locks = True

    @pytest.fixture
    def storage(self) -> MemoryStorage:
        return MemoryStorage()

    @pytest.fixture
    def other(self, storage: MemoryStorage) -> MemoryStorage:
        """There is one process, and one storage in it."""
        return storage

    async def advance(self, storage: Any, seconds: float) -> None:
        await trio.sleep(seconds)

    def transaction(self, storage: Any) -> Any:
        return storage.transaction()

    @asynccontextmanager
    async def locked(self, storage: Any, task_name: str) -> AsyncIterator[None]:
        async with storage.transaction(lock=task_name):
            yield
