"""What the backends of all SQL databases do by a statement alone."""

import json
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import attrs

from planton._errors import InvalidArgumentError
from planton.storage._arguments import Status
from planton.storage._backend import Answer, Backend, Filter, Registration
from planton.storage._records import (
    FORGOTTEN_AFTER,
    DispatcherRecord,
    InstructionRecord,
    TaskReport,
    TaskStats,
)
from planton.storage._sql import from_json, to_datetime

T = TypeVar("T", bound=attrs.AttrsInstance)
Rows: TypeAlias = list[tuple[Any, ...]]


class SQLBackend(Backend):
    """A `Backend` most of whose methods run statements of the database by their names.

    The statements have the same names, parameters and columns in each dialect: what a method
    returns as records has their fields as its columns, in this order. Times are seconds since
    1970, JSON is text.
    """

    @abstractmethod
    async def rows(self, statement: str, **parameters: Any) -> Rows:
        """Run the statements of a name in one transaction; return the rows of the last one.

        A parameter that is a list is a list of texts; so it is in the dialect's own way.
        """

    async def active(self, task_names: Sequence[str]) -> list[list[str]]:
        found: dict[str, list[str]] = {name: [] for name in task_names}
        for name, instruction in await self.rows("active", task_names=list(found)):
            found[name].append(instruction)
        return [found[name] for name in task_names]

    async def pause(self, task_name: str, *, is_paused: bool) -> None:
        await self.rows("pause" if is_paused else "resume", task_name=task_name)

    async def set_concurrency(self, task_name: str, concurrency: int | None) -> None:
        await self.rows("set_concurrency", task_name=task_name, concurrency=concurrency)

    async def retry(self, task_name: str, instructions: Sequence[str] | None) -> int:
        while names := await self._to_retry(task_name, instructions):
            # All of them or none: one may be on its way by now, or may have been retried.
            ((count,),) = await self.rows("retry", task_name=task_name, instructions=names)
            if count:
                return len(names)
        return 0

    async def _to_retry(self, task_name: str, named: Sequence[str] | None) -> list[str]:
        if named is None:
            ended = await self._names("failed_ends", task_name=task_name)
            living = await self._names("living", task_name=task_name, instructions=ended)
            return sorted(set(ended).difference(living))
        wanted = list(dict.fromkeys(named))
        ended = await self._names("ends", task_name=task_name, instructions=wanted)
        living = await self._names("living", task_name=task_name, instructions=wanted)
        _check_ended(wanted, ended, living)
        return wanted

    async def _names(self, statement: str, **parameters: Any) -> list[str]:
        return [name for (name,) in await self.rows(statement, **parameters)]

    async def drop(self, task_name: str, instructions: Sequence[str] | None) -> int:
        return await self._count("drop", task_name=task_name, instructions=_listed(instructions))

    async def find(self, wanted: Filter) -> list[InstructionRecord]:
        found = await self.rows("find", **attrs.asdict(wanted))
        return [_record(InstructionRecord, row) for row in found]

    async def stats(self) -> list[TaskStats]:
        return [_record(TaskStats, row) for row in await self.rows("stats")]

    async def prune(self, older_than: float, statuses: Collection[Status], limit: int) -> int:
        return await self._count(
            "prune", older_than=older_than, statuses=list(statuses), limit=limit
        )

    async def _count(self, statement: str, **parameters: Any) -> int:
        ((count,),) = await self.rows(statement, **parameters)
        return int(count)

    # The fleet

    async def register(self, registration: Registration) -> None:
        await self.rows("register", **attrs.asdict(registration))

    async def beat(
        self, dispatcher_id: str, tasks: int, reports: Mapping[str, str], gone: Collection[str]
    ) -> Answer:
        found = await self.rows(
            "beat",
            id=dispatcher_id,
            tasks=tasks,
            reports=json.dumps(dict(reports)),
            gone=list(gone),
            silent=FORGOTTEN_AFTER,
        )
        if not found:
            return "unknown"
        return "stop" if found[0][0] else "go on"

    async def deregister(self, dispatcher_id: str) -> None:
        await self.rows("deregister", id=dispatcher_id)

    async def dispatchers(self) -> list[DispatcherRecord]:
        return [_record(DispatcherRecord, row) for row in await self.rows("dispatchers")]

    async def request_stop(self, dispatcher_ids: Sequence[str] | None) -> list[str]:
        return await self._names("request_stop", ids=_listed(dispatcher_ids))

    async def decisions(self, task_name: str | None) -> list[TaskReport]:
        found = await self.rows("decisions", task_name=task_name)
        return [TaskReport.of(who, name, to_datetime(at), text) for who, name, at, text in found]


def _listed(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else list(names)


def _check_ended(wanted: Sequence[str], ended: Sequence[str], living: Sequence[str]) -> None:
    if problems := [name for name in wanted if name in living]:
        remedy = "it is queued or active: wait until it has ended"
        raise InvalidArgumentError("instructions", problems[0], remedy)
    if problems := [name for name in wanted if name not in ended]:
        remedy = "the history has no such instruction of this task"
        raise InvalidArgumentError("instructions", problems[0], remedy)


def _record(kind: type[T], row: Sequence[Any]) -> T:
    """Read a row; what cannot be read in full hides no other."""
    names = [field.name for field in attrs.fields(kind)]
    return kind(**{name: _read(name, each) for name, each in zip(names, row, strict=True)})


def _read(name: str, value: Any) -> Any:
    if name.endswith("_at"):
        return None if value is None else to_datetime(value)
    if name in ("payload", "result"):
        return from_json(value)
    if name == "tags":
        return tuple(map(str, from_json(value) or ()))
    return bool(value) if name == "paused" else value
