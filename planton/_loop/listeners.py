"""Who listens to what; a listener that fails stops nobody else."""

import inspect
import typing
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from planton._errors import InvalidArgumentError
from planton._events import EVENT_TYPES, AttemptEvent, ErrorEvent, Event, InstructionEvent
from planton._failures import guarded
from planton._loop.callbacks import is_async
from planton._loop.log import ErrorLog, log_error
from planton._task import problem_of_function

Listener: TypeAlias = Callable[[Any], Awaitable[None] | None]


class Listeners:
    """Listeners by event type, called in the order in which they were added."""

    def __init__(self) -> None:
        self._log = ErrorLog()
        self._by_type: dict[type[Event], tuple[Listener, ...]] = dict.fromkeys(EVENT_TYPES, ())
        self._async_types: frozenset[type[Event]] = frozenset()
        self.hear_instructions = False

    def add(self, event_type: type[Event], listener: Listener) -> None:
        check_event_type(event_type)
        _check_listener(event_type, listener)
        self._replace(event_type, (*self._by_type[event_type], listener))

    def remove(self, event_type: type[Event], listener: Listener) -> None:
        """Remove the listener that was added last, if it is there more than once."""
        check_event_type(event_type)
        listeners = list(self._by_type[event_type])
        if listener not in listeners:
            remedy = f"it does not listen to {event_type.__name__}: give what `on` was given"
            raise InvalidArgumentError("listener", listener, remedy)
        del listeners[len(listeners) - 1 - listeners[::-1].index(listener)]
        self._replace(event_type, tuple(listeners))

    def of(self, event_type: type[Event]) -> tuple[Listener, ...]:
        """Return the listeners as they are now; adding and removing makes a new tuple."""
        return self._by_type[event_type]

    def may_wait_for(self, event_type: type[Event]) -> bool:
        return event_type in self._async_types

    async def attempted(self, event: AttemptEvent) -> None:
        for listener in self._by_type[AttemptEvent]:
            try:
                await call_listener(listener, event)
            except Exception as error:
                await self.report(
                    ErrorEvent(task_name=event.task_name, error=error, stage="deliver")
                )

    async def report(self, event: ErrorEvent) -> None:
        """Call the listeners of errors, or log it when there are none or when they fail."""
        listeners = self._by_type[ErrorEvent]
        if not listeners:
            self._log.add(event)
        for listener in listeners:
            try:
                await call_listener(listener, event)
            except Exception as error:
                log_error(event)
                log_error(ErrorEvent(task_name=event.task_name, error=error, stage="deliver"))

    def _replace(self, event_type: type[Event], listeners: tuple[Listener, ...]) -> None:
        self._by_type[event_type] = listeners
        self.hear_instructions = bool(self._by_type[InstructionEvent])
        self._async_types = frozenset(
            key for key, value in self._by_type.items() if any(map(is_async, value))
        )


async def call_listener(listener: Listener, event: Event) -> None:
    with guarded:
        result = listener(event)
        if result is not None and inspect.isawaitable(result):
            await result


def check_event_type(event_type: object) -> None:
    if event_type not in EVENT_TYPES:
        names = ", ".join(known.__name__ for known in EVENT_TYPES)
        remedy = f"give one of {names}"
        if not isinstance(event_type, type) and callable(event_type):
            remedy += ", and the listener after it"
        raise InvalidArgumentError("event_type", event_type, remedy)


def _check_listener(event_type: type[Event], listener: object) -> None:
    remedy = "give a function of one event, sync or async"
    problem = problem_of_function(listener)
    if problem is None:
        problem = _problem_of_parameter(event_type, listener)
    elif not callable(listener):
        problem = remedy
    if problem is not None:
        raise InvalidArgumentError("listener", listener, problem)


def _problem_of_parameter(event_type: type[Event], listener: Any) -> str | None:
    """Return what is wrong with what a listener takes, as far as its signature says."""
    try:
        signature = inspect.signature(listener)
    except (TypeError, ValueError):
        return None
    try:
        arguments = signature.bind(None).arguments
    except TypeError as error:
        return f"it must take one event ({error})"
    expected = _annotation(listener, next(iter(arguments), ""))
    if not isinstance(expected, type) or not issubclass(expected, Event):
        return None
    if issubclass(event_type, expected):
        return None
    return f"it takes {expected.__name__}, and would get {event_type.__name__}"


def _annotation(listener: Any, parameter: str) -> object:
    try:
        return typing.get_type_hints(inspect.unwrap(listener)).get(parameter)
    except Exception:  # names that exist only for a type checker, and objects without hints
        return None
