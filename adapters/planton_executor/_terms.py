"""On what terms work is tried, and checks of the functions that users wrote."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import attrs

from planton import InvalidArgumentError
from planton.storage import to_count, to_number
from planton_executor._work import Work

Function: TypeAlias = Callable[[Work], Awaitable[Any] | Any]
RetryDelay: TypeAlias = float | Callable[[int], float]


@attrs.frozen(kw_only=True)
class Terms:
    """On what terms work is tried.

    Attributes:
        timeout: Seconds that one try may take; None for no limit.
        retries: Given to an instruction that has none of its own when it fails first.
        retry_delay: Seconds until the next try, or a function of how many came before.
        lower_priority: Whether a next try has a priority one lower.
    """

    timeout: float | None = None
    retries: int = 0
    retry_delay: RetryDelay = 0.0
    lower_priority: bool = False

    @classmethod
    def of(
        cls,
        *,
        timeout: float | None,
        retries: int,
        retry_delay: RetryDelay,
        lower_priority: bool = False,
    ) -> "Terms":
        """Return them checked, or raise `InvalidArgumentError`."""
        return cls(
            timeout=None if timeout is None else to_number("timeout", timeout, above=0),
            retries=to_count("retries", retries),
            retry_delay=(
                retry_delay if callable(retry_delay) else to_number("retry_delay", retry_delay)
            ),
            lower_priority=bool(lower_priority),
        )

    def retry_in(self, tries: int) -> float:
        """Return the seconds until the next try, after so many."""
        if not callable(self.retry_delay):
            return self.retry_delay
        return to_number("retry_delay", self.retry_delay(tries - 1))


def is_async(function: object) -> bool:
    """Return whether calling it makes a coroutine: also of partials and callable objects."""
    return any(map(inspect.iscoroutinefunction, _called(function)))


def is_generator(function: object) -> bool:
    """Return whether calling it only makes a generator: nothing would be done."""
    called = _called(function)
    tests = (inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    return any(test(each) for test in tests for each in called)


def _called(function: object) -> tuple[object, object]:
    return function, getattr(function, "__call__", None)  # noqa: B004  of a callable object


def takes(function: Callable[..., Any], count: int) -> bool:
    """Return whether it can be called with so many arguments, as far as that can be known."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True  # written in C, some of it
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def check_function(function: object) -> Any:
    """Return what can be called with one `Work`, or raise `InvalidArgumentError`."""
    remedy = "give a function of one planton_executor.Work, sync or async"
    if not callable(function):
        raise InvalidArgumentError("handler", function, remedy)
    if is_generator(function):
        raise InvalidArgumentError("handler", function, f"it is a generator: {remedy}")
    if not takes(function, 1):
        raise InvalidArgumentError("handler", function, f"it cannot be called with one: {remedy}")
    return function
