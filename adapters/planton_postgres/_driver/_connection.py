from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Self

import psycopg
import trio
from psycopg import Notify
from psycopg.abc import RV, PQGen
from psycopg.pq import PGnotify, TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.rows import Row
from psycopg.waiting import Wait

from . import _internals
from ._connect import open_connection
from ._interrupt import end_statement
from ._lock import Lock, is_active, wake_waiting_tasks
from ._pipeline import Rows, Statement, describing, rows_of, running
from ._wait import Exchange

# Notifications that are kept while nobody asks for them; of more the latest.
_MOST_NOTIFIES = 10_000


class StatementTimeout(psycopg.OperationalError):
    """What was asked of the server took longer than it was given, and was cancelled there."""


class TrioConnection(psycopg.AsyncConnection[Row]):
    """A psycopg connection that waits on trio, in autocommit mode.

    Cursors, adaptation of types and row factories are psycopg's. Not supported, as nothing here
    needs them: COPY, `stream`, `executemany`, server-side cursors, `notifies` and `pipeline`; see
    `next_notifies` and `run_pipeline` for these two. A `transaction()` of psycopg's must not be
    cancelled: send BEGIN and COMMIT.

    Cancellation, of any method that talks to the server:

    - Before the statement is sent, nothing is sent. What was begun stays so: close the connection,
      or give it back to the pool, which does.
    - Afterwards the server is asked to cancel it, and its answer is read to the end, for
      `cancel_limit` seconds at most. If the server had finished by then, the method *returns its
      result*, and the cancellation strikes at the caller's next checkpoint. So a statement reported
      cancelled was not committed, and one that was committed is reported done: no claim is lost in
      between. A pipeline is one statement in this, and so is a COMMIT.

    The connection is usable afterwards, also after an error. Where its state is not known, because
    the server does not answer within these limits or for any other reason, it is closed (`closed`
    is true, a warning is logged), and only then whether something was committed is not known.

    All errors are psycopg's. A task that waits for a connection which another task closes gets
    `psycopg.OperationalError`. Several tasks may share a connection; their statements take turns.

    Attributes:
        cancel_limit: Seconds that a statement may take to end once the server was asked to cancel
            it.
    """

    cancel_limit: float = 2.0

    def __init__(self, pgconn: PGconn) -> None:
        super().__init__(pgconn)
        _internals.replace_lock(self, Lock(pgconn))
        _internals.commit_each_statement(self)
        self._notifies: deque[PGnotify] = deque(maxlen=_MOST_NOTIFIES)
        pgconn.notify_handler = self._notifies.append

    @classmethod
    async def connect(  # type: ignore[override]  # what nobody here sets is left out
        cls,
        conninfo: str,
        *,
        connect_timeout: float = 10.0,
        prepare_threshold: int | None = 5,
    ) -> Self:
        """Connect to the first host of `conninfo` that takes us.

        When cancelled, no connection is left open.

        Args:
            conninfo: A connection string or URI as libpq takes it: Unix sockets, TCP, several
                hosts.
            connect_timeout: Seconds for all of that; the addresses of the hosts share them.
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
                    with trio.move_on_after(self.cancel_limit, shield=True):
                        await self.wait(_internals.rolling_back(self))
                raise

    async def describe(self, query: str, types: Sequence[int]) -> list[str]:
        """Have the server parse a statement, but not execute it; return its columns.

        Args:
            query: One statement, with `$1`, `$2`, … where parameters go.
            types: The OIDs of their types; 0, or none given, lets the server find out.

        Returns:
            The names of its columns; [] if it returns no rows.

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
        timeout: float | None = None,  # noqa: ARG002 -- for what is not supported
    ) -> RV:
        """Run one of psycopg's generators to its end; all that psycopg does comes through here.

        The caller holds the lock.
        """
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

    async def next_notifies(self) -> list[Notify]:
        """Wait for notifications of the channels listened to; return those that came together.

        Cancelling it loses none. Some kilobytes are read at a time, with a checkpoint before more
        are, so a flood of them leaves other tasks their turn; of very many that came while nobody
        asked the latest are returned.

        Raises:
            psycopg.OperationalError: the connection is lost. It does not come back by itself.
        """
        async with self.lock:
            if not self._notifies:
                await self.wait(self._hearing())
        found = [_notify(each) for each in self._notifies]
        self._notifies.clear()
        return found

    def _hearing(self) -> PQGen[None]:
        while not self._take_notifies():
            yield Wait.R
            self.pgconn.consume_input()

    def _take_notifies(self) -> bool:
        while notify := self.pgconn.notifies():
            self._notifies.append(notify)
        return bool(self._notifies)

    async def close(self) -> None:
        """Close the connection at once; the server rolls back what is open. No checkpoint.

        Tasks that wait for it get `psycopg.OperationalError`.
        """
        wake_waiting_tasks(self.pgconn)
        await super().close()

    async def __aexit__(self, *_: object) -> None:
        """Close it; no checkpoint."""
        await self.close()  # noqa: ASYNC102  no checkpoint


def _notify(raw: PGnotify) -> Notify:
    """Return a notification; in a database of any encoding it may be any bytes."""
    channel, payload = (each.decode(errors="replace") for each in (raw.relname, raw.extra))
    return Notify(channel, payload, raw.be_pid)
