"""The users' functions: what calling them does, and why one cannot be called."""

import inspect
from typing import Any

from planton._errors import InvalidArgumentError


def is_async(function: object) -> bool:
    """Return whether calling `function` makes a coroutine: partials and objects included."""
    return any(map(inspect.iscoroutinefunction, _called(function)))


def _called(function: object) -> tuple[object, object]:
    return function, getattr(function, "__call__", None)  # noqa: B004  of a callable object


def problem_of_function(value: Any, count: int | None = None) -> str | None:
    """Return why `value` cannot be called as a function of the user; None if it can.

    With `count`, with so many arguments, as far as its signature can be known.
    """
    if not callable(value):
        return "give a function, sync or async"
    for function in _called(value):
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            return "it has a `yield`, so calling it runs nothing: return what it yields"
    return None if count is None else _problem_of_arguments(value, count)


def _problem_of_arguments(function: Any, count: int) -> str | None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None  # written in C, some of it
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        return f"it must take {count} argument{'s' * (count > 1)} ({error})"
    return None


def check_function(argument: str, value: Any, count: int) -> None:
    """Raise `InvalidArgumentError` unless `value` can be called with `count` arguments."""
    problem = problem_of_function(value, count)
    if problem is not None:
        raise InvalidArgumentError(argument, value, problem)
