"""The fleet as its storage knows it: which dispatchers there are, and what they say of their tasks.

Each `storage.serve` keeps its Planton registered: a row of its own, renewed every few seconds,
with what `status` and `explain` say of its tasks, so that another process can read it. Storages
get this from `planton.storage` and add no more than the statements.
"""

import json
import logging
import os
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib import metadata
from typing import TYPE_CHECKING, Literal, Protocol, Self, TypeAlias

import attrs
import trio

from planton._status import TaskStatus
from planton.storage._reporter import SLICE, Reporter, State

if TYPE_CHECKING:
    from planton._planton import Planton

BEAT = 5.0
# After so many seconds without a beat a dispatcher is taken for dead, after so many its row goes.
LOST_AFTER, FORGOTTEN_AFTER = 30.0, 600.0
_LONGEST_PAUSE = 60.0
# A dispatcher with very many tasks writes so much about them at each beat.
_BYTES = 64 * 1024
_TEXT, _DECISIONS = 500, 10
_LAST_WORDS = 1.0
# Attempts begin once a dispatcher is entered, so that a request to stop reaches all who claim; but
# a storage that does not answer keeps them waiting for no longer than this.
_ENTER_WITHIN = 1.0

logger = logging.getLogger("planton")

Answer: TypeAlias = Literal["go on", "stop", "unknown"]


@attrs.frozen(kw_only=True)
class Registration:
    """What a dispatcher says of itself when it begins.

    Attributes:
        id: Its name for as long as it runs; no other had it or will have it.
        host: Name of its machine or container.
        pid: Its process there.
        version: Of planton.
    """

    id: str = attrs.field(factory=lambda: uuid.uuid4().hex)
    host: str = attrs.field(factory=socket.gethostname)
    pid: int = attrs.field(factory=os.getpid)
    version: str = attrs.field(factory=lambda: version_of("planton"))


