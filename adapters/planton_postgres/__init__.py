"""Planton on PostgreSQL: claims from your own tables and its own, with leases and receipts."""

from planton_postgres._lock import advisory_lock
from planton_postgres._storage import PostgresStorage

__all__ = ["PostgresStorage", "advisory_lock"]
