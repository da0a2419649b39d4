"""Who listens to what; a listener that fails is logged and stops nobody."""

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import trio

from planton import ErrorEvent, InvalidArgumentError
from planton.storage import describe, failure_of
from planton_executor._events import EVENT_TYPES, FailedEvent, LeaseAtRiskEvent
from planton_executor._functions import is_async

logger = logging.getLogger("planton.executor")

Listener: TypeAlias = Callable[[Any], Awaitable[None] | None]


class Listeners:
    """Listeners by event type, told in the order in which they were added."""

    def __init__(self) -> None:
        self._by_type: dict[type[Any], tuple[Listener, ...]] = dict.fromkeys(EVENT_TYPES, ())
        self._async_types: frozenset[type[Any]] = frozenset()
        self._wanted: frozenset[type[Any]] = frozenset([FailedEvent])

    def add(self, event_type: type[Any], listener: Listener) -> None:
        self._check(event_type, listener)
        self._set(event_type, (*self._by_type[event_type], listener))

    def remove(self, event_type: type[Any], listener: Listener) -> None:
        self._check(event_type, listener)
        listeners = list(self._by_type[event_type])
        if listener not in listeners:
            remedy = f"it does not listen to {event_type.__name__}: give what `on` was given"
            raise InvalidArgumentError("listener", listener, remedy)
        listeners.remove(listener)
        self._set(event_type, tuple(listeners))

    def _set(self, event_type: type[Any], listeners: tuple[Listener, ...]) -> None:
        self._by_type[event_type] = listeners
        heard = {each: those for each, those in self._by_type.items() if those}
        self._wanted = frozenset([*heard, FailedEvent])
        self._async_types = frozenset(each for each in heard if any(map(is_async, heard[each])))

    def want(self, event_type: type[Any] | None) -> bool:
        """Return whether there is a listener of a type; for failures there is the log."""
        return event_type in self._wanted

    def must_wait(self, event_type: type[Any] | None) -> bool:
        return event_type in self._async_types

    async def tell(self, event: Any) -> None:
        """Tell all listeners of an event, one after the other, and wait for them."""
        for listener in self._listeners_of(event):
            result = _call(listener, event)
            if result is not None and inspect.isawaitable(result):
                await _wait_for(result, listener, event)

    def tell_soon(self, event: Any, nursery: trio.Nursery) -> None:
        """Tell all listeners of an event at once; the nursery waits for async ones."""
        for listener in self._listeners_of(event):
            result = _call(listener, event)
            if result is not None and inspect.isawaitable(result):
                nursery.start_soon(_wait_for, result, listener, event)

    def tell_from_thread(self, event: LeaseAtRiskEvent) -> None:
        """Tell the listeners of risks, in the thread of the caller; it is logged in any case."""
        log(event)
        for listener in self._by_type[LeaseAtRiskEvent]:
            try:
                listener(event)
            except BaseException as raised:  # noqa: ASYNC103  raised again if it is no failure
                _log_failure(listener, event, failure_of(raised))

    def _listeners_of(self, event: Any) -> tuple[Listener, ...]:
        """Return who listens to an event, which is logged if nobody does."""
        listeners = self._by_type[type(event)]
        if not listeners:
            log(event)
        return listeners

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


def _call(listener: Listener, event: object) -> Any:
    try:
        return listener(event)
    except BaseException as raised:  # noqa: ASYNC103  raised again if it is no failure
        _log_failure(listener, event, failure_of(raised))


async def _wait_for(result: Awaitable[None], listener: Listener, event: object) -> None:
    try:
        await result
    except BaseException as raised:  # noqa: ASYNC103  raised again if it is no failure
        _log_failure(listener, event, failure_of(raised))


def _log_failure(listener: object, event: object, error: Exception) -> None:
    name = getattr(listener, "__qualname__", type(listener).__name__)
    logger.error("listener %s of %s failed", name, type(event).__name__, exc_info=error)


def log(event: object) -> None:
    if isinstance(event, FailedEvent):
        _log_failed(event)
    elif isinstance(event, ErrorEvent):
        logger.error(
            *("%s failed: %s", event.stage, describe(event.error)),
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


def _log_failed(event: FailedEvent) -> None:
    work, will_retry = event.work, event.retry_in is not None
    after = f"; another try is asked for in {event.retry_in:g} s" if will_retry else ""
    logger.log(
        logging.WARNING if will_retry else logging.ERROR,
        "task %r, instruction %r, delivery %d failed (%s): %s%s",
        *(work.task_name, work.instruction, work.delivery, event.reason),
        *(describe(event.error), after),
        exc_info=event.error if event.reason == "error" else None,
        extra={"task_name": work.task_name, "instruction": work.instruction},
    )
