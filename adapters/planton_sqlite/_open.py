"""Opening a database, waiting for one's turn to write, and errors that say what to do."""

import math
import os
import random
import re
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlite_utils

from planton import InvalidArgumentError, StorageError
from planton.storage import Caller

T = TypeVar("T")

# SQLite's own busy handler sleeps ever longer while others write, up to a tenth of a second, so
# that a process among several busy ones may not get its turn for a second. Short random sleeps
# give all of them the same chance at no loss of throughput.
SHORTEST_NAP, LONGEST_NAP = 0.0001, 0.001
BUSY_TIMEOUT = 10.0
# Bytes that the -wal file keeps when it begins anew, however large a slow reader let it grow.
JOURNAL_SIZE = 16 * 1024 * 1024
_OF_WHAT_WAS_ASKED = {
    0,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_RANGE,
    sqlite3.SQLITE_INTERRUPT,
}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def to_path(path: object) -> str:
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or "\0" in text:
        raise InvalidArgumentError("path", path, "give the path of a file, a str or a Path")
    if url := _URL.match(text):
        remedy = (
            "give a path, not a URL: app.db; planton_sqlite.url.from_url takes sqlite:///app.db"
        )
        # Not as it was given: a URL of something else may have a password in it.
        raise InvalidArgumentError("path", f"{url[0]}…", remedy)
    if text in ("", ":memory:") or text.startswith("file:"):
        remedy = "give a file, or use planton.testing.MemoryStorage in tests"
        raise InvalidArgumentError("path", path, remedy)
    return text


async def check_caller(caller: Caller, path: str) -> None:
    """Refuse a connection of the caller's that is closed, or to another file."""
    try:
        rows = await caller.fetch("SELECT name, file FROM pragma_database_list")
    except sqlite3.ProgrammingError as error:  # it is closed, or of another thread
        raise InvalidArgumentError(
            "connection", caller.connection, f"{error} Give another one"
        ) from error
    file = dict(rows)["main"]
    if not _is_same(file, path):
        remedy = f"give a connection to the file of this storage, {path}"
        raise InvalidArgumentError("connection", file or ":memory:", remedy)


def _is_same(file: str, path: str) -> bool:
    try:
        return os.path.samefile(file, path)
    except OSError:
        return False


def open_database(path: str, synchronous: str) -> sqlite3.Connection:
    """Open a database that several processes write to; it is made if it is not there."""
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    except sqlite3.Error as error:
        raise to_storage_error(path, error) from error
    try:
        # enable_wal changes nothing, and so locks nothing, when it is on already.
        patiently(sqlite_utils.Database(connection).enable_wal)
        _read_all_text(connection)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_SIZE}")
    except sqlite3.Error as error:
        connection.close()
        raise to_storage_error(path, error) from error
    return connection


def open_memory(clock: Callable[[], float]) -> sqlite3.Connection:
    """Open a database in memory whose clock, in all of SQL, is `clock`."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    _read_all_text(connection)
    real = sqlite3.connect(":memory:", check_same_thread=False)

    def overridden(name: str, *given: Any) -> Any:
        place = 1 if name == "strftime" else 0
        arguments = [*given]
        if arguments[place : place + 1] in ([], ["subsec"], ["subsecond"]):
            arguments.insert(place, "now")
        if arguments[place] == "now":
            # As a Julian day: the only form of which the date functions keep the fraction.
            arguments[place] = clock() / 86400.0 + 2440587.5
            if name == "julianday" and len(arguments) == 1:
                # Rounded down: what is due now by a DEFAULT must not be due a moment later.
                return math.nextafter(arguments[place], 0)
        marks = ", ".join("?" * len(arguments))
        return real.execute(f"SELECT {name}({marks})", arguments).fetchone()[0]

    for name in ("date", "time", "datetime", "julianday", "strftime", "unixepoch"):
        connection.create_function(name, -1, partial(overridden, name), deterministic=True)
    for now, name in (("timestamp", "datetime"), ("date", "date"), ("time", "time")):
        connection.create_function(
            f"current_{now}", 0, partial(overridden, name), deterministic=True
        )
    return connection


def _read_all_text(connection: sqlite3.Connection) -> None:
    """Read text that is not UTF-8, too, as any program may have written it."""
    connection.text_factory = lambda data: data.decode(errors="replace")


def connect_existing(path: str) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=rw", uri=True)
    except sqlite3.Error as error:
        raise to_storage_error(path, error) from error
    _read_all_text(connection)
    return connection


def patiently(function: Callable[[], T], give_up_at: Callable[[], float] = lambda: math.inf) -> T:
    """Call `function` again and again while somebody else writes, for a while."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            return function()
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > min(deadline, give_up_at()):
                raise
        time.sleep(random.uniform(SHORTEST_NAP, LONGEST_NAP))


def committed(connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    """Call `function` in the transaction that was begun, and commit; undo it if that raises."""
    try:
        result = function(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def to_storage_error(path: str, error: sqlite3.Error) -> StorageError:
    """Say in the words of SQLite what went wrong, and what can be done."""
    mapped = StorageError(path, f"{error}{_remedy(path, error)}")
    mapped.__cause__ = error
    return mapped


def _remedy(path: str, error: sqlite3.Error) -> str:
    text = str(error)
    if "unable to open" in text and not Path(path).absolute().parent.is_dir():
        return f": the folder {Path(path).absolute().parent} does not exist, make it first"
    if "unable to open" in text and Path(path).is_dir():
        return ": it is a folder, give the path of a file, which is made if it is not there"
    if "unable to open" in text or "readonly" in text:
        return ": look at the permissions of the file and of its folder"
    if "disk is full" in text:
        return ": make room on the disk, nothing is lost meanwhile"
    if "disk I/O error" in text:
        return ": look at the disk and its quotas, nothing is lost meanwhile"
    if "not a database" in text:
        return ": the file is something else, give another path"
    if is_interrupted(error):
        return ": it took longer than statement_timeout, give it less at a time"
    if _is_busy(error):
        return f": another process has been writing for {BUSY_TIMEOUT:g} s, look for it"
    return ""


def is_of_database(error: Exception) -> bool:
    """Tell whether an error is the database's fault, not that of what it was asked to do.

    Whatever else shares its transaction fails as well.
    """
    if isinstance(error, StorageError):
        return not isinstance(error.__cause__, sqlite3.Error) or is_of_database(error.__cause__)
    return isinstance(error, sqlite3.Error) and _code(error) not in _OF_WHAT_WAS_ASKED


def is_read_only(error: sqlite3.Error) -> bool:
    return _code(error) == sqlite3.SQLITE_READONLY


def is_full(error: sqlite3.Error) -> bool:
    return _code(error) == sqlite3.SQLITE_FULL


def is_interrupted(error: Exception) -> bool:
    return _code(error) == sqlite3.SQLITE_INTERRUPT


def _is_busy(error: sqlite3.Error) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _code(error: Exception) -> int:
    """Return the primary code of an error; 0 of one that sqlite3 itself raises."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF
