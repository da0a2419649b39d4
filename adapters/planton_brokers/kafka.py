"""Kafka, by confluent-kafka in worker threads."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from planton.storage import to_name
from planton_brokers._port import Connection, Message, Received

# Seconds that a call waits: it cannot be cut off, and the end waits for it.
_WAIT, _CONNECT = 1.0, 5.0
_PRODUCER = {"enable.idempotence": True, "acks": "all", "linger.ms": 2, "delivery.timeout.ms": 9000}
_CONSUMER = {"enable.auto.commit": False, "auto.offset.reset": "earliest"}


class Kafka:
    """A topic of Kafka, read by one consumer group; offsets are committed in order.

    A confirmation means that all in-sync replicas have the message; `min.insync.replicas` of the
    topic says how many these are at least. A partition belongs to one consumer of the group, so
    what that has no slot for waits for it. The key of a message, which chooses it, is the
    partition of the instruction; its receipt if it has none.

    Args:
        servers: Where to begin, such as `"localhost:9092"`.
        topic: Its name.
        group: Name of the group of the consumers.
        options: More for librdkafka, such as `{"security.protocol": "ssl"}`.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    def __init__(
        self,
        servers: str,
        *,
        topic: str = "planton",
        group: str = "planton",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._servers, self._topic, self._group = servers, to_name(topic), to_name(group)
        # It logs to stderr by itself, and says the same in what it raises.
        self._options = {"bootstrap.servers": servers, "log_level": 0, **(options or {})}

    def __str__(self) -> str:
        return f"Kafka topic {self._topic!r} at {self._servers}"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """Connect; the topic is made by the server, if that is allowed to."""
        connection = _Connection(self._topic, self._options, self._group)
        try:
            await connection.check()
            yield connection
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(connection.close)


class _Connection:
    """Its producer is used by many threads at a time, its consumer by one."""

    def __init__(self, topic: str, options: Mapping[str, Any], group: str) -> None:
        self._topic = topic
        self._producer = Producer({**options, **_PRODUCER})
        self._consumer_options = {**options, **_CONSUMER, "group.id": group}
        self._consumer: Any = None

    async def check(self) -> None:
        find = partial(self._producer.list_topics, self._topic, timeout=_CONNECT)
        await trio.to_thread.run_sync(find)

    def close(self) -> None:
        self._producer.purge()
        self._producer.flush(0)
        if self._consumer is not None:
            self._consumer.close()

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        return await trio.to_thread.run_sync(self._send, messages)

    def _send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        answers: dict[int, Exception | None] = {}

        def note(number: int, error: Any, _: Any) -> None:
            answers[number] = None if error is None else KafkaException(error)

        for number, message in enumerate(messages):
            note_this = partial(note, number)
            key = (message.key or message.id).encode()
            self._producer.produce(self._topic, message.body.encode(), key, on_delivery=note_this)
        while len(answers) < len(messages):
            self._producer.poll(_WAIT)
        return [answers[number] for number in range(len(messages))]

    async def receive(self, limit: int) -> Sequence[Received]:
        while True:
            if received := await trio.to_thread.run_sync(self._receive, limit):
                return received

    def _receive(self, limit: int) -> Sequence[Received]:
        if self._consumer is None:
            self._consumer = Consumer(self._consumer_options)
            self._consumer.subscribe([self._topic])
        found = self._consumer.consume(1, _WAIT)
        if found and limit > 1:
            found += self._consumer.consume(limit - 1, 0)
        for message in found:
            if message.error() is not None:
                raise KafkaException(message.error())
        return [Received(each.value() or b"", each) for each in found]

    async def acknowledge(self, received: Sequence[Received]) -> None:
        ends: dict[int, int] = {}
        for message in (each.tag for each in received):
            ends[message.partition()] = max(ends.get(message.partition(), 0), message.offset() + 1)
        offsets = [TopicPartition(self._topic, *end) for end in ends.items()]
        commit = partial(self._consumer.commit, offsets=offsets, asynchronous=False)
        await trio.to_thread.run_sync(commit)
