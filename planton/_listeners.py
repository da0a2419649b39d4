"""Who listens to what kind of event."""

import inspect
import typing
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

from planton._errors import InvalidArgumentError
from planton._failures import guarded
from planton._functions import check_function, is_async

Listener: TypeAlias = Callable[[Any], Awaitable[None] | None]


class EventListeners:
    """Listeners by event type, in the order in which they were added.

    Attributes:
        heard: The types that somebody listens to.
    """

    def __init__(self, event_types: Iterable[type[Any]]) -> None:
        self._by_type: dict[type[Any], tuple[Listener, ...]] = dict.fromkeys(event_types, ())
        self._async_types: frozenset[type[Any]] = frozenset()
        self.heard: frozenset[type[Any]] = frozenset()

    def add(self, event_type: type[Any], listener: Listener) -> None:
        self.check_type(event_type)
        check_function("listener", listener, 1)
        expected = _first_hint(listener)
        if isinstance(expected, type) and expected in self._by_type.keys() - {event_type}:
            problem = f"it takes {expected.__name__}, and would get {event_type.__name__}"
            raise InvalidArgumentError("listener", listener, problem)
        self._replace(event_type, (*self._by_type[event_type], listener))

    def remove(self, event_type: type[Any], listener: Listener) -> None:
        """Remove the listener that was added last, if it is there more than once."""
        self.check_type(event_type)
        listeners = list(self._by_type[event_type])
        if listener not in listeners:
            remedy = f"it does not listen to {event_type.__name__}: give what `on` was given"
            raise InvalidArgumentError("listener", listener, remedy)
        del listeners[len(listeners) - 1 - listeners[::-1].index(listener)]
        self._replace(event_type, tuple(listeners))

    def of(self, event_type: type[Any]) -> tuple[Listener, ...]:
        """Return the listeners as they are now; adding and removing makes a new tuple."""
        return self._by_type[event_type]

    def may_wait_for(self, event_type: type[Any] | None) -> bool:
        return event_type in self._async_types

    def check_type(self, event_type: object) -> None:
        if event_type not in self._by_type:
            remedy = f"give one of {', '.join(known.__name__ for known in self._by_type)}"
            if not isinstance(event_type, type) and callable(event_type):
                remedy += ", and the listener after it"
            raise InvalidArgumentError("event_type", event_type, remedy)

    def _replace(self, event_type: type[Any], listeners: tuple[Listener, ...]) -> None:
        self._by_type[event_type] = listeners
        self.heard = frozenset(key for key, value in self._by_type.items() if value)
        self._async_types = frozenset(
            key for key, value in self._by_type.items() if any(map(is_async, value))
        )


async def call_listener(listener: Listener, event: object) -> None:
    with guarded:
        result = listener(event)
        if result is not None and inspect.isawaitable(result):
            await result


def _first_hint(listener: Any) -> Any:
    """Return what a listener says that it takes, as far as that can be known."""
    try:
        parameter = next(iter(inspect.signature(listener).parameters))
        return typing.get_type_hints(inspect.unwrap(listener)).get(parameter)
    except Exception:  # names that exist only for a type checker, and objects without hints
        return None
