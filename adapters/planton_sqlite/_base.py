"""What a SQLite storage is made of: its connection, its rules, and whom it wakes."""

import os
import sqlite3
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

import trio

from planton import InvalidArgumentError, Planton
from planton.storage import (
    DispatcherRecord,
    TaskReport,
    keep_registered,
    to_claimant,
    to_name,
    to_number,
    to_strings,
)
from planton_sqlite import _open, _schema
from planton_sqlite._callbacks import ActiveInstructions, StrictSchedule
from planton_sqlite._fleet import Fleet
from planton_sqlite._history import History
from planton_sqlite._owner import Owner
from planton_sqlite._rules import Rules
from planton_sqlite._watching import WakeUps


class Base:
    """Opens and closes the database, and wakes tasks."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: str = "FULL",
        retention: float = 7 * 24 * 3600.0,
        wake_ups: bool = True,
        name: str | None = None,
    ) -> None:
        self.path = _open.to_path(path)
        self._file = os.path.abspath(self.path)
        if synchronous not in ("FULL", "NORMAL"):
            raise InvalidArgumentError("synchronous", synchronous, 'give "FULL" or "NORMAL"')
        self._name = to_claimant(name)
        self._history = History(to_number("retention", retention))
        self._synchronous = synchronous
        self._owner = Owner(self._open, self.path, self._check)
        self._rules = Rules()
        self._get_active_instructions = ActiveInstructions(self._owner)
        if not isinstance(wake_ups, bool):
            raise InvalidArgumentError("wake_ups", wake_ups, "give True, or False to poll only")
        self._wake_ups = WakeUps(self.path, self._rules, is_wanted=wake_ups)
        self._schedule = self._new_schedule()
        self._fleet = Fleet(self._owner)

    async def __aenter__(self) -> Self:
        """Open the database."""
        await self._owner.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish what is being written and close the database."""
        await self._owner.close()  # noqa: ASYNC102  shielded, waits for what is written

    async def migrate(self) -> int:
        """Bring Planton's tables up to date; safe when many processes start at once.

        Returns:
            How many migrations were applied.

        Raises:
            StorageError: If the tables are newer than this code, or cannot be written.
        """
        return await self._owner.migrate(lambda connection: _schema.migrate(connection, self.path))

    def schema(self) -> str:
        """Give the SQL that `migrate` runs on an empty database, for those who apply it by hand."""
        return _schema.script()

    @property
    def get_active_instructions(self) -> ActiveInstructions:
        """Callback for `Planton(get_active_instructions=…)`: what this storage has active."""
        return self._get_active_instructions

    async def serve(
        self, planton: Planton, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Service for `Planton(services=[storage.serve])`: wakes tasks that may have work.

        What is done in this process wakes them directly; what others commit is noticed by a
        watch, unless the storage was made with `wake_ups=False`. A watch that fails is reported
        and started again; until then tasks are polled, which `status()` shows. It keeps the
        Planton among the `dispatchers`, too.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(keep_registered, planton, self._fleet)
            await nursery.start(self._wake_ups.serve, planton)
            task_status.started()

    @property
    def registry(self) -> Fleet:
        """Where dispatchers are kept; `serve` keeps its own there."""
        return self._fleet

    async def dispatchers(self) -> list[DispatcherRecord]:
        """Give the dispatchers that serve this storage now, in all processes, the oldest first."""
        return await self._fleet.dispatchers()

    async def request_stop(self, dispatcher_ids: Sequence[str] | None = None) -> list[str]:
        """Ask dispatchers to terminate, all of them if none is named; which were asked.

        Each hears of it in five seconds at the most, terminates within its grace period, and is
        then not among `dispatchers` any more. One that begins later is not asked.
        """
        named = None if dispatcher_ids is None else to_strings("dispatcher_ids", dispatcher_ids)
        return await self._fleet.request_stop(named)

    async def decisions(self, task_name: str | None = None) -> list[TaskReport]:
        """Give what each dispatcher's `status` and `explain` say of a task, or of all its tasks."""
        return await self._fleet.decisions(None if task_name is None else to_name(task_name))

    def _new_schedule(self) -> StrictSchedule:
        return StrictSchedule(self._owner, self._rules.new_book(), self._wake_ups)

    def _wake(self, task_names: Iterable[str]) -> None:
        self._wake_ups.wake(task_names)

    def _check(self, connection: sqlite3.Connection) -> None:
        _schema.check(connection, self.path)

    def _open(self) -> sqlite3.Connection:
        return _open.open_database(self.path, self._synchronous)
