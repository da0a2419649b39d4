"""Who takes instructions: the consumers, with the slots that they have, and the listeners."""

from collections.abc import Sequence

import trio

from planton._errors import InvalidArgumentError, UnexpectedLimitError
from planton._events import InstructionEvent
from planton._failures import guarded
from planton._loop.listeners import Listeners
from planton._parts import Consumer
from planton._task import is_int
from planton._text import describe, short_repr

# An attempt waits this long for slots that claims of other tasks may turn out not to need; a claim
# that takes longer holds up none of them.
_PATIENCE = 1.0


class Slots:
    """The slots of one consumer, with those that claims on their way will take.

    Tasks that share a consumer would otherwise see the same free slot, and claim for it together.
    """

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self._reserved = 0
        self._waiting = trio.lowlevel.ParkingLot()

    def free(self, task_name: str) -> int | None:
        """Return how many slots are free, reserved ones included; None if it takes no such task."""
        with guarded:
            capacity = self.consumer.capacity(task_name)
        if capacity is not None and not is_int(capacity, 0):
            raise UnexpectedLimitError(task_name, "capacity", capacity)
        return capacity

    def takes(self, task_name: str) -> bool:
        """Return whether the consumer takes a task, or fails to say so."""
        try:
            return self.free(task_name) is not None
        except Exception:
            return True

    def try_reserve(self, task_name: str, limit: int) -> int | None:
        """Reserve at most `limit` slots; None if all that are free are reserved already."""
        free = self.free(task_name) or 0
        found = min(limit, max(free - self._reserved, 0))
        if found == 0 and free > 0:
            return None
        self._reserved += found
        return found

    async def reserve(self, task_name: str, limit: int) -> int:
        """Reserve slots, waiting a moment for those that turn out not to be needed."""
        with trio.move_on_after(_PATIENCE):
            while True:
                await self._waiting.park()
                found = self.try_reserve(task_name, limit)
                if found is not None:
                    self._waiting.unpark()  # there may be more of them
                    return found
        found = min(limit, self.free(task_name) or 0)
        self._reserved += found
        return found

    def give_back(self, count: int) -> None:
        """Reserve `count` slots no more: they were not needed, or the consumer counts them now."""
        self._reserved -= count
        self._waiting.unpark()


class Takers:
    def __init__(self, consumers: Sequence[Consumer], listeners: Listeners) -> None:
        self._slots = [Slots(consumer) for consumer in consumers]
        self._listeners = listeners

    @property
    def are_only_listeners(self) -> bool:
        """Whether listeners take the instructions of all tasks, and there are no consumers."""
        return not self._slots and bool(self._listeners.of(InstructionEvent))

    def slots_for(self, task_name: str) -> Slots | None:
        for slots in self._slots:
            if slots.free(task_name) is not None:
                return slots
        return None

    def is_taken(self, task_name: str) -> bool:
        if self._listeners.of(InstructionEvent):
            return True
        return any(slots.takes(task_name) for slots in self._slots)

    def failing(self, task_name: str) -> str | None:
        """Return what the consumers of a task say is wrong with its work."""
        for slots in self._slots:
            try:
                with guarded:
                    found = getattr(slots.consumer, "failing", lambda _: None)(task_name)
                if isinstance(found, str):
                    return found
            except Exception as error:  # one of the user's
                return f"its consumer does not say: {describe(error)}"
        return None

    def check(self, task_name: str) -> None:
        """Refuse two consumers for one task."""
        takers = [slots.consumer for slots in self._slots if slots.takes(task_name)]
        if len(takers) > 1:
            both = " and ".join(short_repr(consumer) for consumer in takers[:2])
            problem = f"{both} both take task {task_name!r}: let one of them take it"
            raise InvalidArgumentError("consumers", takers, problem)
