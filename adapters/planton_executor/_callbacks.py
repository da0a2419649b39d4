"""The executor on tables of the user's: functions instead of a storage."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

import attrs
import trio

from planton import CallbackTimeoutError, InstructionEvent
from planton.storage import check_function, failure_of, is_async
from planton_executor._events import Work
from planton_executor._links import Answered, Outage, StorageLink, pause
from planton_executor._run import Run

Answer: TypeAlias = Awaitable[bool | None] | bool | None
# A function that raises is called so often: for a minute, in which its database may come back.
_CALLS = 16


def _check(count: int) -> Any:
    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if value is not None:
            check_function(attribute.name, value, count)

    return check


@attrs.frozen(kw_only=True)
class Callbacks:
    """Functions that an executor calls instead of a storage's: for tables of your own.

    Each is optional, and sync or async; sync ones run in worker threads. One that returns False
    says that the claim was lost: another consumer has it. One that raises is called again, for
    about a minute.

    Attributes:
        complete: Called with the `Work` and what its handler returned, to note that it is done.
        fail: Called with the `Work`, the exception, and the seconds until the next try; None if
            there is none, for the `retries` of the handler are used up by `work.delivery`, or it
            raised `GiveUp`.
        heartbeat: Called with the `Work` a third of its lease after it was claimed or renewed,
            again and again, to renew it. The lease is that of the claim, 60 seconds if it has none.
        release: Called with the `Work` that was not begun, or was broken off when the executor
            ended. Without it `fail` is called, with 0 seconds.

    Raises:
        InvalidArgumentError: If one is no such function.
    """

    complete: Callable[[Work, Any], Answer] | None = attrs.field(default=None, validator=_check(2))
    fail: Callable[[Work, Exception, float | None], Answer] | None = attrs.field(
        default=None, validator=_check(3)
    )
    heartbeat: Callable[[Work], Answer] | None = attrs.field(default=None, validator=_check(1))
    release: Callable[[Work], Answer] | None = attrs.field(default=None, validator=_check(1))


class CallbackLink:
    """What `StorageLink` is, for functions of the user's: in a trio task for each end."""

    def __init__(
        self, callbacks: Callbacks, nursery: trio.Nursery, answered: Answered, outage: Outage
    ) -> None:
        self._callbacks = callbacks
        self._nursery = nursery
        self._answered = answered
        self._outage = outage

    def receipt(self, event: InstructionEvent) -> str:
        return event.receipt or ""

    async def heartbeat(self, runs: Sequence[Run]) -> Iterable[Run]:
        lost: list[Run] = []
        errors: list[Exception] = []

        async def beat(run: Run) -> None:
            try:
                if not await _call(self._callbacks.heartbeat, run.work):
                    lost.append(run)
            except Exception as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for run in runs:
                nursery.start_soon(beat, run)
        for error in errors:
            raise error
        return lost

    async def take_over(self, run: Run) -> str | None:
        """Renew it: there is nothing to take it over with."""
        return None if await self.heartbeat([run]) else run.receipt

    def send(self, run: Run) -> None:
        self._nursery.start_soon(self._send, run)

    async def _send(self, run: Run) -> None:
        for failures in range(_CALLS):
            try:
                is_ours = await self._end(run)
            except Exception as error:
                self._outage.note(error)
                last = error
                await trio.sleep(pause(failures))
            else:
                self._outage.end()
                self._answered([run], () if is_ours else (run.receipt,), None)
                return
        self._answered([run], (), last)

    async def _end(self, run: Run) -> bool:
        callbacks, work, end = self._callbacks, run.work, run.end
        assert end is not None
        if end.kind == "complete":
            return await _call(callbacks.complete, work, end.about)
        if end.kind == "fail":
            may_retry = run.retry_in is not None and run.tries <= run.terms.retries
            retry_in = run.retry_in if may_retry else None
            return await _call(callbacks.fail, work, end.about, retry_in)
        if callbacks.release is not None:
            return await _call(callbacks.release, work)
        error = CallbackTimeoutError(work.task_name, "the handler", None, " before the end")
        return await _call(callbacks.fail, work, error, 0.0)


Link: TypeAlias = StorageLink | CallbackLink


async def _call(function: Callable[..., Any] | None, *arguments: Any) -> bool:
    """Call a function if there is one; return whether the claim is ours."""
    if function is None:
        return True
    try:
        result: Any
        if is_async(function):
            result = await function(*arguments)
        else:
            call = partial(function, *arguments)
            result = await trio.to_thread.run_sync(call, abandon_on_cancel=True)
    except BaseException as raised:
        raise failure_of(raised) from None  # noqa: ASYNC104
    return result is not False
