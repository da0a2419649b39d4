"""A server that is killed and started again, as a relay and a consumer in this process see it."""

import pytest
import trio

from planton import Planton, health
from planton.testing import MemoryStorage
from planton_brokers import Relay
from planton_brokers.nats import JetStream
from planton_brokers.redis import RedisStream
from planton_executor import Executor

BROKERS = {
    "redis": lambda port: RedisStream(f"redis://127.0.0.1:{port}"),
    "nats": lambda port: JetStream(f"nats://127.0.0.1:{port}"),
}


@pytest.mark.parametrize("kind", sorted(BROKERS))
async def test_a_broker_that_comes_back_is_used_within_two_seconds(kind, make_server, caplog):
    """Meanwhile nothing is claimed, and the log, `health` and `explain` name it."""
    server = make_server(kind)
    storage, relay = MemoryStorage(), Relay(BROKERS[kind](server.port))
    executor, done = Executor(storage), []
    executor.handler("task")(lambda work: done.append(work.instruction))
    task = storage.queue_task("task", concurrency=100, delay=0.2, lease=relay.transit)
    planton = Planton(storages=[storage], consumers=[relay], tasks=[task])
    async with planton, relay.consumer(executor):
        await storage.enqueue("task", "a")
        await until(lambda: done == ["a"])
        server.kill()
        await storage.enqueue_many("task", ["b", "c"])
        await until(lambda: health(planton).warnings and "failed" in planton.explain("task")[0])

        assert str(relay.broker) in planton.explain("task")[0]
        await trio.sleep(1)

        assert 2 == len(await storage.find(status="queued"))
        lines = [each for each in caplog.records if str(relay.broker) in each.getMessage()]
        assert 1 <= len(lines) <= 6
        server.start()
        with trio.fail_after(2):
            await until(lambda: sorted(done) == ["a", "b", "c"])


async def until(condition):
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.02)
