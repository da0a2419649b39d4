"""A thread that looks whether leases are renewed, for when trio's own cannot."""

import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType

import attrs

from planton_executor._events import LeaseAtRiskEvent
from planton_executor._run import Run

# Frames of the stack that are told of.
FRAMES = 8


@attrs.define(eq=False)
class Lease:
    """The lease of one claim.

    Attributes:
        run: Whose it is.
        seconds: How long it lasts.
        next_beat_at: When it is to be renewed, by trio's clock.
        renewed_at: When it was last renewed at the latest, by the clock of `time.monotonic`.
        tried_at: When a renewal was last begun, by the same clock.
        is_told: Whether it was told that it is at risk.
    """

    run: Run
    seconds: float
    next_beat_at: float
    renewed_at: float = attrs.field(factory=time.monotonic)
    tried_at: float = 0.0
    is_told: bool = False


class Watchdog:
    """Warns once half of a lease has passed without a renewal.

    Args:
        leases: What to watch; changed by the thread of trio meanwhile.
        warn: Called in the thread of the watchdog.
    """

    def __init__(
        self, leases: Mapping[str, Lease], warn: Callable[[LeaseAtRiskEvent], None]
    ) -> None:
        self._leases = leases
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

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it, and do not wait for a listener that hangs."""
        self._is_over = True
        self._bell.set()
        self._thread.join(timeout=1.0)

    def watch(self, seconds: float) -> None:
        """Look often enough for a lease of so many seconds."""
        if self._shortest is None or seconds < self._shortest:
            self._shortest = seconds
            self._bell.set()

    def _watch(self) -> None:
        while not self._is_over:
            self._bell.wait(None if self._shortest is None else self._shortest / 12)
            self._bell.clear()
            if not self._is_over:
                self._look(time.monotonic())

    def _look(self, now: float) -> None:
        # One step for the interpreter, so that nobody can change it meanwhile.
        for lease in list(self._leases.values()):
            if now - lease.renewed_at > lease.seconds / 2 and not lease.is_told:
                lease.is_told = True
                is_blocked = lease.tried_at < lease.renewed_at
                event = LeaseAtRiskEvent(
                    work=lease.run.work,
                    expires_in=lease.renewed_at + lease.seconds - now,
                    is_blocked=is_blocked,
                    stack=self._stack() if is_blocked else "",
                )
                self._warn(event)

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._trio_thread)
        return "".join(traceback.format_stack(frame)[-FRAMES:]) if frame else ""
