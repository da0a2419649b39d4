"""Where the storage in memory is found: planton itself knows no database."""

from importlib.metadata import entry_points
from typing import Any


def memory_storage() -> Any:
    """Return the class `MemoryStorage`, which the SQLite adapter brings.

    Raises:
        ImportError: If that is not installed.
    """
    found = entry_points(group="planton.storages", name="memory")
    if not found:
        problem = "MemoryStorage is the SQLite storage in memory: pip install 'planton[sqlite]'"
        raise ImportError(problem, name="planton_sqlite")
    return next(iter(found)).load()
