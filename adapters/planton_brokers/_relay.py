"""A consumer that hands instructions to a broker."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from planton import AlreadyRunningError, InstructionEvent, InvalidArgumentError, Planton
from planton.storage import to_name, to_number
from planton_brokers._consumer import Consumer
from planton_brokers._port import BrokerError, Message, Outlet, Sender, connected, error_of

if TYPE_CHECKING:
    from planton_executor import Executor

# So many messages are on their way to the broker at most.
_ON_THE_WAY = 1000
# Seconds between two tries to connect.
_PAUSE = 0.5


class Relay:
    """Hands instructions to a broker; each is taken when the broker has confirmed it.

        relay = Relay(RabbitMQ("amqp://localhost", queue="emails"))
        task = storage.queue_task("send_email", concurrency=1000, lease=relay.transit)
        planton = Planton(storages=[storage], consumers=[relay], tasks=[task])

    What is not confirmed is released, and tried again after pauses. While the broker is away,
    nothing is claimed: attempts fail with its error, which the log, `health` and `explain` name.
    It is tried twice a second, and the tasks are woken when it is back.

    The cap of a task counts what rests in the broker and what runs.

    Args:
        broker: Where to, such as `planton_brokers.rabbitmq.RabbitMQ`.
        tasks: Names of the tasks whose instructions it takes; those of all if None.
        transit: Seconds that a message may rest in the broker. It is the lease of the claim until
            a consumer takes it over, so tasks must have at least that: `lease=relay.transit`.
        timeout: Seconds that the broker has to answer.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    def __init__(
        self,
        broker: Outlet[Sender],
        *,
        tasks: Collection[str] | None = None,
        transit: float = 3600.0,
        timeout: float = 10.0,
    ) -> None:
        if not hasattr(broker, "connect"):
            raise InvalidArgumentError("broker", broker, "give one with connect()")
        if isinstance(tasks, str):
            raise InvalidArgumentError("tasks", tasks, "give a list of names")
        self.broker = broker
        self.transit = to_number("transit", transit, above=0)
        self._timeout = to_number("timeout", timeout, above=0)
        self._tasks = None if tasks is None else frozenset(map(to_name, tasks))
        self._connection: Sender | None = None
        self._problem = "not connected: give the relay to Planton(consumers=[…])"
        self._lost = trio.Event()
        self._is_served = False

    def capacity(self, task_name: str) -> int | None:
        """Return how many messages may be on their way; None for a task that it does not take.

        Raises:
            BrokerError: If the broker is away.
        """
        if self._tasks is not None and task_name not in self._tasks:
            return None
        if self._connection is None:
            raise BrokerError(self.broker, self._problem)
        return _ON_THE_WAY

    async def submit(self, event: InstructionEvent) -> None:
        """Hand one instruction to the broker; returns when that has confirmed it.

        Raises:
            BrokerError: If it has not.
            InvalidArgumentError: If the event has no receipt, or too short a lease.
        """
        (refusal,) = await self.submit_many([event])
        if refusal is not None:
            raise refusal

    async def submit_many(self, events: Sequence[InstructionEvent]) -> Sequence[Exception | None]:
        """Hand instructions to the broker; return of each None, or why it was not confirmed."""
        answers: list[Exception | None] = []
        messages = []
        for event in events:
            try:
                messages.append(self._to_message(event))
                answers.append(None)
            except InvalidArgumentError as error:
                answers.append(error)
        sent = iter(await self._send(messages) if messages else ())
        return [next(sent) if answer is None else answer for answer in answers]

    async def serve(
        self, planton: Planton, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep a connection to the broker: `Planton(consumers=[relay])` calls it."""
        if self._is_served:
            raise AlreadyRunningError("this relay serves another Planton: make a second one")
        self._is_served = True
        ready = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_connection, planton, ready)
                await ready.wait()
                task_status.started()
        finally:
            self._is_served = False

    async def _keep_connection(self, planton: Planton, tried: trio.Event) -> None:
        while True:
            try:
                async with connected(self.broker, self._timeout) as connection:
                    self._connection, self._lost = connection, trio.Event()
                    planton.wake()
                    tried.set()
                    await self._lost.wait()
            except BrokerError as error:
                self._problem = error.problem
            finally:
                self._connection = None
            tried.set()
            await trio.sleep(_PAUSE)

    async def _send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Return of each message None, or why it was not confirmed: one error for all alike."""
        connection = self._connection
        if connection is None:
            return [BrokerError(self.broker, self._problem)] * len(messages)
        try:
            with trio.move_on_after(self._timeout):
                errors: dict[str, Exception] = {}
                return [
                    answer and errors.setdefault(str(answer), error_of(self.broker, answer))
                    for answer in await connection.send(messages)
                ]
            error = BrokerError(self.broker, f"not confirmed within {self._timeout:g} s")
        except Exception as raised:
            error = error_of(self.broker, raised)
        if self._connection is connection:
            self._connection, self._problem = None, error.problem
            self._lost.set()
        return [error] * len(messages)

    def _to_message(self, event: InstructionEvent) -> Message:
        if event.receipt is None:
            remedy = "the task's schedule must give claims with a receipt, as storages do"
            raise InvalidArgumentError("event.receipt", None, remedy)
        if event.lease is not None and event.lease < self.transit:
            remedy = "give the task lease=relay.transit, or the relay a shorter transit: "
            problem = "a message that rests in the broker for longer is delivered again"
            raise InvalidArgumentError("lease", event.lease, remedy + problem)
        return Message(event.receipt, event.to_json(), event.partition)

    @asynccontextmanager
    async def consumer(self, executor: "Executor", *, lease: float = 60.0) -> AsyncIterator[None]:
        """Run an executor on what comes from the broker, for as long as the block lasts.

        It takes a message only for a free slot, takes the claim over, acknowledges the message
        at once, and executes it: from then on the lease protects the work, not the broker. A
        message whose claim is another's by then is dropped, as is one that is no event; that is
        logged. Leaving the block takes no more messages, and then drains the executor.

        Args:
            executor: Has the handlers, and an open storage to report to; the block runs it.
            lease: Seconds without a heartbeat after which its work is given to another.

        Raises:
            InvalidArgumentError: If an argument cannot be used.
        """
        broker: Any = self.broker
        if (workers := getattr(broker, "workers", None)) is not None:
            raise InvalidArgumentError("broker", broker, workers)
        consumer = Consumer(broker, executor, to_number("lease", lease, above=0))
        async with executor, consumer.running():
            yield
