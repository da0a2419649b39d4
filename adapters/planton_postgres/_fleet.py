"""The dispatchers of a database, and what they say of their tasks."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

import attrs

from planton.storage import FORGOTTEN_AFTER, Answer, DispatcherRecord, Registration, TaskReport
from planton_postgres._database import Database
from planton_postgres._statements import load

FLEET = load("fleet.sql")


@attrs.frozen(eq=False)
class Fleet:
    """A `planton.storage.Registry`, and what operators ask of it."""

    _database: Database

    async def register(self, registration: Registration) -> None:
        """Enter a dispatcher."""
        await self._database.count(FLEET["register"], attrs.asdict(registration))

    async def beat(
        self, dispatcher_id: str, tasks: int, reports: Mapping[str, str], gone: Sequence[str]
    ) -> Answer:
        """Note that a dispatcher lives, and what it says; one statement."""
        parameters = {
            "id": dispatcher_id,
            "tasks": tasks,
            "reports": json.dumps(dict(reports)),
            "gone": list(gone),
            "silent": FORGOTTEN_AFTER,
        }
        found = await self._database.rows(FLEET["beat"], parameters)
        if not found:
            return "unknown"
        return "stop" if found[0][0] else "go on"

    async def deregister(self, dispatcher_id: str) -> None:
        """Forget a dispatcher and what it said."""
        await self._database.count(FLEET["deregister"], {"id": dispatcher_id})

    async def dispatchers(self) -> list[DispatcherRecord]:
        """Give the dispatchers, the oldest first."""
        names = [field.name for field in attrs.fields(DispatcherRecord)]
        rows = await self._database.rows(FLEET["dispatchers"])
        return [DispatcherRecord(**_in_utc(dict(zip(names, row, strict=True)))) for row in rows]

    async def request_stop(self, dispatcher_ids: Sequence[str] | None) -> list[str]:
        """Ask dispatchers to stop; which."""
        ids = None if dispatcher_ids is None else list(dispatcher_ids)
        return [row[0] for row in await self._database.rows(FLEET["request_stop"], {"ids": ids})]

    async def decisions(self, task_name: str | None) -> list[TaskReport]:
        """Give what dispatchers said."""
        rows = await self._database.rows(FLEET["decisions"], {"task_name": task_name})
        return [
            TaskReport.read(who, name, at.astimezone(UTC), text) for who, name, at, text in rows
        ]


def _in_utc(values: dict[str, Any]) -> dict[str, Any]:
    """Give times in UTC, whatever the time zone of the session is."""
    for name in ("started_at", "seen_at", "stop_requested_at"):
        values[name] = values[name] and values[name].astimezone(UTC)
    return values
