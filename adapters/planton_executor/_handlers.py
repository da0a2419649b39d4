"""What does the work of a task."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias

import attrs
import trio

from planton_executor._functions import call_in_thread, is_async
from planton_executor._listeners import Listeners
from planton_executor._run import End, Run
from planton_executor._terms import Terms
from planton_executor._work import Work

Function: TypeAlias = Callable[[Work], Awaitable[Any] | Any]


class Host(Protocol):
    """What a handler may use while it runs."""

    limiter: trio.CapacityLimiter
    listeners: Listeners
    is_draining: bool

    async def store(self, run: Run, end: End) -> bool:
        """Store an end that is none yet; return whether the claim was ours."""


class Handler(Protocol):
    """Does the work of a task."""

    @property
    def terms(self) -> Terms:
        """On what terms it begins."""

    def call(self, run: Run, host: Host) -> Awaitable[Any]:
        """Do it; return the result, or an `End` if it has another one."""


@attrs.frozen(eq=False)
class FunctionHandler:
    """A function of the user's: async ones run on trio, others in a thread."""

    function: Function
    terms: Terms
    is_async: bool = attrs.field(init=False)

    @is_async.default
    def _look(self) -> bool:
        return is_async(self.function)

    def call(self, run: Run, host: Host) -> Any:
        if self.is_async:
            return self.function(run.work)
        return call_in_thread(self.function, run.work, run, host.limiter)
