"""NATS JetStream, on a real server."""

import uuid

import pytest

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
