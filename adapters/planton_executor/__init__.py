"""Executes instructions in this process: handlers, heartbeats, reports, and a drain at the end."""

from planton_executor._errors import GiveUp, LostLeaseError
from planton_executor._events import (
    FailedEvent,
    IdleEvent,
    LeaseAtRiskEvent,
    StartedEvent,
    SucceededEvent,
)
from planton_executor._executor import Executor
from planton_executor._work import Work

__all__ = [
    "Executor",
    "FailedEvent",
    "GiveUp",
    "IdleEvent",
    "LeaseAtRiskEvent",
    "LostLeaseError",
    "StartedEvent",
    "SucceededEvent",
    "Work",
]
