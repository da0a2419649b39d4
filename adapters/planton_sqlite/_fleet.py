"""The dispatchers of a database, and what they say of their tasks."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs

from planton.storage import FORGOTTEN_AFTER, Answer, DispatcherRecord, Registration, TaskReport
from planton_sqlite._owner import Owner
from planton_sqlite._statements import load

FLEET = load("fleet.sql")


@attrs.frozen(eq=False)
class Fleet:
    """A `planton.storage.Registry`, and what operators ask of it."""

    _owner: Owner

    async def register(self, registration: Registration) -> None:
        """Enter a dispatcher."""
        await self._execute("register", **attrs.asdict(registration))

    async def beat(
        self, dispatcher_id: str, tasks: int, reports: Mapping[str, str], gone: Sequence[str]
    ) -> Answer:
        """Note that a dispatcher lives, and what it says; one transaction."""
        parameters = {
            "id": dispatcher_id,
            "tasks": tasks,
            "reports": json.dumps(dict(reports)),
            "gone": json.dumps(list(gone)),
            "silent": FORGOTTEN_AFTER,
        }
        # A beat that has nothing to say of tasks makes no statement about them.
        told = [name for name, what in (("withdraw", gone), ("report", reports)) if what]
        return await self._owner.write(lambda connection: _beat(connection, parameters, told))

    async def deregister(self, dispatcher_id: str) -> None:
        """Forget a dispatcher and what it said."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute(FLEET["deregister"], {"id": dispatcher_id})
            connection.execute(FLEET["silence"])

        await self._owner.write(change)

    async def dispatchers(self) -> list[DispatcherRecord]:
        """Give the dispatchers, the oldest first."""
        names = [field.name for field in attrs.fields(DispatcherRecord)]
        rows = await self._owner.read(lambda own: own.execute(FLEET["dispatchers"]).fetchall())
        return [DispatcherRecord(**_dated(dict(zip(names, row, strict=True)))) for row in rows]

    async def request_stop(self, dispatcher_ids: Sequence[str] | None) -> list[str]:
        """Ask dispatchers to stop; which."""
        ids = None if dispatcher_ids is None else json.dumps(dispatcher_ids)
        return [row[0] for row in await self._execute("request_stop", ids=ids)]

    async def decisions(self, task_name: str | None) -> list[TaskReport]:
        """Give what dispatchers said."""
        parameters = {"task_name": task_name}
        rows = await self._owner.read(
            lambda own: own.execute(FLEET["decisions"], parameters).fetchall()
        )
        return [TaskReport.read(who, name, _to_date(at), text) for who, name, at, text in rows]

    async def _execute(self, statement: str, **parameters: Any) -> list[Any]:
        return await self._owner.write(
            lambda connection: connection.execute(FLEET[statement], parameters).fetchall()
        )


def _beat(
    connection: sqlite3.Connection, parameters: dict[str, Any], told: Sequence[str]
) -> Answer:
    found = connection.execute(FLEET["beat"], parameters).fetchall()
    if connection.execute(FLEET["bury"], parameters).rowcount:
        connection.execute(FLEET["silence"])
    if not found:
        return "unknown"
    for statement in told:
        connection.execute(FLEET[statement], parameters)
    return "go on" if found[0][0] is None else "stop"


def _dated(values: dict[str, Any]) -> dict[str, Any]:
    """Give times as such."""
    for name in ("started_at", "seen_at", "stop_requested_at"):
        values[name] = None if values[name] is None else _to_date(values[name])
    return values


def _to_date(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
