"""SIGINT and SIGTERM: the first terminates, the second stops at once."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

import trio

from planton._errors import PlantonError
from planton._planton import Planton

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What a shell adds to the number of the signal that ended a process.
_EXIT_CODE = 128


class StopOnSignals:
    """While entered, the first signal terminates `planton` and the second stops it at once.

    A third ends the process without more ado: then not even the loop answers. Entered on trio's
    thread, which must be the main thread.
    """

    def __init__(self, planton: Planton) -> None:
        self._planton = planton
        self._token = trio.lowlevel.current_trio_token()
        self._previous: dict[int, Any] = {}
        self.received: list[int] = []

    @property
    def was_impatient(self) -> bool:
        """Whether there was more than one."""
        return len(self.received) > 1

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)
        if len(self.received) == 1:
            self._token.run_sync_soon(self._planton.request_stop)
        elif len(self.received) == 2:
            self._token.run_sync_soon(self._planton.abort)
        else:
            os._exit(_EXIT_CODE + number)  # pragma: no cover  nothing is written by then


async def terminate_on_signals(planton: Planton, *, task_status: "trio.TaskStatus[None]") -> None:
    """A service that terminates its Planton at SIGINT (Ctrl-C) and SIGTERM.

    `Planton(services=[terminate_on_signals])`, for programs that call `trio.run(planton.run)`
    themselves: the first signal begins the drain, and `run` returns when that is done; a second
    one ends it at once, a third ends the process.

    Signals belong to the main thread: in another one it reports an error, and does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        problem = "terminate_on_signals can run in the main thread only"
        remedy = "leave it out; with start_in_thread, call handle.terminate() at a signal"
        await planton.report(PlantonError(f"{problem}: {remedy}"))
        task_status.started()
        return
    with StopOnSignals(planton):
        task_status.started()
        await trio.sleep_forever()
