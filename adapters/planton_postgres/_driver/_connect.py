"""Opening a connection: the hosts of a conninfo one after the other, each within a time limit."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import psycopg
import trio
from psycopg import capabilities
from psycopg.abc import ConnDict, ConnParam
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import ConnectionTimeout

from . import _internals
from ._wait import drive_connecting

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

_DEFAULT_LIMIT = 10.0


async def open_connection(conninfo: str, timeout: float | str | None) -> PGconn:
    """Return a connection to the first host that takes us; each address has `timeout` seconds."""
    # libpq 17: older ones can only cancel a statement by blocking.
    capabilities.has_cancel_safe(check=True)
    wanted = conninfo_to_dict(conninfo)
    limit = _limit(wanted.pop("connect_timeout", None) if timeout is None else timeout)
    failures: list[psycopg.OperationalError] = []
    for attempt in await _resolve(wanted, limit):
        try:
            return await _attempt(attempt, limit)
        except psycopg.OperationalError as error:
            failures.append(error)
    raise _combined(failures)


def _limit(timeout: ConnParam | float) -> float:
    """Return the seconds an attempt may take; as for libpq, 0 or less sets no limit."""
    if timeout is None:
        timeout = os.environ.get("PGCONNECT_TIMEOUT", _DEFAULT_LIMIT)
    try:
        seconds = float(timeout)
    except ValueError:
        raise psycopg.ProgrammingError(f"bad value for connect_timeout: {timeout!r}") from None
    return seconds if seconds > 0 else math.inf


async def _resolve(wanted: ConnDict, limit: float) -> list[ConnDict]:
    """Return what to try, in order.

    Names are resolved in a thread: the system's resolver knows no other way. It has a limiter of
    its own, and so never waits for threads that do something else.
    """
    with trio.move_on_after(limit):
        return await trio.to_thread.run_sync(
            _internals.connection_attempts,
            wanted,
            abandon_on_cancel=True,
            limiter=trio.CapacityLimiter(1),
        )
    raise ConnectionTimeout(f"resolving {_describe(wanted)} took longer than {limit:g} seconds")


async def _attempt(attempt: ConnDict, limit: float) -> PGconn:
    with trio.move_on_after(limit):
        return await drive_connecting(_internals.connecting(make_conninfo("", **attempt)))
    raise ConnectionTimeout(
        f"connecting to {_describe(attempt)} took longer than {limit:g} seconds: no answer"
    )


def _describe(attempt: ConnDict) -> str:
    host = attempt.get("host") or attempt.get("hostaddr") or os.environ.get("PGHOST", "localhost")
    return f"{host}, port {attempt.get('port') or os.environ.get('PGPORT') or 5432}"


def _combined(failures: list[psycopg.OperationalError]) -> psycopg.OperationalError:
    """Return one error of the last one's type that tells all of them."""
    if len(failures) == 1:
        return failures[0]
    return type(failures[-1])("; ".join(str(failure).strip() for failure in failures))
