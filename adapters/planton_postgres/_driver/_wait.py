"""The wait loop: drives psycopg's generators on trio.

psycopg speaks the protocol in generators that do no input or output themselves. Each yields what it
waits for (`Wait.R`, `Wait.W` or both) and is sent what of that has become ready.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import closing
from typing import Any, Generic

import psycopg
import trio
from psycopg.abc import RV, PQGen, PQGenConn
from psycopg.waiting import Ready, Wait

_READ = int(Wait.R)
_WRITE = int(Wait.W)


class Exchange(Generic[RV]):
    """A generator on its way through the wait loop.

    When `run` is cancelled the generator stays where it was, and `run` may be called again: that is
    how the rest of an answer is read after a cancellation.

    Args:
        generator: One that speaks through a socket; or one that opens a connection, which yields
            the socket as well, as that may change on the way.
        fileno: The socket.
    """

    __slots__ = ("_fileno", "_generator", "_wanted")

    def __init__(self, generator: PQGen[RV] | PQGenConn[RV], fileno: int = -1) -> None:
        self._generator: Generator[Any, Any, RV] = generator
        self._fileno = fileno
        self._wanted: int | tuple[int, int] | None = None  # not begun

    async def run(self) -> RV:
        """Run the generator to its end and return its value.

        Raises:
            psycopg.DataError: what was raised is no error of psycopg, as adapting a parameter may
                raise anything.
        """
        send = self._generator.send
        try:
            if self._wanted is None:
                self._wanted = next(self._generator)
            while True:
                if isinstance(self._wanted, tuple):
                    self._fileno, self._wanted = self._wanted
                self._wanted = send(await _until_ready(self._fileno, self._wanted))
        except StopIteration as end:
            value: RV = end.value
            return value
        except psycopg.Error:
            raise
        except (OSError, trio.ClosedResourceError) as error:
            raise psycopg.OperationalError("the connection was closed") from error
        except Exception as error:
            raise psycopg.DataError(f"{type(error).__name__}: {error}") from error


async def drive_connecting(generator: PQGenConn[RV]) -> RV:
    """Run a generator that opens a connection; when cancelled, close what is half open."""
    with closing(generator):
        return await Exchange(generator).run()


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


def is_readable(fileno: int) -> bool:
    """Whether there is something to read, the end included; one system call."""
    if sys.platform == "win32":
        return bool(select.select([fileno], [], [], 0)[0])
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return bool(poll.poll(0))
