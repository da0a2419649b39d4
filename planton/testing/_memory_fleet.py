"""The dispatchers that the in-memory storage knows."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime

import attrs
import trio

from planton.storage import FORGOTTEN_AFTER, Answer, DispatcherRecord, Registration, TaskReport


@attrs.define(eq=False)
class Dispatcher:
    """A row of the table; times are of trio's clock."""

    registration: Registration
    started_at: float
    seen_at: float
    tasks: int = 0
    stop_requested_at: float | None = None


@attrs.frozen(eq=False)
class MemoryFleet:
    """A `planton.storage.Registry`, and what operators ask of it."""

    _work: Callable[[], Awaitable[None]]
    _to_datetime: Callable[[float], datetime]
    _rows: dict[str, Dispatcher] = attrs.field(factory=dict)
    _reports: dict[tuple[str, str], tuple[float, str]] = attrs.field(factory=dict)

    async def register(self, registration: Registration) -> None:
        """Enter a dispatcher."""
        await self._work()
        now = trio.current_time()
        self._rows[registration.id] = Dispatcher(registration, now, now)

    async def beat(
        self, dispatcher_id: str, tasks: int, reports: Mapping[str, str], gone: Sequence[str]
    ) -> Answer:
        """Note that a dispatcher lives, and what it says."""
        await self._work()
        now = trio.current_time()
        for key, row in list(self._rows.items()):
            if key != dispatcher_id and now - row.seen_at > FORGOTTEN_AFTER:
                self._forget(key)
        if dispatcher_id not in self._rows:
            return "unknown"
        row = self._rows[dispatcher_id]
        row.seen_at, row.tasks = now, tasks
        for name in gone:
            self._reports.pop((dispatcher_id, name), None)
        for name, text in reports.items():
            self._reports[dispatcher_id, name] = (now, text)
        return "go on" if row.stop_requested_at is None else "stop"

    async def deregister(self, dispatcher_id: str) -> None:
        """Forget a dispatcher."""
        await self._work()
        self._forget(dispatcher_id)

    def _forget(self, dispatcher_id: str) -> None:
        self._rows.pop(dispatcher_id, None)
        for key in [key for key in self._reports if key[0] == dispatcher_id]:
            del self._reports[key]

    async def dispatchers(self) -> list[DispatcherRecord]:
        """Give the dispatchers, the oldest first."""
        await self._work()
        now = trio.current_time()
        return [self._record(row, now) for row in self._rows.values()]

    def _record(self, row: Dispatcher, now: float) -> DispatcherRecord:
        asked_at = row.stop_requested_at
        return DispatcherRecord(
            **attrs.asdict(row.registration),
            started_at=self._to_datetime(row.started_at),
            seen_at=self._to_datetime(row.seen_at),
            silent_for=now - row.seen_at,
            stop_requested_at=None if asked_at is None else self._to_datetime(asked_at),
            tasks=row.tasks,
        )

    async def request_stop(self, dispatcher_ids: Sequence[str] | None) -> list[str]:
        """Ask dispatchers to stop; which."""
        await self._work()
        asked = [each for each in self._rows if dispatcher_ids is None or each in dispatcher_ids]
        for each in asked:
            row = self._rows[each]
            if row.stop_requested_at is None:
                row.stop_requested_at = trio.current_time()
        return asked

    async def decisions(self, task_name: str | None) -> list[TaskReport]:
        """Give what dispatchers said."""
        await self._work()
        return [
            TaskReport.read(dispatcher_id, name, self._to_datetime(at), text)
            for (dispatcher_id, name), (at, text) in sorted(self._reports.items())
            if task_name in (None, name)
        ]
