"""`Task(lock=file_lock(…))`: one dispatcher of a machine at a time counts and claims."""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

from planton_sqlite._open import to_path, to_storage_error


def file_lock(path: str | os.PathLike[str]) -> Callable[[str], AbstractContextManager[bool]]:
    """Return a lock for `Task(lock=…)`, kept by files beside `path`, one for each task.

    For callbacks of your own over anything that the processes of one machine share. The lock of a
    file of SQLite's is used for it: the system frees it when a process dies, however it dies. Not
    for network file systems, where such locks are not reliable. Entering yields False while
    another dispatcher is within it; the attempt then ends as locked, and comes again soon.

    Args:
        path: What the files are named after: `app.lock` makes `app.lock.1f0a9c….db`.

    Raises:
        InvalidArgumentError: If it is no path of a file.
        StorageError: When entered, if the file cannot be made or locked.
    """
    start = to_path(path)

    @contextmanager
    def lock(task_name: str) -> Iterator[bool]:
        file = f"{start}.{hashlib.sha256(task_name.encode()).hexdigest()[:16]}.db"
        try:
            connection = sqlite3.connect(
                file, timeout=0, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise to_storage_error(file, error) from error
        with closing(connection):
            yield _is_locked(connection, Path(file))

    return lock


def _is_locked(connection: sqlite3.Connection, file: Path) -> bool:
    """Lock the file until the connection is closed; False if another one has it."""
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            return False
        raise to_storage_error(str(file), error) from error
    return True
