"""What does the work of a task."""

from collections.abc import Awaitable
from typing import Any, Protocol

import attrs
import trio

from planton_executor._calls import call_in_thread
from planton_executor._ends import End
from planton_executor._run import Run
from planton_executor._terms import Function, Terms, is_async


class Host(Protocol):
    """What a handler may use while it runs."""

    limiter: trio.CapacityLimiter

    async def store(self, run: Run, end: End) -> bool:
        """Store an end that is none yet; return whether the claim was ours."""

    async def tell(self, event: Any) -> None:
        """Tell the listeners."""


class Handler(Protocol):
    """Does the work of a task."""

    @property
    def terms(self) -> Terms:
        """On what terms it begins."""

    def call(self, run: Run, host: Host) -> Awaitable[Any]:
        """Do it; return the result, or an `End` if it has no end yet."""


@attrs.frozen(eq=False)
class AsyncHandler:
    """An async function of the user's: it runs on trio."""

    function: Function
    terms: Terms

    def call(self, run: Run, host: Host) -> Any:  # noqa: ARG002  every handler is given it
        return self.function(run.work)


@attrs.frozen(eq=False)
class ThreadHandler:
    """A plain function of the user's: it runs in a worker thread."""

    function: Function
    terms: Terms

    async def call(self, run: Run, host: Host) -> Any:
        return await call_in_thread(self.function, run.work, run, host.limiter)


def make_handler(function: Function, terms: Terms) -> Handler:
    """Return what calls a function."""
    return (AsyncHandler if is_async(function) else ThreadHandler)(function, terms)
