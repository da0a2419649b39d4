"""What a storage is made of: its backend, what it gathers, what it holds, and whom it wakes."""

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Self, TypeVar
from weakref import WeakSet

import attrs
import trio

from planton import delays
from planton._errors import StorageError
from planton._parts import Started
from planton._task import Claim
from planton.storage import _wakeups
from planton.storage._arguments import to_claimant, to_flag, to_number
from planton.storage._backend import Claimed, ClaimRequest, Report
from planton.storage._fleet import keep_registered
from planton.storage._gather import Entry, Found, Gatherer
from planton.storage._port import Backend
from planton.storage._schedule import ActiveInstructions, Schedule, SharedSchedule

if TYPE_CHECKING:
    from planton._planton import Planton

S = TypeVar("S", bound=Schedule)
WEEK = 7 * 24 * 3600.0
# While changes of other processes wake them, idle tasks attempt no more often than that, all of
# them at the same moments, so that they share a look: nothing should be found then.
REST = 30.0
# Rows of the history that one transaction deletes, and the seconds between two such, from the
# fewest to the most: as fast as it grows.
PORTION, SOONEST, LATEST = 5_000, 1.0, 60.0
# Receipts of which it is remembered which task they are of; a hint, so the oldest are dropped.
_REMEMBERED = 100_000
ENDING = frozenset({"complete", "fail", "postpone", "release"})
_restart_delay = delays.exponential(initial=1.0, maximum=60.0, jitter="equal")


