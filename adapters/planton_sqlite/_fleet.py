"""The dispatchers of a database, and their reports; the transaction is the caller's."""

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs

from planton.storage import (
    FORGOTTEN_AFTER,
    Answer,
    DispatcherRecord,
    Registration,
    TaskReport,
    load_statements,
)
from planton_sqlite._operate import to_datetime

FLEET = load_statements(__package__, "fleet.sql")


def register(connection: sqlite3.Connection, registration: Registration, now: float) -> None:
    _execute(connection, "register", **attrs.asdict(registration), now=now)


def beat(
    connection: sqlite3.Connection,
    dispatcher_id: str,
    tasks: int,
    reports: Mapping[str, str],
    gone: Collection[str],
    now: float,
) -> Answer:
    parameters = {"id": dispatcher_id, "now": now}
    found = _execute(connection, "beat", **parameters, tasks=tasks).fetchall()
    if _execute(connection, "forget", **parameters, silent=FORGOTTEN_AFTER).rowcount:
        _execute(connection, "forget_reports")
    if not found:
        return "unknown"
    if gone:
        _execute(connection, "withdraw", id=dispatcher_id, gone=json.dumps(list(gone)))
    if reports:
        _execute(connection, "report", **parameters, reports=json.dumps(dict(reports)))
    return "go on" if found[0][0] is None else "stop"


def deregister(connection: sqlite3.Connection, dispatcher_id: str) -> None:
    _execute(connection, "deregister", id=dispatcher_id)
    _execute(connection, "forget_reports")


def dispatchers(connection: sqlite3.Connection, now: float) -> list[DispatcherRecord]:
    rows = _execute(connection, "dispatchers", now=now)
    names = [column[0] for column in rows.description]
    return [DispatcherRecord(**_dated(dict(zip(names, row, strict=True)))) for row in rows]


def request_stop(
    connection: sqlite3.Connection, dispatcher_ids: Sequence[str] | None, now: float
) -> list[str]:
    ids = None if dispatcher_ids is None else json.dumps(dispatcher_ids)
    return [row[0] for row in _execute(connection, "request_stop", ids=ids, now=now).fetchall()]


def decisions(connection: sqlite3.Connection, task_name: str | None) -> list[TaskReport]:
    return [
        TaskReport.of(who, name, _dated({"at": at})["at"], text)
        for who, name, at, text in _execute(connection, "decisions", task_name=task_name)
    ]


def _dated(values: dict[str, Any]) -> dict[str, Any]:
    times = {name for name in values if name.endswith("at")}
    return {name: to_datetime(each) if name in times else each for name, each in values.items()}


def _execute(connection: sqlite3.Connection, statement: str, **parameters: Any) -> sqlite3.Cursor:
    return connection.execute(FLEET[statement], parameters)
