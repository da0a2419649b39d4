"""The moments of an attempt at which something else can happen, whoever has what open then.

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

# Lines of these are no place to stop at: a plain function is held up between its own lines.
_LIBRARIES = (
    *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    str(Path(planton.__file__).parent),
)
# It has counted what is active, and calls `schedule`; that has N steps, from 1; it has claimed.
COUNTED, CLAIMED = 0, -1


async def hold_up(moment: "Moment") -> None:
    """Hold the attempt up, even if it is cancelled."""
    moment.reached.set()
    with trio.CancelScope(shield=True):
        await moment.resume.wait()


async def cancel(moment: "Moment") -> None:
    """Cancel `schedule`: it is to hear of it, not this function, which stands in its midst."""
    moment.scope.cancel()
    await trio.lowlevel.cancel_shielded_checkpoint()


@attrs.define(eq=False)
class Moment:
    """A moment of an attempt, and what happens then.

    Attributes:
        number: `COUNTED`, `CLAIMED`, the number of a step of `schedule`; None for none at all.
        action: It must not let itself be cancelled.
        scope: What `schedule` is called in, and nothing else.
        steps: How many have been taken.
        reached: The attempt is held up, or over.
        resume: It may go on.
        over: It has ended.
    """

    number: int | None = None
    action: Callable[["Moment"], Awaitable[object]] = hold_up
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    steps: int = 0
    reached: trio.Event = attrs.field(factory=trio.Event)
    resume: trio.Event = attrs.field(factory=trio.Event)
    over: trio.Event = attrs.field(factory=trio.Event)

    async def reach(self, number: int) -> None:
        if self.number == number:
            await self.action(self)

    def is_next(self) -> bool:
        """Count a step; whether it is this moment."""
        self.steps += 1
        return self.steps == self.number

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Call a function in its worker thread, step by step."""
        trio.from_thread.run(self.reach, COUNTED)
        before = sys.gettrace()
        sys.settrace(_Lines(self) if self.number else before)
        try:
            value = function(argument)
        finally:
            sys.settrace(before)
        return self.stepwise(done(value)) if inspect.isawaitable(value) else value

    @types.coroutine
    def stepwise(self, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Run a coroutine; a step is when it goes on after it has waited."""
        answer = None
        while True:
            try:
                trap = coroutine.send(answer)
            except StopIteration as stop:
                return stop.value
            # Only now, with the answer at hand: before it, what wakes the coroutine would wake us.
            answer = yield trap
            if self.is_next():
                yield from self.action(self).__await__()


async def done(value: Awaitable[Any] | Any) -> Any:
    """Return what a function of the user's returned, awaited if it is to be awaited."""
    return await value if inspect.isawaitable(value) else value


class _Lines:
    """Trace function: a step is a line of the function or of what it calls, libraries left out.

    A line counts twice at the most: a loop goes over it again and again, a `with` comes back to
    it to leave.
    """

    def __init__(self, moment: Moment) -> None:
        self._moment = moment
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
            if self._visits[path, frame.f_lineno] <= 2 and self._moment.is_next():
                trio.from_thread.run(self._moment.action, self._moment)
        return self
