"""What a cancellation does to the statement in hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import trio
from psycopg.abc import RV

from . import _internals
from ._lock import abandon
from ._wait import Exchange, drive_connecting

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

_FIRST_PAUSE = 0.05  # seconds; doubled after each cancel request


async def end_statement(pgconn: PGconn, exchange: Exchange[RV], limit: float) -> list[RV]:
    """Have the server cancel the statement and read its answer to the end, or close the connection.

    Returns:
        What the exchange gave, when all that had been asked of the server had succeeded before the
        request to cancel arrived; an empty list when the statement was cancelled, failed, or is not
        known to have succeeded.
    """
    with trio.move_on_after(limit, shield=True):
        try:
            return [await _cancel_until_answered(pgconn, exchange)]
        except psycopg.Error:
            return []  # nothing happened, as Cancelled says; what went wrong would be noise now
    abandon(pgconn, f"a cancelled statement did not end within {limit:g} s")
    return []


async def _cancel_until_answered(pgconn: PGconn, exchange: Exchange[RV]) -> RV:
    """Request again and again, as one that overtakes its statement is ignored by an idle server.

    Never while another is under way: it might strike the next statement.
    """
    pause = _FIRST_PAUSE
    while True:
        await _request_cancel(pgconn)
        with trio.move_on_after(pause):
            return await exchange.run()
        pause *= 2


async def _request_cancel(pgconn: PGconn) -> None:
    try:
        await drive_connecting(_internals.cancelling(pgconn))
    except psycopg.Error as error:
        abandon(pgconn, f"its statement could not be cancelled: {error}")
        raise
