"""Who takes instructions: the consumers, with the slots that they have, and the listeners."""

from collections import deque
from collections.abc import Sequence

import attrs
import trio

from planton._errors import InvalidArgumentError, UnexpectedLimitError
from planton._failures import guarded
from planton._loop.listeners import Listeners
from planton._parts import Consumer
from planton._task import is_int
from planton._text import short_repr

# An attempt waits this long for slots that claims of other tasks may turn out not to need; a claim
# that takes longer holds up none of them.
_PATIENCE = 1.0


@attrs.define(eq=False)
class _Request:
    """An attempt that waits for slots.

    Attributes:
        answer: How many it may have; None to ask the consumer itself.
    """

    task_name: str
    limit: int
    answered: trio.Event = attrs.field(factory=trio.Event)
    answer: int | None = None


class Slots:
    """The slots of one consumer, with those that claims on their way will take.

    Tasks that share a consumer would otherwise see the same free slot, and claim for it together.

    Attributes:
        consumer: Whose slots they are.
    """

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self._reserved = 0
        self._waiting: deque[_Request] = deque()

    def free(self, task_name: str) -> int | None:
        """Return how many slots are free, reserved ones included; None if it takes no such task.

        Raises:
            UnexpectedLimitError: If `capacity` returned no usable number.
        """
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
        request = _Request(task_name, limit)
        self._waiting.append(request)
        try:
            with trio.move_on_after(_PATIENCE):
                await request.answered.wait()
        finally:
            if not request.answered.is_set():
                self._waiting.remove(request)
        if request.answer is None:
            request.answer = min(limit, self.free(task_name) or 0)
            self._reserved += request.answer
        return request.answer

    def give_back(self, count: int) -> None:
        """Reserve `count` slots no more: they were not needed, or the consumer counts them now."""
        self._reserved -= count
        while count and self._waiting:
            request = self._waiting[0]
            try:
                request.answer = self.try_reserve(request.task_name, request.limit)
            except Exception:
                pass  # it asks again, and fails with its own error
            else:
                if request.answer is None:
                    return
            self._waiting.popleft()
            request.answered.set()


class Takers:
    """Who takes instructions of which task."""

    def __init__(self, consumers: Sequence[Consumer], listeners: Listeners) -> None:
        self._slots = [Slots(consumer) for consumer in consumers]
        self._listeners = listeners

    @property
    def are_only_listeners(self) -> bool:
        """Whether listeners take the instructions of all tasks, and there are no consumers."""
        return not self._slots and self._listeners.hear_instructions

    def slots_for(self, task_name: str) -> Slots | None:
        """Return the slots of the consumer that takes a task."""
        for slots in self._slots:
            if slots.free(task_name) is not None:
                return slots
        return None

    def is_taken(self, task_name: str) -> bool:
        """Return whether a consumer takes the task, or a listener its instructions."""
        if self._listeners.hear_instructions:
            return True
        return any(slots.takes(task_name) for slots in self._slots)

    def check(self, task_name: str) -> None:
        """Refuse two consumers for one task.

        Raises:
            InvalidArgumentError: If two take it; names both.
        """
        takers = [slots.consumer for slots in self._slots if slots.takes(task_name)]
        if len(takers) > 1:
            both = " and ".join(short_repr(consumer) for consumer in takers[:2])
            problem = f"{both} both take task {task_name!r}: let one of them take it"
            raise InvalidArgumentError("consumers", takers, problem)
