"""`planton run`: from `MODULE:ATTRIBUTE` to a Planton that runs."""

import importlib
import inspect
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from planton._errors import PlantonError
from planton._events import ErrorEvent
from planton._failures import unwrapped
from planton._loop.log import ErrorLog
from planton._planton import Planton
from planton._signals import StopOnSignals
from planton._text import describe
from planton.cli._exits import SIGNAL, UNDELIVERED, Mistake, place

logger = logging.getLogger("planton")


def run_target(target: str, found: object) -> None:
    """Run a Planton, which `target` was found to be; ends the process with its exit code."""
    code = trio.run(_run, target, found)
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


def load(target: str) -> Any:
    module_name, separator, path = target.partition(":")
    if not (module_name and separator and path):
        raise Mistake(f"{target!r} is not MODULE:ATTRIBUTE: write it like app.jobs:planton")
    found: Any = _import(module_name)
    for name in path.split("."):
        if not hasattr(found, name):
            fitting = ", ".join(_fitting(found)) or "nothing that would do"
            raise Mistake(f"{module_name!r} has no attribute {path!r}; it has {fitting}")
        found = getattr(found, name)
    return found


def _fitting(module: Any) -> list[str]:
    """Name what could have been meant: a Planton, or a function of the module's own."""
    return sorted(
        name
        for name, value in vars(module).items()
        if isinstance(value, Planton) or (inspect.isfunction(value) and not name.startswith("_"))
        if getattr(value, "__module__", "").startswith((module.__name__, "planton._planton"))
    )


def _import(module_name: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        remedy = "look at the name and at the current folder, or install what it needs"
        raise Mistake(f"cannot import {module_name!r}: {error}; {remedy}") from error
    except Exception as error:
        raise Mistake(
            f"cannot import {module_name!r}: {describe(error)} ({place(error)})"
        ) from error


@asynccontextmanager
async def opened(target: str, found: Any) -> AsyncIterator[Planton]:
    async with AsyncExitStack() as stack:
        try:
            made = await _made(found)
            if isinstance(made, AbstractAsyncContextManager) and not isinstance(made, Planton):
                made = await stack.enter_async_context(made)
        except Exception as error:
            raise _mistake(target, error) from error
        yield _checked(target, made)


async def _made(found: Any) -> Any:
    if isinstance(found, Planton) or not callable(found):
        return found
    made = found()
    return await made if inspect.isawaitable(made) else made


def _checked(target: str, made: Any) -> Planton:
    if not isinstance(made, Planton):
        remedy = "it must be a Planton, or a function that gives one"
        raise Mistake(f"{target} is {made!r:.80}: {remedy}")
    return made


def _mistake(target: str, error: Exception) -> Mistake:
    cause = unwrapped(error)
    if isinstance(cause, PlantonError):
        return Mistake(f"{target}: {cause}")
    return Mistake(f"{target} raised {describe(cause)} ({place(cause)})")
