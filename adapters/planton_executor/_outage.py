"""Errors of a storage that repeat: told once, then summed up."""

import logging
from collections.abc import Callable

import trio

from planton import delays
from planton.storage import describe

logger = logging.getLogger("planton.executor")

# Seconds between two lines about one outage.
_EVERY = 60.0
pause = delays.exponential(initial=0.1, maximum=5.0, jitter="equal")


class Outage:
    """Tells of the first error of a storage, then how many there were, and when it is over.

    Args:
        report: Called with the first error.
    """

    def __init__(self, report: Callable[[Exception], None]) -> None:
        self._report = report
        self.answers = 0  # how often the storage did what it was asked
        self._count = 0
        self._began_at = self._told_at = 0.0

    def note(self, error: Exception) -> None:
        """Count an error."""
        now = trio.current_time()
        self._count += 1
        if self._count == 1:
            self._began_at = self._told_at = now
            self._report(error)
        elif now - self._told_at >= _EVERY:
            self._told_at = now
            problem = "the storage cannot be written: %d errors in %.0f s; the last was %s"
            logger.error(problem, self._count, now - self._began_at, describe(error))

    def end(self) -> None:
        """Note that the storage has done something."""
        self.answers += 1
        if self._count:
            seconds = trio.current_time() - self._began_at
            logger.info("the storage answers, after %d errors in %.1f s", self._count, seconds)
            self._count = 0
