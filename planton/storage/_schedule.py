"""The callbacks of tasks: the strict claim, and what is active."""

import json
import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, Protocol

import attrs
import trio

from planton._task import Batch, Claim, ScheduleRequest, Task
from planton._text import describe
from planton.storage._backend import (
    Claimed,
    ClaimedRow,
    ClaimRequest,
    Receipt,
    Report,
    Rule,
)
from planton.storage._port import Backend

_logger = logging.getLogger("planton.storage")
# Another dispatcher is claiming for the task: that takes a few milliseconds, or as long as the
# user's statement does.
_SHORTEST, _LONGEST, _DOUBLINGS = 0.005, 0.05, 4
# A delay of that many seconds at most may be replaced by a rest, which is half as long.
_LONGEST_DELAY = 60.0


class Claimer(Protocol):
    """What a schedule needs of its storage."""

    @property
    def wake_ups(self) -> Literal["live", "polling"]: ...

    def rest(self) -> float | None: ...

    async def claim(self, requests: Sequence[ClaimRequest]) -> list[Claimed | Exception]: ...

    def remember(self, claims: Sequence[Claim], task_name: str) -> None: ...

    async def report(self, report: Report) -> Mapping[Receipt, str]: ...


@attrs.define(eq=False)
class _Terms:
    """A task of a schedule."""

    rule: Rule
    may_rest: bool  # a rest may replace its delay while changes would wake it
    last: ClaimRequest
    is_expected: bool = True  # its next claim is likely to find something
    locked: int = 0  # how often in a row another dispatcher was claiming


class Schedule:
    """Callback: the strict claim of one task, or of several with different names."""

    def __init__(self, storage: Claimer) -> None:
        self._storage = storage
        self._terms: dict[str, _Terms] = {}

    def add(self, task: Task, rule: Rule) -> None:
        """Claim for a task by a rule from now on."""
        concurrency = 1 if callable(task.concurrency) else task.concurrency
        last = ClaimRequest(rule, concurrency, concurrency)
        self._terms[rule.task_name] = _Terms(rule, _may_rest(task, rule), last)

    @property
    def rules(self) -> Collection[str]:
        return self._terms.keys()

    def tags_of(self, task_name: str) -> Sequence[str] | None:
        """Return the tags that are offered for a task; None if it is none of these."""
        terms = self._terms.get(task_name)
        return None if terms is None else terms.rule.tags

    @property
    def wake_ups(self) -> Literal["live", "polling"]:
        """Whether a change of another process wakes the tasks, for `TaskStatus.wake_ups`."""
        return self._storage.wake_ups

    def expect(self, task_names: Collection[str]) -> None:
        """Expect that the next claims of these tasks find something: they do not look first."""
        for name in task_names:
            if (terms := self._terms.get(name)) is not None:
                terms.is_expected = True

    def last(self) -> list[ClaimRequest]:
        """Return what each task asked for last; safe from any thread."""
        return [terms.last for terms in list(self._terms.values())]

    async def __call__(self, request: ScheduleRequest) -> Batch:
        (answer,) = await self._claim([request])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _claim(self, requests: Sequence[ScheduleRequest]) -> list[Batch | Exception]:
        asked_at = trio.current_time()
        found = await self._storage.claim([self._asked(request) for request in requests])
        # No checkpoint from here to the return, unless a payload cannot be read.
        rest = self._storage.rest()
        unreadable: list[tuple[str, Receipt, str]] = []
        batches: list[Batch | Exception] = []
        for request, claimed in zip(requests, found, strict=True):
            if isinstance(claimed, Exception):
                batches.append(claimed)
                continue
            terms = self._terms[request.task_name]
            claims = _read(claimed.rows, terms.rule, asked_at, unreadable)
            if claimed.rows:
                terms.is_expected = True
                # A claim with a statement travels alone: woken before the report that frees its
                # slot is committed, it would find the task saturated.
                if terms.rule.statement is None:
                    self._storage.remember(claims, request.task_name)
            elif claimed.error is not None:
                raise claimed.error
            batches.append(_batch(terms, claimed, claims, rest))
        for each in unreadable:
            await self._end_unreadable(*each)
        return batches

    def _asked(self, request: ScheduleRequest) -> ClaimRequest:
        terms = self._terms[request.task_name]
        asked = ClaimRequest(terms.rule, request.concurrency, request.limit, terms.is_expected)
        terms.last, terms.is_expected = asked, False
        return asked

    async def _end_unreadable(self, task_name: str, receipt: Receipt, reason: str) -> None:
        """End what no consumer could be given: its payload was written by hand, and is broken."""
        error = f"its payload cannot be read: {reason}"
        _logger.warning("an instruction of task %s fails: %s", task_name, error)
        with trio.CancelScope(shield=True):
            await self._storage.report(Report("fail", [receipt], (error, 0.0, False, False, 0)))


