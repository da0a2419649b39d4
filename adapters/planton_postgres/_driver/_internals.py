"""Everything this driver uses of psycopg that psycopg does not document, and nothing else.

Promised by its documentation, and so used anywhere: `AsyncConnection` and overriding its `wait`,
`AsyncCursor`, `psycopg.pq`, `psycopg.adapt.Transformer`,
`psycopg.conninfo.conninfo_to_dict` and `make_conninfo`, the capabilities, and the protocol between
generators and the wait loop (`psycopg.waiting.Wait`, `Ready`). What is below may change with any
release, which is why the dependency is pinned to a minor version;
`tests/postgres/test_driver_internals.py` fails when it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import AsyncConnection, generators
from psycopg._preparing import Key, Prepare, PrepareManager
from psycopg._queries import PostgresQuery
from psycopg.abc import PQGen, PQGenConn
from psycopg.conninfo import conninfo_attempts as connection_attempts

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

    from ._lock import Lock

# Splits a conninfo into hosts and resolves their names, which blocks; replaces `%s` by `$1` and
# adapts parameters; keeps the names of prepared statements.
__all__ = ["Key", "PostgresQuery", "Prepare", "PrepareManager", "connection_attempts"]

# `psycopg.generators` has no underscore, and no documentation either: they open a connection; send
# what is queued, and read meanwhile, as the server may wait for that; and read the answer to one
# statement of a pipeline, or to its Sync.
connecting, sending, fetching = generators.connect, generators.send, generators.fetch_many


def cancelling(pgconn: PGconn) -> PQGenConn[None]:
    """Ask the server, over a connection of its own, to cancel the statement in hand."""
    request = pgconn.cancel_conn()
    request.start()
    generator: PQGenConn[None] = generators.cancel(request)
    return generator


def error_of(result: PGresult, pgconn: PGconn) -> psycopg.Error:
    """Return the error of the class that fits its SQLSTATE, with the place in the statement."""
    return psycopg.errors.error_from_result(result, encoding=pgconn._encoding)


def prepared_statements(connection: AsyncConnection[Any]) -> PrepareManager:
    """Return the names of what is prepared, and which are to be deallocated."""
    return connection._prepared


def replace_lock(connection: AsyncConnection[Any], lock: Lock) -> None:
    """Put ours in the place of asyncio's; all that psycopg does with it is `async with`."""
    connection.lock = lock  # type: ignore[assignment]


def commit_each_statement(connection: AsyncConnection[Any]) -> None:
    """Switch autocommit on.

    `set_autocommit` would do in public, but is a checkpoint: a cancellation there would leak the
    connection.
    """
    connection._autocommit = True


def rolling_back(connection: AsyncConnection[Any]) -> PQGen[None]:
    """ROLLBACK, unless no transaction is open."""
    return connection._rollback_gen()
