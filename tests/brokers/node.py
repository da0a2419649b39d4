"""A process of a fleet: relays from Postgres to a broker, or consumes; killed by the tests.

python node.py MODULE CLASS ARGUMENTS-AS-JSON DSN LOG RESTING relay|consumer
"""

import importlib
import json
import os
import sys
import time

import trio

from planton import Planton
from planton_brokers import Relay
from planton_executor import Executor, Work
from planton_postgres import PostgresStorage

MODULE, CLASS, ARGUMENTS, DSN, LOG, RESTING, ROLE = sys.argv[1:]
log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
broker = getattr(importlib.import_module(MODULE), CLASS)(**json.loads(ARGUMENTS))
relay = Relay(broker, transit=5.0)
storage = PostgresStorage(DSN)


def note(word: str, instruction: str) -> None:
    os.write(log, f"{word} {instruction} {os.getpid()} {time.monotonic()}\n".encode())


async def handle(work: Work) -> None:
    note("begins", work.instruction)
    await trio.sleep(0.001)
    note("ends", work.instruction)


async def consume() -> None:
    executor = Executor(storage, concurrency=20)
    executor.handler("task", retries=1000)(handle)
    async with storage, relay.consumer(executor, lease=3.0):
        await trio.sleep_forever()


async def dispatch() -> None:
    task = storage.queue_task(
        "task", concurrency=int(RESTING), delay=0.5, lease=relay.transit, deliveries=1000
    )
    await Planton(storages=[storage], consumers=[relay], tasks=[task]).run()


trio.run(consume if ROLE == "consumer" else dispatch)
