"""What consumers report about claims, by receipt; a receipt of the past changes nothing.

Each function gives the task name of every receipt that it found. Many claims are moved by as few
statements as one: the receipts are one JSON array.
"""

import json
import sqlite3
from collections.abc import Sequence

from planton.storage import AdvanceReport, FailureReport
from planton_sqlite._statements import END

Found = dict[int, str]


def heartbeat(connection: sqlite3.Connection, receipts: Sequence[int]) -> Found:
    """Renew the leases of claims."""
    return dict(connection.execute(END["heartbeat"], {"receipts": json.dumps(receipts)}).fetchall())


def complete(
    connection: sqlite3.Connection, receipts: Sequence[int], *, result: str | None, is_kept: bool
) -> Found:
    """End claims whose work is done."""
    if is_kept:
        parameters = {"receipts": json.dumps(receipts), "result": result}
        connection.execute(END["succeed"], parameters)
        connection.execute(END["make_good"], parameters)
    return _end(connection, receipts)


def fail(
    connection: sqlite3.Connection,
    receipts: Sequence[int],
    *,
    report: FailureReport,
    is_kept: bool,
) -> Found:
    """Make claims pending again that have retries left, end the others."""
    parameters = {
        "receipts": json.dumps(receipts),
        "error": report.error,
        "delay": report.delay,
        "retry": report.retry,
        "lower_priority": report.lower_priority,
        "retries": report.retries,
    }
    connection.execute(END["requeue"], parameters)
    if is_kept:
        connection.execute(END["give_up"], parameters)
    return _end(connection, receipts)


def advance(
    connection: sqlite3.Connection, receipts: Sequence[int], *, report: AdvanceReport
) -> Found:
    """Go on with another payload, at once or later."""
    parameters = {
        "receipts": json.dumps(receipts),
        "payload": report.payload,
        "retries": report.retries,
    }
    if report.delay is None:
        return dict(connection.execute(END["advance"], parameters).fetchall())
    connection.execute(END["put_off"], {**parameters, "delay": report.delay})
    return _end(connection, receipts)


def release(connection: sqlite3.Connection, receipts: Sequence[int]) -> Found:
    """Make claims pending again that a consumer gives back."""
    return _give_back(connection, receipts, is_undelivered=False)


def take_back(connection: sqlite3.Connection, receipts: Sequence[int]) -> Found:
    """Make claims pending again that could not be delivered; they pause if that happens again."""
    return _give_back(connection, receipts, is_undelivered=True)


def _give_back(
    connection: sqlite3.Connection, receipts: Sequence[int], *, is_undelivered: bool
) -> Found:
    parameters = {"receipts": json.dumps(receipts), "is_undelivered": is_undelivered}
    connection.execute(END["release"], parameters)
    return _end(connection, receipts)


def _end(connection: sqlite3.Connection, receipts: Sequence[int]) -> Found:
    return dict(connection.execute(END["end"], {"receipts": json.dumps(receipts)}).fetchall())
