"""Connecting again and again, without all clients of a server that comes back doing so at once."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import psycopg
import trio

from ._connection import TrioConnection

_DOUBLINGS = 60  # enough for any ceiling, and few enough for a float


def full_jitter(
    attempt: int,
    *,
    initial: float = 0.05,
    maximum: float = 5.0,
    draw: Callable[[], float] = random.random,
) -> float:
    """Return how many seconds to sleep after failed attempt number `attempt`, counted from 0.

    Anything between nothing and `initial * 2**attempt`, at most `maximum`: the whole of it is
    random, so that many clients spread evenly.

    >>> [full_jitter(attempt, initial=1, maximum=10, draw=lambda: 1.0) for attempt in range(6)]
    [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    >>> full_jitter(3, initial=1, maximum=10, draw=lambda: 0.25)
    2.0
    """
    ceiling: float = min(maximum, initial * 2.0 ** min(attempt, _DOUBLINGS))
    return draw() * ceiling


async def connect_with_retries(
    conninfo: str = "", *, timeout: float = math.inf, longest_pause: float = 5.0, **options: Any
) -> TrioConnection[tuple[Any, ...]]:
    """Connect, however long the server is away; sleeps with full jitter between the attempts.

    When cancelled, no connection is left open.

    Args:
        conninfo: As for `TrioConnection.connect`.
        timeout: Seconds for everything.
        longest_pause: The most seconds between two attempts.
        **options: Keyword arguments of `TrioConnection.connect`.

    Raises:
        psycopg.OperationalError: the error of the last attempt within `timeout`.
        psycopg.ProgrammingError: `conninfo` is not valid; that is not tried again.
    """
    failure: psycopg.OperationalError | None = None
    attempt = 0
    with trio.move_on_after(timeout):
        while True:
            try:
                return await TrioConnection.connect(conninfo, **options)
            except psycopg.OperationalError as error:
                failure = error
            await trio.sleep(full_jitter(attempt, maximum=longest_pause))
            attempt += 1
    raise failure or psycopg.errors.ConnectionTimeout(f"not connected within {timeout:g} seconds")
