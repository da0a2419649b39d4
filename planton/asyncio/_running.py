"""A Planton in an asyncio program, for as long as a block lasts."""

from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar, TypeVarTuple, overload

from planton._errors import InvalidArgumentError
from planton._planton import Planton
from planton._status import TaskStatus
from planton.asyncio._bridge import Stay, called

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Handle(Stay):
    """A Planton that runs as a guest of the program's loop; made by `running`.

    Attributes:
        planton: The Planton. Its plain methods may be called from asyncio code.
    """

    def __init__(self, planton: Planton) -> None:
        super().__init__(planton)
        self.planton = planton

    async def terminate(self) -> None:
        """Stop attempts, drain, and return when that is done, within the grace period.

        Cancelled, it aborts and waits for the end of that. Called from within a callback, for
        which the drain waits, it asks for the stop and returns at once. It may be called more
        than once; leaving the block does the same.

        Raises:
            BaseException: What ended the run before, if it was something else.
        """
        if any(hop.is_current for hop in self._guest.hops):
            self._ask_to_leave()
            return
        await self._leave_early()
        self._visit.result()

    def wake(self, name: str | None = None) -> None:
        """Attempt a task now, or all of them; see `Planton.wake`.

        Raises:
            UnknownTaskError: If there is no such task.
        """
        self._guest.host.wake()
        self.planton.wake(name)

    def status(self) -> list[TaskStatus]:
        """Return the state of every task; see `Planton.status`."""
        return self.planton.status()

    @overload
    async def call(self, function: Callable[[*Ts], Coroutine[Any, Any, T]], *args: *Ts) -> T: ...

    @overload
    async def call(self, function: Callable[[*Ts], T], *args: *Ts) -> T: ...

    async def call(self, function: Callable[[*Ts], Any], *args: *Ts) -> Any:
        """Call a function on trio, and return what it returns or raise what it raises.

        For what has to be awaited there. Keyword arguments go into a `functools.partial`. A
        cancellation is carried over; it waits for the function to end.
        """
        return await called(function, *args)

    def _abort(self) -> None:
        self.planton.abort()


def running(planton: Planton) -> AbstractAsyncContextManager[Handle]:
    """Run `planton` in this asyncio program, in the same thread, for as long as the block lasts.

    The block begins when services are ready and attempts begin: an error at the start is raised
    there, as it is. Leaving it terminates, within the grace period of the Planton; an exception
    of the block leaves as it is. When the block is cancelled it drains; a second cancellation
    aborts, and waits for the end of the abort. Close pools and engines that callbacks use after
    the block.

    Args:
        planton: A Planton that does not run; its async callbacks, listeners and handlers that are
            coroutine functions of asyncio are wrapped by `callback`.

    Raises:
        AlreadyRunningError: If it runs already.
        InvalidArgumentError: If it is no Planton.
        PlantonError: If trio cannot be a guest here: it runs in this thread already, or on
            another loop of it, or this process was forked while it ran.
    """
    if not isinstance(planton, Planton):
        raise InvalidArgumentError("planton", planton, "give a planton.Planton")
    return Handle(planton)
