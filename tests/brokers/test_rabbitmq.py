"""RabbitMQ, on a real server."""

import uuid

import pytest

from planton_brokers.rabbitmq import RabbitMQ
from planton_brokers.testing import BrokerConformance


class TestRabbitMQ(BrokerConformance):
    away = RabbitMQ("amqp://127.0.0.1:1")
    redelivered_within = 1.0

    @pytest.fixture(params=("quorum", pytest.param("classic", marks=pytest.mark.slow)))
    def broker(self, rabbitmq_port, request):
        url = f"amqp://127.0.0.1:{rabbitmq_port}"
        return RabbitMQ(url, queue=uuid.uuid4().hex, queue_type=request.param)
