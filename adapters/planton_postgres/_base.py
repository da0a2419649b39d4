"""What a Postgres storage is made of: its connections, its rules, and whom it wakes."""

from collections.abc import Collection, Sequence
from functools import partial
from types import TracebackType
from typing import Self
from weakref import WeakSet

import trio

from planton import Planton, StorageError, UnknownTaskError
from planton.storage import (
    DispatcherRecord,
    TaskReport,
    keep_registered,
    to_claimant,
    to_name,
    to_strings,
)
from planton_postgres import _operations, _schema
from planton_postgres._claim import Claimer
from planton_postgres._database import Database
from planton_postgres._errors import name_of
from planton_postgres._fleet import Fleet
from planton_postgres._limits import to_integer, to_seconds, to_text
from planton_postgres._reports import Reports
from planton_postgres._schedule import ActiveInstructions, QueueSchedule, SourceSchedule
from planton_postgres._wake import Channel

_WEEK = 7 * 24 * 3600.0
# How often the history is pruned while `serve` runs.
_PRUNE_EVERY = 600.0


class Base:
    """Connects, closes, and wakes tasks."""

    def __init__(
        self,
        conninfo: str,
        *,
        pool_size: int = 4,
        unlogged: bool = False,
        retention: float | None = _WEEK,
        connect_timeout: float = 10.0,
        statement_timeout: float = 10.0,
        prepare_threshold: int | None = 5,
        wake_ups: bool = True,
        listen_dsn: str | None = None,
        name: str | None = None,
    ) -> None:
        if retention is not None:
            retention = to_seconds("retention", retention)
        self.conninfo = conninfo
        self._unlogged = unlogged
        self._retention = retention
        self._database = Database(
            conninfo,
            pool_size=to_integer("pool_size", pool_size, 1),
            connect_timeout=to_seconds("connect_timeout", connect_timeout, above=0),
            statement_timeout=to_seconds("statement_timeout", statement_timeout, above=0),
            prepare_threshold=prepare_threshold,
            check=_schema.check,
        )
        if listen_dsn is not None:
            name_of(listen_dsn, "listen_dsn")
        self._channel = Channel(self._database, (listen_dsn or conninfo) if wake_ups else None)
        self._name = to_text("name", to_claimant(name))
        self._reports = Reports(self._database, keep=retention != 0)
        self._get_active_instructions = ActiveInstructions(self._database)
        # Those whose tasks somebody still has.
        self._claimers: WeakSet[Claimer] = WeakSet()
        self._begin_schedules()
        self._plantons: set[Planton] = set()
        self._fleet = Fleet(self._database)

    async def __aenter__(self) -> Self:
        """Connect."""
        await self._database.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self._database.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102  no checkpoint

    async def migrate(self) -> int:
        """Bring Planton's tables up to date; safe when many processes start at once.

        Returns:
            How many migrations were applied.

        Raises:
            StorageError: If the tables are newer than this code, or cannot be written.
        """
        name, unlogged = self._database.name, self._unlogged
        return await self._database.change_tables(
            lambda connection: _schema.migrate(connection, name, unlogged=unlogged)
        )

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
        """Service for `Planton(services=[storage.serve])`.

        Wakes a task when one of its slots frees up or something is queued for it, in this process
        or, with `wake_ups`, anywhere; prunes the history, and keeps the Planton among the
        `dispatchers`.
        """
        self._plantons.add(planton)
        try:
            async with trio.open_nursery() as nursery:
                wake = partial(self._hear, planton)
                nursery.start_soon(self._channel.serve, wake, planton.report)
                nursery.start_soon(self._keep_pruning, planton)
                await nursery.start(keep_registered, planton, self._fleet)
                task_status.started()
        finally:
            self._plantons.discard(planton)

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

    def _begin_schedules(self) -> None:
        """Let the tasks that are made from now on have schedules of their own."""
        self._claimer = Claimer(
            self._database,
            keep=self._retention != 0,
            rest=self._channel.rest,
            name=self._name,
        )
        self._claimers.add(self._claimer)
        self._from_queue = QueueSchedule(self._claimer, self._channel)
        self._from_source = SourceSchedule(self._claimer, self._channel)

    async def _keep_pruning(self, planton: Planton) -> None:
        while self._retention is not None:
            await trio.sleep(_PRUNE_EVERY)
            try:
                await _operations.prune(self._database, self._retention)
            except StorageError as error:
                await planton.report(error)

    def _hear(self, planton: Planton, task_names: Collection[str] | None) -> None:
        """Wake those of our tasks that a notification names."""
        ours = {name for claimer in self._claimers for name in claimer.rules}
        for name in ours if task_names is None else ours.intersection(task_names):
            _wake(planton, name)

    def _wake(self, task_names: set[str]) -> None:
        for planton in self._plantons:
            for name in task_names:
                _wake(planton, name)


def _wake(planton: Planton, name: str) -> None:
    try:
        planton.wake(name)
    except UnknownTaskError:
        pass  # a task of another Planton
