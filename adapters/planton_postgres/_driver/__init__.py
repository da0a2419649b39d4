"""PostgreSQL on trio: psycopg 3 with a wait loop of its own, and a small pool.

It knows nothing of Planton and could be published by itself.
"""

from ._connection import TrioConnection
from ._errors import PoolTimeout, StatementTimeout
from ._pool import Pool
from ._retry import connect_with_retries, full_jitter

__all__ = [
    "Pool",
    "PoolTimeout",
    "StatementTimeout",
    "TrioConnection",
    "connect_with_retries",
    "full_jitter",
]
