"""E-mails through a broker: a dispatcher with a relay, and two consumers.

The broker is one in memory; give the URL of a real one (redis://, nats:// or amqp://) to use that.
In earnest the dispatcher and the consumers are programs of their own, with one database.

To install: pip install 'planton[sqlite,executor]'
To run: python examples/broker.py

Prints:
    sent to ann@example.org
    sent to ben@example.org
    sent to cem@example.org
    sent to dan@example.org
    4 succeeded
"""

import sys
import tempfile
from pathlib import Path

import trio

from planton import Planton
from planton_brokers import Broker, Relay
from planton_brokers.testing import MemoryBroker
from planton_executor import Executor, Work
from planton_sqlite import SQLiteStorage

NAMES = ("ann", "ben", "cem", "dan")


def to_broker(url: str) -> Broker:
    if url.startswith("redis:"):
        from planton_brokers.redis import RedisStream

        return RedisStream(url, stream="emails")
    if url.startswith("nats:"):
        from planton_brokers.nats import JetStream

        return JetStream(url, stream="emails")
    if url.startswith("amqp:"):
        from planton_brokers.rabbitmq import RabbitMQ

        return RabbitMQ(url, queue="emails")
    return MemoryBroker()


async def main(url: str) -> None:
    storage = SQLiteStorage(Path(tempfile.mkdtemp()) / "app.db")
    relay = Relay(to_broker(url), transit=3600)
    # Of what rests in the broker and runs together there are 1000 at most.
    task = storage.queue_task("send_email", concurrency=1000, lease=relay.transit)
    sent: list[str] = []

    async def send(work: Work) -> None:
        sent.append(work.instruction)

    one, other = Executor(storage, concurrency=1), Executor(storage, concurrency=1)
    for executor in (one, other):
        executor.handler("send_email", retries=3, retry_delay=60)(send)
    planton = Planton(storages=[storage], consumers=[relay], tasks=[task])
    async with planton, relay.consumer(one), relay.consumer(other):
        for name in NAMES:
            await storage.enqueue("send_email", f"{name}@example.org")
        while (await storage.stats())[0].succeeded < len(NAMES):
            await trio.sleep(0.02)
        (stats,) = await storage.stats()
    for address in sorted(sent):
        print("sent to", address)
    print(stats.succeeded, "succeeded")


trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "")
