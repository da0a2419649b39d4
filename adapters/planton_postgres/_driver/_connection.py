from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Self

import psycopg
import trio
from psycopg import AsyncTransaction, Notify
from psycopg.abc import RV, PQGen
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.rows import Row

from . import _internals
from ._connect import open_connection
from ._interrupt import end_statement
from ._lock import Lock, abandon, is_active, wake_waiting_tasks
from ._notifications import Notifications
from ._pipeline import Rows, Statement, describing, rows_of, running
from ._wait import Exchange, outlast


class StatementTimeout(psycopg.OperationalError):
    """What was asked of the server took longer than it was given, and was cancelled there."""


class TrioConnection(psycopg.AsyncConnection[Row]):
    """A psycopg connection that waits on trio, in autocommit mode.

    Cursors, adaptation of types and row factories are psycopg's. Not supported, as nothing here
    needs them: COPY, `stream`, `executemany`, server-side cursors, `notifies` and `pipeline`; see
    `next_notify` and `run_pipeline` for these two.

    Cancellation, of any method that talks to the server:

    - Before the statement is sent, nothing is sent.
    - Afterwards the server is asked to cancel it, and its answer is read to the end, for
      `cancel_limit` seconds at most. If the server had finished by then, the method *returns its
      result*, and the cancellation strikes at the caller's next checkpoint. So a statement reported
      cancelled was not committed, and one that was committed is reported done: no claim is lost in
      between. A pipeline is one statement in this.
    - COMMIT and ROLLBACK of a `transaction()` block are not cancelled but awaited, from the
      cancellation on for `settle_limit` seconds at most. So a block reported cancelled was rolled
      back, and one that was committed ends normally.

    The connection is usable afterwards, also after an error. Where its state is not known, because
    the server does not answer within these limits or for any other reason, it is closed (`closed`
    is true, a warning is logged), and only then whether something was committed is not known.

    All errors are psycopg's. A task that waits for a connection which another task closes gets
    `psycopg.OperationalError`. Several tasks may share a connection; their statements take turns.

    Attributes:
        cancel_limit: Seconds that a statement may take to end once the server was asked to cancel
            it.
        settle_limit: Seconds that COMMIT and ROLLBACK may go on after a cancellation.
    """

    cancel_limit: float = 2.0
    settle_limit: float = 5.0

    def __init__(self, pgconn: PGconn) -> None:
        super().__init__(pgconn)
        _internals.replace_lock(self, Lock(pgconn))
        _internals.commit_each_statement(self)
        self._notifications = Notifications(self.info.encoding)
        pgconn.notify_handler = self._notifications

    @classmethod
    async def connect(  # type: ignore[override]  # what nobody here sets is left out
        cls,
        conninfo: str = "",
        *,
        connect_timeout: float | str | None = None,
        prepare_threshold: int | None = 5,
    ) -> Self:
        """Connect to the first host of `conninfo` that takes us.

        When cancelled, no connection is left open.

        Args:
            conninfo: A connection string or URI as libpq takes it: Unix sockets, TCP, several
                hosts.
            connect_timeout: Seconds for each address of each host; by default what `conninfo` says,
                else 10.
            prepare_threshold: Statements executed more often than this are prepared; None never
                prepares, as poolers in transaction mode may need.

        Raises:
            psycopg.errors.ConnectionTimeout: nothing answered, or not to the end, in time.
            psycopg.OperationalError: no host could be connected to; the message tells of each.
        """
        connection = cls(await open_connection(conninfo, connect_timeout))
        connection.prepare_threshold = prepare_threshold
        return connection

    async def run_pipeline(self, statements: Iterable[Statement]) -> list[Rows]:
        """Execute statements in one round trip; return the rows of each, [] if it has none.

        They share one transaction and one commit, that of the open transaction if there is one. A
        pipeline that fails is undone as a whole, its own BEGIN included, which it may leave open
        when it succeeds. A COMMIT must be the last, or what follows it may fail alone.

        Args:
            statements: Each a `Statement`, or a tuple of these three.

        Raises:
            psycopg.Error: the first error; the statements after it were not executed.
            psycopg.DataError: also if a parameter cannot be adapted, then nothing was sent, or a
                row that came cannot be loaded.
        """
        async with self.lock:
            was_idle = self.pgconn.transaction_status == TransactionStatus.IDLE
            try:
                return rows_of(self, await self.wait(running(self, statements)))
            except BaseException:
                if was_idle and not (self.closed or is_active(self.pgconn)):
                    await self.settle(_internals.rolling_back(self))  # noqa: ASYNC102  bounded
                raise

    async def describe(self, query: str, types: Sequence[int]) -> list[tuple[str, int]]:
        """Have the server parse a statement, but not execute it; return its columns.

        Args:
            query: One statement, with `$1`, `$2`, … where parameters go.
            types: The OIDs of their types; 0, or none given, lets the server find out.

        Returns:
            The name and the OID of the type of each column; [] if it returns no rows.

        Raises:
            psycopg.Error: it is not valid; the message shows the place. An open transaction is
                aborted by that.
        """
        async with self.lock:
            return await self.wait(describing(self.pgconn, query, types, self.info.encoding))

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
        if not is_active(self.pgconn):  # else it goes on with, or cleans up, what is in hand
            await trio.lowlevel.checkpoint_if_cancelled()
        exchange = Exchange(gen, self.pgconn.socket)
        try:
            return await exchange.run()
        except (trio.Cancelled, KeyboardInterrupt) as interruption:
            if is_active(self.pgconn):
                answer = await end_statement(self.pgconn, exchange, self.cancel_limit)  # noqa: ASYNC102  bounded by it
                if answer and isinstance(interruption, trio.Cancelled):
                    return answer[0]  # noqa: ASYNC104  what succeeded is heard of
            raise

    @trio.lowlevel.enable_ki_protection
    async def settle(self, gen: PQGen[RV]) -> RV:
        """Run a generator to its end whatever is cancelled meanwhile, or close the connection.

        The caller holds the lock.
        """
        try:
            return await outlast(Exchange(gen, self.pgconn.socket).run, self.settle_limit)
        except (trio.Cancelled, KeyboardInterrupt):
            if is_active(self.pgconn):
                reason = f"no answer for {self.settle_limit:g} s after a cancellation"
                abandon(self.pgconn, reason)
            raise

    @asynccontextmanager
    async def transaction(  # type: ignore[override]  # savepoints are named by psycopg
        self,
    ) -> AsyncIterator[AsyncTransaction]:
        """Run the block in a transaction, or inside another transaction between savepoints.

        A block that ends normally is committed even when a cancellation is pending; one that
        raises, `Cancelled` included, is rolled back.

        Raises:
            psycopg.OperationalError: the block ended normally, but the connection is lost and
                nothing is committed.
        """
        block = AsyncTransaction(self)
        try:
            await self._begin(block)
            yield block
        except BaseException as error:  # noqa: ASYNC103  swallows psycopg.Rollback alone
            if not await self._end(block, error):  # noqa: ASYNC102  bounded by settle_limit
                raise
        else:
            await self._end(block, None)

    async def _begin(self, block: AsyncTransaction) -> None:
        async with self.lock:
            await trio.lowlevel.checkpoint_if_cancelled()
            await self.settle(_internals.entering(block))

    async def _end(self, block: AsyncTransaction, error: BaseException | None) -> bool:
        """Return whether the error asked for no more than a rollback and is dealt with."""
        if block.status == block.Status.NOT_STARTED:
            return False
        async with self._surely_locked():
            if not self.closed:
                return await self.settle(_internals.leaving(block, error))
        if error is None:
            raise psycopg.OperationalError(
                "the connection was lost: its transaction is not committed"
            )
        return False

    async def rollback(self) -> None:
        """Roll back the open transaction, if there is one; also when cancelled."""
        async with self._surely_locked():
            await self.settle(_internals.rolling_back(self))

    @asynccontextmanager
    async def _surely_locked(self) -> AsyncIterator[None]:
        """Take the lock whatever is cancelled meanwhile, or close the connection."""
        try:
            await outlast(self.lock.acquire, self.settle_limit)
        except (trio.Cancelled, KeyboardInterrupt):
            reason = f"another task held it for {self.settle_limit:g} s after a cancellation"
            abandon(self.pgconn, reason)
            raise
        try:
            yield
        finally:
            self.lock.release()

    async def next_notify(self) -> Notify:
        """Return the next notification of the channels listened to. Cancelling it loses none.

        Those that came together are returned without a checkpoint in between; there is one before
        more are read, so a flood of them leaves other tasks their turn.

        Raises:
            psycopg.OperationalError: the connection is lost. It does not come back by itself.
        """
        if not self._notifications:
            async with self.lock:
                await self.wait(self._notifications.hearing(self.pgconn))
        return self._notifications.pop()

    def waiting_notifies(self) -> list[Notify]:
        """Return the notifications that have come already, to be handled together; no waiting."""
        return [self._notifications.pop() for _ in range(len(self._notifications))]

    @property
    def dropped_notifies(self) -> int:
        """How many notifications were dropped, as too many came while nobody asked for them."""
        return self._notifications.dropped

    async def close(self) -> None:
        """Close the connection at once; the server rolls back what is open. No checkpoint.

        Tasks that wait for it get `psycopg.OperationalError`.
        """
        wake_waiting_tasks(self.pgconn)
        await super().close()

    async def __aexit__(self, *_: object) -> None:
        """Close it; no checkpoint."""
        await self.close()  # noqa: ASYNC102  no checkpoint
