"""What users write down about their handlers."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import attrs

from planton import InvalidArgumentError
from planton.abc import to_count, to_name, to_number
from planton_executor._work import Work

Function: TypeAlias = Callable[[Work], Awaitable[Any] | Any]
RetryDelay: TypeAlias = float | Callable[[int], float]


def is_async(function: object) -> bool:
    """Tell whether calling `function` gives a coroutine: also for partials and callable objects."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  the method itself is looked at
    )


@attrs.frozen(eq=False, kw_only=True)
class Handler:
    """A function with what is to be known to call it.

    Attributes:
        timeout: Seconds that one call may take; None for no limit.
        retries: Given to an instruction that has none of its own when it fails first.
        retry_delay: Seconds until the next try, or a function of how many came before.
        lower_priority: Whether a retry has a priority one lower.
    """

    function: Function
    is_async: bool
    timeout: float | None
    retries: int
    retry_delay: RetryDelay
    lower_priority: bool

    @classmethod
    def of(
        cls,
        function: Any,
        *,
        timeout: float | None,
        retries: int,
        retry_delay: RetryDelay,
        lower_priority: bool,
    ) -> "Handler":
        """Look at it, or raise `InvalidArgumentError`."""
        if not callable(function):
            remedy = "give a function of one planton_executor.Work, sync or async"
            raise InvalidArgumentError("handler", function, remedy)
        return cls(
            function=function,
            is_async=is_async(function),
            timeout=None if timeout is None else to_number("timeout", timeout, above=0),
            retries=to_count("retries", retries),
            retry_delay=(
                retry_delay if callable(retry_delay) else to_number("retry_delay", retry_delay)
            ),
            lower_priority=bool(lower_priority),
        )

    def retry_in(self, delivery: int) -> float:
        """Give the seconds until the next try, after so many deliveries."""
        if not callable(self.retry_delay):
            return self.retry_delay
        return to_number("retry_delay", self.retry_delay(delivery - 1))


def checked_name(task_name: object, known: dict[str, Handler]) -> str:
    """Give the name of a task that has no handler yet."""
    name = to_name(task_name)
    if name in known:
        remedy = "it has a handler already: one task, one handler"
        raise InvalidArgumentError("task_name", name, remedy)
    return name
