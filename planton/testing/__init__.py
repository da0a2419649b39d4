"""For testing what you build on Planton, and for testing Planton."""

from typing import TYPE_CHECKING, Any

from planton.testing._clock import thread_aware
from planton.testing._collector import EventCollector
from planton.testing._memory import memory_storage
from planton.testing.callbacks import CallbackReport, Finding, check_callbacks
from planton.testing.conformance import StorageConformance
from planton.testing.simulation import SimulationError, SimulationReport, simulate

if TYPE_CHECKING:
    from planton_sqlite import MemoryStorage

__all__ = [
    "CallbackReport",
    "EventCollector",
    "Finding",
    "MemoryStorage",
    "SimulationError",
    "SimulationReport",
    "StorageConformance",
    "check_callbacks",
    "simulate",
    "thread_aware",
]


def __getattr__(name: str) -> Any:
    # The storage in memory is the SQLite one, which is an adapter: found when it is asked for.
    if name == "MemoryStorage":
        return memory_storage()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
