"""`planton explain` and `planton stop`: what dispatchers say, and that they end."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import click
import trio

from planton.cli._exits import STILL_RUNNING
from planton.cli._output import Output, ago, since, span
from planton.cli._status import living_first, place, plain
from planton.cli._verdict import MOST, Situation, verdict
from planton.storage import DispatcherRecord, InstructionRecord, TaskReport, TaskStats

_LOOK_EVERY = 0.25


async def explain_task(storage: Any, output: Output, task_name: str) -> None:
    tasks = [each for each in await storage.stats() if each.task_name == task_name]
    reports = await storage.decisions(task_name)
    dispatchers = {each.id: each for each in living_first(await storage.dispatchers())}
    by_dispatcher = {each.dispatcher_id: each for each in reports}
    told = [by_dispatcher[each] for each in dispatchers if each in by_dispatcher]
    found = Situation(
        stats=tasks[0] if tasks else None,
        running=await storage.find(task_name=task_name, status="running", limit=MOST),
        queued=await storage.find(task_name=task_name, status="queued", limit=MOST),
        told=[(each, dispatchers[each.dispatcher_id]) for each in told],
        dispatchers=list(dispatchers.values()),
    )
    failures = [
        each
        for status in ("failed", "dead")
        for each in await storage.find(task_name=task_name, status=status, limit=MOST)
    ]
    output.tell(
        *_explanation(found, failures),
        task_name=task_name,
        verdict=verdict(found),
        storage=found.stats,
        reports=[{**attrs.asdict(one), "dispatcher": plain(who)} for one, who in found.told],
    )


def _explanation(found: Situation, failures: Sequence[InstructionRecord]) -> Iterator[str]:
    yield verdict(found)
    if found.stats is not None:
        yield from _from_storage(found.stats)
    least = "at least " if len(failures) >= MOST else ""
    for error, count in Counter(each.error for each in failures).most_common(3):
        yield f"  {least}{count} failed or dead: {error}"
    for report, dispatcher in found.told:
        yield from _from_dispatcher(report, dispatcher)


def _from_storage(task: TaskStats) -> Iterator[str]:
    """Tell what is the same for all dispatchers."""
    counts = ("queued", "running", "failed", "dead")
    yield "in the storage: " + ", ".join(f"{getattr(task, each)} {each}" for each in counts)
    if task.concurrency is not None:
        yield f"  concurrency {task.concurrency}, whatever the code says"
    if task.oldest_due_at is not None:
        yield f"  the oldest has been due for {since(task.oldest_due_at)}"


def _from_dispatcher(report: TaskReport, dispatcher: DispatcherRecord) -> Iterator[str]:
    status = report.status
    yield f"{place(dispatcher)} ({dispatcher.state}), {ago(report.reported_at)}: " + ", ".join(
        [
            "overdue" if status.overdue else status.state,
            f"{status.active if status.active is not None else '?'} of {status.concurrency} active",
            *([f"wake-ups {status.wake_ups}"] if status.wake_ups else []),
        ]
    )
    for each in report.decisions:
        yield f"  {each}"
    if status.failing is not None:
        yield f"  {status.failing}"
    if status.last_error is not None:
        yield f"  last error: {status.last_error}"


async def stop_all(storage: Any, output: Output, timeout: float) -> int:
    """Ask all dispatchers to terminate, and wait until they have; the exit code."""
    asked = {each.id: each for each in await storage.dispatchers()}
    await storage.request_stop(list(asked))
    living = _living(asked)
    if living and not output.is_json:
        click.echo(f"asked {_count(living)} to stop", err=True)
    # Each look anew: one that was killed a moment ago is found to be lost only while we wait.
    latest = asked
    with trio.move_on_after(timeout):
        while _living(latest := await _look(storage, asked, latest)):  # noqa: ASYNC110  other processes
            await trio.sleep(_LOOK_EVERY)
    there = await _look(storage, asked, latest)
    left = _living(there)
    lost = [each for each in there.values() if each not in left]
    stopped = [each for name, each in asked.items() if name not in there]
    _tell(output, stopped, left, lost)
    return STILL_RUNNING if left else 0


def _living(dispatchers: dict[str, DispatcherRecord]) -> list[DispatcherRecord]:
    return [each for each in dispatchers.values() if each.state != "lost"]


async def _look(
    storage: Any, asked: dict[str, DispatcherRecord], before: dict[str, DispatcherRecord]
) -> dict[str, DispatcherRecord]:
    """Return those that are there still; also the lost whose row has gone, as they did not stop."""
    lost = {name: each for name, each in before.items() if each.state == "lost"}
    return {**lost, **{each.id: each for each in await storage.dispatchers() if each.id in asked}}


def _tell(
    output: Output,
    stopped: list[DispatcherRecord],
    left: list[DispatcherRecord],
    lost: list[DispatcherRecord],
) -> None:
    silent = "has been silent for"
    output.tell(
        f"{_count(stopped)} stopped",
        *(f"{place(one)} has not stopped; it was seen {span(one.silent_for)} ago" for one in left),
        *(f"{place(one)} {silent} {span(one.silent_for)}: dead, most likely" for one in lost),
        stopped=[plain(each) for each in stopped],
        running=[plain(each) for each in left],
        lost=[plain(each) for each in lost],
    )


def _count(dispatchers: Any) -> str:
    count = len(dispatchers)
    return f"{count} dispatcher{'' if count == 1 else 's'}"
