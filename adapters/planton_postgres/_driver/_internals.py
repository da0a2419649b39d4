"""Everything this driver uses of psycopg that psycopg does not document, and nothing else.

Promised by its documentation, and so used anywhere: `AsyncConnection` and overriding its `wait`,
`AsyncCursor`, `AsyncPipeline`, `AsyncTransaction`, `psycopg.pq`,
`psycopg.conninfo.conninfo_to_dict` and `make_conninfo`, the capabilities, notify handlers, and the
protocol between generators and the wait loop (`psycopg.waiting.Wait`, `Ready`). What is below may
change with any release, which is why the dependency is pinned to a minor version;
`tests/postgres/test_driver_internals.py` fails when it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import AsyncConnection, AsyncPipeline, AsyncTransaction, generators
from psycopg.abc import AdaptContext, PQGen, PQGenConn
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import conninfo_attempts as connection_attempts
from psycopg.pq import ExecStatus

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

    from ._lock import Lock

# Splits a conninfo into hosts and resolves their names, which blocks.
__all__ = ["connection_attempts"]


def connecting(conninfo: str) -> PQGenConn[PGconn]:
    """Open a connection; `psycopg.generators` has no underscore, and no documentation either."""
    generator: PQGenConn[PGconn] = generators.connect(conninfo)
    return generator


def cancelling(pgconn: PGconn) -> PQGenConn[None]:
    """Ask the server, over a connection of its own, to cancel the statement in hand."""
    request = pgconn.cancel_conn()
    request.start()
    generator: PQGenConn[None] = generators.cancel(request)
    return generator


def notifying(pgconn: PGconn) -> PQGen[list[Any]]:
    """Wait for something to read, and hand notifications to the connection's handlers."""
    return generators.notifies(pgconn)


def fetching(pgconn: PGconn) -> PQGen[list[Any]]:
    """Read the results of the statement in hand that nobody has read yet."""
    generator: PQGen[list[Any]] = generators.fetch_many(pgconn)
    return generator


def ending_copy(pgconn: PGconn, result: PGresult) -> PQGen[None]:
    """End a COPY: tell the server to drop what it was sent, or read what it sends."""
    if result.status == ExecStatus.COPY_IN:
        yield from generators.copy_end(pgconn, b"cancelled")
    else:
        while isinstance((yield from generators.copy_from(pgconn)), memoryview):
            pass


def replace_lock(connection: AsyncConnection[Any], lock: Lock) -> None:
    """Put ours in the place of asyncio's; all that psycopg does with it is `async with`."""
    connection.lock = lock  # type: ignore[assignment]


def set_up(
    connection: AsyncConnection[Any], autocommit: bool, context: AdaptContext | None
) -> None:
    """Set what `AsyncConnection.connect` sets.

    `set_autocommit` would do in public, but is a checkpoint: a cancellation there would leak the
    connection.
    """
    connection._autocommit = autocommit
    if context is not None:
        connection._adapters = AdaptersMap(context.adapters)


def committing(connection: AsyncConnection[Any]) -> PQGen[None]:
    """COMMIT, unless no transaction is open."""
    return connection._commit_gen()


def rolling_back(connection: AsyncConnection[Any]) -> PQGen[None]:
    """ROLLBACK, unless no transaction is open."""
    return connection._rollback_gen()


def entering(block: AsyncTransaction) -> PQGen[None]:
    """BEGIN or SAVEPOINT, as `AsyncTransaction.__aenter__` does."""
    block._check_enter()
    return block._enter_gen()


def leaving(block: AsyncTransaction, error: BaseException | None) -> PQGen[bool]:
    """COMMIT, ROLLBACK or their savepoint kin, as `AsyncTransaction.__aexit__` does."""
    if error is None:
        return block._exit_gen(None, None, None)
    return block._exit_gen(type(error), error, error.__traceback__)


def open_pipeline(connection: AsyncConnection[Any]) -> AsyncPipeline | None:
    """Return the pipeline that the connection's statements go through, if one is open."""
    return connection._pipeline


def join_pipeline(connection: AsyncConnection[Any]) -> AsyncPipeline:
    """Return the open pipeline or make one; to be called with the lock held."""
    connection._check_connection_ok()
    if connection._pipeline is None:
        connection._pipeline = AsyncPipeline(connection)
    return connection._pipeline


def is_drained(pipeline: AsyncPipeline) -> bool:
    """Whether every statement was sent and every answer fetched."""
    return not pipeline.command_queue and not pipeline.result_queue


def entering_pipeline(pipeline: AsyncPipeline) -> PQGen[None]:
    """Switch the connection to pipeline mode, or synchronise the pipeline that is open already."""
    return pipeline._enter_gen()


def draining_pipeline(pipeline: AsyncPipeline) -> PQGen[None]:
    """Send a Sync and fetch every answer that is due."""
    return pipeline._exit_gen()


def leave_pipeline(
    connection: AsyncConnection[Any], pipeline: AsyncPipeline, error: BaseException | None
) -> None:
    """Go one level up, and out of pipeline mode from the first; to be called with the lock held."""
    try:
        pipeline._exit(error)
    finally:
        forget_pipeline(connection, pipeline)


def forget_pipeline(connection: AsyncConnection[Any], pipeline: AsyncPipeline) -> None:
    """Let the connection's statements no longer go through a pipeline that is not open."""
    if pipeline.level == 0:
        connection._pipeline = None
