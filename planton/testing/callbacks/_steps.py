"""Calling a callback one step at a time, so that something else can happen in between.

Two dispatchers that come between each other need not meet by chance. An async callback can be
held up whenever it has waited for something, a plain function before each of its lines: there the
other dispatcher has its turn, while the first keeps its transaction open.
"""

import inspect
import sys
import sysconfig
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import attrs
import trio

import planton
from planton._loop.callbacks import Callback

# Lines of these are no place to stop at: a plain function is held up between its own lines.
_LIBRARIES = (
    *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    str(Path(planton.__file__).parent),
)


@attrs.define(eq=False)
class Steps:
    """Counts the steps of a call, and does something at one of them."""

    number: int  # from 1
    action: Callable[[], Awaitable[None]]  # must not let itself be cancelled
    count: int = 0

    def is_now(self) -> bool:
        self.count += 1
        return self.count == self.number


async def call(callback: Callback, argument: Any, steps: Steps | None = None) -> Any:
    """Call as Planton does: async functions on trio, others in a worker thread."""
    if callback.is_async:
        value = callback.function(argument)
    else:
        (value,) = await trio.to_thread.run_sync(_boxed, callback.function, argument, steps)
    if not inspect.isawaitable(value):
        return value
    return await (_awaited(value) if steps is None else _stepwise(_awaited(value), steps))


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


@types.coroutine
def _stepwise(coroutine: Coroutine[Any, Any, Any], steps: Steps) -> Generator[Any, Any, Any]:
    """Run a coroutine; a step is when it goes on after it has waited."""
    answer = None
    while True:
        try:
            trap = coroutine.send(answer)
        except StopIteration as stop:
            return stop.value
        # Only now, with the answer at hand: before it, what wakes the coroutine would wake us.
        answer = yield trap
        if steps.is_now():
            yield from steps.action().__await__()


def _boxed(function: Callable[[Any], Any], argument: Any, steps: Steps | None) -> tuple[Any]:
    """Call a function in its worker thread; boxed, as trio lets no awaitable out of a thread."""
    if steps is None:
        return (function(argument),)
    before = sys.gettrace()
    sys.settrace(_Lines(steps))
    try:
        return (function(argument),)
    finally:
        sys.settrace(before)


class _Lines:
    """Trace function: a step is a line of the function or of what it calls, libraries left out.

    A line counts twice at the most: a loop goes over it again and again, a `with` comes back to
    it to leave.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._own = ""
        self._visits: Counter[tuple[str, int]] = Counter()

    # Nothing is traced within a trace function, so that its coverage cannot be measured.
    def __call__(self, frame: types.FrameType, event: str, _: Any) -> Any:  # pragma: no cover
        path = frame.f_code.co_filename
        self._own = self._own or path
        if path != self._own and path.startswith(_LIBRARIES):
            return None
        if event == "line":
            self._visits[path, frame.f_lineno] += 1
            if self._visits[path, frame.f_lineno] <= 2 and self._steps.is_now():
                trio.from_thread.run(self._steps.action)
        return self
