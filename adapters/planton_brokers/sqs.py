"""Amazon SQS, by boto3 in worker threads."""

import hashlib
import math
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import boto3
import trio
from botocore.config import Config

from planton import InvalidArgumentError
from planton.storage import to_name, to_number
from planton_brokers._port import Connection, Message, Received

# SQS takes so many messages in a call, of so many bytes together.
_MANY, _LARGE = 10, 250_000
# So many calls at a time; each has so many seconds.
_CALLS, _TIMEOUT = 8, 5
# Seconds that a call waits for a message: it cannot be cut off, and the end waits for it.
_WAIT = 2
_GROUP = re.compile("[!-~]{1,128}")
# What makes a queue of many short groups fast, and drops repeats by the id that is given.
_FIFO = {
    "FifoQueue": "true",
    "DeduplicationScope": "messageGroup",
    "FifoThroughputLimit": "perMessageGroupId",
}


class SQS:
    """A FIFO queue of Amazon SQS, which drops repeats within five minutes by the receipt.

    A confirmation means that several data centres have the message. The partition of an
    instruction is its message group; without one each message is a group of its own, so that none
    waits for another.

    Args:
        queue: Its name, which ends in `.fifo`; it is made if it is not there.
        redeliver_after: Seconds after which a message is delivered again that was delivered and
            not acknowledged. It is acknowledged as soon as it is taken over.
        options: For `boto3.client`, such as `region_name` and `endpoint_url`.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    def __init__(
        self, queue: str = "planton.fifo", *, redeliver_after: float = 30.0, **options: Any
    ) -> None:
        self._queue = to_name(queue)
        if not self._queue.endswith(".fifo"):
            raise InvalidArgumentError("queue", queue, "give the name of a FIFO queue, as x.fifo")
        self._redeliver_after = math.ceil(to_number("redeliver_after", redeliver_after, above=0))
        retries = {"total_max_attempts": 1}  # a relay and a consumer try again by themselves
        config = Config(connect_timeout=_TIMEOUT, read_timeout=_TIMEOUT + _WAIT, retries=retries)
        self._options = {"config": config, **options}

    def __str__(self) -> str:
        return f"SQS queue {self._queue!r}"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """Find the queue, or make it."""
        client, url = await trio.to_thread.run_sync(self._open)
        try:
            yield _Connection(client, url, self._redeliver_after)
        finally:
            client.close()

    def _open(self) -> tuple[Any, str]:
        client = boto3.client("sqs", **self._options)
        try:
            try:
                found = client.get_queue_url(QueueName=self._queue)
            except client.exceptions.QueueDoesNotExist:
                found = client.create_queue(QueueName=self._queue, Attributes=_FIFO)
        except BaseException:
            client.close()
            raise
        return client, found["QueueUrl"]


class _Connection:
    def __init__(self, client: Any, url: str, visibility: int) -> None:
        self._client, self._url, self._visibility = client, url, visibility
        self._limiter = trio.CapacityLimiter(_CALLS)

    async def _call(self, method: str, **arguments: Any) -> Any:
        call = partial(getattr(self._client, method), QueueUrl=self._url, **arguments)
        return await trio.to_thread.run_sync(call, limiter=self._limiter)

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        answers: dict[str, Exception] = {}

        async def send(batch: Sequence[Message]) -> None:
            entries = [
                {
                    "Id": str(number),
                    "MessageBody": message.body,
                    "MessageGroupId": _group_of(message),
                    "MessageDeduplicationId": message.id,
                }
                for number, message in enumerate(batch)
            ]
            answer = await self._call("send_message_batch", Entries=entries)
            for failed in answer.get("Failed", ()):
                error = ValueError(f"{failed['Code']}: {failed.get('Message', '')}")
                answers[batch[int(failed["Id"])].id] = error

        async with trio.open_nursery() as nursery:
            for batch in _batches(messages):
                nursery.start_soon(send, batch)
        return [answers.get(message.id) for message in messages]

    async def receive(self, limit: int) -> Sequence[Received]:
        while True:
            answer = await self._call(
                "receive_message",
                MaxNumberOfMessages=min(limit, _MANY),
                WaitTimeSeconds=_WAIT,
                VisibilityTimeout=self._visibility,
            )
            if found := answer.get("Messages"):
                return [Received(each["Body"], each["ReceiptHandle"]) for each in found]

    async def acknowledge(self, received: Sequence[Received]) -> None:
        for first in range(0, len(received), _MANY):
            entries = [
                {"Id": str(number), "ReceiptHandle": each.tag}
                for number, each in enumerate(received[first : first + _MANY])
            ]
            await self._call("delete_message_batch", Entries=entries)


def _group_of(message: Message) -> str:
    """Return its group; for a key that SQS does not take one that is always the same."""
    name = message.key or message.id
    return name if _GROUP.fullmatch(name) else hashlib.sha256(name.encode()).hexdigest()


def _batches(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    batch: list[Message] = []
    size = 0
    for message in messages:
        length = len(message.body.encode())
        if batch and (len(batch) == _MANY or size + length > _LARGE):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += length
    yield batch
