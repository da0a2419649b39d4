"""Instructions claimed from a SQLite database."""

import os
import sqlite3

from planton import InvalidArgumentError
from planton.storage import Storage, to_number
from planton_sqlite import _open
from planton_sqlite._backend import SQLiteBackend
from planton_sqlite._owner import Owner

WEEK = 7 * 24 * 3600.0


class SQLiteStorage(Storage):
    """Claims instructions from a SQLite database, under a cap that is exact over all processes.

    See `planton.storage.Storage` for its methods. The database is in WAL mode. One thread owns the
    connection.

    Args:
        path: The database file; it is made if it is not there, its folder is not.
        synchronous: `"FULL"` survives a power failure; `"NORMAL"` is ten times as fast for small
            transactions, survives a crash of the process, and may lose the last commits when
            the power goes.
        wake_ups: Whether what other processes commit wakes tasks; if not, they find it when they
            poll. What this process does wakes them in any case.
        statement_timeout: Seconds that one transaction may take; it is rolled back then. Of a
            claim only the statement of the task is.
        retention: Seconds that what succeeded is kept; with 0 there is no history at all, with
            None it is kept for ever. What failed stays until `prune(status=…)`.
        name: Kept with what it claims, as `claimed_by`; the host and the process if None.
        migrate: Whether opening it brings its tables up to date.

    Raises:
        InvalidArgumentError: If the path is that of no file, or another argument cannot be used.
        StorageError: On entering, if the file cannot be opened or is no database.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: str = "FULL",
        statement_timeout: float = 10.0,
        retention: float | None = WEEK,
        wake_ups: bool = True,
        name: str | None = None,
        migrate: bool = True,
    ) -> None:
        database = _open.to_path(path)
        # Wherever the program goes from here.
        self.path = file = os.path.abspath(database)
        if synchronous not in ("FULL", "NORMAL"):
            raise InvalidArgumentError("synchronous", synchronous, 'give "FULL" or "NORMAL"')

        def open_connection() -> sqlite3.Connection:
            return _open.open_database(file, synchronous)

        timeout = to_number("statement_timeout", statement_timeout, above=0)
        owner = Owner(open_connection, database, file, timeout)
        backend = SQLiteBackend(database, file, owner, keeps=retention != 0)
        super().__init__(
            backend, name=name, retention=retention, wake_ups=wake_ups, migrate=migrate
        )
