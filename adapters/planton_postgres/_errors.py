"""Errors of the driver and of the server, in words that say what can be done."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict

from planton import InvalidArgumentError, StorageError
from planton_postgres._driver import PoolTimeout, StatementTimeout

_REMEDIES = {
    "08": "look whether the server runs and can be reached",
    "28": "look at the user, its password, and the server's pg_hba.conf",
    "3D000": "make the database first, with `createdb`",
    "25006": "connect to the primary, and let the role write (default_transaction_read_only)",
    "42501": "GRANT the user what it needs",
    "53300": "all connections that it may have are taken: use a smaller pool_size, or a pooler",
    "57P": "the server was stopping or starting: it is tried again",
    "26000": "behind a pooler, make the storage with prepare_threshold=None",
    "42P05": "behind a pooler, make the storage with prepare_threshold=None",
}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ESCAPED = "write @ as %40, / as %2F, ? as %3F, # as %23 in the user and the password"
_MIGRATE = "call `await storage.migrate()` first, or run `planton migrate URL`"


def name_of(conninfo: str, argument: str = "conninfo") -> str:
    """Name a database, without the password.

    Raises:
        InvalidArgumentError: If `conninfo` is not what libpq takes.

    Examples:
        >>> name_of("postgresql://joe:secret@db.example.com:5433/app")
        'db.example.com:5433/app'
        >>> name_of("host=/run/postgresql dbname=app password=secret")
        '/run/postgresql/app'
    """
    # Without what it is, and without the cause: both may show a password.
    remedy = "give a connection string, such as postgresql://user@host:5432/database"
    if not isinstance(conninfo, str):
        raise InvalidArgumentError(argument, type(conninfo), remedy)
    url = _URL.match(conninfo)
    if url and url[1] not in ("postgresql", "postgres"):
        raise InvalidArgumentError(argument, f"{url[0]}…", _remedy_of_scheme(url[1]))
    user, at, rest = conninfo[url.end() :].partition("@") if url else ("", "", "")
    if at and ("@" in rest or re.search("[/?#]", user)):
        # What follows would be taken for a host, and told as one.
        raise InvalidArgumentError(argument, f"{url[0]}…" if url else "…", _ESCAPED)
    try:
        parts = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        raise InvalidArgumentError(argument, "…", remedy) from None
    host = parts.get("host") or parts.get("hostaddr") or "localhost"
    port = f":{parts['port']}" if parts.get("port") else ""
    return f"{host}{port}/{parts.get('dbname') or parts.get('user') or ''}"


def _remedy_of_scheme(scheme: str) -> str:
    if scheme.startswith("postgres"):
        return "write postgresql://…, without what SQLAlchemy has between that and the colon"
    other = "planton_sqlite.SQLiteStorage is for SQLite, " if scheme == "sqlite" else ""
    return f"{other}this is for PostgreSQL: give postgresql://user@host:5432/database"


@contextmanager
def translated(database: str) -> Iterator[None]:
    """Turn errors of the block into `StorageError`; those of Planton pass."""
    try:
        yield
    except psycopg.Error as error:
        raise to_storage_error(database, error) from error


def to_storage_error(database: str, error: psycopg.Error) -> StorageError:
    """Say what went wrong in the words of the server, and what can be done."""
    problem = " ".join(_words(_telling(error)).split()) or type(error).__name__
    remedy = _remedy(error)
    mapped = StorageError(database, f"{problem}: {remedy}" if remedy else problem)
    mapped.__cause__ = error
    return mapped


def _words(error: BaseException) -> str:
    """Return what an error says, without the statement of ours that it happened in."""
    if not isinstance(error, psycopg.Error) or error.diag.message_primary is None:
        return str(error)
    said = (error.diag.message_primary, error.diag.message_detail, error.diag.message_hint)
    return "; ".join(part for part in said if part)


def _telling(error: psycopg.Error) -> BaseException:
    """Give the error that tells most: what the server said, not that the pool waited for it."""
    return error.__cause__ if isinstance(error, PoolTimeout) and error.__cause__ else error


def _remedy(error: psycopg.Error) -> str:
    state = error.sqlstate or ""
    if state in ("42P01", "42703", "42P10", "42883") and "planton_" in str(error):
        return _MIGRATE
    for prefix, remedy in _REMEDIES.items():
        if state.startswith(prefix):
            return remedy
    if isinstance(error, StatementTimeout):
        return "look in pg_stat_activity for who holds a lock that it waits for"
    if isinstance(error, psycopg.OperationalError) and not state:
        return _unreachable(str(_telling(error)))
    return ""


def _unreachable(text: str) -> str:
    if "too many" in text or "reserved for" in text:
        return _REMEDIES["53300"]
    if "password" in text or "authentication" in text or "role" in text:
        return _REMEDIES["28"]
    if "does not exist" in text and "database" in text:
        return _REMEDIES["3D000"]
    if "are in use" in text:
        return "use a larger pool_size, or look for what holds its connections"
    return _REMEDIES["08"]
