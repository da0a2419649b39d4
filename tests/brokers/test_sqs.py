"""SQS, on the server of moto, in a process of its own."""

import uuid

import pytest

from planton import InvalidArgumentError
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
