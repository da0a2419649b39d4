"""`planton status`: the tasks and dispatchers of a storage, once or live."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import trio
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from planton._errors import StorageError
from planton.cli._output import Output, Row, age, ago, since, span
from planton.cli._shown import printable
from planton.storage import DispatcherRecord, TaskReport, TaskStats
from planton.storage._fleet import BEAT

# What a dispatcher said is told with its age when it may have been about to say something else.
_FRESH = 2 * BEAT


@attrs.frozen
class Overview:
    """What there is in a storage at one time."""

    tasks: list[TaskStats]
    dispatchers: list[DispatcherRecord]
    reports: list[TaskReport]
    error: str | None = None

    @classmethod
    async def of(cls, storage: Any) -> "Overview":
        """Ask for it; what lives comes before what is lost."""
        dispatchers = living_first(await storage.dispatchers())
        places = {each.id: number for number, each in enumerate(dispatchers)}
        reports = sorted(
            await storage.decisions(),
            key=lambda each: (each.status.name, places.get(each.dispatcher_id, len(places))),
        )
        return cls(await storage.stats(), dispatchers, reports)

    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "tasks": self.tasks,
            "dispatchers": [plain(each) for each in self.dispatchers],
            "reports": self.reports,
        }
        return data if self.error is None else {**data, "error": self.error}

    def parts(self, output: Output) -> list[RenderableType]:
        parts = [
            output.table(map(_task, self.tasks)) or "no tasks yet",
            output.table(map(_dispatcher, self.dispatchers)) or "no dispatcher runs",
        ]
        if self.reports:
            names = {each.id: place(each) for each in self.dispatchers}
            parts.append(output.table(_report(each, names) for each in self.reports))
        if self.error is not None:
            parts.append(Text(printable(self.error), style="red"))
        return [part for each in parts for part in (each, Text())][:-1]

    def tell(self, output: Output) -> None:
        output.tell(*self.parts(output), **self.data())


def _task(task: TaskStats) -> Row:
    return {
        "task": task.task_name,
        "queued": task.queued,
        "running": task.running,
        "succeeded": task.succeeded,
        "failed": task.failed,
        "dead": task.dead,
        "due for": since(task.oldest_due_at),
        "paused": "paused" if task.paused else None,
        "concurrency": task.concurrency,
    }


def _dispatcher(each: DispatcherRecord) -> Row:
    return {
        "dispatcher": place(each),
        "state": each.state,
        "started": ago(each.started_at),
        "seen": f"{span(each.silent_for)} ago",
        "tasks": each.tasks,
        "version": each.version,
    }


def _report(report: TaskReport, names: dict[str, str]) -> Row:
    status = report.status
    return {
        "task": status.name,
        "dispatcher": names.get(report.dispatcher_id, report.dispatcher_id),
        "state": "overdue" if status.overdue else status.state,
        "next attempt": _next(report),
        "reported": ago(report.reported_at) if age(report.reported_at) > _FRESH else None,
        "wake-ups": status.wake_ups,
        "errors": status.consecutive_errors or None,
        "last error": status.last_error,
    }


def _next(report: TaskReport) -> str | None:
    """Return when the next attempt is due; one that has been since the report was made is no delay.

    A delay would be told as such: it makes the task overdue.
    """
    following = report.status.next_attempt_at
    if following is None or age(following) < 0:
        return ago(following)
    return "now" if age(report.reported_at) <= _FRESH else ago(following)


def place(dispatcher: DispatcherRecord) -> str:
    """Return the machine and the process, as people name it."""
    return f"{dispatcher.host}:{dispatcher.pid}"


def living_first(dispatchers: Sequence[DispatcherRecord]) -> list[DispatcherRecord]:
    """Return them in the same order, but those that are lost at the end."""
    return sorted(dispatchers, key=lambda each: each.state == "lost")


def plain(dispatcher: DispatcherRecord) -> dict[str, Any]:
    """Return all there is about a dispatcher."""
    return {**attrs.asdict(dispatcher), "state": dispatcher.state}


async def show_status(storage: Any, output: Output) -> None:
    (await Overview.of(storage)).tell(output)


async def watch_status(storage: Any, output: Output, interval: float) -> None:
    """Show it again and again, until Ctrl-C, which is how it ends."""
    try:
        # What is wrong from the start is a mistake, not something to wait for.
        overview = await Overview.of(storage)
        with _screen(output) as show:
            while output.is_read:
                show(overview)
                await trio.sleep(interval)
                overview = await _again(storage, overview)
    except KeyboardInterrupt:
        return


async def _again(storage: Any, last: Overview) -> Overview:
    """Ask anew; while the database does not answer, tell so beside what was there last."""
    try:
        return await Overview.of(storage)
    except StorageError as error:
        return attrs.evolve(last, error=str(error))


@contextmanager
def _screen(output: Output) -> Iterator[Callable[[Overview], None]]:
    """Yield what shows an overview: in place on a terminal, one after the other elsewhere."""
    if not output.is_terminal:
        yield lambda overview: overview.tell(output)
    else:
        with Live(console=output.console, screen=True, auto_refresh=False) as live:
            yield lambda overview: live.update(Group(*overview.parts(output)), refresh=True)
