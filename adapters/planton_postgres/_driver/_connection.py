from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import psycopg
import trio
from psycopg import AsyncCursor, AsyncPipeline, AsyncTransaction, Notify
from psycopg.abc import RV, AdaptContext, ConnParam, PQGen
from psycopg.errors import CancellationTimeout
from psycopg.pq import TransactionStatus
from psycopg.rows import AsyncRowFactory, Row, tuple_row
from psycopg.waiting import Ready, Wait

from . import _internals
from ._blocks import ServerCursor, pipeline_block, transaction_block
from ._connect import open_connection
from ._errors import StatementTimeout
from ._interrupt import end_statement
from ._lock import Lock
from ._notifications import Notifications
from ._wait import Exchange, Turn, drive_connecting, outlast, ready_now

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

_TUPLES: AsyncRowFactory[Any] = tuple_row
_logger = logging.getLogger(__name__)


class TrioConnection(psycopg.AsyncConnection[Row]):
    """A psycopg connection that waits on trio.

    All else is psycopg's: cursors, adaptation of types, COPY, row factories.

    Cancellation, of any method that talks to the server:

    - Before the statement is sent, nothing is sent.
    - Afterwards the server is asked to cancel it, and its answer is read to the end, for
      `cancel_limit` seconds at most. If the server had finished by then, the method *returns its
      result*, and the cancellation strikes at the caller's next checkpoint. So with autocommit a
      statement reported cancelled was not committed, and one that was committed is reported done:
      no claim is lost in between.
    - COMMIT and ROLLBACK are not cancelled but awaited, from the cancellation on for `settle_limit`
      seconds at most. So a `transaction()` block reported cancelled was rolled back, and one that
      was committed ends normally.
    - The connection is usable afterwards. Where the server does not answer within these limits it
      is closed instead (`closed` is true, a warning is logged), and only then whether something was
      committed is not known.

    In a pipeline results come later than statements, so this holds for the pipeline as a whole: its
    end, or `sync()`.

    A task that waits for a connection which another task closes gets `psycopg.OperationalError`.
    Several tasks may share a connection; their statements take turns.

    Attributes:
        cancel_limit: Seconds that a statement may take to end once the server was asked to cancel
            it.
        settle_limit: Seconds that COMMIT, ROLLBACK and closing a cursor may go on after a
            cancellation.
    """

    cancel_limit: float = 2.0
    settle_limit: float = 5.0

    def __init__(
        self,
        pgconn: PGconn,
        row_factory: AsyncRowFactory[Row] = _TUPLES,
    ) -> None:
        super().__init__(pgconn, row_factory)
        _internals.replace_lock(self, Lock())
        self.server_cursor_factory = ServerCursor
        self._turn = Turn()
        self._received: deque[Notify] = deque()
        self.add_notify_handler(self._received.append)

    @classmethod
    async def connect(
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = True,
        connect_timeout: float | str | None = None,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        row_factory: AsyncRowFactory[Row] | None = None,
        cursor_factory: type[AsyncCursor[Row]] | None = None,
        **parameters: ConnParam,
    ) -> Self:
        """Connect to the first host of `conninfo` that takes us.

        When cancelled, no connection is left open.

        Args:
            conninfo: A connection string or URI as libpq takes it: Unix sockets, TCP, several
                hosts.
            autocommit: Each statement commits by itself, outside `transaction()` blocks.
            connect_timeout: Seconds for each address of each host; by default what `conninfo` says,
                else 10.
            prepare_threshold: Statements executed more often than this are prepared; None never
                prepares, as poolers in transaction mode may need.
            context: Where adapters are taken from.
            row_factory: What makes a row, a tuple by default.
            cursor_factory: What `cursor()` returns.
            **parameters: More parameters of the connection, before those in `conninfo`.

        Raises:
            psycopg.errors.ConnectionTimeout: nothing answered, or not to the end, in time.
            psycopg.OperationalError: no host could be connected to; the message tells of each.
        """
        connection = cls(await open_connection(conninfo, connect_timeout, parameters))
        _internals.set_up(connection, autocommit, context)
        connection.prepare_threshold = prepare_threshold
        if row_factory is not None:
            connection.row_factory = row_factory
        if cursor_factory is not None:
            connection.cursor_factory = cursor_factory
        return connection

    # Under protection Ctrl-C strikes where a generator waits, and not while it runs.
    @trio.lowlevel.enable_ki_protection
    async def wait(
        self,
        gen: PQGen[RV],
        interval: float = 0.0,  # noqa: ARG002 -- psycopg looks for Ctrl-C that often; trio tells us
        timeout: float | None = None,
    ) -> RV:
        """Run one of psycopg's generators to its end; all that psycopg does comes through here.

        The caller holds the lock.

        Raises:
            StatementTimeout: it took longer than `timeout` seconds; it was cancelled on the server.
        """
        if timeout is not None:
            with trio.move_on_after(timeout):
                return await self.wait(gen)
            raise StatementTimeout(f"cancelled after {timeout:g} seconds")
        if not self._is_active():  # else it goes on with, or cleans up, what is in hand
            await trio.lowlevel.checkpoint_if_cancelled()
        exchange = self.exchange(gen)
        try:
            return await exchange.run()
        except (trio.Cancelled, KeyboardInterrupt) as interruption:
            if self._is_active():
                answer = await end_statement(self, exchange)  # noqa: ASYNC102  bounded by cancel_limit
                if answer and isinstance(interruption, trio.Cancelled):
                    return answer[0]  # noqa: ASYNC104  what succeeded is heard of
            raise

    @trio.lowlevel.enable_ki_protection
    async def settle(self, gen: PQGen[RV]) -> RV:
        """Run a generator to its end whatever is cancelled meanwhile, or close the connection."""
        try:
            return await outlast(self.exchange(gen).run, self.settle_limit)
        except (trio.Cancelled, KeyboardInterrupt):
            if self._is_active():
                self.abandon(f"no answer for {self.settle_limit:g} s after a cancellation")
            raise

    def exchange(self, gen: PQGen[RV]) -> Exchange[RV]:
        """Return what runs a generator on this connection's socket."""
        return Exchange(gen, self.pgconn, self._turn)

    async def take_lock(self) -> None:
        """Take the lock whatever is cancelled meanwhile, or close the connection."""
        try:
            await outlast(self.lock.acquire, self.settle_limit)
        except (trio.Cancelled, KeyboardInterrupt):
            self.abandon(f"another task held it for {self.settle_limit:g} s after a cancellation")
            raise

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[AsyncTransaction]:
        """Run the block in a transaction, or inside another transaction between savepoints.

        A block that ends normally is committed even when a cancellation is pending; one that
        raises, `Cancelled` included, is rolled back.

        Raises:
            psycopg.OperationalError: the block ended normally, but the connection is lost and
            nothing is committed.
        """
        block = AsyncTransaction(self, savepoint_name, force_rollback)
        if _internals.open_pipeline(self):
            async with (
                pipeline_block(self, surely=True),
                transaction_block(self, block),
                pipeline_block(self, surely=False),
            ):
                yield block
        else:
            async with transaction_block(self, block):
                yield block

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[AsyncPipeline]:
        """Send the block's statements at once; their answers are awaited when it ends."""
        async with pipeline_block(self, surely=False) as pipeline:
            yield pipeline

    def notifies(
        self, *, timeout: float | None = None, stop_after: int | None = None
    ) -> AsyncGenerator[Notify, None]:
        """Iterate over the notifications of the channels this connection listens to.

        The connection can do nothing else while the loop waits, but anything in the body of the
        loop. Leaving or cancelling the loop loses no notification: the next loop starts with those
        that have come since.

        Args:
            timeout: Seconds after which the loop ends; 0 takes what is there already.
            stop_after: The number of notifications after which it ends.

        Raises:
            psycopg.OperationalError: the connection is lost. It does not come back by itself.
        """
        return Notifications(self, timeout, stop_after)

    async def next_notify(self) -> Notify:
        """Return the next notification. Cancelling it loses none."""
        async with self.lock:
            if not self._received:
                self.absorb()
            while not self._received:
                await self.wait(_internals.notifying(self.pgconn))
            return self._received.popleft()

    def forget_notifies(self) -> None:
        """Drop the notifications that have come and nobody has asked for."""
        self._received.clear()

    def absorb(self) -> None:
        """Read what the server has sent unasked, without waiting.

        To be called while no statement is in hand. It is the cheapest test of an idle connection:
        that the server has closed it shows here.
        """
        while not self.closed and ready_now(self.pgconn.socket, Wait.R):
            reading = _internals.notifying(self.pgconn)
            next(reading)
            try:
                reading.send(Ready.R)
            except StopIteration:
                pass

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Ask the server to cancel the statement that another task waits for. Not cancelled itself.

        Raises:
            psycopg.errors.CancellationTimeout: the server did not take the request within `timeout`
            seconds.
        """
        if self.closed:
            return
        with trio.move_on_after(timeout, shield=True):
            await drive_connecting(_internals.cancelling(self.pgconn))
            return
        raise CancellationTimeout(f"the server took no cancel request within {timeout:g} seconds")

    async def commit(self) -> None:
        """Commit the open transaction, if there is one; a COMMIT is awaited, not cancelled."""
        async with self.lock:
            await trio.lowlevel.checkpoint_if_cancelled()
            await self.settle(_internals.committing(self))

    async def rollback(self) -> None:
        """Roll back the open transaction, if there is one; also when cancelled."""
        await self.take_lock()
        try:
            await self.settle(_internals.rolling_back(self))
        finally:
            self.lock.release()

    async def close(self) -> None:
        """Close the connection at once; the server rolls back what is open. No checkpoint.

        Tasks that wait for it get `psycopg.OperationalError`.
        """
        self._wake_waiting_tasks()
        await super().close()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Commit what is open if the block ended normally, then close; else no checkpoint."""
        nothing_open = self.closed or self.pgconn.transaction_status == TransactionStatus.IDLE
        try:
            if exc_type is None and not nothing_open:
                await self.commit()  # noqa: ASYNC102  bounded by settle_limit
        finally:
            await self.close()  # noqa: ASYNC102  no checkpoint

    def abandon(self, reason: str) -> None:
        """Close the connection because the state it is in is not known."""
        if self.closed:
            return
        _logger.warning("closing a connection to PostgreSQL: %s", reason)
        self._wake_waiting_tasks()
        self.pgconn.finish()

    def _wake_waiting_tasks(self) -> None:
        # The kernel tells nobody that a descriptor was closed: they would wait for ever.
        if not self.closed:
            trio.lowlevel.notify_closing(self.pgconn.socket)

    def _is_active(self) -> bool:
        return self.pgconn.transaction_status == TransactionStatus.ACTIVE
