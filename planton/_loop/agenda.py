"""Who is due when: a heap, pure and without I/O."""

import heapq
import math
from collections.abc import Hashable
from itertools import count
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Agenda(Generic[K]):
    """Due times by key; each key has one due time at the most.

    Setting or discarding a key leaves its old heap item behind, which is skipped when it comes
    up. Items left behind are cleared out once they outnumber the keys, so that a task that is
    woken a thousand times during one long delay does not fill the memory.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, K]] = []
        self._current: dict[K, int] = {}
        self._serial = count()

    def __len__(self) -> int:
        return len(self._current)

    def __contains__(self, key: K) -> bool:
        return key in self._current

    def set(self, key: K, due: float, rank: int = 0) -> None:
        """Make `key` due at `due` instead of whenever it was due before.

        Of those that are due at the same time the lowest rank comes first.
        """
        serial = next(self._serial)
        self._current[key] = serial
        heapq.heappush(self._heap, (due, rank, serial, key))
        if len(self._heap) > 2 * len(self._current) + 64:
            self._compact()

    def discard(self, key: K) -> None:
        self._current.pop(key, None)

    def clear(self) -> None:
        self._heap.clear()
        self._current.clear()

    def next_due(self) -> float:
        """Return the earliest due time, infinity when there is none."""
        while self._heap:
            due, _, serial, key = self._heap[0]
            if self._current.get(key) == serial:
                return due
            heapq.heappop(self._heap)
        return math.inf

    def pop_due(self, now: float) -> list[K]:
        """Take out the keys that are due at `now`, the earliest first, ties by rank and `set`."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            _, _, serial, key = heapq.heappop(self._heap)
            if self._current.get(key) == serial:
                del self._current[key]
                due.append(key)
        return due

    def _compact(self) -> None:
        self._heap = [item for item in self._heap if self._current.get(item[3]) == item[2]]
        heapq.heapify(self._heap)
