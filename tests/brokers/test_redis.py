"""Redis Streams, on a real server."""

import uuid

import pytest

from planton_brokers.redis import RedisStream
from planton_brokers.testing import BrokerConformance


class TestRedisStream(BrokerConformance):
    away = RedisStream("redis://127.0.0.1:1")
    redelivered_within = 1.5

    @pytest.fixture
    def broker(self, redis_port):
        url = f"redis://127.0.0.1:{redis_port}"
        return RedisStream(url, stream=uuid.uuid4().hex, redeliver_after=0.5)