class Base:
    """Opens and closes the database, gathers, and wakes tasks; see `Storage`."""

    def __init__(
        self,
        backend: Backend,
        *,
        name: str | None = None,
        retention: float | None = WEEK,
        wake_ups: bool = True,
        migrate: bool = False,
    ) -> None:
        self.name = to_claimant(name)
        self._backend = backend
        self._retention = None if retention is None else to_number("retention", retention)
        self._wants_wake_ups = to_flag("wake_ups", wake_ups)
        self._migrates = to_flag("migrate", migrate)
        self._token: trio.lowlevel.TrioToken | None = None
        self._gather = Gatherer(self._exchange, lambda: len(self._woken))
        self._held: dict[str, str] = {}
        self._woken: set[str] = set()
        self._served: list[_wakeups.Served] = []
        self._schedules: WeakSet[Schedule] = WeakSet()
        self._shared = self._new(SharedSchedule(self))
        self._get_active = ActiveInstructions(self._backend, self._check_open)
        self._live: set[object] = set()

    @property
    def database(self) -> str:
        """The name of the database, without a password."""
        return self._backend.database

    @property
    def dialect(self) -> str:
        """What libraries call its kind of database: "sqlite", "postgresql"."""
        return self._backend.dialect

    @property
    def is_open(self) -> bool:
        """Whether it is within its block."""
        return self._token is not None

    async def __aenter__(self) -> Self:
        """Open the database; with `migrate`, bring its tables up to date.

        Raises:
            StorageError: If it cannot be opened, or is open already.
        """
        if self.is_open:
            raise StorageError(self.database, "the storage is open already: make a second one")
        token = self._current_token()
        await self._backend.open()
        self._token = token
        if self._migrates:
            try:
                await self._backend.migrate()
            except BaseException:
                await self.__aexit__(None, None, None)  # noqa: ASYNC102  shielded, returns soon
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finish what is being written, and close the database."""
        self._token = None
        await self._backend.close()  # noqa: ASYNC102  shielded, returns soon

    async def migrate(self) -> int:
        """Bring Planton's tables up to date; safe when many processes start at once.

        Returns:
            How many migrations were applied.

        Raises:
            StorageError: If the tables are newer than this code, or cannot be written.
        """
        self._check_open()
        return await self._backend.migrate()

    def schema(self) -> str:
        """Return the SQL that `migrate` runs on an empty database, to be applied by hand."""
        return self._backend.schema()

    async def serve(
        self, planton: "Planton", *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve a Planton while it runs: what `Planton(storages=[storage])` does.

        Wakes its tasks when a slot of theirs frees up or something is queued for them, in this
        process and, with `wake_ups`, in any; keeps it among the `dispatchers`; prunes the history.
        """
        self._backend.hurry(lambda: False)
        served = _wakeups.Served(planton, trio.lowlevel.current_trio_token())
        _wakeups.serve(self._backend.identity, served)
        self._served.append(served)
        try:
            async with trio.open_nursery() as nursery:
                if self._retention is not None:
                    nursery.start_soon(self._keep_pruning, planton)
                nursery.start_soon(self._hurry_at_the_end, planton)
                await nursery.start(keep_registered, planton, self._backend, self._tags_of)
                if self._wants_wake_ups:
                    await nursery.start(self._keep_watching, planton, served, nursery)
                task_status.started()
        finally:
            self._served.remove(served)
            _wakeups.stop_serving(self._backend.identity, served)

    @property
    def wake_ups(self) -> Literal["live", "polling"]:
        """Whether a change of another process wakes the tasks."""
        return "live" if self._live else "polling"

    def rest(self) -> float | None:
        """Return the seconds that a task with nothing to do may rest; None while it is polled."""
        left = REST - trio.current_time() % REST
        return (left if left >= 1 else left + REST) if self._live else None

    def _tags_of(self, task_name: str) -> Sequence[str] | None:
        for schedule in self._schedules:
            if (tags := schedule.tags_of(task_name)) is not None:
                return tags
        return None

    # What the schedules of tasks, and reports, go through

    def _new(self, schedule: S) -> S:
        self._schedules.add(schedule)
        return schedule

    async def claim(self, requests: Sequence[ClaimRequest]) -> list[Claimed | Exception]:
        """Claim for several tasks; a request with a statement comes alone."""
        self._check_open()
        if requests[0].rule.statement is not None:
            _, claimed = await self._backend.exchange([], requests)
            return claimed
        return list((await self._gather(Entry(requests=requests))).claimed)

    def remember(self, claims: Sequence[Claim], task_name: str) -> None:
        """Remember of which task claims are, for as long as they are not many."""
        self._held.update((claim.receipt or "", task_name) for claim in claims)
        while len(self._held) > _REMEMBERED:
            del self._held[next(iter(self._held))]

    async def report(self, report: Report) -> Found:
        """Report, with whatever else is reported or claimed at the same time."""
        self._check_open()
        (found,) = (await self._gather(Entry([report]))).found
        if isinstance(found, Exception):
            raise found
        return found

    def _free(self, receipts: Iterable[str]) -> None:
        """Wake the tasks whose slots a report is about to free: their claims join its commit."""
        for receipt in receipts:
            name = self._held.pop(receipt, None)
            if name is not None and self._served and name not in self._woken:
                self._woken.add(name)
                for served in self._served:
                    served.wake((name,))

    async def _exchange(
        self, reports: Sequence[Report], requests: Sequence[ClaimRequest]
    ) -> tuple[list[Found | Exception], list[Claimed | Exception]]:
        self._woken.clear()
        found, claimed = await self._backend.exchange(reports, requests)
        freed = {
            name
            for report, names in zip(reports, found, strict=True)
            if report.kind in ENDING and not isinstance(names, Exception)
            for name in names.values()
        }
        self.wake(freed.difference(request.rule.task_name for request in requests))
        return found, claimed

    def wake(self, task_names: Iterable[str]) -> None:
        """Wake tasks in this process, of this and of other storages on the same tables."""
        if names := list(task_names):
            for schedule in self._schedules:
                schedule.expect(names)
            _wakeups.wake(self._backend.identity, names)

    def _check_open(self) -> None:
        if self._token is None:
            remedy = "use it inside of `async with storage`, or give it to Planton(storages=[…])"
            raise StorageError(self.database, f"the storage is not open: {remedy}")
        if self._current_token() is not self._token:
            remedy = "each trio.run needs a storage of its own"
            raise StorageError(self.database, f"the storage was opened by another thread: {remedy}")

    def _current_token(self) -> trio.lowlevel.TrioToken:
        if not trio.lowlevel.in_trio_task():
            remedy = "on asyncio use planton.asyncio.bridge(storage)"
            raise StorageError(self.database, f"this is no trio task: {remedy}")
        return trio.lowlevel.current_trio_token()

    # Services

    async def _keep_watching(
        self,
        planton: "Planton",
        served: _wakeups.Served,
        nursery: trio.Nursery,
        *,
        task_status: "trio.TaskStatus[None]",
    ) -> None:
        """Watch for changes of other processes until cancelled; while that fails, tasks poll."""
        watcher = _Watcher(self._schedules, served, self._live)
        status, failures = Started(task_status.started), 0
        while True:
            began = trio.current_time()
            try:
                await self._backend.watch(watcher, task_status=status)
            except StorageError as error:
                failures = 0 if trio.current_time() - began > REST else failures + 1
                if failures <= 1:
                    # In its own trio task: a slow listener must not delay the next try.
                    nursery.start_soon(planton.report, _polled(self.database, error))
            finally:
                watcher.is_live(is_live=False)
            watcher.changed(None)  # they rested, because changes would wake them
            status.started()
            await trio.sleep(_restart_delay(failures))

    async def _hurry_at_the_end(self, planton: "Planton") -> None:
        """Let no database that hangs keep a run beyond its grace period, or after its drain."""
        try:
            await planton.wait_until_aborted()
        finally:
            self._backend.hurry(lambda: planton.is_running)

    async def _keep_pruning(self, planton: "Planton") -> None:
        """Delete what succeeded and is older than the retention, at the pace at which it grows."""
        pause, retention = LATEST, self._retention or 0.0
        while True:
            await trio.sleep(pause)
            try:
                # What failed stays until somebody has looked: it goes by `prune(status=…)`.
                count = await self._backend.prune(retention, ["succeeded"], PORTION)
                pause = max(pause / 2, SOONEST) if count == PORTION else min(pause * 2, LATEST)
            except StorageError as error:
                await planton.report(error)
                pause = LATEST


@attrs.define(eq=False)
class _Watcher:
    """What `Backend.watch` tells; it is in `live` while changes are noticed."""

    schedules: "WeakSet[Schedule]"
    served: _wakeups.Served
    live: set[object]

    def is_live(self, *, is_live: bool) -> None:
        if is_live:
            self.live.add(self)
            self.changed(None)  # what was changed while nothing was noticed
        else:
            self.live.discard(self)

    def changed(self, task_names: Collection[str] | None) -> None:
        ours = {name for schedule in self.schedules for name in schedule.rules}
        names = ours if task_names is None else ours.intersection(task_names)
        for schedule in self.schedules:
            schedule.expect(names)
        self.served.wake(names)

    def requests(self) -> list[ClaimRequest]:
        return [each for schedule in list(self.schedules) for each in schedule.last()]


def _polled(database: str, error: StorageError) -> StorageError:
    problem = f"nothing wakes its tasks, which are polled until that is mended: {error}"
    told = StorageError(database, problem)
    told.__cause__ = error
    return told
