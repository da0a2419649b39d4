from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio
from psycopg.pq import ConnStatus, PipelineStatus, TransactionStatus

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

_BAD = ConnStatus.BAD
_ACTIVE = TransactionStatus.ACTIVE
_OFF = PipelineStatus.OFF
_logger = logging.getLogger(__name__)


class Lock:
    """Who holds it has the connection to itself. The one rule of the driver is kept here.

    A connection that is in the middle of something when its lock is given back is in a state that
    nobody knows, so it is closed, whatever has led to it.

    It is no checkpoint when nobody holds it. Every statement takes the lock, and the wait for its
    answer is a checkpoint already. And psycopg takes the lock before it cleans up: a cancellation
    there would leave the cleaning up undone.
    """

    def __init__(self, pgconn: PGconn) -> None:
        self._pgconn = pgconn
        self._lock = trio.Lock()

    async def acquire(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    def release(self) -> None:
        if is_active(self._pgconn) or self._pgconn.pipeline_status != _OFF:
            abandon(self._pgconn, "a statement was left before its answer was read to the end")
        self._lock.release()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()


def is_active(pgconn: PGconn) -> bool:
    """Whether something was asked of the server and not yet answered to the end."""
    return pgconn.transaction_status == _ACTIVE


def abandon(pgconn: PGconn, reason: str) -> None:
    """Close a connection because the state it is in is not known."""
    if pgconn.status != _BAD:
        _logger.warning("closing a connection to PostgreSQL: %s", reason)
        wake_waiting_tasks(pgconn)
        pgconn.finish()


def wake_waiting_tasks(pgconn: PGconn) -> None:
    """Must be called before closing: the kernel tells nobody, they would wait for ever."""
    if pgconn.status != _BAD:
        trio.lowlevel.notify_closing(pgconn.socket)
