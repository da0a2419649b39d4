"""The wait loop: drives psycopg's generators on trio.

psycopg speaks the protocol in generators that do no input or output themselves. Each yields what it
waits for (`Wait.R`, `Wait.W` or both) and is sent what of that has become ready.
"""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic, TypeVar

import psycopg
import trio
from psycopg.abc import RV, PQGen, PQGenConn
from psycopg.pq import TransactionStatus
from psycopg.waiting import Ready, Wait

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

T = TypeVar("T")

_READ = int(Wait.R)
_WRITE = int(Wait.W)
_LONGEST_TURN = 0.005  # seconds that one connection may keep the loop without a checkpoint


class Turn:
    """How long a connection has kept the loop to itself, because nothing made it wait.

    A socket is nearly always writable, so a pipeline of a thousand statements would never give way
    to other tasks.
    """

    __slots__ = ("_began",)

    def __init__(self) -> None:
        self._began = time.monotonic()

    def is_over(self) -> bool:
        """Whether it is time to give way; then the next turn begins."""
        now = time.monotonic()
        over = now - self._began >= _LONGEST_TURN
        if over:
            self._began = now
        return over


class Exchange(Generic[RV]):
    """A generator on its way through the wait loop.

    When `run` is cancelled the generator stays where it was, and `run` may be called again: that is
    how the rest of an answer is read after a cancellation.
    """

    __slots__ = ("_fileno", "_generator", "_pgconn", "_turn", "_wanted")

    def __init__(self, generator: PQGen[RV], pgconn: PGconn, turn: Turn) -> None:
        self._generator = generator
        self._pgconn = pgconn
        self._fileno = pgconn.socket
        self._turn = turn
        self._wanted: int | None = None  # not begun

    async def run(self) -> RV:
        """Run the generator to its end and return its value."""
        send = self._generator.send
        try:
            if self._wanted is None:
                self._wanted = next(self._generator)
            while True:
                if self._wanted == _READ:
                    await trio.lowlevel.wait_readable(self._fileno)
                    self._wanted = send(Ready.R)
                else:
                    self._wanted = send(await self._ready_to_write())
        except StopIteration as end:
            value: RV = end.value
            return value
        except (OSError, trio.ClosedResourceError) as error:
            raise psycopg.OperationalError("the connection was closed") from error

    async def _ready_to_write(self) -> int:
        """Ask the kernel first, which costs a fifth of going round trio's loop."""
        wanted = self._wanted or 0
        if ready := ready_now(self._fileno, wanted):
            if self._turn.is_over():
                await self._give_way()
            return ready
        return await _until_ready(self._fileno, wanted)

    async def _give_way(self) -> None:
        """Let others run. What psycopg has queued in a pipeline and not sent is not cancelled.

        It would count on the statements that it has queued to prepare.
        """
        if self._pgconn.transaction_status == TransactionStatus.ACTIVE:
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()


async def drive_connecting(generator: PQGenConn[RV]) -> RV:
    """Run a generator that opens a connection; its socket may change on the way.

    When this is cancelled the half-open connection is closed.
    """
    try:
        fileno, wanted = next(generator)
        while True:
            fileno, wanted = generator.send(await _until_ready(fileno, wanted))
    except StopIteration as end:
        value: RV = end.value
        return value
    except (OSError, trio.ClosedResourceError) as error:
        raise psycopg.OperationalError("the connection was closed") from error
    finally:
        generator.close()


async def outlast(step: Callable[[], Awaitable[T]], limit: float) -> T:
    """Await `step` to its end even when cancelled, but then for at most `limit` more seconds.

    A step that succeeds after the cancellation succeeds: the cancellation strikes at the caller's
    next checkpoint. `step` is called once more after a cancellation, so it must take up where it
    was.

    Raises:
        trio.Cancelled: when it did not end within the limit.
    """
    try:
        return await step()
    except (trio.Cancelled, KeyboardInterrupt) as interruption:
        with trio.move_on_after(limit, shield=True):
            value = await step()
            if isinstance(interruption, KeyboardInterrupt):
                raise  # trio tells of it only once, unlike of a cancellation
            return value  # noqa: ASYNC104  what succeeded is heard of
        raise


async def _until_ready(fileno: int, wanted: int) -> int:
    if wanted == _READ:
        await trio.lowlevel.wait_readable(fileno)
        return Ready.R
    if wanted == _WRITE:
        await trio.lowlevel.wait_writable(fileno)
        return Ready.W
    return await _until_either(fileno)


async def _until_either(fileno: int) -> int:
    """Wait until the socket is readable or writable; trio knows only one at a time."""
    ready = 0

    async def watch(wait: Callable[[int], Awaitable[None]], flag: int) -> None:
        nonlocal ready
        try:
            await wait(fileno)
        except (OSError, trio.ClosedResourceError):
            pass  # closed under our hands: call it ready, libpq then raises its own error
        ready |= flag
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, trio.lowlevel.wait_readable, Ready.R)
            nursery.start_soon(watch, trio.lowlevel.wait_writable, Ready.W)
    except BaseExceptionGroup as group:
        # Callers look for a bare Cancelled or KeyboardInterrupt, as from any other wait.
        raise min(group.exceptions, key=_is_cancelled) from None
    return ready


def _is_cancelled(error: BaseException) -> bool:
    return isinstance(error, trio.Cancelled)


if sys.platform == "win32":

    def ready_now(fileno: int, wanted: int) -> int:
        """Return which of `wanted` the socket is ready for at this moment."""
        sockets = [fileno]
        readable, writable, _ = select.select(sockets, sockets if wanted & _WRITE else [], [], 0)
        return (Ready.R if readable else 0) | (Ready.W if writable else 0)

else:

    def ready_now(fileno: int, wanted: int) -> int:
        """Return which of `wanted` the socket is ready for at this moment."""
        poll = select.poll()
        events = select.POLLIN if wanted & _READ else 0
        poll.register(fileno, events | (select.POLLOUT if wanted & _WRITE else 0))
        event = next((event for _, event in poll.poll(0)), 0)
        if event & ~(select.POLLIN | select.POLLOUT):
            return wanted  # hung up or in error: libpq finds out by trying
        read = Ready.R if event & select.POLLIN else 0
        return read | (Ready.W if event & select.POLLOUT else 0)
