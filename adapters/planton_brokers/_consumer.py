"""Takes messages from a broker for an executor: taken over, acknowledged, executed."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import attrs
import trio

from planton import ErrorEvent, InstructionEvent, InvalidArgumentError, StorageError, delays
from planton.storage import ErrorLog, Reports
from planton_brokers._port import Broker, BrokerError, Connection, Received, connected

if TYPE_CHECKING:
    from planton_executor import Executor

T = TypeVar("T")

# Seconds that a broker has to answer, and between two tries.
_TIMEOUT, _PAUSE = 10.0, 0.5
# A claim that is given back at the end has so many seconds.
_LAST_WORDS = 2.0
_storage_pause = delays.exponential(initial=0.1, maximum=2.0, jitter="equal")


class Consumer:
    """Feeds an executor from a broker.

    Args:
        broker: Where messages come from.
        executor: Runs, on a storage.
        lease: Seconds that a claim lasts from its take-over without a heartbeat.

    Raises:
        InvalidArgumentError: If the executor reports to no storage.
    """

    def __init__(self, broker: Broker, executor: "Executor", lease: float) -> None:
        storage = executor.storage
        if not isinstance(storage, Reports):
            remedy = "it needs a storage, to take claims over: give Executor(storage)"
            raise InvalidArgumentError("executor", executor, remedy)
        self._broker, self._executor, self._storage = broker, executor, storage
        self._lease = lease
        self._log = ErrorLog()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take messages while the block lasts; an exception of the block leaves as it is."""
        failure: BaseException | None = None
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._run)
            try:
                yield
            except (Exception, KeyboardInterrupt, SystemExit) as error:
                failure = error  # kept back: raised in here it would leave wrapped in a group
            self._nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _run(self) -> None:
        while True:
            try:
                async with connected(self._broker, _TIMEOUT) as connection:
                    while True:
                        free = await self._executor.wait_for_slot()
                        await self._take(connection, await connection.receive(free))
            except BrokerError as error:
                self._report(error)
            await trio.sleep(_PAUSE)

    async def _take(self, connection: Connection, received: Sequence[Received]) -> None:
        """Take claims over, acknowledge their messages, and have them executed."""
        known = []
        for event in self._events(received):
            if self._executor.capacity(event.task_name) is None:
                await self._submit(event)  # which has it tried again, later and elsewhere
            else:
                known.append(event)
        for event in await self._take_over(known):
            self._nursery.start_soon(self._submit, event)
        await trio.lowlevel.checkpoint()  # they have taken their slots then
        with trio.fail_after(_TIMEOUT):
            await connection.acknowledge(received)

    def _events(self, received: Sequence[Received]) -> Iterator[InstructionEvent]:
        """Return the events of messages; what is none is told, and dropped."""
        for each in received:
            try:
                event = InstructionEvent.from_json(each.body)
                if event.receipt is None:
                    remedy = "send what InstructionEvent.to_json returned"
                    raise InvalidArgumentError("receipt", event.receipt, remedy)
                yield event
            except InvalidArgumentError as error:
                self._report(error)

    async def _take_over(self, events: Sequence[InstructionEvent]) -> list[InstructionEvent]:
        """Return the events whose claims are ours now; the others are another consumer's."""
        by_receipt = {str(event.receipt): event for event in events}
        take_over = partial(self._storage.take_over, list(by_receipt), lease=self._lease)
        try:
            taken = (await self._stored(take_over)).receipts if events else {}
        except InvalidArgumentError as error:
            if len(events) > 1:  # one of them spoils the others
                return [taken for event in events for taken in await self._take_over([event])]
            self._report(error)
            return []
        return [taken_over(by_receipt[old], new, self._lease) for old, new in taken.items()]

    async def _stored(self, report: Callable[[], Awaitable[T]]) -> T:
        """Report to the storage, again and again until it answers."""
        failures = 0
        while True:
            try:
                return await report()
            except StorageError as error:
                self._report(error)
            await trio.sleep(_storage_pause(failures))
            failures += 1

    async def _submit(self, event: InstructionEvent) -> None:
        """Have it executed; at the end of the block, give it back if it has not begun."""
        try:
            await self._executor.submit(event)
        except trio.Cancelled:
            with trio.move_on_after(_LAST_WORDS, shield=True):
                await self._stored(partial(self._storage.release, str(event.receipt)))
            raise
        except Exception as error:
            self._report(error, event.task_name)

    def _report(self, error: Exception, task_name: str | None = None) -> None:
        """Log an error once, then sum those of its kind up."""
        event = ErrorEvent(task_name=task_name, error=error, stage="deliver", service="consumer")
        self._log.add(event)


def taken_over(event: InstructionEvent, receipt: str, lease: float) -> InstructionEvent:
    """Return an event as that of a claim of our own, which was taken over just now."""
    return attrs.evolve(
        event, receipt=receipt, lease=lease, claimed_at=trio.current_time(), is_foreign=False
    )
