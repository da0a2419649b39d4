"""For testing what you build on Planton, and for testing Planton."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from planton.testing._clock import thread_aware
from planton.testing._collector import EventCollector
from planton.testing._memory import memory_storage
from planton.testing.callbacks._check import check_callbacks
from planton.testing.callbacks._report import CallbackReport, Finding
from planton.testing.simulation._simulate import SimulationError, SimulationReport, simulate

if TYPE_CHECKING:
    from planton.testing.conformance._suite import StorageConformance
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
    # Found when they are asked for: the storage in memory is an adapter's, the suite needs pytest.
    if name == "MemoryStorage":
        return memory_storage()
    if name == "StorageConformance":
        return import_module("planton.testing.conformance._suite").StorageConformance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
