"""The log of errors that nobody listens to: each is told once, and then summed up."""

import logging
import re
import time
from typing import Any

import attrs

from planton._errors import PlantonError
from planton._events import ErrorEvent
from planton._text import describe, traceback_of

logger = logging.getLogger("planton")

# An error that goes on is told again, in one line, this often.
_SUM_UP_AFTER = 60.0
# So many errors of different kinds are remembered.
_REMEMBERED = 100
# What differs between errors of one kind: names in quotes, and numbers.
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")


@attrs.define
class _Kind:
    """Errors of one kind: when it was last told (monotonic), how many there were since then."""

    told_at: float
    repeated: int = 0


class ErrorLog:
    """Logs errors; those of one kind that follow each other are summed up, over all tasks."""

    def __init__(self) -> None:
        self._kinds: dict[object, _Kind] = {}

    def add(self, event: ErrorEvent) -> None:
        text = describe(event.error)
        key = (event.stage, event.service, _VARYING.sub("", text))
        now = time.monotonic()
        kind = self._kinds.pop(key, None)
        if kind is None:
            kind = _Kind(now)
            log_error(event)
        elif now - kind.told_at < _SUM_UP_AFTER:
            kind.repeated += 1
        else:
            _log_again(event, text, kind, now)
            kind = _Kind(now)
        # Last, so that the first of the dictionary is what was not seen for longest.
        self._kinds[key] = kind
        if len(self._kinds) > _REMEMBERED:
            del self._kinds[next(iter(self._kinds))]


def log_change(task_name: str, what: str, *arguments: object) -> None:
    """Log a change of state that an operator wants to find in the log."""
    logger.info(f"task %r {what}", task_name, *arguments, extra={"task_name": task_name})


def log_error(event: ErrorEvent) -> None:
    """Log an error whatever was logged before.

    The words of Planton's own, which have those of their cause, say it all.
    """
    text = describe(event.error)
    is_brief = isinstance(event.error, PlantonError) and not logger.isEnabledFor(logging.DEBUG)
    exc_info = None if is_brief else traceback_of(event.error)
    logger.error("%s failed: %s", _where(event), text, exc_info=exc_info, extra=_extra(event))


def _log_again(event: ErrorEvent, text: str, kind: _Kind, now: float) -> None:
    times, seconds = kind.repeated + 1, now - kind.told_at
    message = "%s goes on failing, %d times more in %.0f s: %s"
    logger.warning(message, _where(event), times, seconds, text, extra=_extra(event))


def _extra(event: ErrorEvent) -> dict[str, Any]:
    return {"task_name": event.task_name, "stage": event.stage, "service": event.service}


def _where(event: ErrorEvent) -> str:
    if event.task_name is not None:
        return f"{event.stage} of task {event.task_name!r}"
    return event.stage if event.service is None else f"{event.stage} {event.service}"
