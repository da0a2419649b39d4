"""The callbacks of tasks: what is active, and the strict claim; each for one task or for many."""

import sqlite3
from collections.abc import Sequence
from typing import Literal

import attrs

from planton import Batch, ScheduleRequest
from planton_sqlite import _claim
from planton_sqlite._owner import Owner
from planton_sqlite._rules import Book
from planton_sqlite._watching import WakeUps


@attrs.frozen(eq=False)
class ActiveInstructions:
    """Callback: the active instructions of a task, or of many in one call."""

    _owner: Owner

    async def __call__(self, task_name: str) -> list[str]:
        """Give the active instructions of one task."""
        return (await self.many([task_name]))[0]

    async def many(self, task_names: Sequence[str]) -> list[list[str]]:
        """Give the active instructions of each task."""
        return await self._owner.read(
            lambda connection: [_claim.active_instructions(connection, name) for name in task_names]
        )


@attrs.frozen(eq=False)
class StrictSchedule:
    """Callback: claims for a task, or for many in one transaction."""

    _owner: Owner
    rules: Book
    _wake_ups: WakeUps

    @property
    def wake_ups(self) -> Literal["live", "polling"]:
        """Whether a change of another process wakes the tasks, for `TaskStatus.wake_ups`."""
        return self._wake_ups.state

    async def __call__(self, request: ScheduleRequest) -> Batch:
        """Claim for one task."""
        rule = self.rules[request.task_name]
        return await self._owner.write(
            lambda connection: _claim.claim(connection, request, rule),
            lambda connection: _claim.look(connection, request, rule),
        )

    async def many(self, requests: Sequence[ScheduleRequest]) -> list[Batch | Exception]:
        """Claim for each task; one whose statement fails does not undo the others."""
        return await self._owner.write(
            lambda connection: [self._one_of_many(connection, request) for request in requests],
            lambda connection: self._look_at_many(connection, requests),
        )

    def _look_at_many(
        self, connection: sqlite3.Connection, requests: Sequence[ScheduleRequest]
    ) -> list[Batch | Exception] | None:
        """Give what there is to answer if there is nothing to claim for any of them."""
        batches: list[Batch | Exception] = []
        for request in requests:
            batch = _claim.look(connection, request, self.rules[request.task_name])
            if batch is None:
                return None
            batches.append(batch)
        return batches

    def _one_of_many(
        self, connection: sqlite3.Connection, request: ScheduleRequest
    ) -> Batch | Exception:
        connection.execute("SAVEPOINT claim")
        try:
            result: Batch | Exception = _claim.claim(
                connection, request, self.rules[request.task_name]
            )
        except Exception as error:
            if not connection.in_transaction:
                raise  # a full disk: the transaction of all of them is gone
            connection.execute("ROLLBACK TO claim")
            result = error
        connection.execute("RELEASE claim")
        return result
