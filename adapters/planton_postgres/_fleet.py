"""The dispatchers of a database, and their reports."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs

from planton.storage import (
    FORGOTTEN_AFTER,
    Answer,
    DispatcherRecord,
    Registration,
    TaskReport,
)
from planton_postgres._database import Database
from planton_postgres._operate import to_time

_NAMES = [field.name for field in attrs.fields(DispatcherRecord)]


class Fleet:
    """A `planton.storage.Registry`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, registration: Registration) -> None:
        await self._database.rows("register", attrs.asdict(registration))

    async def beat(
        self, dispatcher_id: str, tasks: int, reports: Mapping[str, str], gone: Collection[str]
    ) -> Answer:
        parameters = {
            "id": dispatcher_id,
            "tasks": tasks,
            "reports": json.dumps(dict(reports)),
            "gone": list(gone),
            "silent": FORGOTTEN_AFTER,
        }
        found = await self._database.rows("beat", parameters)
        if not found:
            return "unknown"
        return "stop" if found[0][0] else "go on"

    async def deregister(self, dispatcher_id: str) -> None:
        await self._database.rows("deregister", {"id": dispatcher_id})

    async def dispatchers(self) -> list[DispatcherRecord]:
        rows = await self._database.rows("dispatchers")
        return [DispatcherRecord(**_dated(dict(zip(_NAMES, row, strict=True)))) for row in rows]

    async def request_stop(self, dispatcher_ids: Sequence[str] | None) -> list[str]:
        ids = None if dispatcher_ids is None else list(dispatcher_ids)
        return [row[0] for row in await self._database.rows("request_stop", {"ids": ids})]

    async def decisions(self, task_name: str | None) -> list[TaskReport]:
        rows = await self._database.rows("decisions", {"task_name": task_name})
        return [
            TaskReport.of(who, name, _dated({"at": at})["at"], text) for who, name, at, text in rows
        ]


def _dated(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: to_time(value) if name.endswith("at") else value for name, value in values.items()
    }
