"""Who listens to what; a listener that fails is logged and stops nobody."""

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from planton import ErrorEvent, InvalidArgumentError
from planton_executor._events import EVENT_TYPES, FailedEvent, LeaseAtRiskEvent
from planton_executor._handlers import is_async

logger = logging.getLogger("planton.executor")

Listener: TypeAlias = Callable[[Any], Awaitable[None] | None]


class Listeners:
    """Listeners by event type, told in the order in which they were added."""

    def __init__(self) -> None:
        self._by_type: dict[type[Any], tuple[Listener, ...]] = dict.fromkeys(EVENT_TYPES, ())

    def add(self, event_type: type[Any], listener: Listener) -> None:
        """Add a listener; added twice it is told twice."""
        self._check(event_type, listener)
        self._by_type[event_type] += (listener,)

    def remove(self, event_type: type[Any], listener: Listener) -> None:
        """Remove a listener."""
        self._check(event_type, listener)
        listeners = list(self._by_type[event_type])
        if listener not in listeners:
            remedy = f"it does not listen to {event_type.__name__}: give what `on` was given"
            raise InvalidArgumentError("listener", listener, remedy)
        listeners.remove(listener)
        self._by_type[event_type] = tuple(listeners)

    async def tell(self, event: Any) -> None:
        """Tell all listeners of an event; errors and failures without any are logged."""
        listeners = self._by_type[type(event)]
        if not listeners:
            _log(event)
        for listener in listeners:
            try:
                result = listener(event)
                if result is not None and inspect.isawaitable(result):
                    await result
            except Exception:
                _log_failure(listener, event)

    def tell_from_thread(self, event: LeaseAtRiskEvent) -> None:
        """Tell those who listen to risks, here and now."""
        _log(event)
        for listener in self._by_type[LeaseAtRiskEvent]:
            try:
                listener(event)
            except Exception:
                _log_failure(listener, event)

    def _check(self, event_type: object, listener: object) -> None:
        if event_type not in EVENT_TYPES:
            names = ", ".join(known.__name__ for known in EVENT_TYPES)
            raise InvalidArgumentError("event_type", event_type, f"give one of {names}")
        if not callable(listener):
            remedy = "give a function of one event, sync or async"
            raise InvalidArgumentError("listener", listener, remedy)
        if event_type is LeaseAtRiskEvent and is_async(listener):
            remedy = "give a plain function: it is called when trio's loop may be blocked"
            raise InvalidArgumentError("listener", listener, remedy)


def _log_failure(listener: object, event: object) -> None:
    logger.exception("listener %r of %s failed", listener, type(event).__name__)


def _log(event: object) -> None:
    """Log what nobody listens to, if it is a problem."""
    if isinstance(event, FailedEvent):
        work = event.work
        logger.error(
            "task %r, instruction %r, delivery %d failed (%s): %s",
            *(work.task_name, work.instruction, work.delivery, event.reason, event.error),
            exc_info=event.error if event.reason == "error" else None,
            extra={"task_name": work.task_name, "instruction": work.instruction},
        )
    elif isinstance(event, ErrorEvent):
        logger.error(
            *("%s failed: %s", event.stage, event.error),
            exc_info=event.error,
            extra={"task_name": event.task_name, "stage": event.stage},
        )
    elif isinstance(event, LeaseAtRiskEvent):
        cause = "trio's loop is blocked" if event.is_blocked else "the storage does not answer"
        logger.error(
            "the lease of instruction %r of task %r expires in %.1f s: %s%s",
            *(event.work.instruction, event.work.task_name, event.expires_in, cause, event.stack),
            extra={"task_name": event.work.task_name, "instruction": event.work.instruction},
        )
