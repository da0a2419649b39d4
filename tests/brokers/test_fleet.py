"""Relays, consumers and brokers as processes, killed in the middle of it.

A short version runs by default. `pytest -m slow -n 0 -s tests/brokers/test_fleet.py` runs 50,000
instructions and 100 kills through each broker.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from itertools import cycle, pairwise
from pathlib import Path

import pytest
import trio

from planton_postgres import PostgresStorage

HERE = Path(__file__).parent
KEYS = {"region_name": "eu-west-1", "aws_access_key_id": "x", "aws_secret_access_key": "x"}
QUICK = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500, "fetch.wait.max.ms": 100}
REDIS = {"url": "redis://ADDRESS", "redeliver_after": 1}
NATS = {"url": "nats://ADDRESS", "redeliver_after": 1}
SQS = {"endpoint_url": "http://ADDRESS", "redeliver_after": 1, **KEYS}
# How a process makes its broker: module, name, arguments; and how many messages may rest in it, so
# that none rests for longer than its lease.
BROKERS = {
    "redis": ("planton_brokers.redis", "RedisStream", REDIS, 2000),
    "nats": ("planton_brokers.nats", "JetStream", NATS, 2000),
    "rabbitmq": ("planton_brokers.rabbitmq", "RabbitMQ", {"url": "amqp://ADDRESS"}, 2000),
    "kafka": ("planton_brokers.kafka", "Kafka", {"servers": "ADDRESS", "options": QUICK}, 2000),
    "sqs": ("planton_brokers.sqs", "SQS", SQS, 40),
    "celery": ("celery_app", "queue", {}, 40),
}
slow = pytest.mark.slow
WORKER = ("-A", "celery_app", "worker", "--pool", "solo", "--loglevel", "error")
QUIET = ("--without-mingle", "--without-gossip", "--without-heartbeat")


class Fleet:
    """Processes, the times at which they were killed, and what their handlers wrote down."""

    def __init__(self, kind, address, dsn, log):
        module, name, options, resting = BROKERS[kind]
        arguments = json.dumps(options).replace("ADDRESS", address)
        node = (str(HERE / "node.py"), module, name, arguments, dsn, str(log), str(resting))
        self._commands = {"relay": (*node, "relay"), "consumer": (*node, "consumer")}
        if kind == "celery":
            self._commands["consumer"] = ("-m", "celery", *WORKER, *QUIET)
        self._environment = os.environ | {
            "PLANTON_TEST_BROKER": f"redis://{address}",
            "PLANTON_TEST_DSN": dsn,
            "PLANTON_TEST_LOG": str(log),
        }
        self._log = log
        self.processes, self.killed_at = {"relay": [], "consumer": []}, {}

    def start(self, role):
        command = [sys.executable, *self._commands[role]]
        process = subprocess.Popen(command, cwd=HERE, env=self._environment)
        self.processes[role].append(process)

    def kill(self, role):
        process = self.processes[role].pop(0)
        process.kill()
        process.wait()
        self.killed_at[str(process.pid)] = time.monotonic()

    def executions(self):
        """Of each instruction from when to when it was executed; in the order of the begins."""
        found, open_ = {}, {}
        for line in self._log.read_text().splitlines():
            word, instruction, pid, at = line.split()
            if word == "begins":
                span = open_[instruction, pid] = [float(at), self.killed_at.get(pid)]
                found.setdefault(instruction, []).append(span)
            else:
                open_.pop((instruction, pid))[1] = float(at)
        return found


@contextmanager
def fleet(kind, server, dsn, log):
    nodes = Fleet(kind, server.address, dsn, log)
    try:
        for role in ("relay", "consumer", "consumer"):
            nodes.start(role)
        yield nodes
    finally:
        for role in ("relay", "consumer"):
            while nodes.processes[role]:
                nodes.kill(role)


async def run(kind, server, dsn, log, *, count, victims, patience):
    """Enqueue between the kills, wait for the end, and return how often each was executed."""
    portion = count // (len(victims) + 1)
    async with PostgresStorage(dsn) as storage:
        await storage.migrate()
        with fleet(kind, server, dsn, log) as nodes:
            await enqueue(storage, 0, portion)
            for number, victim in enumerate(victims, 1):
                await enqueue(storage, number * portion, portion)
                await some_executed(log, random.randrange(20, 100))
                if victim == "broker":
                    server.kill()
                    server.start()
                else:
                    nodes.kill(victim)
                    nodes.start(victim)
            with trio.fail_after(patience):
                while (await storage.stats())[0].succeeded < portion * (len(victims) + 1):
                    await trio.sleep(0.2)
        (stats,) = await storage.stats()
    executions = nodes.executions()

    assert (0, 0, 0, 0) == (stats.queued, stats.running, stats.failed, stats.dead)
    assert portion * (len(victims) + 1) == stats.succeeded == len(executions)
    for instruction, spans in executions.items():
        for before, after in pairwise(spans):
            assert before[1] is not None, f"{instruction} was executed by two"
            assert before[1] <= after[0], f"{instruction} was executed by two at once"
    return Counter(len(spans) for spans in executions.values())


async def some_executed(log, count):
    """Wait until so many more are, in the middle of which somebody is killed."""
    size = log.stat().st_size if log.exists() else 0
    with trio.fail_after(120):
        while not log.exists() or log.stat().st_size < size + 2 * 30 * count:
            await trio.sleep(0.05)


async def enqueue(storage, first, count):
    await storage.enqueue_many("task", [str(number) for number in range(first, first + count)])


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "redis" else slow) for kind in BROKERS]
)
async def test_kills_lose_nothing(kind, make_server, schema_dsn, tmp_path):
    """Of a relay, a consumer and the broker: each is executed, none by two at once."""
    victims = [each for each in ("consumer", "relay", "broker") if each in mortals(kind)]
    server, log = make_server(kind), tmp_path / "log"
    times = await run(kind, server, schema_dsn, log, count=800, victims=victims, patience=60)

    # Only what the consumer that was killed had begun may be executed again.
    assert sum(times[often] for often in times if often > 1) <= 20


@slow
@pytest.mark.parametrize("kind", BROKERS)
async def test_a_hundred_kills_lose_nothing(kind, make_server, schema_dsn, tmp_path):
    """Nor among fifty thousand instructions."""
    roles = cycle(mortals(kind))
    victims = [next(roles) for _ in range(100)]
    server, log, began = make_server(kind), tmp_path / "log", time.monotonic()
    times = await run(kind, server, schema_dsn, log, count=50_500, victims=victims, patience=1800)
    print(f"\n{kind}: {dict(times)} executions, {time.monotonic() - began:.0f} s")

    assert sum(times[often] for often in times if often > 1) <= 20 * victims.count("consumer")


def mortals(kind):
    """What is killed; what stands for Kafka and SQS has nothing on disk."""
    rest = () if kind in ("kafka", "sqs") else ("broker",)
    return ("consumer", "relay", "consumer", "relay", *rest)
