"""Telling listeners; one that fails is logged and stops nobody."""

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import trio

from planton import ErrorEvent, InvalidArgumentError
from planton.storage import (
    ErrorLog,
    EventListeners,
    describe,
    failure_of,
    is_async,
    traceback_of,
)
from planton_executor._events import EVENT_TYPES, FailedEvent, LeaseAtRiskEvent

logger = logging.getLogger("planton.executor")

Listener: TypeAlias = Callable[[Any], Awaitable[None] | None]


class Listeners(EventListeners):
    """Listeners by event type, told in the order in which they were added."""

    def __init__(self) -> None:
        super().__init__(EVENT_TYPES)
        self._errors = ErrorLog()

    def add(self, event_type: type[Any], listener: Listener) -> None:
        if event_type is LeaseAtRiskEvent and is_async(listener):
            remedy = "give a plain function: it is called when trio's loop may be blocked"
            raise InvalidArgumentError("listener", listener, remedy)
        super().add(event_type, listener)

    def want(self, event_type: type[Any] | None) -> bool:
        """Return whether there is a listener of a type; for failures there is the log."""
        return event_type in self.heard or event_type is FailedEvent

    async def tell(self, event: Any) -> None:
        """Tell all listeners of an event, one after the other, and wait for them."""
        for wait in self._told(event):
            await wait()

    def tell_soon(self, event: Any, nursery: trio.Nursery) -> None:
        """Tell all listeners of an event at once; the nursery waits for async ones."""
        for wait in self._told(event):
            nursery.start_soon(wait)

    def tell_from_thread(self, event: LeaseAtRiskEvent) -> None:
        """Tell the listeners of risks, in the thread of the caller; it is logged in any case."""
        _log_risk(event)
        for listener in self.of(LeaseAtRiskEvent):
            _call(listener, event)

    def _told(self, event: Any) -> Iterator[Callable[[], Awaitable[None]]]:
        """Call each listener, or log; return how to wait for those that are async."""
        if type(event) not in self.heard:
            self._log(event)
        for listener in self.of(type(event)):
            if (waiting := _call(listener, event)) is not None:
                yield partial(_wait_for, waiting, listener, event)

    def _log(self, event: Any) -> None:
        if isinstance(event, FailedEvent):
            _log_failed(event)
        elif isinstance(event, ErrorEvent):
            self._errors.add(event)


def _call(listener: Listener, event: object) -> Any:
    """Call a listener; return what is to be awaited, if there is something."""
    try:
        result = listener(event)
        return result if result is not None and inspect.isawaitable(result) else None
    except BaseException as raised:  # noqa: ASYNC103  raised again if it is no failure
        _log_failure(listener, event, failure_of(raised))


async def _wait_for(result: Awaitable[None], listener: Listener, event: object) -> None:
    try:
        await result
    except BaseException as raised:  # noqa: ASYNC103  raised again if it is no failure
        _log_failure(listener, event, failure_of(raised))


def _log_failure(listener: object, event: object, error: Exception) -> None:
    name = getattr(listener, "__qualname__", type(listener).__name__)
    logger.error(
        "listener %s of %s failed", name, type(event).__name__, exc_info=traceback_of(error)
    )


def _log_risk(event: LeaseAtRiskEvent) -> None:
    cause = "trio's loop is blocked" if event.is_blocked else "the storage does not answer"
    seconds = event.expires_in
    when = f"expires in {seconds:.1f} s" if seconds > 0 else f"expired {-seconds:.1f} s ago"
    logger.error(
        "the lease of instruction %r of task %r %s: %s%s",
        *(event.work.instruction, event.work.task_name, when, cause, event.stack),
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
        exc_info=traceback_of(event.error) if event.reason == "error" else None,
        extra={"task_name": work.task_name, "instruction": work.instruction},
    )
