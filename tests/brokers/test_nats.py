"""NATS JetStream, on a real server."""

import uuid

import pytest
import trio

from planton_brokers import Message, nats
from planton_brokers.nats import JetStream
from planton_brokers.testing import BrokerConformance


class TestJetStream(BrokerConformance):
    away = JetStream("nats://127.0.0.1:1")
    redelivered_within = 1.5
    drops_repeats = True

    @pytest.fixture
    def broker(self, nats_port):
        url = f"nats://127.0.0.1:{nats_port}"
        return JetStream(url, stream=uuid.uuid4().hex, redeliver_after=0.5)


async def test_a_request_for_messages_that_ends_is_made_again(nats_port, monkeypatch):
    """However long the queue is empty."""
    monkeypatch.setattr(nats, "_ASK_AGAIN", 0.2)
    broker = JetStream(f"nats://127.0.0.1:{nats_port}", stream=uuid.uuid4().hex)
    async with broker.connect() as connection, trio.open_nursery() as nursery:

        async def send_later():
            await trio.sleep(1)
            await connection.send([Message("1.1", "a")])

        nursery.start_soon(send_later)
        received = await connection.receive(1)

    assert [b"a"] == [each.body for each in received]
