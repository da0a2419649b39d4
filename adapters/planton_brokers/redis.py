"""Redis Streams, by coredis, which runs on trio itself."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import coredis
import trio
from coredis.exceptions import StreamDuplicateConsumerGroupError
from coredis.retry import NoRetryPolicy

from planton.storage import to_name, to_number
from planton_brokers._port import Connection, Message, Received, without_password

# All consumers share one name, so that none is left behind in the group by those that have died.
_GROUP = _CONSUMER = "planton"
_FIELD = b"event"


class RedisStream:
    """A stream of a Redis server, read by one consumer group; what is acknowledged is deleted.

    A confirmation means that the server has the message in memory. It is on its disk with
    `appendonly yes` and `appendfsync always`.

    Args:
        url: Of the server, such as `"redis://localhost:6379/0"`.
        stream: Key of the stream, which is made if it is not there.
        redeliver_after: Seconds after which a message is delivered again that was delivered and
            not acknowledged. It is acknowledged as soon as it is taken over.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    def __init__(self, url: str, *, stream: str = "planton", redeliver_after: float = 10.0) -> None:
        self._url = url
        self._stream = to_name(stream)
        self._redeliver_after = to_number("redeliver_after", redeliver_after, above=0)

    def __str__(self) -> str:
        return f"Redis stream {self._stream!r} at {without_password(self._url)}"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """Connect, and make the stream and its group."""
        async with coredis.Redis.from_url(self._url, retry_policy=NoRetryPolicy()) as client:
            try:
                await client.xgroup_create(self._stream, _GROUP, identifier="0", mkstream=True)
            except StreamDuplicateConsumerGroupError:
                pass
            yield _Connection(client, self._stream, self._redeliver_after)


class _Connection:
    def __init__(self, client: "coredis.Redis[bytes]", stream: str, idle: float) -> None:
        self._client, self._stream = client, stream
        self._idle = max(1, round(idle * 1000))
        self._looks_at = 0.0

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        async with self._client.pipeline(transaction=False, raise_on_error=False) as pipeline:
            for message in messages:
                pipeline.xadd(self._stream, {_FIELD: message.body.encode()})
        answers = pipeline.results or ()
        return [answer if isinstance(answer, Exception) else None for answer in answers]

    async def receive(self, limit: int) -> Sequence[Received]:
        entries: Sequence[Any] = ()
        while not entries:
            if trio.current_time() >= self._looks_at:
                entries = await self._claim_idle(limit)
            if not entries:
                entries = await self._read(limit)
        return [Received(each.field_values.get(_FIELD, b""), each.identifier) for each in entries]

    async def _claim_idle(self, limit: int) -> Sequence[Any]:
        """Return what was delivered a while ago, to a consumer that has died since."""
        found: Any = await self._client.xautoclaim(
            self._stream, _GROUP, _CONSUMER, self._idle, "0-0", count=limit
        )
        if not found[1]:
            self._looks_at = trio.current_time() + self._idle / 1000
        return found[1] or ()

    async def _read(self, limit: int) -> Sequence[Any]:
        found = await self._client.xreadgroup(
            _GROUP, _CONSUMER, {self._stream: ">"}, count=limit, block=self._idle
        )
        return next(iter(found.values()), ()) if found else ()

    async def acknowledge(self, received: Sequence[Received]) -> None:
        tags = [each.tag for each in received]
        async with self._client.pipeline(transaction=True) as pipeline:
            pipeline.xack(self._stream, _GROUP, tags)
            pipeline.xdel(self._stream, tags)
