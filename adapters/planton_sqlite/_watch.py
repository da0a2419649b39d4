"""A thread that notices what is committed, by whomever, and tells whose turn that may be.

It is a thread because it reads the database, which may block, and because it looks every fifth of
a millisecond while a commit is on its way, which would take turns from the trio tasks.

`PRAGMA data_version` tells that something was committed by another connection than the one asked;
the one asked here writes nothing, so it sees the commits of its own process as well. The kernel
tells of the write to the -wal file *before* the commit can be seen: whoever looks at once sees
nothing, and would wait for the next commit. So after a hint it looks again and again, for as long
as a commit takes, and then ever more seldom: a slow disk may take its time to sync.
"""

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing

from planton_sqlite import _open, _schema, _watch_ears
from planton_sqlite._watch_ears import Clock, Ears

# After a hint: look every 0.2 ms for 8 ms. Measured: seen 1.0 ms after the commit, p99 2.5 ms.
NAP, ATTENTION = 0.0002, 0.008
# Between two findings, so that what is committed close together is looked at together.
REST = 0.005
# Asking who may have something to do takes at most this share of a core, however busy the file.
SHARE = 0.05
# After a hint with nothing to see, such as a page of a transaction that is still being written.
LONGEST_REST = 0.1
# A commit that was not heard of within that time tells that the ears are deaf.
DEAF_AFTER = 1.0
# Then the clock takes over, and the ears are tried again, after longer and longer times.
FIRST_RETRY, LAST_RETRY = 30.0, 3600.0


class Watch:
    """Looks out for commits.

    Args:
        path: The database.
        find: Reads what may be told of; called at the beginning and after commits, on the thread.
        on_ready: Called on the thread when nothing will be missed any more.
    """

    def __init__(
        self,
        path: str,
        find: Callable[[sqlite3.Connection], None],
        on_ready: Callable[[], None],
    ) -> None:
        self._path = path
        self._find = find
        self._on_ready = on_ready
        self._better_ears = _watch_ears.best_ears
        self._retry_in = FIRST_RETRY
        self._retry_at = 0.0
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._ears: Ears = Clock()
        self._rest = REST
        self._version = -1
        self._connection: sqlite3.Connection

    def stop(self) -> None:
        """Let `run` return, soon; from any thread."""
        self._stopping.set()
        with self._lock:
            self._ears.interrupt()

    def run(self) -> None:
        """Watch until stopped; on a thread of its own.

        Raises:
            sqlite3.Error: If the database cannot be read.
            StorageError: If it cannot be opened, or its tables are not those of this code.
        """
        with closing(_open.connect_existing(self._path)) as self._connection:
            self._connection.isolation_level = None
            self._connection.execute("PRAGMA query_only = 1")
            _schema.check(self._connection, self._path)
            self._look()
            try:
                while not self._stopping.is_set():
                    self._listen_well()
            finally:
                self._take(Clock())

    @property
    def hears(self) -> bool:
        """Whether the kernel tells; else the clock does."""
        return self._ears.hears

    def _listen_well(self) -> None:
        """Listen with the best ears that there are at present."""
        try:
            if self._is_time_to_retry():
                assert self._better_ears is not None
                self._take(self._better_ears(self._path))
            self._listen()
        except OSError:
            # The clock is as good, only not as quick.
            self._take(Clock())
            self._retry_at = time.monotonic() + self._retry_in
            self._retry_in = min(self._retry_in * 2, LAST_RETRY)

    def _is_time_to_retry(self) -> bool:
        is_worse = self._better_ears is not None and not self._ears.hears
        return is_worse and time.monotonic() >= self._retry_at

    def _take(self, ears: Ears) -> None:
        """Use other ears; what is used is never closed under the hands of `stop`."""
        with self._lock:
            self._ears.close()
            self._ears = ears
            if self._stopping.is_set():
                ears.interrupt()

    def _listen(self) -> None:
        # What was committed while nobody listened is found here.
        self._look()
        self._tell()
        self._on_ready()
        nap = REST
        while not self._stopping.is_set():
            if self._ears.wait(nap):
                self._attend()
                nap = REST
            elif self._look():
                self._check_hearing(nap)
                self._tell()
                nap = REST
            else:
                nap = min(nap * 4, self._ears.longest)
                if self._is_time_to_retry():
                    return

    def _attend(self) -> None:
        """Something was written: look until it can be seen."""
        deadline = time.monotonic() + ATTENTION
        while not self._look():
            if time.monotonic() > deadline or self._stopping.wait(NAP):
                self._stopping.wait(self._rest)
                self._rest = min(self._rest * 2, LONGEST_REST)
                return
        self._tell()

    def _look(self) -> bool:
        """Tell whether something was committed since the last look."""
        before = self._version
        (self._version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return self._version != before

    def _tell(self) -> None:
        begun = time.monotonic()
        self._find(self._connection)
        self._rest = REST
        self._stopping.wait(max(REST, (time.monotonic() - begun) / SHARE))

    def _check_hearing(self, nap: float) -> None:
        """Find out whether a commit was seen that the ears should have heard of, and did not."""
        if self._ears.hears and nap >= DEAF_AFTER and not self._ears.wait(0):
            self._tell()
            raise OSError("the kernel did not tell of a commit")
