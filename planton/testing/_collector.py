"""All that a Planton told its listeners, in a list."""

from typing import TypeVar

import trio

from planton._events import EVENT_TYPES, AttemptEvent, ErrorEvent, Event, InstructionEvent
from planton._planton import Planton

E = TypeVar("E", bound=Event)


class EventCollector:
    """Listens to everything and keeps it, oldest first.

    It takes every instruction, so tasks never wait for it. As it listens to errors, they are not
    logged.

    Args:
        planton: Whom to listen to.
        event_types: What to listen to; everything when none is given.
    """

    def __init__(self, planton: Planton, *event_types: type[Event]) -> None:
        self.events: list[Event] = []
        self._arrived = trio.Event()
        for event_type in event_types or EVENT_TYPES:
            planton.on(event_type, self._collect)

    @property
    def instructions(self) -> list[str]:
        """The instructions that were handed out, task names left out."""
        return [event.instruction for event in self.of(InstructionEvent)]

    @property
    def errors(self) -> list[Exception]:
        """The errors that were reported."""
        return [event.error for event in self.of(ErrorEvent)]

    @property
    def outcomes(self) -> list[str]:
        """How the attempts ended."""
        return [event.outcome for event in self.of(AttemptEvent)]

    def of(self, event_type: type[E], task_name: str | None = None) -> list[E]:
        """Return the events of one type, of one task if it is named."""
        found = [event for event in self.events if isinstance(event, event_type)]
        return [event for event in found if task_name in (None, getattr(event, "task_name", None))]

    async def wait_for(self, event_type: type[E], count: int = 1) -> list[E]:
        """Wait until there have been `count` events of a type; those before the call count."""
        while len(self.of(event_type)) < count:
            await self._arrived.wait()
        return self.of(event_type)

    def _collect(self, event: Event) -> None:
        self.events.append(event)
        self._arrived.set()
        self._arrived = trio.Event()
