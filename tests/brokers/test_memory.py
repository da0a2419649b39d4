"""The broker in memory."""

import pytest

from planton_brokers.testing import BrokerConformance, MemoryBroker


class TestMemoryBroker(BrokerConformance):
    away = MemoryBroker()
    away.is_away = True
    redelivered_within = 0.2

    @pytest.fixture
    def broker(self):
        return MemoryBroker()