class SharedSchedule(Schedule):
    """Callback: tasks that are due together are claimed for in one call."""

    async def many(self, requests: Sequence[ScheduleRequest]) -> list[Batch | Exception]:
        """Claim for each task; one that fails does not undo the others."""
        return await self._claim(requests)


@attrs.frozen(eq=False)
class ActiveInstructions:
    """Callback: the active instructions of a task, or of many in one call."""

    _backend: Backend
    _check: Callable[[], None]

    async def __call__(self, task_name: str) -> list[str]:
        return (await self.many([task_name]))[0]

    async def many(self, task_names: Sequence[str]) -> list[list[str]]:
        self._check()
        return await self._backend.active(task_names)


def _read(
    rows: Sequence[ClaimedRow],
    rule: Rule,
    claimed_at: float,
    unreadable: list[tuple[str, Receipt, str]],
) -> list[Claim]:
    """Make claims of rows; note those whose payload is no JSON that Python reads, and why."""
    claims: list[Claim] = []
    for row in rows:
        try:
            payload = None if row.payload is None else json.loads(row.payload)
        except (ValueError, RecursionError) as error:
            unreadable.append((rule.task_name, row.receipt, describe(error)))
            continue
        claims.append(
            Claim(
                instruction=row.instruction,
                receipt=f"{row.receipt[0]}.{row.receipt[1]}",
                payload=payload,
                delivery=row.delivery,
                lease=rule.lease,
                timeout=row.timeout,
                partition=row.partition,
                claimed_at=claimed_at,
            )
        )
    return claims


def _batch(terms: _Terms, claimed: Claimed, claims: list[Claim], rest: float | None) -> Batch:
    may_rest = terms.may_rest and not claims and claimed.outcome not in ("locked", "paused")
    return Batch(
        claims,
        active=claimed.active,
        next_in=rest if may_rest else None,
        due_in=_due_in(terms, claimed, claims),
        concurrency=claimed.concurrency,
        outcome=claimed.outcome,
    )


def _due_in(terms: _Terms, claimed: Claimed, claims: Sequence[Claim]) -> float | None:
    if claimed.outcome == "locked":
        factor = 2 ** min(terms.locked, _DOUBLINGS)
        terms.locked, terms.is_expected = terms.locked + 1, True
        return float(random.uniform(_SHORTEST, _LONGEST) * factor)
    terms.locked = 0
    if not claims:
        return claimed.due_in
    waits = [claimed.due_in, *(each.lease for each in claims), *(each.timeout for each in claims)]
    return min((seconds for seconds in waits if seconds is not None), default=None)


def _may_rest(task: Task, rule: Rule) -> bool:
    """Tell whether nothing but a change, which wakes it, or a known time makes work for a task."""
    if rule.statement is not None or callable(task.concurrency):
        return False
    delay: Any = task.delay
    longest = getattr(delay, "maximum", None) if callable(delay) else delay
    if isinstance(longest, timedelta):
        longest = longest.total_seconds()
    return isinstance(longest, int | float) and longest <= _LONGEST_DELAY
