"""Running a Planton in programs of several kinds.

`start_in_thread` is for synchronous programs: trio gets a thread of its own. Programs on asyncio
use `planton.asyncio`, which needs no thread, unless their code blocks the loop for long: then
`asyncio_callback` lets a Planton in its thread call coroutine functions of the program's loop.
`terminate_on_signals` is for programs that call `trio.run` themselves, `call_blocking` for those
that run no Planton.
"""

import atexit
import inspect
import os
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar, TypeVarTuple, overload

import trio

from planton._blocking import call_blocking
from planton._errors import PlantonError
from planton._failures import unwrapped
from planton._planton import Planton
from planton._signals import terminate_on_signals
from planton._status import TaskStatus

if TYPE_CHECKING:
    import asyncio

__all__ = [
    "ThreadHandle",
    "asyncio_callback",
    "call_blocking",
    "start_in_thread",
    "terminate_on_signals",
]

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# How long a cancelled coroutine may take to end before the callback stops waiting for it.
CANCELLED_COROUTINE_PATIENCE = 1.0


class ThreadHandle:
    """A Planton that runs in a thread of its own; made by `start_in_thread`.

    Its methods may be called from any thread but Planton's, in the process that started it: in
    one that was forked from it there is no such thread, and they raise `PlantonError`. It is a
    context manager, which terminates at the end of the block.
    """

    def __init__(self, planton: Planton) -> None:
        self._planton = planton
        self._started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._token: trio.lowlevel.TrioToken | None = None
        self._error: BaseException | None = None
        self._pid = os.getpid()
        # A daemon, so that a program that ends without terminating is not kept from it; the
        # exit handler then terminates in its place.
        self._thread = threading.Thread(target=self._main, name="planton", daemon=True)

    @property
    def is_running(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def terminate(self) -> None:
        """Stop attempts, drain, and return when the thread has ended, within the grace period.

        It blocks: do not call it on the thread of an asyncio loop whose coroutines are callbacks
        (`asyncio_callback`), for they could not finish; use `await asyncio.to_thread(…)`. It may
        be called more than once.

        Raises:
            PlantonError: In a process that was forked from the one that started it.
            BaseException: Whatever ended the run, if it was not this call or the program's end.
        """
        self._call(self._planton.request_stop)
        self._thread.join()
        atexit.unregister(self._terminate_here)
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wake(self, name: str | None = None) -> None:
        """Attempt a task now, or all of them; see `Planton.wake`.

        Raises:
            UnknownTaskError: If there is no such task.
        """
        self._call(self._planton.wake, name)

    def status(self) -> list[TaskStatus]:
        """Return where every task stands; see `Planton.status`."""
        return self._call(self._planton.status)

    @overload
    def call(self, function: Callable[[*Ts], Coroutine[Any, Any, T]], *args: *Ts) -> T: ...

    @overload
    def call(self, function: Callable[[*Ts], T], *args: *Ts) -> T: ...

    def call(self, function: Callable[[*Ts], Any], *args: *Ts) -> Any:
        """Call a function on Planton's thread, and wait for what it returns or raises.

        For what belongs there, such as the methods of a storage that a service opened:
        `handle.call(storage.enqueue, "send_invoice", "17")`. Keyword arguments go into a
        `functools.partial`. An async function is awaited beside the attempts, for as long as it
        takes; a plain one should return soon, for it holds up all others. It blocks as
        `terminate` does.

        Raises:
            PlantonError: If Planton does not run any more, or ends before the function does; then
                the function was cancelled.
            BaseException: What the function raises.
        """
        self._check_process()
        try:
            return trio.from_thread.run(_called, function, args, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):  # noqa: ASYNC103  of trio's own thread
            ended = "Planton does not run any more"
            problem = f"{ended}, so {function!r} cannot be called: use start_in_thread again"
            raise PlantonError(problem) from None  # noqa: ASYNC104

    def __enter__(self) -> Self:
        """Return the handle."""
        return self

    def __exit__(self, *_: object) -> None:
        """Terminate; in a forked process do nothing."""
        self._terminate_here()

    def _terminate_here(self) -> None:
        if not self._is_forked:
            self.terminate()

    @property
    def _is_forked(self) -> bool:
        return self._pid != os.getpid()

    def _check_process(self) -> None:
        """Calling the thread would wait for ever where it was not copied to, and from itself."""
        if trio.lowlevel.in_trio_task():
            raise PlantonError("this would block trio: call the methods of the Planton instead")
        if self._is_forked:
            problem = f"this Planton runs in process {self._pid}, which this one was forked from"
            raise PlantonError(f"{problem}: call start_in_thread in this process, after the fork")

    def _start(self) -> None:
        self._thread.start()
        error = self._started.get()
        if error is not None:
            self._thread.join()
            raise error
        atexit.register(self._terminate_here)

    def _main(self) -> None:
        try:
            trio.run(self._run)
        except BaseException as error:  # noqa: ASYNC103  trio.run has ended; raised by terminate
            self._error = unwrapped(error)
        # Only the first counts: it says that the start failed if it had not succeeded before.
        self._started.put(self._error)

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        await self._planton.run(task_status=self)

    def started(self, _: None = None) -> None:
        """Called by `run` when attempts begin."""
        self._started.put(None)

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` on trio's thread, or here if that has ended."""
        self._check_process()
        try:
            return trio.from_thread.run_sync(function, *args, trio_token=self._token)
        except trio.RunFinishedError:
            self._thread.join()
            return function(*args, **kwargs)


async def _called(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    value = function(*args)
    return await value if inspect.isawaitable(value) else value


def start_in_thread(planton: Planton) -> ThreadHandle:
    """Run `planton` in a thread of its own, and return when its attempts begin.

    When the program ends without having terminated it, it is terminated then, within its grace
    period; nothing that was claimed is lost on the way.

    Raises:
        AlreadyRunningError: If it runs already.
    """
    handle = ThreadHandle(planton)
    handle._start()
    return handle


def asyncio_callback(
    function: Callable[P, Coroutine[Any, Any, T]], loop: "asyncio.AbstractEventLoop"
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make a coroutine function of an asyncio loop usable by a Planton in another thread.

    For a Planton that runs on the loop itself use `planton.asyncio.callback`.

    The coroutine runs on `loop`, in the loop's thread, while the trio task waits. A cancellation
    (a timeout, or the end of the grace period) cancels the asyncio task and waits up to a second
    for it to end; a result that it returns in spite of that is used, so that a commit is not
    lost. A loop that is closed or ends meanwhile is an error of the callback.

    Args:
        function: A coroutine function of the program.
        loop: The loop that it belongs to, such as `asyncio.get_running_loop()`.
    """

    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await _Crossing[T](loop, lambda: function(*args, **kwargs)).run()

    return call


class _Crossing(Generic[T]):
    """One call of a coroutine function, from a trio task to an asyncio loop and back."""

    _task: "asyncio.Future[T]"

    def __init__(
        self, loop: "asyncio.AbstractEventLoop", make: Callable[[], Coroutine[Any, Any, T]]
    ) -> None:
        self._loop = loop
        self._make = make
        self._token = trio.lowlevel.current_trio_token()
        self._ended = trio.Event()

    async def run(self) -> T:
        self._loop.call_soon_threadsafe(self._start)
        try:
            await self._ended.wait()
        except trio.Cancelled:  # noqa: ASYNC103  not raised again if the coroutine has committed
            await self._cancel()  # noqa: ASYNC102  shielded, bounded by a second
            if not self._ended.is_set() or self._task.cancelled() or self._task.exception():
                raise
        if self._task.cancelled():
            raise RuntimeError("the asyncio task was cancelled, or its loop ended")
        return self._task.result()

    async def _cancel(self) -> None:
        """Cancel the coroutine and wait for it: it may be committing."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: self._task.cancel())
            with trio.move_on_after(CANCELLED_COROUTINE_PATIENCE, shield=True):
                await self._ended.wait()

    def _start(self) -> None:
        """Called on the thread of the loop."""
        try:
            self._task = self._loop.create_task(self._make())
        except Exception as error:
            self._task = self._loop.create_future()
            self._task.set_exception(error)
        self._task.add_done_callback(self._finish)

    def _finish(self, _: object) -> None:
        try:
            self._token.run_sync_soon(self._ended.set)
        except trio.RunFinishedError:
            pass  # nobody waits any more
