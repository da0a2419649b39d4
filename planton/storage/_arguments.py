"""What every storage does alike: looks at its arguments.

Pure. Storages get it from `planton.storage`.
"""

import json
import math
import os
import socket
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Self

import attrs

from planton._calendar import to_instant
from planton._errors import InvalidArgumentError
from planton._task import is_int


def to_name(task_name: object) -> str:
    """Give the name of a task, or raise `InvalidArgumentError`."""
    if not isinstance(task_name, str) or not task_name:
        raise InvalidArgumentError("task_name", task_name, "give a non-empty str")
    return task_name


def to_claimant(name: object) -> str:
    """Give who claims: a name, or the host and the process if it is None."""
    if name is None:
        return f"{socket.gethostname()}:{os.getpid()}"
    if not isinstance(name, str) or not name:
        remedy = "give a non-empty str, or None for the host and the process"
        raise InvalidArgumentError("name", name, remedy)
    return name


def to_number(argument: str, value: Any, *, above: float | None = None) -> float:
    """Give finite seconds of at least 0, or above `above`; a timedelta is taken, too."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    least = "of at least 0" if above is None else f"above {above:g}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and (value >= 0 if above is None else value > above) and value < math.inf:
        return float(value)
    raise InvalidArgumentError(argument, value, f"give finite seconds {least}")


def to_lease(lease: object) -> float:
    """Give the seconds of a lease."""
    return to_number("lease", lease, above=0)


def to_count(argument: str, value: object, minimum: int = 0) -> int:
    """Give an int of at least `minimum`; a bool is none."""
    if isinstance(value, int) and is_int(value, minimum):
        return value
    raise InvalidArgumentError(argument, value, f"give an int of at least {minimum}")


def to_strings(argument: str, value: object) -> tuple[str, ...]:
    """Give several strings as a tuple; a single one is refused, its letters were not meant."""
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        strings = tuple(value)
        if all(isinstance(string, str) for string in strings):
            return strings
    raise InvalidArgumentError(argument, value, "give a list of str")


def to_json(argument: str, value: object) -> str | None:
    """Give a value as JSON text; None as None."""
    if value is None:
        return None
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        remedy = f"give something that is JSON ({error})"
        raise InvalidArgumentError(argument, value, remedy) from error


def to_error_text(error: object) -> str:
    """Give an error as it is kept: an exception by its name and message."""
    if isinstance(error, BaseException):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, str):
        return error
    raise InvalidArgumentError("error", error, "give a str or an exception")


@attrs.frozen(kw_only=True)
class NewInstruction:
    """What `enqueue` was given, looked at.

    Attributes:
        payload: JSON text; None for none.
        run_at: In UTC; None for at once.
    """

    task_name: str
    instruction: str
    payload: str | None
    priority: int
    run_at: datetime | None
    tags: tuple[str, ...]
    retries: int
    timeout: float | None

    @classmethod
    def of(
        cls,
        task_name: object,
        instruction: object,
        *,
        payload: object = None,
        priority: object = 0,
        run_at: object = None,
        tags: object = (),
        retries: object = 0,
        timeout: object = None,
    ) -> Self:
        """Look at it, or raise `InvalidArgumentError`, which names the argument and the value."""
        if not isinstance(instruction, str) or not instruction:
            remedy = "give a non-empty str, as str(row_id)"
            raise InvalidArgumentError("instruction", instruction, remedy)
        if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) >= 2**31:
            raise InvalidArgumentError("priority", priority, "give an int of 32 bits")
        return cls(
            task_name=to_name(task_name),
            instruction=instruction,
            payload=to_json("payload", payload),
            priority=priority,
            run_at=None if run_at is None else to_instant("run_at", run_at),
            tags=to_strings("tags", tags),
            retries=to_count("retries", retries),
            timeout=None if timeout is None else to_number("timeout", timeout, above=0),
        )


@attrs.frozen(kw_only=True)
class FailureReport:
    """What `fail` was given, looked at.

    Attributes:
        error: As it is kept.
        delay: Seconds until it may be claimed again.
        retry: Whether to try again while retries are left.
        lower_priority: Whether it then comes after others.
        retries: How many it is given if it failed for the first time and has none of its own.
    """

    error: str
    delay: float
    retry: bool
    lower_priority: bool
    retries: int = 0

    @classmethod
    def of(
        cls,
        error: object,
        *,
        retry_in: object,
        retry: bool,
        lower_priority: bool,
        retries: object = 0,
    ) -> Self:
        """Look at it, or raise `InvalidArgumentError`."""
        return cls(
            error=to_error_text(error),
            delay=0.0 if retry_in is None else to_number("retry_in", retry_in),
            retry=retry,
            lower_priority=lower_priority,
            retries=to_count("retries", retries),
        )


@attrs.frozen(kw_only=True)
class AdvanceReport:
    """What `advance` was given, looked at.

    Attributes:
        payload: JSON text; None for none.
        retries: How many there are from now on.
        delay: Seconds until it is to go on; None if the consumer goes on at once.
    """

    payload: str | None
    retries: int
    delay: float | None

    @classmethod
    def of(cls, payload: object, *, retries: object, run_in: object) -> Self:
        """Look at it, or raise `InvalidArgumentError`."""
        return cls(
            payload=to_json("payload", payload),
            retries=to_count("retries", retries),
            delay=None if run_in is None else to_number("run_in", run_in),
        )
