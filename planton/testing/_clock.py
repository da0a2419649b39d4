"""Virtual time and worker threads in one test."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio
import trio.testing


@contextmanager
def thread_aware(clock: trio.testing.MockClock) -> Iterator[trio.testing.MockClock]:
    """Let virtual time stand still while a worker thread works.

    An autojump clock jumps as soon as every trio task waits, and does not see that one of them
    waits for a thread: a timeout of 5 seconds expires at once, a poller goes round thousands of
    times. Within this block the clock does not jump while a call of `trio.to_thread.run_sync` is
    under way, so that sync callbacks and real databases can be tested in virtual time, at the
    price of the real time that the threads take.

    Args:
        clock: The clock of this test, such as pytest-trio's `autojump_clock`.
    """
    run_sync = trio.to_thread.run_sync
    threshold = clock.autojump_threshold
    in_flight = 0

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal in_flight
        in_flight += 1
        clock.autojump_threshold = math.inf
        try:
            return await run_sync(*args, **kwargs)
        finally:
            in_flight -= 1
            if not in_flight:
                clock.autojump_threshold = threshold

    trio.to_thread.run_sync = counted  # type: ignore[assignment]
    try:
        yield clock
    finally:
        trio.to_thread.run_sync = run_sync
        clock.autojump_threshold = threshold
