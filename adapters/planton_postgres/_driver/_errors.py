from __future__ import annotations

import psycopg


class PoolTimeout(psycopg.OperationalError):
    """No connection could be had from the pool in time: all are in use, or the server is away.

    When the server is away, `__cause__` is the error of the last attempt to connect.
    """


class StatementTimeout(psycopg.OperationalError):
    """What was asked of the server took longer than it was given, and was cancelled there."""
