"""A thread that looks whether leases are renewed, for when trio's own cannot."""

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable

from planton_executor._events import LeaseAtRiskEvent
from planton_executor._run import Run

# Frames of the stack that are told of.
FRAMES = 8


class Watchdog:
    """Warns once half of a lease has passed without a renewal.

    Args:
        runs: What to watch; changed by the thread of trio meanwhile.
        warn: Called in the thread of the watchdog.
    """

    def __init__(self, runs: Iterable[Run], warn: Callable[[LeaseAtRiskEvent], None]) -> None:
        self._runs = runs
        self._warn = warn
        self._shortest: float | None = None
        self._bell = threading.Event()
        self._is_over = False
        self._trio_thread = 0

    def __enter__(self) -> None:
        """Start the thread."""
        self._is_over, self._trio_thread = False, threading.get_ident()
        # A daemon: a listener that hangs must not keep the program from ending.
        name = "planton-executor-watchdog"
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        """End it, and do not wait for a listener that hangs."""
        self._is_over = True
        self._bell.set()
        self._thread.join(timeout=1.0)

    def watch(self, lease: float) -> None:
        """Look often enough for a lease of so many seconds."""
        if self._shortest is None or lease < self._shortest:
            self._shortest = lease
            self._bell.set()

    def _watch(self) -> None:
        while not self._is_over:
            self._bell.wait(None if self._shortest is None else self._shortest / 12)
            self._bell.clear()
            if not self._is_over:
                self._look(time.monotonic())

    def _look(self, now: float) -> None:
        # One step for the interpreter, so that nobody can change it meanwhile.
        for run in list(self._runs):
            if now - run.renewed_at > run.lease / 2 and not run.is_at_risk:
                run.is_at_risk = True
                is_blocked = run.tried_at < run.renewed_at
                event = LeaseAtRiskEvent(
                    work=run.work,
                    expires_in=run.renewed_at + run.lease - now,
                    is_blocked=is_blocked,
                    stack=self._stack() if is_blocked else "",
                )
                self._warn(event)

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._trio_thread)
        return "".join(traceback.format_stack(frame)[-FRAMES:]) if frame else ""
