"""NATS JetStream, by nats-py, which runs on asyncio: in a thread."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import nats
import trio
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, RetentionPolicy
from nats.js.errors import NoStreamResponseError, NotFoundError

from planton.storage import to_count, to_name, to_number
from planton_brokers._port import Connection, Message, Received, without_password
from planton_brokers._thread import ThreadConnection, loop_thread

# The one durable consumer of the stream, which all consumers share.
_DURABLE = "planton"
# Seconds for the goodbye to the server, and that one request for messages lasts.
_GOODBYE, _ASK_AGAIN = 2.0, 30.0


class JetStream:
    """A work-queue stream of NATS JetStream; repeats are dropped by the receipt as message id.

    A confirmation means that a majority of the replicas have written the message to their files.
    They sync them to disk every two minutes, unless the server has `sync_interval: always`.

    Args:
        url: Of a server, such as `"nats://localhost:4222"`.
        stream: Name of the stream and of its subject; it is made if it is not there.
        replicas: With how many replicas it is made.
        redeliver_after: Seconds after which a message is delivered again that was delivered and
            not acknowledged. It is acknowledged as soon as it is taken over.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        stream: str = "planton",
        replicas: int = 1,
        redeliver_after: float = 10.0,
    ) -> None:
        self._url, self._stream = url, to_name(stream)
        self._replicas = to_count("replicas", replicas, 1)
        self._redeliver_after = to_number("redeliver_after", redeliver_after, above=0)

    def __str__(self) -> str:
        return f"NATS stream {self._stream!r} at {without_password(self._url)}"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """Connect, and make the stream and its consumer."""
        async with loop_thread() as thread:
            client = Client()
            try:
                subscription = await thread.call(self._open, client)
                yield ThreadConnection(thread, _Stream(client, self._stream, subscription))
            finally:
                with trio.move_on_after(_GOODBYE, shield=True):
                    await thread.call(client.close)

    async def _open(self, client: Client) -> JetStreamContext.PullSubscription:
        await client.connect(
            self._url,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=5,
            error_cb=_ignore,
        )
        stream = client.jetstream()
        try:
            await stream.stream_info(self._stream)
        except NotFoundError:
            await stream.add_stream(
                name=self._stream,
                subjects=[self._stream],
                retention=RetentionPolicy.WORK_QUEUE,
                num_replicas=self._replicas,
            )
        config = ConsumerConfig(ack_wait=self._redeliver_after)
        return await stream.pull_subscribe(self._stream, durable=_DURABLE, config=config)


async def _ignore(_: Exception) -> None:
    """Whoever sends or receives is told of it, too."""


class _Stream:
    """A stream; all of it runs in the loop of its thread."""

    def __init__(
        self, client: Client, name: str, subscription: JetStreamContext.PullSubscription
    ) -> None:
        self._client, self._name, self._subscription = client, name, subscription
        self._context = client.jetstream()

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        answers: list[Any] = await asyncio.gather(
            *map(self._publish, messages), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, NoStreamResponseError) or self._client.is_closed:
                raise answer  # the next connection makes the stream again
        return answers

    async def _publish(self, message: Message) -> None:
        headers = {"Nats-Msg-Id": message.id}
        await self._context.publish(self._name, message.body.encode(), headers=headers)

    async def receive(self, limit: int) -> Sequence[Received]:
        while True:
            try:
                found = await self._subscription.fetch(limit, timeout=_ASK_AGAIN)
            except nats.errors.TimeoutError:
                continue
            return [Received(each.data, each) for each in found]

    async def acknowledge(self, received: Sequence[Received]) -> None:
        for each in received:
            await each.tag.ack()
        await self._client.flush()
