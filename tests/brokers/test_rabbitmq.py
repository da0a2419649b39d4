"""RabbitMQ, on a real server."""

import uuid
from contextlib import closing

import pika
import pytest
import trio

from planton import InvalidArgumentError
from planton_brokers import Message
from planton_brokers.rabbitmq import RabbitMQ, _routing_key
from planton_brokers.testing import BrokerConformance


class TestRabbitMQ(BrokerConformance):
    away = RabbitMQ("amqp://127.0.0.1:1")
    redelivered_within = 1.0

    @pytest.fixture(params=("quorum", pytest.param("classic", marks=pytest.mark.slow)))
    def broker(self, rabbitmq_port, request):
        url = f"amqp://127.0.0.1:{rabbitmq_port}"
        return RabbitMQ(url, queue=uuid.uuid4().hex, queue_type=request.param)


async def test_a_queue_that_was_deleted_is_declared_again(rabbitmq_port):
    """What could not be routed is not confirmed, and the next connection makes the queue."""
    url, queue = f"amqp://127.0.0.1:{rabbitmq_port}", uuid.uuid4().hex
    broker = RabbitMQ(url, queue=queue)
    async with broker.connect() as connection:
        with closing(pika.BlockingConnection(pika.URLParameters(url))) as other:
            other.channel().queue_delete(queue)
        with pytest.raises(LookupError, match="NO_ROUTE"):
            await connection.send([Message("1.1", "a")])
    async with broker.connect() as connection:
        answers = await connection.send([Message("1.2", "a")])

    assert [None] == answers


async def test_a_send_that_is_cancelled_spoils_no_other(rabbitmq_port):
    """Its messages are confirmed all the same, and nobody waits for that."""
    broker = RabbitMQ(f"amqp://127.0.0.1:{rabbitmq_port}", queue=uuid.uuid4().hex)
    async with broker.connect() as connection:
        with trio.move_on_after(0.02):
            await connection.send([Message(f"1.{number}", "a" * 1000) for number in range(3000)])
        answers = await connection.send([Message("2.2", "b")])

    assert [None] == answers


async def test_a_receive_that_is_cancelled_at_any_moment_keeps_no_message(rabbitmq_port):
    """What was pushed to it meanwhile is delivered again, by the same connection, at once."""
    broker = RabbitMQ(f"amqp://127.0.0.1:{rabbitmq_port}", queue=uuid.uuid4().hex)
    async with broker.connect() as connection:
        await connection.send([Message("1.1", "a")])
        received = []
        for turns in range(60):
            with trio.move_on_after(turns * 0.0002):
                received += await connection.receive(1)
                break
        if not received:
            with trio.fail_after(5):
                received += await connection.receive(1)

    assert [b"a"] == [each.body for each in received]


def test_a_kind_of_queue_that_there_is_not_is_refused():
    """When the broker is named."""
    with pytest.raises(InvalidArgumentError, match="queue_type is 'stream': give quorum"):
        RabbitMQ("amqp://127.0.0.1", queue_type="stream")


@pytest.mark.parametrize("partition", ("acme", "ä" * 200))
async def test_the_partition_of_an_instruction_is_the_routing_key(rabbitmq_port, partition):
    """At an exchange that binds it to a queue; what has no partition goes by its receipt."""
    url = f"amqp://127.0.0.1:{rabbitmq_port}"
    queue, others, exchange = (uuid.uuid4().hex for _ in range(3))
    message = Message("1.1", "a", partition)
    with closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel = connection.channel()
        channel.exchange_declare(exchange, "direct")
        for name, key in ((queue, _routing_key(message)), (others, "2.2")):
            channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum"})
            channel.queue_bind(name, exchange, key)
    async with RabbitMQ(url, queue=queue, exchange=exchange).connect() as connection:
        assert [None, None] == await connection.send([message, Message("2.2", "b")])
        received = await connection.receive(5)
        await connection.acknowledge(received)
    async with RabbitMQ(url, queue=others).connect() as connection:
        other = await connection.receive(5)
        await connection.acknowledge(other)

    assert [[b"a"], [b"b"]] == [[each.body for each in found] for found in (received, other)]
