"""SQS, on the server of moto, in a process of its own."""

import uuid

import boto3
import pytest

from planton import InvalidArgumentError
from planton_brokers import Message
from planton_brokers.sqs import SQS
from planton_brokers.testing import BrokerConformance

KEYS = {"region_name": "eu-west-1", "aws_access_key_id": "x", "aws_secret_access_key": "x"}


class TestSQS(BrokerConformance):
    away = SQS("a.fifo", endpoint_url="http://127.0.0.1:1", **KEYS)
    redelivered_within = 2.5
    drops_repeats = True

    @pytest.fixture
    def broker(self, moto_port):
        url = f"http://127.0.0.1:{moto_port}"
        return SQS(f"{uuid.uuid4().hex}.fifo", endpoint_url=url, redeliver_after=1, **KEYS)


def test_a_queue_that_is_no_fifo_queue_is_refused():
    """It drops no repeats."""
    with pytest.raises(InvalidArgumentError, match="queue"):
        SQS("emails", **KEYS)


@pytest.mark.parametrize("partition", ("acme", "Ä & Söhne", "x" * 200))
async def test_the_partition_of_an_instruction_is_the_message_group(moto_port, partition):
    """What SQS would not take as a name becomes one that is always the same."""
    url = f"http://127.0.0.1:{moto_port}"
    broker = SQS(f"{uuid.uuid4().hex}.fifo", endpoint_url=url, redeliver_after=1, **KEYS)
    client = boto3.client("sqs", endpoint_url=url, **KEYS)
    async with broker.connect() as connection:
        messages = [Message(f"{number}.1", str(number), partition) for number in range(3)]
        assert [None] * 4 == await connection.send([*messages, Message("3.1", "3")])
        queue = client.get_queue_url(QueueName=broker._queue)["QueueUrl"]
        found = client.receive_message(
            QueueUrl=queue, MaxNumberOfMessages=10, AttributeNames=["MessageGroupId"]
        )["Messages"]
    client.close()
    groups = {each["Body"]: each["Attributes"]["MessageGroupId"] for each in found}

    assert "3.1" == groups.pop("3")
    assert ["0", "1", "2"] == list(groups)
    assert 1 == len(set(groups.values()))
    assert partition != "acme" or "acme" in groups.values()
