"""Dispatches work from a database, under a concurrency cap; executes nothing.

See `Planton` and `Task`. Submodules: `planton.delays`, `planton.hosting`, `planton.testing`.
"""

from planton import delays
from planton._errors import (
    AlreadyRunningError,
    CallbackTimeoutError,
    DuplicateTaskNameError,
    InvalidArgumentError,
    InvalidQueryError,
    InvalidTaskError,
    PlantonError,
    StorageError,
    UndeliveredInstructionsError,
    UnexpectedDelayError,
    UnexpectedInstructionsError,
    UnexpectedLimitError,
    UnknownTaskError,
)
from planton._events import AttemptEvent, ErrorEvent, InstructionEvent
from planton._health import Health, health
from planton._parts import Consumer
from planton._planton import Planton, Service
from planton._status import TaskStatus
from planton._task import Batch, Claim, ScheduleRequest, Task

__all__ = [
    "AlreadyRunningError",
    "AttemptEvent",
    "Batch",
    "CallbackTimeoutError",
    "Claim",
    "Consumer",
    "DuplicateTaskNameError",
    "ErrorEvent",
    "Health",
    "InstructionEvent",
    "InvalidArgumentError",
    "InvalidQueryError",
    "InvalidTaskError",
    "Planton",
    "PlantonError",
    "ScheduleRequest",
    "Service",
    "StorageError",
    "Task",
    "TaskStatus",
    "UndeliveredInstructionsError",
    "UnexpectedDelayError",
    "UnexpectedInstructionsError",
    "UnexpectedLimitError",
    "UnknownTaskError",
    "delays",
    "health",
]
