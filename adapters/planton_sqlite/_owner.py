"""One thread owns the connection; trio tasks hand it their work."""

import math
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import attrs
import outcome
import trio

from planton import StorageError
from planton_sqlite._open import committed, is_full, is_read_only, patiently, to_storage_error

T = TypeVar("T")
# Seconds for which a transaction may wait for its turn once the storage is being closed, and until
# the thread is not waited for any longer.
_LAST_TURN, _CLOSED_WITHIN = 1.0, 5.0
Work = Callable[[sqlite3.Connection], T]
# Steps of SQLite's machine between two looks at the clock: a few milliseconds.
_STEPS = 100_000


@attrs.define(eq=False)
class Job(Generic[T]):
    """Some work for the owner, and the trio task that waits for it."""

    function: Work[T]
    is_write: bool
    task: trio.lowlevel.Task
    token: trio.lowlevel.TrioToken
    is_unwanted: bool = False  # its statements end as soon as they are noticed to be long

    def hand_over(self, result: "outcome.Outcome[T]") -> None:
        self.token.run_sync_soon(trio.lowlevel.reschedule, self.task, result)


class Owner:
    """A thread with a connection of its own.

    Args:
        open_connection: Makes it.
        database: Its name, for errors.
        file: Where it is.
        timeout: Seconds that some work may take once it has its turn to write.
    """

    def __init__(
        self,
        open_connection: Callable[[], sqlite3.Connection],
        database: str,
        file: str,
        timeout: float,
    ) -> None:
        self._open = open_connection
        self._database = database
        self._file = file
        self._timeout = timeout
        self._until = math.inf  # when the work at hand has taken too long
        self._job: Job[Any] | None = None
        self._opened_file: tuple[int, int] | None = None
        self._give_up_at = math.inf
        self._hurries: Callable[[], bool] = lambda: False
        self._jobs: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()  # None only wakes
        self._unbegun: dict[Job[Any], bool] = {}  # to pop one is atomic
        self._is_closing = True
        self._connection: sqlite3.Connection
        self._failure: BaseException | None = None
        self._is_read_only = False
        self._opened = threading.Event()
        self._thread: threading.Thread
        self._idle: Callable[[], None] | None = None
        self._interval: float | None = None

    async def start(self) -> None:
        self._is_closing, self._failure, self._opened = False, None, threading.Event()
        self._jobs, self._give_up_at = queue.SimpleQueue(), math.inf
        # A daemon, so that a program that crashes is not kept alive; `close` waits for it.
        self._thread = threading.Thread(target=self._main, name="planton-sqlite", daemon=True)
        self._thread.start()
        # Not cancellable: the thread must not be left behind, and opening does not take long.
        await trio.to_thread.run_sync(self._opened.wait)
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Finish what is queued, close the connection, end the thread.

        Not waited for any longer than a few seconds: a disk may hang. Then the thread ends when
        the disk answers, or with the process.
        """
        self._is_closing = True
        self.hurry(lambda: True)
        self._jobs.put(None)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._thread.join, _CLOSED_WITHIN)

    def hurry(self, while_: Callable[[], bool]) -> None:
        """Wait for other writers no longer than a moment more for as long as `while_()`."""
        self._give_up_at, self._hurries = time.monotonic() + _LAST_TURN, while_

    def when_idle(self, work: Callable[[], None] | None, interval: float | None = None) -> None:
        """Call `work` on the thread after each job, and every `interval` seconds without one."""
        self._idle, self._interval = work, interval
        self._jobs.put(None)

    async def read(self, function: Work[T]) -> T:
        return await self.do(function, is_write=False)

    async def write(self, function: Work[T], *, shield: bool = True) -> T:
        """Run `function` in a transaction; if it raises, what it did is undone.

        It returns after the commit. A cancellation takes effect only as long as the thread has
        not begun: from then on the result is returned, so that nothing is committed unheard.
        Without the shield it also ends a statement that takes long, as the timeout does.
        """
        return await self.do(function, is_write=True, shield=shield)

    # A KeyboardInterrupt between handing the work over and waiting for it would leave a job that
    # later reschedules a task which does not wait for it: trio would break down.
    @trio.lowlevel.enable_ki_protection
    async def do(self, function: Work[T], *, is_write: bool, shield: bool = True) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._is_closing or not self._thread.is_alive():  # as in a process that was forked
            raise StorageError(self._database, "the storage is not open")
        task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()
        job = Job(function, is_write, task, token)
        self._unbegun[job] = True
        self._jobs.put(job)

        def abort(_: object) -> trio.lowlevel.Abort:
            job.is_unwanted = not shield
            is_unbegun = self._unbegun.pop(job, False)
            return trio.lowlevel.Abort.SUCCEEDED if is_unbegun else trio.lowlevel.Abort.FAILED

        return cast(T, await trio.lowlevel.wait_task_rescheduled(abort))

    # From here on: on the thread.

    def _main(self) -> None:
        try:
            self.connect()
        except BaseException as error:  # noqa: ASYNC103  not on trio: raised by `start`
            self._failure = error
            return  # noqa: ASYNC104  not on trio
        finally:
            self._opened.set()
        try:
            while self._serve():
                pass
        finally:
            self._connection.close()

    def connect(self) -> None:
        self._connection = self._open()
        self._connection.set_progress_handler(self._is_too_long, _STEPS)
        self._opened_file = _identity(self._file)

    def _is_too_long(self) -> bool:
        """Called by SQLite now and then while a statement runs, which it ends if this is true."""
        is_unwanted = self._job is not None and self._job.is_unwanted
        return is_unwanted or time.monotonic() > min(self._until, self._gives_up_at())

    def _serve(self) -> bool:
        """Do the next job, and the idle work; whether to go on."""
        try:
            job = self._jobs.get(timeout=self._interval)
        except queue.Empty:
            job = None
        if job is not None and self._unbegun.pop(job, False):
            self._job = job
            result = self.done(job.function, is_write=job.is_write)
            self._job = None
            if self._is_read_only:
                self._reopen()
            job.hand_over(result)
        if self._idle is not None:
            outcome.capture(self._idle)  # it tells of its errors itself
        return not (self._is_closing and self._jobs.empty())

    def done(self, function: Work[T], *, is_write: bool) -> "outcome.Outcome[T]":
        """Do some work. Whatever it raises is the answer of its caller; the thread goes on."""
        self._until = time.monotonic() + self._timeout
        try:
            connection = self.connection()
            return outcome.Value(self._transact(function) if is_write else function(connection))
        except BaseException as error:  # noqa: ASYNC103  not on trio: raised by the one who waits
            return outcome.Error(self._mapped(error))  # noqa: ASYNC104
        finally:
            self._until = math.inf

    def connection(self) -> sqlite3.Connection:
        """Return the connection, as long as it is one to the file of that name.

        What is written to one that was replaced is lost, and other processes use the new one.
        """
        if _identity(self._file) != self._opened_file:
            problem = (
                "the file was replaced, moved or deleted while it was open: nothing is written to "
                "the old one any more; start the program again"
            )
            raise StorageError(self._database, problem)
        return self._connection

    def _reopen(self) -> None:
        """Connect anew: what was read-only when it was opened stays so for that connection."""
        old = self._connection
        try:
            self.connect()
        except Exception:
            return  # the next caller is told
        old.close()
        self._is_read_only = False

    def _transact(self, function: Work[T]) -> T:
        try:
            return self._transact_once(function)
        except sqlite3.Error as error:
            if not is_full(error) or not self._make_room():
                raise
        return self._transact_once(function)

    def _make_room(self) -> bool:
        """Write the -wal file into the database, and cut it off; whether that was possible.

        SQLite does so after a commit. With a -wal that fills the disk there is none any more.
        """
        ((is_busy, *_),) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return not is_busy

    def _transact_once(self, function: Work[T]) -> T:
        patiently(lambda: self._connection.execute("BEGIN IMMEDIATE"), self._gives_up_at)
        self._until = time.monotonic() + self._timeout
        return committed(self._connection, function)

    def _gives_up_at(self) -> float:
        return self._give_up_at if self._hurries() else math.inf

    def _mapped(self, error: BaseException) -> BaseException:
        if not isinstance(error, sqlite3.Error):
            return error
        self._is_read_only = self._is_read_only or is_read_only(error)
        return to_storage_error(self._database, error)


def _identity(file: str) -> tuple[int, int] | None:
    """Return what tells files of one name apart; None where there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino
