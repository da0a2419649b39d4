"""An asyncio loop in a thread, for clients that run on nothing else."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from planton.hosting import asyncio_callback
from planton_brokers._port import Connection, Message, Received

T = TypeVar("T")


class LoopThread:
    """Calls coroutine functions in the loop of another thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    async def call(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """Await what a coroutine function returns there; a cancellation cancels it there, too."""
        return await asyncio_callback(function, self._loop)(*arguments)

    def run(self) -> None:
        """Run the loop until `stop`; what still runs in it is cancelled."""
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop().run_forever()

    def stop(self) -> None:
        """Have `run` return."""
        self._loop.call_soon_threadsafe(self._loop.stop)


@asynccontextmanager
async def loop_thread() -> AsyncIterator[LoopThread]:
    """Run an asyncio loop in a thread of its own while the block lasts."""
    thread = LoopThread()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run, thread)
        try:
            yield thread
        finally:
            thread.stop()


async def _run(thread: LoopThread) -> None:
    # A limiter of its own: it would hold one of the threads of all others for as long as it runs.
    limiter = trio.CapacityLimiter(1)
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(thread.run, limiter=limiter)


class ThreadConnection:
    """A connection whose client lives in the loop of a thread.

    Args:
        thread: Has the loop.
        client: Has the methods of a connection, as coroutine functions of asyncio.
    """

    def __init__(self, thread: LoopThread, client: Connection) -> None:
        self._thread, self._client = thread, client

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        return await self._thread.call(self._client.send, messages)

    async def receive(self, limit: int) -> Sequence[Received]:
        return await self._thread.call(self._client.receive, limit)

    async def acknowledge(self, received: Sequence[Received]) -> None:
        await self._thread.call(self._client.acknowledge, received)
