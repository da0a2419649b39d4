"""RabbitMQ, by pika's connection for asyncio, in a thread."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import takewhile
from typing import Any, Literal, TypeVar

import pika
import trio
from pika.adapters.asyncio_connection import AsyncioConnection

from planton import InvalidArgumentError
from planton.storage import to_name
from planton_brokers._port import Connection, Message, Received, without_password
from planton_brokers._thread import ThreadConnection, loop_thread

T = TypeVar("T")

# Seconds that the goodbye to the server may take.
_GOODBYE = 2.0
_KEY_LENGTH = 255  # bytes of a routing key
# So many messages are pushed at a time at most.
_MOST = 1000
# It logs every connection that fails as several errors; a relay says it once, in one.
_logger = logging.getLogger("pika")
if _logger.level == logging.NOTSET:
    _logger.setLevel(logging.CRITICAL)


class RabbitMQ:
    """A durable queue of a RabbitMQ server; messages are persistent, mandatory and confirmed.

    A confirmation by a quorum queue means that a majority of its replicas have the message on
    their disks; by a classic queue, that the one server has.

    Args:
        url: Of the server, such as `"amqp://guest:guest@localhost:5672/%2F"`.
        queue: Its name.
        queue_type: What is declared if it is not there; None for a queue that you have declared.
        exchange: One that you have declared and bound, such as a consistent-hash exchange: messages
            are sent to it, with the partition as the routing key, or the receipt if there is none.
            By default they are sent to the queue itself.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        queue: str = "planton",
        queue_type: Literal["quorum", "classic"] | None = "quorum",
        exchange: str | None = None,
    ) -> None:
        if queue_type not in ("quorum", "classic", None):
            raise InvalidArgumentError("queue_type", queue_type, "give quorum, classic or None")
        self._url, self._queue, self._type = url, to_name(queue), queue_type
        self._exchange = "" if exchange is None else to_name(exchange, "exchange")

    def __str__(self) -> str:
        return f"RabbitMQ queue {self._queue!r} at {without_password(self._url)}"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """Connect, and declare the queue."""
        async with loop_thread() as thread:
            channel = _Channel(self._queue, self._exchange)
            try:
                await thread.call(channel.open, self._url, self._type)
                yield ThreadConnection(thread, channel)
            finally:
                with trio.move_on_after(_GOODBYE, shield=True):
                    await thread.call(channel.close)


class _Channel:
    """A channel of its own connection; all of it runs in the loop of its thread."""

    def __init__(self, queue: str, exchange: str) -> None:
        self._queue, self._exchange = queue, exchange
        self._sent = 0
        self._unconfirmed: dict[int, asyncio.Future[Exception | None]] = {}
        self._connection: Any = None
        self._channel: Any = None

    async def open(self, url: str, queue_type: str | None) -> None:
        self._lost = asyncio.get_running_loop().create_future()
        self._closed = asyncio.Event()
        opened = asyncio.get_running_loop().create_future()
        self._connection = AsyncioConnection(
            pika.URLParameters(url),
            on_open_callback=opened.set_result,
            on_open_error_callback=self._on_refusal,
            on_close_callback=self._on_close,
        )
        await self._unless_lost(opened)
        channel = self._channel = await self._ask(self._connection.channel, "on_open_callback")
        channel.add_on_close_callback(self._on_loss)
        channel.add_on_return_callback(self._on_return)
        await self._ask(
            channel.queue_declare,
            queue=self._queue,
            durable=True,
            passive=queue_type is None,
            arguments={"x-queue-type": queue_type} if queue_type else {},
        )
        await self._ask(channel.confirm_delivery, ack_nack_callback=self._on_confirmation)

    async def close(self) -> None:
        if self._connection is not None and self._connection.is_open:
            self._connection.close()
            await self._closed.wait()
        await asyncio.sleep(0)  # the transport is closed in the next turn

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        answers = await self._unless_lost(asyncio.gather(*map(self._publish, messages)))
        return list(answers)

    def _publish(self, message: Message) -> "asyncio.Future[Exception | None]":
        properties = pika.BasicProperties(
            message_id=message.id, content_type="application/json", delivery_mode=2
        )
        key = _routing_key(message) if self._exchange else self._queue
        self._channel.basic_publish(self._exchange, key, message.body, properties, mandatory=True)
        self._sent += 1
        answer = self._unconfirmed[self._sent] = asyncio.get_running_loop().create_future()
        return answer

    def _on_confirmation(self, frame: Any) -> None:
        method = frame.method
        is_confirmed = isinstance(method, pika.spec.Basic.Ack)
        tags = [method.delivery_tag]
        if method.multiple:
            tags = list(takewhile(lambda tag: tag <= method.delivery_tag, self._unconfirmed))
        for tag in tags:
            refusal = None if is_confirmed else BufferError("the queue refuses it")
            self._unconfirmed.pop(tag).set_result(refusal)

    def _on_return(self, _: Any, method: Any, __: Any, ___: Any) -> None:
        """End the connection: the next one declares the queue again, which was deleted."""
        self._on_loss(None, LookupError(f"the queue cannot be reached: {method.reply_text}"))

    def _on_refusal(self, _: Any, reason: BaseException) -> None:
        self._on_loss(None, ConnectionError(repr(reason)))  # its str is empty

    def _on_close(self, _: Any, reason: BaseException) -> None:
        self._on_loss(None, reason)
        self._closed.set()

    def _on_loss(self, _: Any, reason: BaseException) -> None:
        if not self._lost.done():
            self._lost.set_result(reason)

    async def receive(self, limit: int) -> Sequence[Received]:
        """Consume until there is something, with room for so many: no other is pushed here."""
        received: list[Received] = []
        arrived = asyncio.get_running_loop().create_future()

        def add(_: Any, method: Any, __: Any, body: bytes) -> None:
            received.append(Received(body, method.delivery_tag))
            if not arrived.done():
                arrived.set_result(None)

        channel = self._channel
        await self._ask(channel.basic_qos, prefetch_count=min(limit, _MOST))
        consumer = channel.basic_consume(self._queue, add)
        try:
            await self._unless_lost(arrived)
            await self._ask(channel.basic_cancel, consumer_tag=consumer)
        except asyncio.CancelledError:
            if channel.is_open:
                channel.basic_cancel(consumer)
                for each in received:
                    channel.basic_nack(each.tag)
            raise
        return received

    async def acknowledge(self, received: Sequence[Received]) -> None:
        for each in received:
            self._channel.basic_ack(each.tag)

    async def _ask(
        self, method: Callable[..., Any], callback: str = "callback", /, **options: Any
    ) -> Any:
        """Call a method, and return what it calls back with."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        method(**options, **{callback: answer.set_result})
        return await self._unless_lost(answer)

    async def _unless_lost(self, answer: "asyncio.Future[T]") -> T:
        """Wait for an answer; raise if the connection is lost."""
        await asyncio.wait((answer, self._lost), return_when=asyncio.FIRST_COMPLETED)
        if self._lost.done():
            raise self._lost.result()
        return answer.result()


def _routing_key(message: Message) -> str:
    """Return the key; for one that is too long another one that is always the same."""
    key = message.key or message.id
    return key if len(key.encode()) <= _KEY_LENGTH else hashlib.sha256(key.encode()).hexdigest()
