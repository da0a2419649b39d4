from __future__ import annotations

import trio


class Lock:
    """A `trio.Lock` that is no checkpoint when nobody holds it.

    Every statement takes the connection's lock, and the wait for its answer is a checkpoint
    already. And psycopg takes the lock before it cleans up: a cancellation there would leave the
    cleaning up undone.
    """

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def acquire(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    def release(self) -> None:
        self._lock.release()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()
