"""The fleet as its storage knows it: each served Planton keeps a row, with what it decided.

The row is renewed every few seconds, with what `status` and `explain` say of its tasks, so that
another process can read it.
"""

import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

import attrs
import trio

from planton._status import TaskStatus
from planton.storage._backend import Answer, Registration, Registry
from planton.storage._records import TaskReport
from planton.storage._reporter import SLICE, Reporter

if TYPE_CHECKING:
    from planton._planton import Planton

BEAT = 5.0
_LONGEST_PAUSE = 60.0
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


async def keep_registered(
    planton: "Planton",
    registry: Registry,
    tags_of: Callable[[str], Sequence[str] | None],
    *,
    task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,
) -> None:
    """Keep a Planton registered until cancelled; terminate it when it is asked to stop.

    What fails is reported and tried again, after longer and longer pauses: dispatching goes on.
    It is `started()` once it is registered, or that has failed, or takes more than a second.
    `tags_of` knows which tags are offered for a task, if it has some of this storage.
    """
    member = _Member(planton, registry, tags_of, task_status)
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
    tags_of: Callable[[str], Sequence[str] | None]
    task_status: "trio.TaskStatus[None]"
    registration: Registration = attrs.field(factory=new_registration)
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
