"""Who listens to what, and telling them; a listener that fails stops nobody else."""

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from planton._errors import InvalidArgumentError, PlantonError
from planton._events import EVENT_TYPES, AttemptEvent, ErrorEvent, Event
from planton._loop.callbacks import is_async

logger = logging.getLogger("planton")

Listener: TypeAlias = Callable[[Any], Awaitable[None] | None]


class Listeners:
    """Listeners by event type, told in the order in which they were added."""

    def __init__(self) -> None:
        self._by_type: dict[type[Event], tuple[Listener, ...]] = dict.fromkeys(EVENT_TYPES, ())
        self._async_types: frozenset[type[Event]] = frozenset()

    def add(self, event_type: type[Event], listener: Listener) -> None:
        """Add `listener`; added twice it is told twice."""
        self._check(event_type, listener)
        self._replace(event_type, (*self._by_type[event_type], listener))

    def remove(self, event_type: type[Event], listener: Listener) -> None:
        """Remove the listener that was added last, if it is there more than once."""
        self._check(event_type, listener)
        listeners = list(self._by_type[event_type])
        if listener not in listeners:
            remedy = f"it does not listen to {event_type.__name__}: give what `on` was given"
            raise InvalidArgumentError("listener", listener, remedy)
        del listeners[len(listeners) - 1 - listeners[::-1].index(listener)]
        self._replace(event_type, tuple(listeners))

    def of(self, event_type: type[Event]) -> tuple[Listener, ...]:
        """Give the listeners as they are now; adding and removing makes a new tuple."""
        return self._by_type[event_type]

    def may_wait_for(self, event_type: type[Event]) -> bool:
        """Tell whether a listener of `event_type` is async."""
        return event_type in self._async_types

    async def attempted(self, event: AttemptEvent) -> None:
        """Tell the listeners of attempts; their errors are reported."""
        for listener in self._by_type[AttemptEvent]:
            try:
                await tell(listener, event)
            except Exception as error:
                await self.report(
                    ErrorEvent(task_name=event.task_name, error=error, stage="deliver")
                )

    async def report(self, event: ErrorEvent) -> None:
        """Tell the listeners of errors, or the log when there are none or when they fail."""
        listeners = self._by_type[ErrorEvent]
        if not listeners:
            log(event)
        for listener in listeners:
            try:
                await tell(listener, event)
            except Exception as error:
                log(event)
                log(ErrorEvent(task_name=event.task_name, error=error, stage="deliver"))

    def _replace(self, event_type: type[Event], listeners: tuple[Listener, ...]) -> None:
        self._by_type[event_type] = listeners
        self._async_types = frozenset(
            key for key, value in self._by_type.items() if any(map(is_async, value))
        )

    def _check(self, event_type: object, listener: object) -> None:
        if event_type not in EVENT_TYPES:
            names = ", ".join(known.__name__ for known in EVENT_TYPES)
            raise InvalidArgumentError("event_type", event_type, f"give one of {names}")
        if not callable(listener):
            remedy = "give a function of one event, sync or async"
            raise InvalidArgumentError("listener", listener, remedy)


async def tell(listener: Listener, event: Event) -> None:
    """Call `listener`, awaiting it if it is async; its errors are the caller's."""
    result = listener(event)
    if result is not None and inspect.isawaitable(result):
        await result


def log(event: ErrorEvent) -> None:
    """Log an error that nobody listens to; of Planton's own the words say it all."""
    is_told = isinstance(event.error, PlantonError) and not logger.isEnabledFor(logging.DEBUG)
    extra = {"task_name": event.task_name, "stage": event.stage, "service": event.service}
    logger.error(
        "%s failed: %s",
        _where(event),
        event.error,
        exc_info=None if is_told else event.error,
        extra=extra,
    )


def _where(event: ErrorEvent) -> str:
    if event.task_name is not None:
        return f"{event.stage} of task {event.task_name!r}"
    return event.stage if event.service is None else f"{event.stage} {event.service}"
