"""PostgreSQL on trio: psycopg 3 with a wait loop of its own, and a small pool.

It knows nothing of Planton and could be published by itself.
"""

from ._connection import StatementTimeout, TrioConnection
from ._pipeline import Statement
from ._pool import Pool, PoolTimeout
from ._wait import is_readable

__all__ = [
    "Pool",
    "PoolTimeout",
    "Statement",
    "StatementTimeout",
    "TrioConnection",
    "is_readable",
]
