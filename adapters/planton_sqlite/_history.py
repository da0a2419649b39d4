"""How long the history is kept: it is pruned a little with the writes that make it grow."""

import sqlite3
import time

from planton_sqlite import _operate

INTERVAL = 60.0
# So many at once do not hold up the claims of others.
PORTION = 5000


class History:
    """Knows when to prune; used on the owner's thread.

    Args:
        retention: Seconds that what ended is kept; 0 keeps none.
    """

    def __init__(self, retention: float) -> None:
        self._retention = retention
        self._prune_at = time.monotonic()

    @property
    def is_kept(self) -> bool:
        """Whether there is a history at all."""
        return self._retention > 0

    def prune(self, connection: sqlite3.Connection) -> None:
        """Delete a portion of what is too old, if it is time, and the next with the next write."""
        now = time.monotonic()
        if now < self._prune_at:
            return
        if _operate.prune(connection, self._retention, PORTION) < PORTION:
            self._prune_at = now + INTERVAL
