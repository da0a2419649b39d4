"""What PostgreSQL can hold: less than what `planton.storage` lets through."""

from planton import InvalidArgumentError
from planton.storage import to_count, to_name, to_number, to_strings

MOST = 2**31 - 1  # of an integer column
_LONGEST = 1e9  # seconds, some thirty years; what an interval holds is not much more


def to_integer(argument: str, value: object, minimum: int = 0) -> int:
    """Give an int that an integer column holds, or raise `InvalidArgumentError`."""
    if to_count(argument, value, minimum) > MOST:
        raise InvalidArgumentError(argument, value, f"give an int of at most {MOST}")
    return to_count(argument, value, minimum)


def to_seconds(argument: str, value: object, *, above: float | None = None) -> float:
    """Give seconds that an interval holds, or raise `InvalidArgumentError`."""
    seconds = to_number(argument, value, above=above)
    if seconds >= _LONGEST:
        raise InvalidArgumentError(argument, value, f"give seconds below {_LONGEST:g}")
    return seconds


def to_text(argument: str, value: object) -> str:
    """Give what a text column holds, or raise `InvalidArgumentError`."""
    if not isinstance(value, str):
        raise InvalidArgumentError(argument, value, "give a str")
    if "\0" in value or not _is_unicode(value):
        raise InvalidArgumentError(argument, value, "PostgreSQL has no NUL and no half characters")
    return value


def to_texts(argument: str, values: object) -> tuple[str, ...]:
    """Give several texts as a tuple, or raise `InvalidArgumentError`."""
    return tuple(to_text(argument, value) for value in to_strings(argument, values))


def to_task_name(value: object) -> str:
    """Give the name of a task, or raise `InvalidArgumentError`."""
    return to_text("task_name", to_name(value))


def to_json_column(text: str | None) -> str | None:
    """Give JSON as a column takes it: half characters, which JSON may have, escaped."""
    return None if text is None else text.encode(errors="backslashreplace").decode()


def to_error_column(text: str) -> str:
    """Give an error as it is kept: its text must not be what keeps a consumer from reporting it."""
    return text.replace("\0", "␀").encode(errors="replace").decode()[:10_000]


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
