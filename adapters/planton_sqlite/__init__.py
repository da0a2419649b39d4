"""Planton on SQLite: claims from your own tables and from Planton's, with leases and receipts."""

from planton_sqlite._lock import file_lock
from planton_sqlite._memory import MemoryStorage
from planton_sqlite._storage import SQLiteStorage

__all__ = ["MemoryStorage", "SQLiteStorage", "file_lock"]
