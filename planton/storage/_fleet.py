"""The fleet as its storage knows it: each served Planton keeps a row, with what it decided.

The row is renewed every few seconds, with what `status` and `explain` say of its tasks, so that
another process can read it.
"""

import logging
import math
import os
import socket
import uuid
from collections.abc import Callable, Container, Iterator, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

import attrs
import trio

from planton._parts import Started
from planton._status import TaskStatus
from planton.storage._backend import Answer, Registration
from planton.storage._port import Backend
from planton.storage._records import TaskReport

if TYPE_CHECKING:
    from planton._planton import Planton

BEAT = 5.0
_LONGEST_PAUSE = 60.0
# Inspects at most SLICE tasks per beat; rewrites an unchanged report every _REFRESH seconds.
SLICE, _REFRESH = 1000, 60.0
# A dispatcher with very many tasks writes no more than this about them at each beat.
_BYTES = 64 * 1024
_LAST_WORDS = 1.0
# Attempts begin once a dispatcher is registered, so that a request to stop reaches all who claim;
# but a storage that does not answer keeps them waiting for no longer than this.
_ENTER_WITHIN = 1.0

logger = logging.getLogger("planton")


def new_registration() -> Registration:
    """Return how this process registers: under an id that no other has or will have."""
    return Registration(
        id=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=os.getpid(),
        version=version_of("planton"),
    )


def version_of(distribution: str) -> str:
    """Return the version of a distribution; "?" where that was not kept, as in some bundles."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "?"


def _health(status: TaskStatus) -> object:
    """What is reported first when it changes."""
    return (
        status.state == "paused",
        status.consecutive_errors == 0,
        status.overdue,
        status.concurrency,
        status.last_error,
        status.wake_ups,
    )


def _activity(status: TaskStatus) -> object:
    """What is reported next when it changes: an idle attempt more makes no difference."""
    return status.attempt_number == 0, status.active, status.decisions


class Reporter:
    """Chooses what a dispatcher writes about its tasks: what has changed, a little at a time."""

    def __init__(self) -> None:
        self.place = 0
        self._reported: dict[str, tuple[TaskStatus, float]] = {}

    def choose(self, statuses: Sequence[TaskStatus], now: float) -> list[TaskStatus]:
        """Return those worth a report: changed health first, each reported longest ago first.

        So busy tasks, which change at every beat, take turns when one beat cannot hold them all.
        """
        due = []
        for status in statuses:
            before, reported_at = self._reported.get(status.name, (None, -math.inf))
            is_urgent = before is None or _health(before) != _health(status)
            has_changed = before is None or _activity(before) != _activity(status)
            if is_urgent or has_changed or now - reported_at >= _REFRESH:
                due.append((not is_urgent, reported_at, status))
        due.sort(key=lambda each: each[:2])
        return [status for *_, status in due]

    def gone(self, names: Container[str]) -> list[str]:
        return [name for name in self._reported if name not in names]

    def note(self, reported: Sequence[TaskStatus], gone: Sequence[str], now: float) -> None:
        for name in gone:
            del self._reported[name]
        for status in reported:
            self._reported[status.name] = (status, now)

    def turn(self, count: int) -> None:
        """Go on to the next tasks, of `count`."""
        self.place = 0 if self.place + SLICE >= count else self.place + SLICE


async def keep_registered(
    planton: "Planton",
    registry: Backend,
    tags_of: Callable[[str], Sequence[str] | None],
    *,
    task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,
) -> None:
    """Keep a Planton registered until cancelled; terminate it when it is asked to stop.

    What fails is reported and tried again, after longer and longer pauses: dispatching goes on.
    It is `started()` once it is registered, or that has failed, or takes more than a second.
    `tags_of` knows which tags are offered for a task, if it has some of this storage.
    """
    member = _Member(planton, registry, tags_of, Started(task_status.started))
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
    registry: Backend
    tags_of: Callable[[str], Sequence[str] | None]
    task_status: Started
    registration: Registration = attrs.field(factory=new_registration)
    reporter: Reporter = attrs.field(factory=Reporter)
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
                self.task_status.started()
                await self.planton.report(error)
                pause = min(pause * 2, _LONGEST_PAUSE)
            await trio.sleep(pause)

    async def be_ready_soon(self) -> None:
        await trio.sleep(_ENTER_WITHIN)
        self.task_status.started()

    async def _enter(self) -> None:
        if not self.is_entered:
            await self.registry.register(self.registration)
            self.is_entered = True
        self.task_status.started()

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
        place = self.reporter.place
        statuses = self.planton.status(names[place : place + SLICE])
        chosen = self.reporter.choose(statuses, trio.current_time())
        reports = dict(_within_size(map(self._report, chosen)))
        gone = self.reporter.gone(set(names))
        answer = await self.registry.beat(self.registration.id, len(names), reports, gone)
        told = [status for status in chosen if status.name in reports]
        self.reporter.note(told, gone, trio.current_time())
        self.reporter.turn(len(names))
        return answer

    def _report(self, status: TaskStatus) -> tuple[str, str]:
        decisions = self.planton.explain(status.name)
        return status.name, TaskReport.to_text(status, decisions, self.tags_of(status.name))

    async def leave(self) -> None:
        try:
            await self.registry.deregister(self.registration.id)
        except Exception:
            # The database is away: its row goes as that of a dispatcher that died.
            return


def _within_size(reports: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Return the first reports, by the name of the task, up to what one beat writes."""
    size = 0
    for name, text in reports:
        yield name, text
        size += len(text)
        if size > _BYTES:
            return
