# ruff: noqa: SIM117, SIM300 - expected == actual, as in all tests
"""The suite that every broker passes, and a broker in memory."""

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from planton_brokers._port import Broker, BrokerError, Connection, Message, Received, connected


class MemoryBroker:
    """A queue in memory, for tests of what is built on relays.

    Attributes:
        waiting: Messages in the queue, the oldest first.
        is_away: Whether it does not answer.
        refuses: Why a message is not confirmed; all are if None.
        latency: Seconds until it confirms.
    """

    def __init__(self) -> None:
        self.waiting: deque[Received] = deque()
        self.refuses: Exception | None = None
        self.latency = 0.0
        self.is_away = False
        self.receivers = trio.lowlevel.ParkingLot()

    def __str__(self) -> str:
        return "broker in memory"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """Connect to it."""
        connection = _MemoryConnection(self)
        await connection.check()
        try:
            yield connection
        finally:
            self.waiting.extendleft(reversed(connection.taken))
            self.receivers.unpark_all()


class _MemoryConnection:
    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self.taken: list[Received] = []

    async def check(self) -> None:
        await trio.sleep(self._broker.latency)
        if self._broker.is_away:
            raise ConnectionRefusedError("it is away")

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        await self.check()
        if self._broker.refuses is None:
            self._broker.waiting += [Received(each.body) for each in messages]
            self._broker.receivers.unpark_all()
        return [self._broker.refuses] * len(messages)

    async def receive(self, limit: int) -> Sequence[Received]:
        await self.check()
        while not self._broker.waiting:
            with trio.move_on_after(0.1):
                await self._broker.receivers.park()
            await self.check()
        count = min(limit, len(self._broker.waiting))
        received = [self._broker.waiting.popleft() for _ in range(count)]
        self.taken += received
        return received

    async def acknowledge(self, received: Sequence[Received]) -> None:
        await self.check()
        gone = set(map(id, received))
        self.taken = [each for each in self.taken if id(each) not in gone]


class BrokerConformance:
    """Every promise of the port, as tests; subclass it and give a fixture `broker`.

        class TestMyBroker(BrokerConformance):
            @pytest.fixture
            def broker(self):
                return MyBroker("my://localhost", queue=f"test-{uuid.uuid4()}")

    Tests run on trio, by pytest-trio. Other hooks are attributes of the class.

    Attributes:
        away: A broker at an address where nothing answers.
        redelivered_within: Seconds after which a message is delivered again whose connection was
            closed before it was acknowledged.
        drops_repeats: Whether it drops a message with an id that it has had before.
        is_partitioned: Whether what one consumer has no slot for waits for that consumer.
    """

    away: Broker
    redelivered_within = 5.0
    drops_repeats = False
    is_partitioned = False

    async def test_what_is_sent_is_received(self, broker: Broker) -> None:
        """As it is, whatever it is, once, and in any number."""
        bodies = ["{}", '{"name": "Zoë \\u2603 \U0001f600"}', "x" * 50_000, *map(str, range(27))]
        async with broker.connect() as sender, broker.connect() as receiver:
            answers = await sender.send(messages(*bodies))
            received = await receive(receiver, len(bodies))
            more = await receive(receiver, 1, within=0.3)

        assert [None] * len(bodies) == list(answers)
        assert sorted(bodies) == sorted(map(text, received))
        assert [] == more

    async def test_what_is_acknowledged_does_not_come_again(self, broker: Broker) -> None:
        """Neither on this connection nor on the next."""
        async with broker.connect() as connection:
            await connection.send(messages("a", "b"))
            await receive(connection, 2)
        async with broker.connect() as connection:
            assert [] == await receive(connection, 1, within=self.redelivered_within)

    async def test_what_is_not_acknowledged_comes_again(self, broker: Broker) -> None:
        """When the connection that it was delivered to is gone; only that."""
        async with broker.connect() as connection:
            await connection.send(messages("a", "b", "c"))
            received = await receive(connection, 3, acknowledge=False)
            await connection.acknowledge(received[:1])
        async with broker.connect() as connection:
            again = await receive(connection, 2, within=self.redelivered_within)
            more = await receive(connection, 1, within=0.2)

        assert sorted(map(text, received[1:])) == sorted(map(text, again))
        assert [] == more

    async def test_no_more_is_taken_than_was_asked_for(self, broker: Broker) -> None:
        """What a consumer has no slot for is there for others at once."""
        async with broker.connect() as one, broker.connect() as other:
            await one.send(messages(*"abcde"))
            first = await one.receive(2)
            await one.acknowledge(first)
            rest = await receive(one if self.is_partitioned else other, 5 - len(first))

        assert len(first) in (1, 2)
        assert list("abcde") == sorted(map(text, [*first, *rest]))

    async def test_receive_waits_for_a_message(self, broker: Broker) -> None:
        """And a wait that is cancelled loses none."""
        received: list[Any] = []
        async with broker.connect() as sender, broker.connect() as receiver:
            with trio.move_on_after(0.2):
                received += await receiver.receive(1)

            assert [] == received
        async with broker.connect() as sender, broker.connect() as receiver:
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    received.extend(await receive(receiver, 1, within=self.redelivered_within))

                nursery.start_soon(wait)
                await trio.sleep(0.1)
                await sender.send(messages("a"))

        assert ["a"] == list(map(text, received))

    async def test_several_may_send_at_the_same_time(self, broker: Broker) -> None:
        """Each is answered for what it sent."""
        answers: list[Exception | None] = []

        async def send(connection: Connection, number: int) -> None:
            bodies = [f"{number}-{each}" for each in range(10)]
            answers.extend(await connection.send(messages(*bodies)))

        async with broker.connect() as connection:
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(send, connection, number)
            received = await receive(connection, 50)

        assert [None] * 50 == answers
        assert 50 == len(set(map(text, received)))

    async def test_what_is_sent_again_is_dropped_where_the_broker_can(self, broker: Broker) -> None:
        """By its id, the receipt; else `take_over` tells the second from the first."""
        async with broker.connect() as connection:
            sent = messages("a", "b")
            answers = [*await connection.send(sent), *await connection.send(sent)]
            received = await receive(connection, 4, within=0.5 if self.drops_repeats else 10.0)

        assert [None] * 4 == answers
        assert (2 if self.drops_repeats else 4) == len(received)

    async def test_a_broker_that_is_away_is_an_error(self) -> None:
        """In a moment, not only when the caller's patience ends."""
        problem = "no error"
        try:
            async with connected(self.away, 10.0):
                pass
        except BrokerError as error:
            problem = str(error)

        assert problem.startswith(f"{self.away}: ")
        assert "cannot be connected to within" not in problem


def messages(*bodies: str) -> list[Message]:
    """Return messages with ids that are no others'."""
    return [Message(f"{next(_ids)}.{trio.current_time()}", body) for body in bodies]


def text(received: Received) -> str:
    """Return a body as text."""
    body = received.body
    return body.decode() if isinstance(body, bytes) else body


async def receive(
    connection: Connection, count: int, *, within: float = 10.0, acknowledge: bool = True
) -> list[Received]:
    """Receive until there are so many, or the time is over."""
    received: list[Received] = []
    with trio.move_on_after(within):
        while len(received) < count:
            found = await connection.receive(count - len(received))
            received += found
            if acknowledge:
                await connection.acknowledge(found)
    return received


_ids = iter(range(1, 2**62))
