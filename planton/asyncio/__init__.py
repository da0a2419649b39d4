"""Running a Planton in an asyncio program: trio as a guest of the program's own loop.

One thread, one process: `running` starts trio on the loop that is running, `callback` lets the
program's coroutine functions be callbacks, listeners, handlers and locks, and `bridge` awaits a
storage from asyncio code. See docs/asyncio.md for the rules and the limits.
"""

from planton.asyncio._bridge import bridge
from planton.asyncio._callback import CallbackCancelledError, callback
from planton.asyncio._running import Handle, running

__all__ = ["CallbackCancelledError", "Handle", "bridge", "callback", "running"]
