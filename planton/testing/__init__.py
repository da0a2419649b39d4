"""For testing what you build on Planton, and for testing Planton."""

from planton.testing._check import check_callbacks
from planton.testing._check_report import CallbackReport, Finding
from planton.testing._clock import thread_aware
from planton.testing._collector import EventCollector
from planton.testing._conformance import StorageConformance
from planton.testing._memory import MemoryStorage
from planton.testing._memory_rows import Row, Transaction
from planton.testing._simulate import SimulationError, SimulationReport, simulate

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
