"""What users write down about their handlers."""

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import attrs
import trio

from planton import InvalidArgumentError
from planton.abc import to_count, to_name, to_number
from planton_executor._work import Work

if TYPE_CHECKING:
    from planton_executor._run import Run

Function: TypeAlias = Callable[[Work], Awaitable[Any] | Any]
RetryDelay: TypeAlias = float | Callable[[int], float]


def is_async(function: object) -> bool:
    """Tell whether calling `function` gives a coroutine: also for partials and callable objects."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  the method itself is looked at
    )


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
        """Look at them, or raise `InvalidArgumentError`."""
        return cls(
            timeout=None if timeout is None else to_number("timeout", timeout, above=0),
            retries=to_count("retries", retries),
            retry_delay=(
                retry_delay if callable(retry_delay) else to_number("retry_delay", retry_delay)
            ),
            lower_priority=bool(lower_priority),
        )

    def retry_in(self, tries: int) -> float:
        """Give the seconds until the next try, after so many."""
        if not callable(self.retry_delay):
            return self.retry_delay
        return to_number("retry_delay", self.retry_delay(tries - 1))


class Handler(Protocol):
    """Does the work of a task."""

    @property
    def terms(self) -> Terms:
        """On what terms it begins."""

    async def call(self, run: "Run", limiter: trio.CapacityLimiter) -> Any:
        """Do it; gives its result, or an `End` if it has no end yet."""


@attrs.frozen(eq=False)
class FunctionHandler:
    """A function of the user's: async ones run on trio, sync ones in a worker thread."""

    function: Function
    terms: Terms

    async def call(self, run: "Run", limiter: trio.CapacityLimiter) -> Any:
        if is_async(self.function):
            return await cast(Awaitable[Any], self.function(run.work))
        value = await self._call_in_thread(run, limiter)
        return await value if inspect.isawaitable(value) else value

    async def _call_in_thread(self, run: "Run", limiter: trio.CapacityLimiter) -> Any:
        token = trio.lowlevel.current_trio_token()
        ended = run.thread_ended = trio.Event()

        def call() -> Any:
            try:
                return self.function(run.work)
            finally:
                try:
                    token.run_sync_soon(ended.set)
                except trio.RunFinishedError:
                    pass  # nobody waits any more

        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter)


def checked_function(function: object) -> Any:
    """Give what can be called, or raise `InvalidArgumentError`."""
    if not callable(function):
        remedy = "give a function of one planton_executor.Work, sync or async"
        raise InvalidArgumentError("handler", function, remedy)
    return function


def checked_name(task_name: object, known: dict[str, Handler]) -> str:
    """Give the name of a task that has no handler yet."""
    name = to_name(task_name)
    if name in known:
        remedy = "it has a handler already: one task, one handler"
        raise InvalidArgumentError("task_name", name, remedy)
    return name
