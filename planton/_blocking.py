"""A method of a storage, called by a synchronous program that runs no Planton."""

from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, ParamSpec, TypeVar, cast

import trio

from planton._errors import InvalidArgumentError, PlantonError

P = ParamSpec("P")
T = TypeVar("T")


def call_blocking(
    function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call an async method of a storage from a synchronous program, and return what it returns.

    With a `connection` of the program's it runs in this thread, in the transaction of that
    connection, and opens nothing. Without one it opens the storage for this call, on trio, and
    closes it: a few milliseconds. Programs that call often keep one open instead, by
    `start_in_thread(Planton(storages=[storage]))` and the `call` of its handle.

    Args:
        function: Such as `storage.enqueue`, `storage.complete` or `storage.find`.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Raises:
        InvalidArgumentError: If it is no async method of a storage.
        PlantonError: If it would block trio: there, await it.
        BaseException: What the method raises.
    """
    storage = getattr(function, "__self__", None)
    if not isinstance(storage, AbstractAsyncContextManager):
        remedy = "give an async method of a storage, such as storage.enqueue"
        raise InvalidArgumentError("function", function, remedy)
    if trio.lowlevel.in_trio_task():
        raise PlantonError("this would block trio: await the method instead")
    if kwargs.get("connection") is not None:
        return _at_once(function(*args, **kwargs))
    return cast(T, trio.run(_within, storage, function, args, kwargs))


async def _within(storage: Any, function: Any, args: Any, kwargs: Any) -> Any:
    async with storage:
        return await function(*args, **kwargs)


def _at_once(call: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns that never waits, for nothing here is on trio."""
    try:
        call.send(None)
    except StopIteration as stop:
        return cast(T, stop.value)
    call.close()
    remedy = "give one that blocks, or await this on asyncio"
    raise PlantonError(f"the connection belongs to asyncio: {remedy}")
