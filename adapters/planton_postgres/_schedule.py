"""The callbacks that tasks of a storage have."""

from collections.abc import Sequence
from typing import Literal

import attrs

from planton import Batch, ScheduleRequest
from planton_postgres._claim import Answer, Claimer
from planton_postgres._database import Database
from planton_postgres._statements import CLAIM
from planton_postgres._wake import Channel


@attrs.frozen(eq=False)
class ActiveInstructions:
    """Callback: the active instructions of a task, or of many in one call."""

    _database: Database

    async def __call__(self, task_name: str) -> list[str]:
        """Give the active instructions of one task."""
        return (await self.many([task_name]))[0]

    async def many(self, task_names: Sequence[str]) -> list[list[str]]:
        """Give the active instructions of each task."""
        found: dict[str, list[str]] = {name: [] for name in task_names}
        parameters = {"task_names": list(found)}
        for name, instruction in await self._database.rows(CLAIM["active"], parameters):
            found[name].append(instruction)
        return [found[name] for name in task_names]


@attrs.frozen(eq=False)
class QueueSchedule:
    """Callback: claims from the queue, for a task or for many in one statement."""

    _claimer: Claimer
    _channel: Channel

    @property
    def wake_ups(self) -> Literal["live", "polling"]:
        """Whether what others change wakes the task."""
        return self._channel.state

    async def __call__(self, request: ScheduleRequest) -> Batch:
        """Claim for one task."""
        return (await self.many([request]))[0]

    async def many(self, requests: Sequence[ScheduleRequest]) -> list[Batch]:
        """Claim for each task."""
        return await self._claimer.from_queue(requests)


@attrs.frozen(eq=False)
class SourceSchedule:
    """Callback: claims from the user's tables or a time table, for a task or for many.

    Apart from the callback of queue tasks: a statement of a user's that is slow keeps only those
    waiting that share its call.
    """

    _claimer: Claimer
    _channel: Channel

    @property
    def wake_ups(self) -> Literal["live", "polling"]:
        """Whether what others change wakes the task."""
        return self._channel.state

    async def __call__(self, request: ScheduleRequest) -> Batch:
        """Claim for one task."""
        return await self._claimer.from_source(request)

    async def many(self, requests: Sequence[ScheduleRequest]) -> list[Answer]:
        """Claim for each task; one whose statement fails does not undo the others."""
        return await self._claimer.from_sources(requests)
