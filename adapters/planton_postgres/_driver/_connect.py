"""Opening a connection: the hosts of a conninfo one after the other, which share the time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psycopg
import trio
from psycopg import capabilities
from psycopg.abc import ConnDict
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import ConnectionTimeout

from . import _internals
from ._wait import drive_connecting

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn


async def open_connection(conninfo: str, timeout: float) -> PGconn:
    """Return a connection to the first host that takes us, in `timeout` seconds for all of them.

    Of the time that is left each address has its share: one that is silent leaves some to the next.
    """
    # libpq 17: older ones can only cancel a statement by blocking.
    capabilities.has_cancel_safe(check=True)
    failures: list[psycopg.OperationalError] = []
    deadline = trio.current_time() + timeout
    attempts = await _resolve(conninfo_to_dict(conninfo), timeout)
    for number, attempt in enumerate(attempts):
        share = max(0.0, deadline - trio.current_time()) / (len(attempts) - number)
        try:
            with trio.fail_after(share):
                return await drive_connecting(_internals.connecting(make_conninfo("", **attempt)))
        except trio.TooSlowError:
            failures.append(_too_slow("connecting to", attempt, share))
        except psycopg.OperationalError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    # Of the last one's type; it tells all of them.
    raise type(failures[-1])("; ".join(str(failure).strip() for failure in failures))


async def _resolve(wanted: ConnDict, timeout: float) -> list[ConnDict]:
    """Return what to try, in order.

    Names are resolved in a thread: the system's resolver knows no other way. It has a limiter of
    its own, and so never waits for threads that do something else.
    """
    with trio.move_on_after(timeout):
        return await trio.to_thread.run_sync(
            _internals.connection_attempts,
            wanted,
            abandon_on_cancel=True,
            limiter=trio.CapacityLimiter(1),
        )
    raise _too_slow("resolving", wanted, timeout)


def _too_slow(what: str, attempt: ConnDict, timeout: float) -> ConnectionTimeout:
    host = attempt.get("host") or attempt.get("hostaddr") or os.environ.get("PGHOST", "localhost")
    port = attempt.get("port") or os.environ.get("PGPORT") or 5432
    return ConnectionTimeout(
        f"{what} {host}, port {port} took longer than {round(timeout, 1):g} seconds: no answer"
    )
