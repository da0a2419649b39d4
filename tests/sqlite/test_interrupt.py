"""Ctrl-C at any moment: what is handed to the thread of the connection stays in order."""

import signal
import sys

import pytest
import trio

from planton_sqlite import SQLiteStorage


@pytest.fixture
def interrupt():
    """Send SIGINT before the n-th line of the function that hands work over."""
    traced = sys.gettrace()

    def interrupt(line: int) -> None:
        seen = 0

        def trace(frame, event, argument):
            nonlocal seen
            if frame.f_code.co_name != "do" or "_owner" not in frame.f_code.co_filename:
                return None
            seen += event == "line"
            if seen == line and event == "line":
                signal.raise_signal(signal.SIGINT)
            return trace

        sys.settrace(trace)

    yield interrupt
    sys.settrace(traced)


@pytest.mark.parametrize("line", range(1, 13))
def test_ctrl_c_ends_the_program_and_nothing_else(tmp_path, interrupt, line):
    """Also between handing work over and waiting for it: trio would take that for its own fault."""

    async def main() -> None:
        async with SQLiteStorage(tmp_path / "app.db") as storage:
            await storage.migrate()
            interrupt(line)
            for n in range(3):
                await storage.enqueue("task", str(n))
            await trio.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
