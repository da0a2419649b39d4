"""Executes instructions in this process: handlers, heartbeats, reports, and a drain at the end."""

from planton_executor._callbacks import Callbacks
from planton_executor._errors import GiveUp, LostLeaseError, NoHandlerError, StateError, TryAgain
from planton_executor._events import (
    AdvancedEvent,
    FailedEvent,
    IdleEvent,
    LeaseAtRiskEvent,
    StartedEvent,
    SucceededEvent,
    Work,
)
from planton_executor._executor import Executor
from planton_executor._step import Done, Later, Next, Step, StepContext, Then, done, later, then
from planton_executor._steps import Steps

__all__ = [
    "AdvancedEvent",
    "Callbacks",
    "Done",
    "Executor",
    "FailedEvent",
    "GiveUp",
    "IdleEvent",
    "Later",
    "LeaseAtRiskEvent",
    "LostLeaseError",
    "Next",
    "NoHandlerError",
    "StartedEvent",
    "StateError",
    "Step",
    "StepContext",
    "Steps",
    "SucceededEvent",
    "Then",
    "TryAgain",
    "Work",
    "done",
    "later",
    "then",
]
