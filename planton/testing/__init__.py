"""For testing what you build on Planton, and for testing Planton."""

from planton.testing._clock import thread_aware
from planton.testing._collector import EventCollector
from planton.testing._memory import MemoryStorage
from planton.testing._memory_rows import Row, Transaction
from planton.testing.callbacks import CallbackReport, Finding, check_callbacks
from planton.testing.conformance import StorageConformance
from planton.testing.simulation import SimulationError, SimulationReport, simulate

__all__ = [
    "CallbackReport",
    "EventCollector",
    "Finding",
    "MemoryStorage",
    "Row",
    "SimulationError",
    "SimulationReport",
    "StorageConformance",
    "Transaction",
    "check_callbacks",
    "simulate",
    "thread_aware",
]