def version_of(distribution: str) -> str:
    """Give the version of a distribution; "?" where that was not kept, as in some bundles."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "?"


@attrs.frozen(kw_only=True)
class DispatcherRecord:
    """A dispatcher as a storage knows it. Times are by the storage's clock.

    Attributes:
        id: Its name.
        host: Its machine or container.
        pid: Its process there.
        version: Of planton.
        started_at: When it registered.
        seen_at: When it was heard of last.
        silent_for: Seconds since then.
        stop_requested_at: When it was asked to stop; None if it was not.
        tasks: How many it has.
    """

    id: str
    host: str
    pid: int
    version: str
    started_at: datetime
    seen_at: datetime
    silent_for: float
    stop_requested_at: datetime | None
    tasks: int

    @property
    def state(self) -> Literal["running", "stopping", "lost"]:
        """Whether it runs, was asked to stop, or has not been heard of for half a minute."""
        if self.silent_for > LOST_AFTER:
            return "lost"
        return "running" if self.stop_requested_at is None else "stopping"


@attrs.frozen(kw_only=True)
class TaskReport:
    """What a dispatcher said about a task.

    Attributes:
        dispatcher_id: Which dispatcher.
        reported_at: When, by the storage's clock.
        status: Where the task stands there; its times are by the storage's clock, too.
        decisions: The last decisions in words, the newest last.
    """

    dispatcher_id: str
    reported_at: datetime
    status: TaskStatus
    decisions: tuple[str, ...]

    @classmethod
    def read(cls, dispatcher_id: str, task_name: str, reported_at: datetime, text: str) -> Self:
        """Read what `Registry.beat` was given."""
        values = json.loads(text)
        decisions = tuple(values.pop("decisions"))
        last, next_in = values.pop("last_attempt_ago"), values.pop("next_attempt_in")
        known = {field.name for field in attrs.fields(TaskStatus)}
        status = TaskStatus(
            name=task_name,
            last_attempt_at=None if last is None else reported_at - timedelta(seconds=last),
            next_attempt_at=None if next_in is None else reported_at + timedelta(seconds=next_in),
            # A dispatcher of a later version may say more.
            **{name: value for name, value in values.items() if name in known},
        )
        return cls(
            dispatcher_id=dispatcher_id,
            reported_at=reported_at,
            status=status,
            decisions=decisions,
        )


class Registry(Protocol):
    """Where a storage keeps its dispatchers; all methods may raise `StorageError`."""

    async def register(self, registration: Registration) -> None:
        """Enter a dispatcher that nobody has asked to stop."""

    async def beat(
        self, dispatcher_id: str, tasks: int, reports: Mapping[str, str], gone: Sequence[str]
    ) -> Answer:
        """Note that a dispatcher lives, in one statement or transaction.

        Writes `reports`, a JSON text by task name, and forgets those of the tasks that are `gone`
        and all of other dispatchers that were not seen for `FORGOTTEN_AFTER` seconds. "stop" once
        it was asked to. "unknown", and nothing written, if it is not registered any more.
        """

    async def deregister(self, dispatcher_id: str) -> None:
        """Forget a dispatcher and what it said."""


async def keep_registered(
    planton: "Planton",
    registry: Registry,
    *,
    task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,
) -> None:
    """Keep a Planton registered until cancelled; terminate it when it is asked to stop.

    What fails is reported and tried again, after longer and longer pauses: dispatching goes on.
    It is `started()` once it is registered, or that has failed, or takes more than a second.
    """
    member = _Member(planton, registry, task_status)
    async with trio.open_nursery() as nursery:
        try:
            nursery.start_soon(member.be_ready_soon)
            await member.beat_on(nursery)
        finally:
            with trio.move_on_after(_LAST_WORDS, shield=True):
                await member.leave()


@attrs.define(eq=False)
class _Member:
    """A Planton's place in a registry."""

    planton: "Planton"
    registry: Registry
    task_status: "trio.TaskStatus[None]"
    registration: Registration = attrs.field(factory=Registration)
    reporter: Reporter = attrs.field(factory=Reporter)
    is_ready: bool = False
    is_entered: bool = False
    is_stopping: bool = False

    async def beat_on(self, nursery: trio.Nursery) -> None:
        pause = BEAT
        while True:
            try:
                await self._enter()
                await self._beat(nursery)
                pause = BEAT
            except Exception as error:
                self._be_ready()
                await self.planton.report(error)
                pause = min(pause * 2, _LONGEST_PAUSE)
            await trio.sleep(pause)

    async def be_ready_soon(self) -> None:
        await trio.sleep(_ENTER_WITHIN)
        self._be_ready()

    def _be_ready(self) -> None:
        if not self.is_ready:
            self.is_ready = True
            self.task_status.started()

    async def _enter(self) -> None:
        if not self.is_entered:
            await self.registry.register(self.registration)
            self.is_entered = True
        self._be_ready()

    async def _beat(self, nursery: trio.Nursery) -> None:
        answer = await self._tell()
        if answer == "unknown":
            # Not heard of for so long that it was forgotten: the machine slept, perhaps.
            self.is_entered, self.reporter = False, Reporter()
            await self._enter()
            await self._beat(nursery)
        elif answer == "stop" and not self.is_stopping:
            self.is_stopping = True
            logger.info("asked to stop by the storage: terminating")
            # Beside the beats: the drain may take longer than one may be silent.
            nursery.start_soon(self.planton.terminate)

    async def _tell(self) -> Answer:
        names = self.planton.names()
        statuses = self.planton.status(names[self.reporter.place :][:SLICE])
        states = [State(each, each.decisions) for each in statuses]
        chosen = self.reporter.choose(states, trio.current_time())
        explain = self.planton.explain
        reports = dict(_within_size((each.status, explain(each.name)) for each in chosen))
        gone = self.reporter.gone(set(names))
        count = len(names)
        answer = await self.registry.beat(self.registration.id, count, reports, gone)
        told = [each for each in chosen if each.name in reports]
        self.reporter.note(told, gone, trio.current_time())
        self.reporter.turn(count)
        return answer

    async def leave(self) -> None:
        try:
            await self.registry.deregister(self.registration.id)
        except Exception:
            # The database is away: its row goes as that of a dispatcher that died.
            return


def _within_size(
    reports: Iterator[tuple[TaskStatus, Sequence[str]]],
) -> Iterator[tuple[str, str]]:
    """Give the first reports as JSON, until it is enough for one beat."""
    size = 0
    for status, decisions in reports:
        text = to_text(status, decisions)
        yield status.name, text
        size += len(text)
        if size > _BYTES:
            return


def to_text(status: TaskStatus, decisions: Sequence[str]) -> str:
    """Give a report as JSON, its times as seconds from now: clocks may differ."""
    now = datetime.now(UTC)
    last, following = status.last_attempt_at, status.next_attempt_at
    values = attrs.asdict(status)
    for name in ("name", "last_attempt_at", "next_attempt_at"):
        del values[name]
    values["last_attempt_ago"] = None if last is None else (now - last).total_seconds()
    values["next_attempt_in"] = None if following is None else (following - now).total_seconds()
    values["last_error"] = None if status.last_error is None else _storable(status.last_error)
    # The first says where the task stands now.
    values["decisions"] = [
        _storable(each) for each in [*decisions[:1], *decisions[1:][1 - _DECISIONS :]]
    ]
    return json.dumps(values)


def _storable(text: str) -> str:
    """Give a text of moderate length that every database takes."""
    return text[:_TEXT].replace("\0", "").encode(errors="replace").decode()
