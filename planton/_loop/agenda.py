"""Who is due when: a heap of times, pure and without I/O."""

import heapq
import math
from collections.abc import Hashable
from itertools import count
from typing import Generic, TypeAlias, TypeVar

K = TypeVar("K", bound=Hashable)
Item: TypeAlias = tuple[int, int, K]  # rank, serial number, key


class Agenda(Generic[K]):
    """Due times by key; each key has one due time at the most.

    Keys that are due at the same time are one item of the heap. Setting or discarding a key leaves
    its old place behind, which is skipped when it comes up. Places left behind are cleared out once
    they outnumber the keys, so that a task that is woken a thousand times during one long delay
    does not fill the memory.
    """

    def __init__(self) -> None:
        self._times: list[float] = []  # a heap of the keys of `_due_at`
        self._due_at: dict[float, list[Item[K]]] = {}
        self._current: dict[K, Item[K]] = {}
        self._places = 0
        self._serial = count()

    def __len__(self) -> int:
        return len(self._current)

    def __contains__(self, key: K) -> bool:
        return key in self._current

    def set(self, key: K, due: float, rank: int = 0) -> None:
        """Make `key` due at `due` instead of whenever it was due before.

        Of those that are due at the same time the lowest rank comes first.
        """
        item = self._current[key] = (rank, next(self._serial), key)
        together = self._due_at.get(due)
        if together is None:
            self._due_at[due] = [item]
            heapq.heappush(self._times, due)
        else:
            together.append(item)
        self._places += 1
        if self._places > 2 * len(self._current) + 64:
            self._compact()

    def discard(self, key: K) -> None:
        self._current.pop(key, None)

    def clear(self) -> None:
        self._current.clear()
        self._compact()

    def next_due(self) -> float:
        """Return the earliest due time, infinity when there is none."""
        while self._times:
            items = self._due_at[self._times[0]]
            while items and self._current.get(items[-1][2]) is not items[-1]:
                items.pop()
                self._places -= 1
            if items:
                return self._times[0]
            self._pop()
        return math.inf

    def pop_due(self, now: float) -> list[K]:
        """Take out the keys that are due at `now`, the earliest first, ties by rank and `set`."""
        due: list[K] = []
        while self._times and self._times[0] <= now:
            due += [key for _, _, key in sorted(self._live(self._pop()))]
        for key in due:
            del self._current[key]
        return due

    def _live(self, items: list[Item[K]]) -> list[Item[K]]:
        return [item for item in items if self._current.get(item[2]) is item]

    def _pop(self) -> list[Item[K]]:
        items = self._due_at.pop(heapq.heappop(self._times))
        self._places -= len(items)
        return items

    def _compact(self) -> None:
        live = ((due, self._live(items)) for due, items in self._due_at.items())
        self._due_at = {due: items for due, items in live if items}
        self._times = sorted(self._due_at)
        self._places = len(self._current)
