"""Hands instructions to a broker, and takes them from it: a relay, a consumer, one small port.

Each broker has a module of its own, with its own extra: `planton_brokers.redis`, `.rabbitmq`,
`.nats`, `.kafka`, `.sqs`, `.celery`; `.webhook` is a handler of the executor.
"""

from planton_brokers._port import (
    Broker,
    BrokerError,
    Connection,
    Message,
    Outlet,
    Received,
    Sender,
)
from planton_brokers._relay import Relay

__all__ = [
    "Broker",
    "BrokerError",
    "Connection",
    "Message",
    "Outlet",
    "Received",
    "Relay",
    "Sender",
]
