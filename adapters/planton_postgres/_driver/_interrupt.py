"""What a cancellation does to the statement in hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import trio
from psycopg.abc import RV
from psycopg.pq import ExecStatus, PipelineStatus, TransactionStatus

from . import _internals
from ._wait import Exchange, drive_connecting

if TYPE_CHECKING:
    from ._connection import TrioConnection

_COPYING = {ExecStatus.COPY_IN, ExecStatus.COPY_OUT}
_FIRST_PAUSE = 0.05  # seconds; doubled after each cancel request


async def end_statement(connection: TrioConnection[Any], exchange: Exchange[RV]) -> list[RV]:
    """Have the server cancel the statement and read its answer to the end, or close the connection.

    Returns:
        What the exchange gave, when all that had been asked of the server had succeeded before the
        request to cancel arrived; an empty list when the statement was cancelled, failed, or is not
        known to have succeeded.
    """
    with trio.move_on_after(connection.cancel_limit, shield=True):
        answer = await _answer(connection, exchange)
        if _is_active(connection) and not _in_pipeline(connection):
            await _discard_results(connection)
        return answer
    connection.abandon(f"a cancelled statement did not end within {connection.cancel_limit:g} s")
    return []


async def _answer(connection: TrioConnection[Any], exchange: Exchange[RV]) -> list[RV]:
    try:
        value = await _cancel_until_answered(connection, exchange)
    except psycopg.Error:
        return []  # nothing happened, as Cancelled says; what went wrong would be noise now
    return [] if _is_active(connection) else [value]


async def _cancel_until_answered(connection: TrioConnection[Any], exchange: Exchange[RV]) -> RV:
    """Request again and again, as one that overtakes its statement is ignored by an idle server.

    Never while another is under way: it might strike the next statement.
    """
    pause = _FIRST_PAUSE
    while True:
        await _request_cancel(connection)
        with trio.move_on_after(pause):
            return await exchange.run()
        pause *= 2


async def _request_cancel(connection: TrioConnection[Any]) -> None:
    try:
        await drive_connecting(_internals.cancelling(connection.pgconn))
    except psycopg.Error as error:
        connection.abandon(f"its statement could not be cancelled: {error}")
        raise


async def _discard_results(connection: TrioConnection[Any]) -> None:
    """Read what else the statement gives; if it is a COPY, end it."""
    pgconn = connection.pgconn
    try:
        results = await connection.exchange(_internals.fetching(pgconn)).run()
        if results and results[-1].status in _COPYING:
            await connection.exchange(_internals.ending_copy(pgconn, results[-1])).run()
    except psycopg.Error:
        pass  # the error of the statement, or of a connection that is now closed


def _is_active(connection: TrioConnection[Any]) -> bool:
    return connection.pgconn.transaction_status == TransactionStatus.ACTIVE


def _in_pipeline(connection: TrioConnection[Any]) -> bool:
    return connection.pgconn.pipeline_status != PipelineStatus.OFF
