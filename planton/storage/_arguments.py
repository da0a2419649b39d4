"""Checks of what storages are given, and the limits that all of them share.

Each function returns the value as a backend takes it, or raises `InvalidArgumentError`, which names
the argument and the value. The limits are those of the smallest database (PostgreSQL's columns),
and its tables have the same ones as CHECK constraints, for rows that are inserted by plain SQL.
"""

import json
import math
import os
import re
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal, TypeAlias, cast, get_args

from planton._errors import InvalidArgumentError
from planton._task import is_int
from planton._text import describe

Status: TypeAlias = Literal["queued", "running", "succeeded", "failed", "dead"]

MOST = 2**31 - 1  # of an integer column
LONGEST = 1e9  # seconds, some thirty years; an interval holds not much more
NAME_LENGTH = 500  # bytes in UTF-8 of a task's name, a tag or a partition
INSTRUCTION_LENGTH = 2000  # bytes; indexes have both, and a row of an index has 2,704 at most
PAYLOAD_LENGTH = 16 * 1024 * 1024  # characters of JSON
DEPTH = 200  # of JSON; Python's reader gives up at about a thousand levels
DIGITS = 4300  # of a number in JSON; Python reads no longer integers unless told to
_ERROR_LENGTH = 10_000
_PARTS = re.compile(r'"(?:[^"\\]+|\\.)*"|(\d+)')


def to_name(task_name: object, argument: str = "task_name") -> str:
    """Return the name of a task."""
    return to_text(argument, task_name, NAME_LENGTH)


def to_text(
    argument: str, value: object, longest: int, remedy: str = "give a non-empty str"
) -> str:
    """Return a non-empty str that every database can hold."""
    if not isinstance(value, str) or not value:
        raise InvalidArgumentError(argument, value, remedy)
    if len(value.encode(errors="replace")) > longest:
        remedy = f"give at most {longest} bytes in UTF-8"
        raise InvalidArgumentError(argument, f"{value[:50]}…", remedy)
    if "\0" in value or value.encode(errors="replace").decode() != value:
        remedy = "databases hold no NUL and no half characters (surrogates): leave them out"
        raise InvalidArgumentError(argument, value, remedy)
    return value


def to_instruction(value: object) -> str:
    """Return an instruction."""
    remedy = "give a non-empty str, as str(row_id)"
    return to_text("instruction", value, INSTRUCTION_LENGTH, remedy)


def to_claimant(name: object) -> str:
    """Return who claims: a name, or the host and the process if it is None."""
    if name is None:
        return f"{socket.gethostname()}:{os.getpid()}"
    remedy = "give a non-empty str, or None for the host and the process"
    return to_text("name", name, NAME_LENGTH, remedy)


def to_number(argument: str, value: Any, *, above: float | None = None) -> float:
    """Return finite seconds of at least 0, or above `above`; a timedelta is taken, too."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    least = "of at least 0" if above is None else f"above {above:g}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (value >= 0 if above is None else value > above) or value == math.inf:
        raise InvalidArgumentError(argument, value, f"give finite seconds {least}")
    if value >= LONGEST:
        raise InvalidArgumentError(argument, value, f"give seconds below {LONGEST:g}")
    return float(value)


def to_count(argument: str, value: object, minimum: int = 0) -> int:
    """Return an int of at least `minimum`; a bool is none."""
    if not isinstance(value, int) or not is_int(value, minimum):
        raise InvalidArgumentError(argument, value, f"give an int of at least {minimum}")
    if value > MOST:
        raise InvalidArgumentError(argument, value, f"give an int of at most {MOST}")
    return value


def to_priority(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MOST:
        raise InvalidArgumentError("priority", value, "give an int of 32 bits")
    return value


def to_strings(argument: str, value: object, longest: int = NAME_LENGTH) -> tuple[str, ...]:
    """Return several strings; a single one is refused, its letters were not meant."""
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        strings = tuple(value)
        if all(isinstance(string, str) for string in strings):
            return tuple(to_text(argument, string, longest) for string in strings)
    raise InvalidArgumentError(argument, value, "give a list of str")


def to_partition(value: object) -> str:
    """Return a partition; an empty one is none."""
    if isinstance(value, str) and not value:
        return ""
    return to_text("partition", value, NAME_LENGTH, 'give a str, such as "acme", or "" for none')


def to_key(value: object) -> str:
    """Return a pattern for LIKE."""
    remedy = 'give a pattern for LIKE, such as "user:%"'
    key = to_text("key", value, INSTRUCTION_LENGTH, remedy)
    backslashes = len(key) - len(key.rstrip("\\"))
    if backslashes % 2:
        remedy = "it ends with a backslash that escapes nothing: write two for a backslash itself"
        raise InvalidArgumentError("key", value, remedy)
    return key


def to_json(argument: str, value: object) -> str | None:
    """Return a value as JSON text; None as None.

    Half characters, which JSON may have, are escaped: no database holds them as they are.
    """
    if value is None:
        return None
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except RecursionError as error:
        remedy = f"it is nested too deeply: give at most {DEPTH} levels"
        raise InvalidArgumentError(argument, type(value), remedy) from error
    except Exception as error:  # a mapping of the user's may raise anything
        reason = f"give something that is JSON ({describe(error)})"
        raise InvalidArgumentError(argument, value, reason) from error
    _check_json(argument, text)
    return text.encode(errors="backslashreplace").decode()


def _check_json(argument: str, text: str) -> None:
    if len(text) > PAYLOAD_LENGTH:
        remedy = f"give at most {PAYLOAD_LENGTH} characters of JSON; store more elsewhere"
        raise InvalidArgumentError(argument, f"{text[:50]}…", remedy)
    if "\\u0000" in text:
        raise InvalidArgumentError(argument, f"{text[:50]}…", "leave out the NUL character in it")
    if len(text) > DIGITS and any(len(part[1] or "") > DIGITS for part in _PARTS.finditer(text)):
        remedy = f"it has a number of more than {DIGITS} digits: give it as a str"
        raise InvalidArgumentError(argument, f"{text[:50]}…", remedy)
    if text.count("[") + text.count("{") > DEPTH and _depth(json.loads(text)) > DEPTH:
        remedy = f"it is nested too deeply: give at most {DEPTH} levels"
        raise InvalidArgumentError(argument, f"{text[:50]}…", remedy)


def _depth(value: object) -> int:
    """Return how many lists and objects lie in each other, without recursion."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [
            inner for each in level for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


def to_error_text(error: object) -> str:
    """Return an error as it is stored: an exception by its type and message."""
    if isinstance(error, BaseException):
        return storable(describe(error))
    if isinstance(error, str):
        return storable(error)
    raise InvalidArgumentError("error", error, "give a str or an exception")


def storable(text: str, longest: int = _ERROR_LENGTH) -> str:
    """Return a text of moderate length that every database holds."""
    return text[:longest].replace("\0", "␀").encode(errors="replace").decode()


def to_flag(argument: str, value: object) -> bool:
    """Return a bool, or raise `InvalidArgumentError`: anything else is taken for a mistake."""
    if not isinstance(value, bool):
        raise InvalidArgumentError(argument, value, "give True or False")
    return value


def to_status(status: object) -> Status:
    for known in get_args(Status):
        if status == known:
            return cast(Status, known)
    raise InvalidArgumentError("status", status, f"give one of {', '.join(get_args(Status))}")
