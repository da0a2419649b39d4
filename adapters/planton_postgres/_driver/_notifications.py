"""Notifications: anybody may send them, as many and as strange as they like."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from psycopg import Notify
from psycopg.abc import PQGen
from psycopg.waiting import Wait

if TYPE_CHECKING:
    from psycopg.pq import PGnotify
    from psycopg.pq.abc import PGconn

LIMIT = 10_000


class Notifications:
    """Those that have come and nobody has asked for, at most `LIMIT`; `dropped` counts the others.

    It takes the place of psycopg's handler, which keeps all and fails over bytes that are no text.
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._waiting: deque[PGnotify] = deque()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __call__(self, notify: PGnotify) -> None:
        if len(self._waiting) < LIMIT:
            self._waiting.append(notify)
        else:
            self.dropped += 1

    def pop(self) -> Notify:
        notify = self._waiting.popleft()
        return Notify(self._text(notify.relname), self._text(notify.extra), notify.be_pid)

    def _text(self, given: bytes) -> str:
        return given.decode(self._encoding, "replace")

    def hearing(self, pgconn: PGconn) -> PQGen[None]:
        """Wait for one at least; a reading of the socket, some kilobytes, is all that is taken."""
        self._take(pgconn)
        while not self._waiting:
            yield Wait.R
            pgconn.consume_input()
            self._take(pgconn)

    def _take(self, pgconn: PGconn) -> None:
        while notify := pgconn.notifies():
            self(notify)
