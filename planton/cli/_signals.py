"""SIGINT and SIGTERM: the first terminates, the second stops at once."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

import trio

from planton._planton import Planton
from planton.cli._exits import SIGNAL

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)
        if len(self.received) == 1:
            self._token.run_sync_soon(self._planton.request_stop)
        elif len(self.received) == 2:
            self._token.run_sync_soon(self._planton.abort)
        else:
            os._exit(SIGNAL + number)  # pragma: no cover  nothing is written any more by then
