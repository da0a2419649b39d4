"""Reports that arrive while one is being written share the next statement, without a timer."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import trio

T = TypeVar("T")

# How many rows a statement takes at the most; large enough for the cost of a commit to vanish.
GROUP = 5000


class _Group(Generic[T]):
    def __init__(self) -> None:
        self.rows: list[T] = []
        self.is_done = trio.Event()
        self.found: dict[str, str] = {}
        self.error: BaseException | None = None


class Gatherer(Generic[T]):
    """Gives rows to `write`, those of several callers at once.

    Args:
        write: Writes rows in one transaction; gives the receipts that it found, and their tasks.
    """

    def __init__(self, write: Callable[[Sequence[T]], Awaitable[dict[str, str]]]) -> None:
        self._write = write
        self._turn = trio.Lock()
        self._next: _Group[T] | None = None

    async def __call__(self, rows: Sequence[T]) -> dict[str, str]:
        """Write rows; the receipts that were found among all that was written with them.

        Not cancelled once it has begun; the writing has a time limit.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        group, leads = self._join(rows)
        with trio.CancelScope(shield=True):
            if leads:
                await self._lead(group)
            else:
                await group.is_done.wait()
        if group.error is not None:
            raise group.error
        return group.found

    def _join(self, rows: Sequence[T]) -> tuple[_Group[T], bool]:
        group = self._next
        if leads := group is None or len(group.rows) >= GROUP:
            group = self._next = _Group()
        assert group is not None
        group.rows += rows
        return group, leads

    async def _lead(self, group: _Group[T]) -> None:
        """Wait until the group before is written, while this one grows; then write it."""
        try:
            async with self._turn:
                if self._next is group:
                    self._next = None
                group.found = await self._write(group.rows)
        except BaseException as error:  # noqa: ASYNC103  raised by all who wait
            group.error = error
        finally:
            group.is_done.set()
