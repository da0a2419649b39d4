"""What users write down about their handlers."""

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import attrs
import trio

from planton import InvalidArgumentError
from planton.storage import to_count, to_name, to_number
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
        return await called(self.function, run.work, run, limiter)


async def called(
    function: Callable[[Any], Any], argument: object, run: "Run", limiter: trio.CapacityLimiter
) -> Any:
    """Call what users wrote, with its one argument: on trio if it is async, else in a thread."""
    if is_async(function):
        return await function(argument)
    value = await _called_in_thread(function, argument, run, limiter)
    return await value if inspect.isawaitable(value) else value


async def _called_in_thread(
    function: Callable[[Any], Any], argument: object, run: "Run", limiter: trio.CapacityLimiter
) -> Any:
    token = trio.lowlevel.current_trio_token()
    ended = run.thread_ended = trio.Event()

    def call() -> tuple[Any]:
        try:
            # In a tuple: trio refuses an awaitable from a thread, if it sees it.
            return (function(argument),)
        finally:
            try:
                token.run_sync_soon(ended.set)
            except trio.RunFinishedError:
                pass  # nobody waits any more

    try:
        (value,) = await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter)
    except Exception:
        run.thread_ended = None
        raise
    run.thread_ended = None
    return value


def checked_function(function: object) -> Any:
    """Give what can be called with one `Work`, or raise `InvalidArgumentError`."""
    remedy = "give a function of one planton_executor.Work, sync or async"
    if not callable(function):
        raise InvalidArgumentError("handler", function, remedy)
    if is_generator(function):
        raise InvalidArgumentError("handler", function, f"it is a generator: {remedy}")
    if not takes(function, 1):
        raise InvalidArgumentError("handler", function, f"it cannot be called with one: {remedy}")
    return function


def is_generator(function: object) -> bool:
    """Tell whether calling it does nothing but make a generator: it would not be done."""
    tests = (inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    method = getattr(function, "__call__", None)  # noqa: B004  the method itself is looked at
    return any(test(each) for test in tests for each in (function, method))


def takes(function: Callable[..., Any], count: int) -> bool:
    """Tell whether it can be called with so many arguments, as far as it can be known."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True  # written in C, some of it
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def checked_name(task_name: object, known: dict[str, Handler]) -> str:
    """Give the name of a task that has no handler yet."""
    name = to_name(task_name)
    if name in known:
        remedy = "it has a handler already: one task, one handler"
        raise InvalidArgumentError("task_name", name, remedy)
    return name
