"""`planton run`."""

import logging
import sys

import trio

from planton._events import ErrorEvent
from planton._loop.log import ErrorLog
from planton._planton import Planton
from planton._signals import StopOnSignals
from planton.cli._exits import SIGNAL, UNDELIVERED
from planton.cli._load import load, opened

logger = logging.getLogger("planton")


def run_target(target: str) -> None:
    """Run the Planton that `target` is; ends the process with its exit code."""
    code = trio.run(_run, target, load(target))
    if code:
        sys.exit(code)


async def _run(target: str, found: object) -> int:
    async with opened(target, found) as planton:
        return await run_until_signal(planton)


async def run_until_signal(planton: Planton) -> int:
    """Run until it ends or a signal ends it; the exit code."""
    undelivered, log = [], ErrorLog()

    def note(event: ErrorEvent) -> None:
        log.add(event)
        if event.stage == "terminate":
            undelivered.append(event)

    planton.on(ErrorEvent, note)
    with StopOnSignals(planton) as signals:
        logger.info("running %d tasks; Ctrl-C stops", len(planton.status()))
        await planton.run()
    if signals.was_impatient:
        return SIGNAL + signals.received[-1]
    return UNDELIVERED if undelivered else 0
