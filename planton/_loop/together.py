"""Tasks that are due together, one of whose callbacks is a plain function, asked together again."""

from typing import TypeAlias

import trio

from planton._loop.attempt import Attempt, Question

# Those that take longer to answer than the first by this much go on by themselves.
_PATIENCE = 0.01
Member: TypeAlias = tuple[Attempt, Question | None]


class Cohort:
    """Attempts whose answers to one question are awaited, so that the next is asked of all."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._arrived: dict[int, Member] = {}
        self._is_closed = False
        self._first, self._last = trio.Event(), trio.Event()

    def add(self, number: int, attempt: Attempt, question: Question | None) -> bool:
        """Let an attempt go on with the others; False if they are gone."""
        if self._is_closed:
            return False
        self._arrived[number] = (attempt, question)
        self._first.set()
        if len(self._arrived) == self._size:
            self._last.set()
        return True

    async def close(self) -> list[Member]:
        """Wait for all, or for those that answer about as fast as the first."""
        await self._first.wait()
        with trio.move_on_after(_PATIENCE):
            await self._last.wait()
        self._is_closed = True
        return [self._arrived[number] for number in sorted(self._arrived)]
