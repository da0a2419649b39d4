"""Kafka, on the cluster that librdkafka mocks within a process."""

import uuid

import pytest
import trio
from confluent_kafka import KafkaException

from planton_brokers import Message
from planton_brokers.kafka import Kafka
from planton_brokers.testing import BrokerConformance

# A group notices sooner that one of its consumers has left.
QUICK = {"session.timeout.ms": 3000, "heartbeat.interval.ms": 500, "fetch.wait.max.ms": 100}


class TestKafka(BrokerConformance):
    away = Kafka("127.0.0.1:1")
    redelivered_within = 8.0
    is_partitioned = True

    @pytest.fixture
    def broker(self, kafka_servers):
        name = uuid.uuid4().hex
        return Kafka(kafka_servers, topic=name, group=name, options=QUICK)

    # The group of the mock takes its time to be joined again.
    @pytest.mark.slow
    async def test_what_is_acknowledged_does_not_come_again(self, broker):
        await super().test_what_is_acknowledged_does_not_come_again(broker)

    @pytest.mark.slow
    async def test_receive_waits_for_a_message(self, broker):
        await super().test_receive_waits_for_a_message(broker)

    @pytest.mark.slow
    async def test_what_is_sent_again_is_dropped_where_the_broker_can(self, broker):
        await super().test_what_is_sent_again_is_dropped_where_the_broker_can(broker)

    @pytest.mark.slow
    async def test_several_may_send_at_the_same_time(self, broker):
        await super().test_several_may_send_at_the_same_time(broker)


async def test_an_error_in_place_of_a_message_ends_the_connection(kafka_servers):
    """A new one is made then; nothing is taken for a message, and acknowledged."""
    topic = uuid.uuid4().hex
    options = {**QUICK, "enable.partition.eof": True}
    async with Kafka(kafka_servers, topic=topic, group=topic, options=options).connect() as one:
        with trio.fail_after(20), pytest.raises(KafkaException, match="PARTITION_EOF"):
            await one.receive(1)


async def test_the_partition_of_an_instruction_is_the_key(kafka_servers):
    """So the messages of a tenant are in one partition of the topic, in their order."""
    topic = uuid.uuid4().hex
    broker = Kafka(kafka_servers, topic=topic, group=topic, options=QUICK)
    async with broker.connect() as connection:
        await connection.send([Message("1.1", "a", "acme"), Message("2.2", "b")])
        received = []
        while len(received) < 2:
            received += await connection.receive(2)

    assert {b"a": b"acme", b"b": b"2.2"} == {each.body: each.tag.key() for each in received}
