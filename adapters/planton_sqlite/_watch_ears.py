"""What tells that another process may have committed: the kernel, or a clock where it does not."""

import errno
import os
import select
import sys
import threading
from collections.abc import Callable
from typing import Protocol

# Looking 40 times a second costs 0.2 % of a core, and finds a commit 13 ms later on average.
INTERVAL = 0.025
# So often the database is looked at although inotify has told of nothing: should it be deaf, as it
# is to what other machines do on a network file system, nothing is found later than that.
LONGEST = 5.0


class Ears(Protocol):
    """Waits for a hint.

    Attributes:
        longest: Most seconds between two looks at the database.
        hears: Whether it tells of every change; else it is only time that passes.
    """

    longest: float
    hears: bool

    def wait(self, seconds: float) -> bool:
        """Wait for a hint; whether there was one.

        Raises:
            OSError: If none will come any more.
        """

    def interrupt(self) -> None:
        """End `wait`, now and for ever; from another thread."""

    def close(self) -> None:
        """Give back what it holds."""


class Clock:
    """Only time that passes: it works everywhere."""

    longest = INTERVAL
    hears = False

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def wait(self, seconds: float) -> bool:
        self._stopped.wait(seconds)
        return False

    def interrupt(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        pass


if sys.platform == "linux":
    import inotify_simple

    _flags = inotify_simple.flags
    _WRITTEN = _flags.MODIFY
    # Its name may be gone, so that another file is the one to watch. Whoever connects as root sets
    # the file's owner, which is an ATTRIB as well.
    _MOVED = _flags.ATTRIB | _flags.DELETE_SELF | _flags.MOVE_SELF

    class Inotify:
        """The kernel tells of every write to the -wal file, and costs nothing while there is none.

        The file, not its folder: what else lives there does not disturb. The file is there as long
        as somebody is connected to the database, and whoever waits here is.

        Args:
            path: The database.

        Raises:
            OSError: If there is no such file, or the limit of watches is reached.
        """

        longest = LONGEST
        hears = True

        def __init__(self, path: str) -> None:
            self._path = f"{path}-wal"
            self._inotify = inotify_simple.INotify(nonblocking=True)
            try:
                self._inotify.add_watch(self._path, _WRITTEN | _MOVED)
                self._inode = os.stat(self._path).st_ino
                self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            except OSError:
                self._inotify.close()
                raise
            self._poll = select.poll()
            self._poll.register(self._inotify.fileno(), select.POLLIN)
            self._poll.register(self._bell, select.POLLIN)

        def wait(self, seconds: float) -> bool:
            if not self._poll.poll(seconds * 1000):
                return False
            masks = [event.mask for event in self._inotify.read(timeout=0)]
            if any(mask & _flags.IGNORED for mask in masks):
                raise OSError(errno.ESTALE, "the -wal file is gone")
            if any(mask & _MOVED for mask in masks) and os.stat(self._path).st_ino != self._inode:
                raise OSError(errno.ESTALE, "the -wal file was replaced")
            return bool(masks)

        def interrupt(self) -> None:
            os.eventfd_write(self._bell, 1)

        def close(self) -> None:
            self._inotify.close()
            os.close(self._bell)

    best_ears: Callable[[str], Ears] | None = Inotify
else:
    best_ears = None
