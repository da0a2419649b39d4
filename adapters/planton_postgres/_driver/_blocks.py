"""Blocks that talk to the server when they end, and so must end well in a cancelled scope too.

trio cancels by level: in a cancelled scope every wait raises, those of the cleaning up as well,
where asyncio would raise once. What must reach its end here goes through `TrioConnection.settle`
and `TrioConnection.take_lock`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import trio
from psycopg.pq import PipelineStatus
from psycopg.rows import Row

from . import _internals
from ._wait import outlast

if TYPE_CHECKING:
    from ._connection import TrioConnection


@asynccontextmanager
async def transaction_block(
    connection: TrioConnection[Any], block: psycopg.AsyncTransaction
) -> AsyncIterator[psycopg.AsyncTransaction]:
    """BEGIN, then COMMIT or ROLLBACK, or the same with a savepoint."""
    await _begin(connection, block)
    try:
        yield block
    except BaseException as error:  # noqa: ASYNC103  swallows psycopg.Rollback alone
        if not await _end(connection, block, error):  # noqa: ASYNC102  bounded by settle_limit
            raise
    else:
        await _end(connection, block, None)


async def _begin(connection: TrioConnection[Any], block: psycopg.AsyncTransaction) -> None:
    async with connection.lock:
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            await connection.settle(_internals.entering(block))
        except BaseException as error:
            # Nobody else will count this block out, nor roll back what part of it was begun.
            if not connection.closed:
                await connection.settle(_internals.leaving(block, error))  # noqa: ASYNC102  bounded
            raise


async def _end(
    connection: TrioConnection[Any], block: psycopg.AsyncTransaction, error: BaseException | None
) -> bool:
    """Return whether the error asked for no more than a rollback and is dealt with."""
    await connection.take_lock()
    try:
        if not connection.closed:
            return await connection.settle(_internals.leaving(block, error))
    finally:
        connection.lock.release()
    block.status = block.Status.FAILED
    if error is None:
        raise psycopg.OperationalError("the connection was lost: its transaction is not committed")
    return False


@asynccontextmanager
async def pipeline_block(
    connection: TrioConnection[Any], *, surely: bool
) -> AsyncIterator[psycopg.AsyncPipeline]:
    """Pipeline mode; its end is a statement to cancel, or `surely` awaited like a COMMIT."""
    pipeline = await _enter_pipeline(connection)
    try:
        yield pipeline
    except BaseException as error:
        await _leave_pipeline(connection, pipeline, surely, error)  # noqa: ASYNC102  bounded by settle_limit
        raise
    else:
        await _leave_pipeline(connection, pipeline, surely, None)


async def _enter_pipeline(connection: TrioConnection[Any]) -> psycopg.AsyncPipeline:
    async with connection.lock:
        await trio.lowlevel.checkpoint_if_cancelled()
        pipeline = _internals.join_pipeline(connection)
        try:
            await connection.wait(_internals.entering_pipeline(pipeline))
        finally:
            _internals.forget_pipeline(connection, pipeline)
        return pipeline


async def _leave_pipeline(
    connection: TrioConnection[Any],
    pipeline: psycopg.AsyncPipeline,
    surely: bool,
    error: BaseException | None,
) -> None:
    await connection.take_lock()
    try:
        await _drain_pipeline(connection, pipeline, surely, error)
    finally:
        _internals.leave_pipeline(connection, pipeline, error)
        if pipeline.level == 0 and not connection.closed and pipeline.status != PipelineStatus.OFF:
            connection.abandon("it could not leave pipeline mode")
        connection.lock.release()


async def _drain_pipeline(
    connection: TrioConnection[Any],
    pipeline: psycopg.AsyncPipeline,
    surely: bool,
    error: BaseException | None,
) -> None:
    if _internals.is_drained(pipeline):
        return  # what was done is done: no wait that could say that it was cancelled
    drain = connection.settle if surely else connection.wait
    try:
        await drain(_internals.draining_pipeline(pipeline))
    except Exception:
        if error is None:
            raise
        # The first error of the block is the one to tell; the others follow from it.


class ServerCursor(psycopg.AsyncServerCursor[Row]):
    """A server-side cursor that a cancellation does not leave open on the server."""

    __slots__ = ()

    async def close(self) -> None:
        limit: float = self.connection.settle_limit  # type: ignore[attr-defined]  # always a TrioConnection
        await outlast(super().close, limit)
