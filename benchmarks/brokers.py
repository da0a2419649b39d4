"""How long it takes from the commit of an instruction until the broker has confirmed it.

    python benchmarks/brokers.py POSTGRES_URL redis://127.0.0.1:6379 [--rate 200] [--seconds 20]

The scheme of the second says which broker: redis, nats, amqp (`?queue=classic` for a classic queue)
or memory. Instructions are queued at `--rate` a second, one by one, by another thread than the
dispatcher's; a consumer takes them from the broker. Last it queues `--burst` at once.
"""

import argparse
import math
import threading
import time
import uuid
from urllib.parse import urlsplit

import psycopg
import trio

from planton import InstructionEvent, Planton
from planton_brokers import Broker, Relay
from planton_executor import Executor
from planton_postgres import PostgresStorage

RUN = uuid.uuid4().hex[:8]


def to_broker(url: str) -> Broker:
    name = f"bench-{RUN}"
    match urlsplit(url).scheme:
        case "redis":
            from planton_brokers.redis import RedisStream

            return RedisStream(url, stream=name)
        case "nats":
            from planton_brokers.nats import JetStream

            return JetStream(url, stream=name)
        case "amqp":
            from planton_brokers.rabbitmq import RabbitMQ

            url, _, kind = url.partition("?queue=")
            return RabbitMQ(url, queue=name, queue_type="classic" if kind else "quorum")
    from planton_brokers.testing import MemoryBroker

    return MemoryBroker()


def produce(dsn: str, rate: float, seconds: float, committed: dict[str, float]) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        began = time.monotonic()
        for number in range(int(rate * seconds)):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            name = f"{RUN}-{number}"
            connection.execute("SELECT planton_enqueue('bench', %s)", [name])
            committed[name] = time.monotonic()


async def main(arguments: argparse.Namespace) -> None:
    storage = PostgresStorage(arguments.dsn, migrate=True)
    relay = Relay(to_broker(arguments.url))
    executor = Executor(storage, concurrency=50)
    committed: dict[str, float] = {}
    confirmed: dict[str, float] = {}
    task = storage.queue_task("bench", concurrency=100_000, lease=relay.transit)
    planton = Planton(storages=[storage], consumers=[relay], tasks=[task])

    @planton.on(InstructionEvent)
    def note(event: InstructionEvent) -> None:
        confirmed[event.instruction] = time.monotonic()

    @executor.handler("bench")
    async def handle(work: object) -> None:
        await trio.lowlevel.checkpoint()

    async with planton, relay.consumer(executor):
        rate, seconds = arguments.rate, arguments.seconds
        thread = threading.Thread(target=produce, args=(arguments.dsn, rate, seconds, committed))
        thread.start()
        began = time.monotonic()
        await trio.to_thread.run_sync(thread.join)
        rate = len(committed) / (time.monotonic() - began)
        while not committed.keys() <= confirmed.keys():
            await trio.sleep(0.01)
        times = sorted((confirmed[name] - at) * 1000 for name, at in committed.items())
        p50, p99 = (times[math.floor(len(times) * part)] for part in (0.5, 0.99))
        print(f"{relay.broker}: {len(times)} at {rate:.0f}/s, commit to confirmed: ", end="")
        print(f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {times[-1]:.1f} ms")

        confirmed.clear()
        began = time.monotonic()
        await storage.enqueue_many("bench", [f"{RUN}-b{n}" for n in range(arguments.burst)])
        queued = time.monotonic() - began
        while len(confirmed) < arguments.burst:
            await trio.sleep(0.01)
        relayed = time.monotonic() - began
        while (await storage.stats())[0].running:
            await trio.sleep(0.05)
        done = time.monotonic() - began
        print(
            f"{arguments.burst} at once: queued {queued:.1f} s, all confirmed {relayed:.1f} s, ",
            end="",
        )
        print(f"all executed {done:.1f} s")


parser = argparse.ArgumentParser()
parser.add_argument("dsn")
parser.add_argument("url")
parser.add_argument("--rate", type=float, default=200)
parser.add_argument("--seconds", type=float, default=20)
parser.add_argument("--burst", type=int, default=10_000)
trio.run(main, parser.parse_args())
