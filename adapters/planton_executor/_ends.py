"""How work ends, and telling the storage of it.

Ends that are equal and come while one of them is being written share the next call, without a
timer; a storage may gather those that differ.
"""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, Protocol

import attrs
import trio

from planton import StorageError, delays
from planton.storage import Acknowledged, FailureReport, Storage

# How many receipts go into one call.
GROUP = 1000
_pause = delays.exponential(initial=0.1, maximum=5.0, jitter="equal")


class End(Protocol):
    """What is to be stored of a claim."""

    @property
    def key(self) -> Hashable:
        """Equal for those that can share a call."""

    async def write(self, storage: Storage, receipts: Sequence[str]) -> Acknowledged:
        """Store it for some claims."""


@attrs.frozen
class Complete:
    """The work is done."""

    result: Any
    text: str | None

    @property
    def key(self) -> Hashable:
        return ("complete", self.text)

    async def write(self, storage: Storage, receipts: Sequence[str]) -> Acknowledged:
        return await storage.complete(receipts, self.result)


@attrs.frozen
class Fail:
    """The work failed."""

    report: FailureReport

    @property
    def key(self) -> Hashable:
        return self.report

    async def write(self, storage: Storage, receipts: Sequence[str]) -> Acknowledged:
        report = self.report
        return await storage.fail(
            receipts,
            report.error,
            retry_in=report.delay,
            retry=report.retry,
            lower_priority=report.lower_priority,
            retries=report.retries,
        )


@attrs.frozen
class Advance:
    """The work has come to its next step.

    Attributes:
        state: Where it is now.
        text: The same as JSON.
        retries: Of that step.
        run_in: Seconds until it goes on; None if the claim is kept.
    """

    state: Any = attrs.field(eq=False)
    text: str
    retries: int
    run_in: float | None

    @property
    def key(self) -> Hashable:
        return self

    async def write(self, storage: Storage, receipts: Sequence[str]) -> Acknowledged:
        return await storage.advance(receipts, self.state, retries=self.retries, run_in=self.run_in)


@attrs.frozen
class Release:
    """The work was not begun, or was broken off."""

    key: Hashable = "release"

    async def write(self, storage: Storage, receipts: Sequence[str]) -> Acknowledged:
        return await storage.release(receipts)


@attrs.define(eq=False)
class _Waiter:
    receipt: str
    done: trio.Event = attrs.field(factory=trio.Event)
    is_applied: bool = False
    error: Exception | None = None


class Ends:
    """Stores ends, again and again while the storage cannot be written.

    Args:
        storage: Where.
        report: Told of errors of the storage.
    """

    def __init__(self, storage: Storage, report: Callable[[Exception], Awaitable[None]]) -> None:
        self._storage = storage
        self._report = report
        self._waiting: dict[Hashable, list[_Waiter]] = {}
        self._nursery: trio.Nursery

    def open(self, nursery: trio.Nursery) -> None:
        """Write in this nursery from now on."""
        self._nursery = nursery
        self._waiting.clear()

    async def store(self, receipt: str, end: End) -> bool:
        """Store the end of a claim; whether it was the receipt's to end.

        Raises:
            Exception: What the storage has against the receipt itself.
        """
        waiter = _Waiter(receipt)
        if end.key in self._waiting:
            self._waiting[end.key].append(waiter)
        else:
            self._waiting[end.key] = [waiter]
            self._nursery.start_soon(self._write_all, end)
        await waiter.done.wait()
        if waiter.error is not None:
            raise waiter.error
        return waiter.is_applied

    async def _write_all(self, end: End) -> None:
        """Write what waits, and what comes to wait while that is written."""
        while waiting := self._waiting[end.key]:
            self._waiting[end.key] = waiting[GROUP:]
            await self._write(end, waiting[:GROUP])
        del self._waiting[end.key]

    async def _write(self, end: End, waiters: Sequence[_Waiter]) -> None:
        try:
            done = await self._try(end, [waiter.receipt for waiter in waiters])
        except Exception as error:
            if len(waiters) == 1:
                waiters[0].error = error
                waiters[0].done.set()
            else:  # one of them is no receipt of this storage: it must not spoil the others
                for waiter in waiters:
                    await self._write(end, [waiter])
            return
        applied = set(done.applied)
        for waiter in waiters:
            waiter.is_applied = waiter.receipt in applied
            waiter.done.set()

    async def _try(self, end: End, receipts: Sequence[str]) -> Acknowledged:
        failures = 0
        while True:
            try:
                return await end.write(self._storage, receipts)
            except StorageError as error:
                await self._report(error)
            await trio.sleep(_pause(failures))
            failures += 1
