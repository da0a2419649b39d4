"""Queue instructions in the transaction of a session."""

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack, overload

import sqlalchemy
from sqlalchemy import orm

from planton.hosting import call_blocking
from planton.storage import QueueOptions, Storage

if TYPE_CHECKING:  # needs greenlet, which synchronous programs need not have
    from sqlalchemy.ext import asyncio

Session: TypeAlias = "sqlalchemy.Connection | orm.Session | orm.scoped_session[Any]"
AsyncSession: TypeAlias = (
    "asyncio.AsyncConnection | asyncio.AsyncSession | asyncio.async_scoped_session[Any]"
)


@overload
def enqueue(
    session: Session, task_name: str, instruction: str, **options: Unpack[QueueOptions]
) -> bool: ...


@overload
def enqueue(
    session: AsyncSession, task_name: str, instruction: str, **options: Unpack[QueueOptions]
) -> Coroutine[Any, Any, bool]: ...


def enqueue(session: Any, task_name: str, instruction: str, **options: Any) -> Any:
    """Queue an instruction in the transaction of a session; return whether it is new.

    Nobody sees it before the session commits, and a rollback takes it back. No storage is needed:
    the tables are found on the session's own database. For a session on asyncio it is a coroutine:
    `await enqueue(session, …)`.

    Args:
        session: A session or a connection of SQLAlchemy's, on PostgreSQL or SQLite.
        task_name: The task that is to claim it.
        instruction: What it tells consumers.
        **options: Those of `Storage.enqueue`.

    Raises:
        InvalidArgumentError: If an argument cannot be used; nothing was changed.
        StorageError: If the database fails.
        PlantonError: If it would block trio: there, `await storage.enqueue(…, connection=session)`.
    """
    storage = _storage_of(session)
    if hasattr(session, "run_sync"):
        return storage.enqueue(task_name, instruction, connection=session, **options)
    return call_blocking(storage.enqueue, task_name, instruction, connection=session, **options)


def _storage_of(session: Any) -> Storage:
    """Return a storage on the database of a session; it is never opened."""
    engine = getattr(session, "engine", None) or session.get_bind().engine
    if engine.dialect.name == "sqlite":
        from planton_sqlite import SQLiteStorage

        return SQLiteStorage(engine.url.database or ":memory:")
    from planton_postgres import PostgresStorage

    return PostgresStorage("")
