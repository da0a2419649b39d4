"""`planton status`: the tasks of a storage, once or live."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import trio
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from planton._errors import StorageError
from planton.abc import TaskStats
from planton.cli._output import Output, ago, printable

_COLUMNS = (
    "task",
    "queued",
    "running",
    "succeeded",
    "failed",
    "dead",
    "due for",
    "paused",
    "concurrency",
)


@attrs.frozen
class Overview:
    """What there is in a storage at one time."""

    tasks: list[TaskStats]
    error: str | None = None

    @classmethod
    async def of(cls, storage: Any) -> "Overview":
        """Ask for it."""
        return cls(await storage.stats())

    def data(self) -> dict[str, Any]:
        """Give it for a program."""
        data: dict[str, Any] = {"tasks": self.tasks}
        return data if self.error is None else {**data, "error": self.error}

    def parts(self, output: Output) -> list[RenderableType]:
        """Give it as tables."""
        if self.tasks:
            parts: list[RenderableType] = [
                output.table(_COLUMNS, [_row(task) for task in self.tasks])
            ]
        else:
            parts = [Text("no tasks yet")]
        if self.error is not None:
            parts.append(Text(printable(self.error), style="red"))
        return parts


def _row(task: TaskStats) -> tuple[object, ...]:
    return (
        task.task_name,
        task.queued,
        task.running,
        task.succeeded,
        task.failed,
        task.dead,
        ago(task.oldest_due_at),
        "paused" if task.paused else None,
        task.concurrency,
    )


async def show_status(storage: Any, output: Output) -> None:
    """Show it once."""
    _print(await Overview.of(storage), output)


def _print(overview: Overview, output: Output) -> None:
    if output.is_json:
        output.tell("", **overview.data())
    else:
        output.show(*overview.parts(output))


async def watch_status(storage: Any, output: Output, interval: float) -> None:
    """Show it again and again, until Ctrl-C, which is how it ends."""
    try:
        # What is wrong from the start is a mistake, not something to wait for.
        overview = await Overview.of(storage)
        with _screen(output) as show:
            while True:
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
    """Give what shows an overview: in place on a terminal, one after the other elsewhere."""
    if not output.is_terminal:
        yield lambda overview: _print(overview, output)
    else:
        with Live(console=output.console, screen=True, auto_refresh=False) as live:
            yield lambda overview: live.update(Group(*overview.parts(output)), refresh=True)
