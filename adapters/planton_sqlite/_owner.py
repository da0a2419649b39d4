"""One thread owns the connection; trio tasks hand it their work.

Work that waits while a transaction is being written shares the next one: twenty consumers that
report at the same time pay for one commit, which is most of what a small transaction costs.
"""

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import attrs
import outcome
import trio

from planton import StorageError
from planton_sqlite._open import is_read_only, patiently, to_storage_error

T = TypeVar("T")

# How much work shares a transaction at the most.
GROUP = 200


@attrs.define(eq=False)
class Job(Generic[T]):
    """Some work for the owner, and the trio task that waits for it."""

    function: Callable[[sqlite3.Connection], T]
    is_write: bool
    look: Callable[[sqlite3.Connection], T | None] | None
    task: trio.lowlevel.Task
    token: trio.lowlevel.TrioToken
    result: "outcome.Outcome[T] | None" = None

    def hand_over(self) -> None:
        """Let the trio task go on with the result."""
        assert self.result is not None
        try:
            self.token.run_sync_soon(trio.lowlevel.reschedule, self.task, self.result)
        except trio.RunFinishedError:
            pass  # nobody waits any more


class Owner:
    """A thread with a connection of its own.

    Args:
        open_connection: Opens the connection, on the thread.
        database: What to call the database in errors.
        check: Raises if the tables are not those that this code needs; asked until it does not.
    """

    def __init__(
        self,
        open_connection: Callable[[], sqlite3.Connection],
        database: str,
        check: Callable[[sqlite3.Connection], None],
    ) -> None:
        self._open = open_connection
        self._database = database
        self._check = check
        self._is_checked = False
        self._jobs: deque[Job[Any]] = deque()
        self._lock = threading.Condition()
        self._is_closing = False
        self._connection: sqlite3.Connection
        self._failure: BaseException | None = None
        self._is_read_only = False
        self._opened = threading.Event()
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """Start the thread and open the connection; raises what opening raises."""
        if self._thread is not None and self._thread.is_alive():
            raise StorageError(self._database, "the storage is open already: make a second one")
        self._is_closing, self._failure, self._opened = False, None, threading.Event()
        self._is_checked = False
        # A daemon, so that a program that crashes is not kept alive; `close` waits for it.
        self._thread = threading.Thread(target=self._main, name="planton-sqlite", daemon=True)
        self._thread.start()
        # Not cancellable: the thread must not be left behind, and opening does not take long.
        await trio.to_thread.run_sync(self._opened.wait)
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Finish what is queued, close the connection, end the thread."""
        with self._lock:
            self._is_closing = True
            self._lock.notify()
        if self._thread is not None:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._thread.join)

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` on the thread, without a transaction."""
        return await self._do(self._checked(function), is_write=False)

    async def migrate(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` in a transaction, whatever tables there are."""
        return await self._do(function, is_write=True)

    async def write(
        self,
        function: Callable[[sqlite3.Connection], T],
        look: Callable[[sqlite3.Connection], T | None] | None = None,
    ) -> T:
        """Run `function` in a transaction; if it raises, what it did is undone.

        It returns after the commit. A cancellation takes effect only as long as the thread has
        not begun: from then on the result is returned, so that nothing is committed unheard.

        With `look` there is no transaction if `look`, which only reads, gives a result already:
        polling then does not stand in the queue of those who write.

        Raises:
            StorageError: If the database stays locked by others, or cannot be written.
        """
        checked_look = None if look is None else self._checked(look)
        return await self._do(self._checked(function), is_write=True, look=checked_look)

    def _checked(
        self, function: Callable[[sqlite3.Connection], T]
    ) -> Callable[[sqlite3.Connection], T]:
        """Let `function` see only tables that it knows."""
        if self._is_checked:
            return function

        def checked(connection: sqlite3.Connection) -> T:
            if not self._is_checked:
                self._check(connection)
                self._is_checked = True
            return function(connection)

        return checked

    # A KeyboardInterrupt between handing the work over and waiting for it would leave a job that
    # later reschedules a task which does not wait for it: trio would break down.
    @trio.lowlevel.enable_ki_protection
    async def _do(
        self,
        function: Callable[[sqlite3.Connection], T],
        *,
        is_write: bool,
        look: Callable[[sqlite3.Connection], T | None] | None = None,
    ) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        token = trio.lowlevel.current_trio_token()
        job = Job(function, is_write, look, trio.lowlevel.current_task(), token)
        with self._lock:
            if self._is_closing or self._thread is None:
                problem = "the storage is not open: use it inside of `async with storage`"
                raise StorageError(self._database, problem)
            self._jobs.append(job)
            self._lock.notify()
        return cast(T, await trio.lowlevel.wait_task_rescheduled(lambda _: self._withdraw(job)))

    def _withdraw(self, job: Job[Any]) -> trio.lowlevel.Abort:
        with self._lock:
            try:
                self._jobs.remove(job)
            except ValueError:
                return trio.lowlevel.Abort.FAILED
        return trio.lowlevel.Abort.SUCCEEDED

    # From here on: on the thread.

    def _main(self) -> None:
        try:
            self._connection = self._open()
        except BaseException as error:  # noqa: ASYNC103  not on trio: raised by `start`
            self._failure = error
            return  # noqa: ASYNC104  not on trio
        finally:
            self._opened.set()
        try:
            while jobs := self._next():
                self._work(jobs)
        finally:
            self._connection.close()

    def _next(self) -> list[Job[Any]]:
        """Wait for work; writes that wait together are taken together."""
        with self._lock:
            while not (self._jobs or self._is_closing):
                self._lock.wait()
            jobs: list[Job[Any]] = []
            while self._jobs and len(jobs) < GROUP:
                if jobs and not (jobs[0].is_write and self._jobs[0].is_write):
                    break
                jobs.append(self._jobs.popleft())
            return jobs

    def _work(self, jobs: list[Job[Any]]) -> None:
        try:
            if jobs[0].is_write:
                writing = [job for job in jobs if not self._is_settled(job)]
                if writing:
                    self._transact(writing)
            else:
                jobs[0].result = outcome.Value(jobs[0].function(self._connection))
        except BaseException as error:  # noqa: ASYNC103  not on trio: raised by those who wait
            # One for each: they share the transaction, but neither the outcome nor the traceback.
            for job in jobs:
                job.result = outcome.Error(self._mapped(error))
        if self._is_read_only:
            self._reopen()
        for job in jobs:
            job.hand_over()

    def _reopen(self) -> None:
        """Connect anew: what was read-only when it was opened stays so for that connection."""
        try:
            connection = self._open()
        except StorageError:
            return  # whoever comes next is told
        self._connection.close()
        self._connection, self._is_read_only = connection, False

    def _is_settled(self, job: Job[Any]) -> bool:
        """Look whether there is anything to write."""
        try:
            seen = None if job.look is None else job.look(self._connection)
        except Exception:
            return False  # the transaction will fail in the same way, on its own
        if seen is not None:
            job.result = outcome.Value(seen)
        return seen is not None

    def _transact(self, jobs: list[Job[Any]]) -> None:
        patiently(lambda: self._connection.execute("BEGIN IMMEDIATE"))
        try:
            for job in jobs:
                job.result = self._within_savepoint(job)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _within_savepoint(self, job: Job[Any]) -> "outcome.Outcome[Any]":
        """Do one of several jobs of a transaction; one that fails undoes only its own."""
        self._connection.execute("SAVEPOINT job")
        try:
            result: outcome.Outcome[Any] = outcome.Value(job.function(self._connection))
        except Exception as error:
            # A full disk or a lost file ends the transaction of all of them.
            if not self._connection.in_transaction:
                raise
            self._connection.execute("ROLLBACK TO job")
            result = outcome.Error(self._mapped(error))
        self._connection.execute("RELEASE job")
        return result

    def _mapped(self, error: BaseException) -> BaseException:
        if not isinstance(error, sqlite3.Error):
            return error
        self._is_read_only = self._is_read_only or is_read_only(error)
        return to_storage_error(self._database, error)
