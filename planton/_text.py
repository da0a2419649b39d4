"""Texts of anything, for messages and logs; what a user's object does then harms no one else."""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

# Of the text of an error, such as a database's with a whole statement in it.
_LONGEST = 200
# Groups in groups: deeper `logging` would raise a RecursionError, wider it would write for ever.
_DEEPEST, _WIDEST = 100, 1000
# Of the class `type` itself: a metaclass may do as it likes when it is asked.
_name_of: Callable[[type[Any]], str] = vars(type)["__name__"].__get__
# Control characters and those that turn the direction of the text around them.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def text_of(value: object, function: Callable[[object], str] = str) -> str:
    """Return the text of `value`; a stand-in when its own code fails to make one."""
    try:
        # A subclass of str may do as it likes when it is formatted.
        return str.__str__(function(value))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: ASYNC103  no cancellation comes from here
        name, failure = _name_of(type(value)), _name_of(type(error))
        return f"<{name} whose text fails with {failure}>"  # noqa: ASYNC104


def short_repr(value: object) -> str:
    text = text_of(value, repr)
    return text if len(text) <= 100 else f"{text[:100]}…"


def printable(text: str) -> str:
    r"""Escape what would change how a terminal shows the text around it.

    Examples:
        >>> printable("red: \x1b[31m, turned: \u202e, lone: \ud800, kept: é\n")
        'red: \\x1b[31m, turned: \\u202e, lone: \\ud800, kept: é\n'
    """
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def on_one_line(text: str) -> str:
    r"""Fold a text of several lines, shorten it, and make it printable.

    Examples:
        >>> on_one_line("near FORM:\n  SELECT 1\n  FORM table")
        'near FORM: SELECT 1 FORM table'
        >>> len(on_one_line("word " * 1000))
        200
    """
    folded = printable(" ".join(text.split()))
    return folded if len(folded) <= _LONGEST else folded[: _LONGEST - 1] + "…"


def describe(error: BaseException) -> str:
    """Return type and text of an error, and those of the errors that a group holds.

    Examples:
        >>> describe(ValueError("no such address")), describe(TimeoutError())
        ('ValueError: no such address', 'TimeoutError')
        >>> describe(ExceptionGroup("nursery", [ValueError("a"), KeyError("b")]))
        "ExceptionGroup: ValueError: a; KeyError: 'b'"
    """
    name = _name_of(type(error))
    if isinstance(error, BaseExceptionGroup):
        return f"{name}: {'; '.join(map(describe, islice(leaves(error), 5)))}"
    text = text_of(error)
    return printable(f"{name}: {text}" if text else name)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors that groups hold, however deep.

    Not by `split` or `subgroup`, which recurse, and call `derive`: that of a user's may fail. A
    group that is there more than once is looked into once: there may be ever so many ways to it.
    """
    waiting, seen = [error], set[int]()
    while waiting:
        each = waiting.pop()
        if not isinstance(each, BaseExceptionGroup):
            yield each
        elif id(each) not in seen:
            seen.add(id(each))
            waiting += reversed(each.exceptions)


def traceback_of(error: BaseException) -> BaseException | None:
    """Return an error for a log to show; None if its groups are too deep, or too many, for that."""
    level: Sequence[BaseException] = [error]
    for _ in range(_DEEPEST):
        if len(level) > _WIDEST:
            break
        groups = [each for each in level if isinstance(each, BaseExceptionGroup)]
        level = [inner for group in groups for inner in group.exceptions]
        if not level:
            return error
    return None
