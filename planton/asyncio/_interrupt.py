"""Ctrl-C in a program that leaves it to Python."""

import signal
import threading
from types import FrameType


class Interrupts:
    """Stands in for Python's own SIGINT handler: raises in the program's code, never in a tick.

    Raised within one, KeyboardInterrupt would end trio in the middle of its own work. A handler
    of the program, such as that of `asyncio.run` or of uvicorn, stays as it is.
    """

    def __init__(self) -> None:
        self.are_held = False  # while a tick runs
        self.is_pending = False

    def install(self) -> None:
        """Replace Python's handler, if it is there; trio would replace it by one of its own."""
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)

    def uninstall(self) -> None:
        """Put Python's handler back, if ours is still there."""
        if signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def release(self) -> None:
        """Raise KeyboardInterrupt now if one came during the tick."""
        self.are_held = False
        if self.is_pending:
            self.is_pending = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.are_held:
            self.is_pending = True
        else:
            signal.default_int_handler(number, frame)
